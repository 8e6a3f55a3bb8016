"""Proofs of sessions: honest ones pass, and every way of being wrong is a failed result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.exporters import bundle
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_session
from isoform.validators.check import known_answers
from isoform.validators.check.proof import Answers, prove, reference_answers, worst_by_metric
from isoform.validators.report.records import Report
from isoform.validators.truth.budgets import known, proof_budget_of
from isoform.validators.truth.tolerances import chosen
from tests.exports import artifact_of, exported, file_of
from tests.oracle import tiny

Arrays = dict[str, NDArray[Any]]
METRICS = {
    "llama": {"kl", "top1", "greedy"},
    "gpt2": {"kl", "top1", "greedy"},
    "bert_embed": {"nmse", "cosine"},
    "bert_seqcls": {"kl", "labels", "scores", "outputs"},
    "bert_qa": {"outputs", "spans"},
    "vit_cls": {"kl", "labels", "scores", "outputs"},
    "dinov2": {"nmse", "cosine"},
    "wav2vec2_ctc": {"kl", "top1"},
    "whisper_b": {"heard", "top1", "greedy", "words", "nmse", "cosine"},
    "blip_caption": {"kl", "top1", "greedy", "nmse", "cosine"},
    "clip": {"kl", "labels", "scores", "outputs", "nmse", "cosine"},
    "sam": {"outputs", "masks"},
    "tapas_qa": {"kl", "labels", "scores", "outputs", "cells"},
}
"""Tiny checkpoint -> what its outputs are measured by."""


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def answers(name: str) -> Answers:
    return reference_answers(model(name))


class Changed:
    """A session that gives other outputs."""

    def __init__(self, session: Any, change: Callable[[Arrays], Arrays]) -> None:
        self.session, self.change = session, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return self.change(dict(self.session.run(inputs)))


def proven(name: str, dtype: str = "f32", change: Callable[[Arrays], Arrays] = lambda outputs: outputs) -> Report:
    """The proof of the reference under the name of a dtype, with changed outputs."""
    return prove(Changed(open_session(model(name), "torch"), change), model(name), dtype, answers(name))


def failed(report: Report) -> set[str]:
    return {result.metric for result in report.results if not result.passed}


def every(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], Arrays]:
    return lambda outputs: {name: change(array) for name, array in outputs.items()}


@pytest.mark.parametrize("name", METRICS)
def test_torch_in_bf16_is_proven_by_what_the_task_is_measured_by(name: str) -> None:
    with open_session(model(name), "torch", dtype="bf16") as session:
        report = prove(session, model(name), "bf16", answers(name))
    assert report.same, worst_by_metric(report)
    assert {result.metric for result in report.results} == METRICS[name]
    assert any(result.value > 0 for result in report.results)


@pytest.mark.parametrize("name", METRICS)
def test_torch_in_float32_is_exact_and_bf16_is_not(name: str) -> None:
    with open_session(model(name), "torch") as session:
        report = prove(session, model(name), "f32-portable", answers(name))
    assert report.same, worst_by_metric(report)
    assert {result.metric for result in report.results} == {"max_abs", "rms"}
    with open_session(model(name), "torch", dtype="bf16") as session:
        assert failed(prove(session, model(name), "f32", answers(name))) == {"max_abs", "rms"}


@pytest.mark.parametrize(("form", "backend"), [("onnx", "onnxruntime"), ("gguf", "llamacpp")])
def test_quantized_files_are_proven_on_their_backends(form: str, backend: str) -> None:
    options = {form: bundle.FORMATS[form].of_types(["q8_0"])}
    folder = exported("gpt2", (form,), "q8_0", **options)
    signature = artifact_of(folder, form, "q8_0").signature
    with open_session(file_of(folder, form, "q8_0"), backend, signature=signature) as session:
        report = prove(session, model("gpt2"), "q8_0", answers("gpt2"))
        assert report.same, worst_by_metric(report)
        assert "rms" in failed(prove(session, model("gpt2"), "f32", answers("gpt2")))


@pytest.mark.parametrize("name", ["gpt2", "bert_embed"])
def test_llamacpp_is_exact_in_strict_settings(name: str) -> None:
    """Its table for GELU counts as known, and a file without the modules of sentence-transformers as the model."""
    folder = exported(name)
    signature = artifact_of(folder, "gguf").signature
    with open_session(file_of(folder, "gguf"), "llamacpp", signature=signature, strict=True) as session:
        report = prove(session, model(name), "f32", answers(name))
    assert report.same, worst_by_metric(report)


@pytest.mark.parametrize("name", ["llama", "bert_embed", "bert_seqcls", "vit_cls", "clip", "bert_qa"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_rows_in_another_order_are_seen(name: str, dtype: str) -> None:
    assert not proven(name, dtype, every(lambda x: np.roll(x, 1, 0))).same


@pytest.mark.parametrize("name", ["llama", "bert_seqcls", "vit_cls", "clip", "wav2vec2_ctc"])
@pytest.mark.parametrize("dtype", ["bf16", "int4w"])
def test_labels_and_tokens_in_another_order_are_seen(name: str, dtype: str) -> None:
    assert not proven(name, dtype, every(lambda x: np.roll(x, 1, -1))).same


@pytest.mark.parametrize("name", ["llama", "bert_embed", "vit_cls"])
@pytest.mark.parametrize(
    ("change", "metric"),
    [
        (every(lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.float32(np.nan), x)), "nonfinite"),
        (every(lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.float32(np.inf), x)), "nonfinite"),
        (every(lambda x: x[..., :-1]), "mismatch"),
        (every(lambda x: x[:-1]), "mismatch"),
        (lambda outputs: {}, "error"),
        (lambda outputs: 1 / 0, "error"),
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_cannot_be_compared_is_a_failed_result(name: str, change: Any, metric: str, dtype: str) -> None:
    report = proven(name, dtype, change)
    assert not report.same
    assert failed(report) == {metric}
    assert all(result.note for result in report.results)


def test_a_decoder_that_forgets_is_seen_though_one_pass_is_right() -> None:
    class Forgetful(Changed):
        def decoder(self, rows: Any) -> Any:
            session = self.session

            class Decoder:
                def step(self, tokens: NDArray[Any], **options: Any) -> NDArray[Any]:
                    return session.decoder(rows).step(tokens, last=1)

            return Decoder()

    session = Forgetful(open_session(model("llama"), "torch"), lambda outputs: outputs)
    assert "greedy" in failed(prove(session, model("llama"), "bf16", answers("llama")))
    assert not prove(session, model("llama"), "f32", answers("llama")).same


def test_encoder_states_of_another_row_are_seen() -> None:
    parts: Any = open_session(model("whisper_b"), "torch")
    encode = parts.encode
    parts.encode = lambda inputs: encode({name: np.roll(array, 1, 0) for name, array in inputs.items()})
    report = prove(parts, model("whisper_b"), "bf16", answers("whisper_b"))
    assert not report.same


def test_a_session_of_another_model_is_a_failed_result() -> None:
    with open_session(model("bert_embed"), "torch") as session:
        assert not prove(session, model("llama"), "bf16", answers("llama")).same
        assert not prove(session, model("whisper_b"), "bf16", answers("whisper_b")).same


def test_a_lower_quality_allows_more() -> None:
    noise = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)

    def off(x: NDArray[Any]) -> NDArray[Any]:
        return x + np.float32(0.01 * x.std()) * noise[: x.size].reshape(x.shape)

    session: Any = Changed(open_session(model("bert_embed"), "torch"), every(off))
    given = (model("bert_embed"), "f32", answers("bert_embed"))
    passed = {quality: prove(session, *given, quality).same for quality in ("", "exact", "high", "small")}
    assert passed == {"": False, "exact": False, "high": True, "small": True}
    assert not prove(session, model("bert_embed"), "f16", answers("bert_embed")).same
    assert not prove(session, model("bert_embed"), "q8_0", answers("bert_embed"), "exact").same


def test_a_dtype_without_a_budget_is_not_proven() -> None:
    report = proven("bert_embed", "q7_x")
    assert "no budget is known for q7_x" in report.results[0].note


@pytest.mark.parametrize(("name", "metric"), [("bert_embed", "cosine"), ("bert_embed", "nmse"), ("vit_cls", "outputs")])
def test_an_error_just_above_the_limit_fails(name: str, metric: str) -> None:
    budget = getattr(proof_budget_of("bf16"), metric).value
    sign = np.where(np.arange(2**16) % 2, 1, -1).astype(np.float32)

    def off(share: float) -> set[str]:
        """With an error of this share of the budget, in a direction that has nothing to do with the values."""

        def change(x: NDArray[Any]) -> NDArray[Any]:
            if metric == "cosine":  # at right angles to the mean over the slots
                mean = x.reshape(len(x), -1, x.shape[-1]).mean(1)
                across = sign[: x.shape[-1]] - mean * (mean @ sign[: x.shape[-1]])[:, None] / (mean**2).sum(-1)[:, None]
                across *= np.sqrt((mean**2).sum(-1) / (across**2).sum(-1))[:, None]
                angle = np.arccos(1 - share * budget)
                moved = across * np.tan(angle)
                return x + (moved[:, None] if x.ndim == 3 else moved).astype(np.float32)
            factor = np.sqrt(share * budget)
            return (x * (1 + factor)).astype(np.float32)

        return failed(proven(name, "bf16", every(change)))

    assert metric in off(1.02)
    assert metric not in off(0.98)


def test_a_chosen_tolerance_is_the_limit() -> None:
    assert {"bf16.kl", "bf16.cosine", "int8.words", "q8_0.scores", "q4_0.labels"} <= known().keys()
    with open_session(model("bert_embed"), "torch", dtype="bf16") as session, chosen({"bf16.cosine": 1e-9}):
        assert failed(prove(session, model("bert_embed"), "bf16", answers("bert_embed"))) == {"cosine"}


@pytest.mark.parametrize("name", ["llama", "vit_cls", "whisper_b", "clip"])
def test_stored_answers_are_read_back(name: str, tmp_path: Path) -> None:
    answers(name).save(tmp_path / "a")
    answers(name).save(tmp_path / "a")  # in place of the others
    read = Answers.load(tmp_path / "a")
    for mine, theirs in zip(read.known, answers(name).known, strict=True):
        assert (mine.case.name, mine.spoken, mine.noise) == (theirs.case.name, theirs.spoken, theirs.noise)
        assert np.array_equal(mine.case.mask, theirs.case.mask)
        assert (mine.outputs.keys(), mine.encoded.keys()) == (theirs.outputs.keys(), theirs.encoded.keys())
        assert all(np.array_equal(mine.outputs[port], theirs.outputs[port]) for port in mine.outputs)
    with open_session(model(name), "torch", dtype="bf16") as session:
        found = [prove(session, model(name), "bf16", given).to_json() for given in (read, answers(name))]
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["missing", "cut", "nonsense", "version", "empty"])
def test_damaged_answers_are_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "a"
    answers("vit_cls").save(folder)
    if damage == "missing":
        (folder / "0.0.npy").unlink()
    elif damage == "cut":
        (folder / "inputs.npz").write_bytes((folder / "inputs.npz").read_bytes()[:99])
    elif damage == "nonsense":
        (folder / "answers.json").write_text('{"version": 1, "known": [[]]}')
    elif damage == "version":
        (folder / "answers.json").write_text('{"version": 0}')
    else:
        folder = tmp_path / "none"
    with pytest.raises(InputError, match="remove"):
        Answers.load(folder)


def test_a_model_too_large_for_float64_is_held_to_units_in_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "EXACT", 0)
    found = reference_answers(model("bert_embed"))
    assert not any(known.noise for known in found.known)
    with open_session(model("bert_embed"), "torch") as session:
        assert prove(session, model("bert_embed"), "f32", found).same
    with open_session(model("bert_embed"), "torch", dtype="bf16") as session:
        assert not prove(session, model("bert_embed"), "f32", found).same
