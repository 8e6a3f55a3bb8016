"""Quantized GGUF files: what the weights level sees, and that torch quantized alike loses what llama.cpp loses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.exporters import gguf
from isoform.exporters.gguf.imatrix import write_importance
from isoform.exporters.gguf.mixes import MIXES
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import Model, open_model
from isoform.reference.names import GGUF, rename
from isoform.runtimes.backends.llamacpp.session import LlamaCppSession
from isoform.validators.cases.case import Case
from isoform.validators.cases.prose import ROWS, TEXT, WINDOW, prose_rows, read_text
from isoform.validators.cases.text import token_cases
from isoform.validators.levels.deployment import check_deployment, measure, session_run
from isoform.validators.levels.weights import check_weights
from isoform.validators.report.records import Report
from isoform.validators.truth.answers import NEW, PROMPTS, PassageAnswers, imitation, outputs_alone, run_alone
from isoform.validators.truth.budgets import BUDGETS, ROUNDING, budget_of
from isoform.validators.truth.deviations import HALVES, WIDE, activations
from isoform.validators.truth.losses import Loss
from isoform.validators.truth.reference import Truth
from isoform.validators.truth.tolerances import IMPORTANCE, QUANTIZED
from tests.oracle import tiny
from tests.oracle.wide import wide
from tests.validators.torch_session import TorchSession

FAST = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "q5_1", "q4_0", "iq4_nl", "mxfp4", "tq2_0")

Made = Callable[[str], tuple[Model, Path]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(wide("qwen2", tmp_path_factory.mktemp("wide") / "source", num_hidden_layers=3))


@pytest.fixture(scope="module")
def answers(model: Model) -> PassageAnswers:
    return PassageAnswers(model)


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("quantized")

    @cache
    def make(kind: str) -> Path:
        [artifact] = gguf.write(model, folder, [kind])
        return folder / artifact.files[0].path

    return make


def changed(path: Path, folder: Path, tensor: str, where: int, bit: int = 1) -> Path:
    """A copy in which a byte of a tensor has another bit."""
    copy = folder / "changed.gguf"
    content = bytearray(path.read_bytes())
    content[read_gguf(path).tensors[rename(tensor, GGUF) or tensor].offset + where] ^= bit
    copy.write_bytes(content)
    return copy


def failed(report: Report) -> dict[str, str]:
    return {result.metric: result.note for result in report.results if not result.passed}


# ------------------------------------------------------------------ weights
@pytest.mark.parametrize("kind", FAST)
def test_every_byte_of_every_tensor_is_compared(
    model: Model, written: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    assert check_weights(model, written(kind), "gguf", kind, "llamacpp").same
    tensor = "layers.1.mlp.gate.weight"
    kept = open_model(written(kind)).checkpoint.info(tensor)
    for where in (0, kept.nbytes // 2, kept.nbytes - 1):
        report = check_weights(model, changed(written(kind), tmp_path, tensor, where), "gguf", kind, "llamacpp")
        assert failed(report).keys() == {"differing"}
        assert failed(report)["differing"].startswith(tensor)


def test_rows_that_llamacpp_interleaves_are_compared_in_their_order(tmp_path: Path) -> None:
    model = open_model(wide("llama", tmp_path / "source", num_hidden_layers=2))
    [artifact] = gguf.write(model, tmp_path, ["q4_k_m"])
    path = tmp_path / artifact.files[0].path
    assert check_weights(model, path, "gguf", "q4_k_m", "llamacpp").same
    report = check_weights(model, changed(path, tmp_path, "layers.0.attn.q.weight", 5), "gguf", "q4_k_m", "llamacpp")
    assert failed(report).keys() == {"differing"}


def test_overridden_types_are_named_and_compared(model: Model, tmp_path: Path) -> None:
    options = gguf.Options(overrides=("attn_v=q8_0",))
    [artifact] = gguf.write(model, tmp_path, ["q4_k_m"], options=options)
    report = check_weights(model, tmp_path / artifact.files[0].path, "gguf", "q4_k_m", "llamacpp")
    assert report.same
    assert "layers.0.attn.v.weight (Q8_0)" in report.results[1].note
    assert artifact.options == {"overrides": ["attn_v=q8_0"]}
    path = tmp_path / artifact.files[0].path
    assert check_weights(model, path, "gguf", "q4_k_m", "llamacpp", artifact.options).same
    other = check_weights(model, path, "gguf", "q4_k_m", "llamacpp", {"overrides": ["attn_v=q6_k"]})
    assert "layers.0.attn.v.weight is stored as Q8_0, not Q6_K" in failed(other)["wrong_tensors"]
    assert "wrong_tensors" in failed(check_weights(model, path, "gguf", "q4_k_m", "llamacpp", {}))


def test_a_text_of_ones_own_is_measured_on(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The small model reads a strange house. " * 30)
    text = read_text(path)
    passages = Truth(model, [], text=text).answers.passages
    read = [passage.row.tokens.tolist() for passage in passages if not passage.greedy]
    assert read == [row.tokens.tolist() for row in prose_rows(model, text)]
    assert read != [row.tokens.tolist() for row in prose_rows(model)]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_text(path)
    path.write_text(" \n")
    with pytest.raises(InputError, match="holds no text"):
        read_text(path)


def test_an_importance_matrix_that_is_at_hand_makes_every_byte_count(model: Model, tmp_path: Path) -> None:
    shapes = {rename(key, GGUF): weight.shape for key, weight in model.weights.items() if len(weight.shape) > 1}
    rng = np.random.default_rng(0)
    matrix = tmp_path / "m.gguf"
    sums = {str(name): (rng.random(shape[1], np.float32), 1) for name, shape in shapes.items()}
    write_importance(matrix, sums, "text", 1, 64)
    [artifact] = gguf.write(model, tmp_path, ["q4_k_m"], options=gguf.Options(imatrix=matrix))
    path = tmp_path / artifact.files[0].path
    arguments = ("gguf", "q4_k_m", "llamacpp", artifact.options)
    assert [r.metric for r in check_weights(model, path, *arguments).results] == ["differing", "wrong_tensors"]
    assert check_weights(model, path, *arguments).same
    one = changed(path, tmp_path, "layers.0.attn.q.weight", 5)
    assert failed(check_weights(model, one, *arguments)).keys() == {"differing"}
    matrix.unlink()
    assert {r.metric for r in check_weights(model, path, *arguments).results} > {"importance_error"}


def test_a_file_under_the_name_of_another_type_is_wrong(model: Model, written: Callable[[str], Path]) -> None:
    report = check_weights(model, written("q4_0"), "gguf", "q4_k_m", "llamacpp")
    assert "general.file_type is 2, 15 stands for q4_k_m" in failed(report)["wrong_tensors"]


def test_another_models_file_is_wrong(written: Callable[[str], Path], tmp_path: Path) -> None:
    other = open_model(wide("qwen2", tmp_path / "other", seed=1, num_hidden_layers=3))
    report = check_weights(other, written("q6_k"), "gguf", "q6_k", "llamacpp")
    assert failed(report).keys() == {"differing"}


def test_a_split_file_is_compared_as_one(model: Model, tmp_path: Path) -> None:
    options = gguf.Options(split_max_size="1M")
    [artifact] = gguf.write(model, tmp_path, ["q4_k_m"], options=options)
    assert len(artifact.files) > 1
    assert check_weights(model, tmp_path / artifact.files[0].path, "gguf", "q4_k_m", "llamacpp").same


def test_with_an_importance_matrix_the_error_is_bounded(model: Model, tmp_path: Path) -> None:
    from isoform.exporters.gguf.ggml import quantize

    file = _importance(model, tmp_path)
    options = gguf.Options(imatrix=file)
    [artifact] = gguf.write(model, tmp_path, ["q4_k_m"], options=options)
    path = tmp_path / artifact.files[0].path
    report = check_weights(model, path, "gguf", "q4_k_m", "llamacpp")
    assert report.same
    assert report.results[-1].metric == "importance_error"
    assert 1 < report.results[-1].value < IMPORTANCE.value
    info = open_model(path).checkpoint.info("layers.1.mlp.gate.weight")
    content = bytearray(path.read_bytes())
    rows = model.weights["layers.1.mlp.gate.weight"].load().float().flip(0).contiguous().numpy()
    content[info.offset : info.offset + info.nbytes] = quantize(rows, "Q4_K").tobytes()
    path.write_bytes(content)
    assert failed(check_weights(model, path, "gguf", "q4_k_m", "llamacpp")).keys() == {"importance_error"}


def _importance(model: Model, folder: Path) -> Path:
    """An importance matrix in llama.cpp's GGUF format, with columns of very different weights."""
    import gguf as writer

    draw = np.random.default_rng(0)
    out = writer.GGUFWriter(folder / "imatrix.gguf", "imatrix")
    out.add_type("imatrix")
    out.add_array("imatrix.datasets", ["text"])
    out.add_uint32("imatrix.chunk_count", 1)
    out.add_uint32("imatrix.chunk_size", 512)
    for key, weight in model.weights.items():
        if len(weight.shape) > 1:
            name = rename(key, GGUF)
            out.add_tensor(f"{name}.in_sum2", draw.gamma(0.5, size=(1, weight.shape[1])).astype(np.float32))
            out.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return folder / "imatrix.gguf"


# ------------------------------------------------------------------ deployment
@pytest.mark.parametrize("kind", FAST)
def test_torch_quantized_alike_loses_what_llamacpp_loses(
    model: Model, answers: PassageAnswers, written: Callable[[str], Path], kind: str
) -> None:
    with LlamaCppSession(written(kind), model.signature, threads=1) as session:
        loss = measure(session_run(session, answers), answers)
    run, rounding = imitation(model, written(kind))
    alike = measure(run, answers, rounding)
    assert loss.mean_kl == pytest.approx(alike.mean_kl, rel=0.05)
    assert loss.mean_kl <= BUDGETS[kind].kl.value or kind == "tq2_0"  # three values per weight, of a model with more
    if kind in ("q8_0", "q6_k"):  # where the weights lose little, what is rounded on the way shows
        assert measure(run, answers).mean_kl < 0.95 * alike.mean_kl


def test_the_reference_itself_loses_nothing(model: Model, answers: PassageAnswers) -> None:
    module = model.module()
    loss = measure(lambda row: outputs_alone(model, module, row), answers)
    assert loss.mean_kl < 1e-9
    assert (loss.text.other, loss.greedy.other) == (0, 0)
    assert loss.text.positions == sum(len(row) for row in prose_rows(model))
    assert loss.greedy.positions == NEW * PROMPTS


def test_the_continuations_are_the_references_greedy_ones(model: Model, answers: PassageAnswers) -> None:
    module = model.module()
    continued = [passage for passage in answers.passages if passage.greedy]
    assert len(continued) == PROMPTS
    for passage in continued:
        logits = run_alone(model, module, passage.row)
        chosen = logits[passage.asked].argmax(-1)
        assert np.array_equal(chosen[:-1], passage.row.tokens[passage.asked.start + 1 :])


@pytest.mark.parametrize(
    ("fault", "metrics"),
    [
        (lambda x: x * 2, {"kl"}),
        (lambda x: np.roll(x, 1, -1), {"kl"}),
        (lambda x: x * np.float32(np.nan), {"nonfinite"}),
        (lambda x: x[:, :-1], {"mismatch"}),
        (lambda x: x[..., :-1], {"mismatch"}),
    ],
)
def test_a_session_that_loses_more_than_torch_alike_fails(
    model: Model,
    written: Callable[[str], Path],
    fault: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    metrics: set[str],
) -> None:
    truth = Truth(model, [Case("one", tuple(prose_rows(model)[:1]))])
    honest = TorchSession(model, backend="llamacpp")
    assert check_deployment(honest, written("q4_k_m"), "q4_k_m", truth).same
    faulty = TorchSession(model, backend="llamacpp", result=fault)
    assert metrics <= failed(check_deployment(faulty, written("q4_k_m"), "q4_k_m", truth)).keys()


def test_near_ties_may_turn_and_clear_choices_may_not() -> None:
    loss = Loss()
    want = np.log(np.array([[0.50, 0.45, 0.05], [0.70, 0.25, 0.05]], np.float32))
    loss.add(want[:, [1, 0, 2]], want, greedy=False)  # each prefers the second token
    assert (loss.text.positions, loss.text.other, loss.text.clear) == (2, 2, 1)
    loss.add(want, want, greedy=True)
    assert (loss.greedy.positions, loss.greedy.other) == (2, 0)
    assert len(loss.kl) == 2


def test_a_model_without_a_tokenizer_is_measured_on_the_cases(tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny("qwen2"), tmp_path / "silent"))
    for path in folder.glob("*token*"):
        path.unlink()
    model = open_model(folder)
    assert prose_rows(model) == []
    truth = Truth(model, token_cases(model))
    [artifact] = gguf.write(open_model(tiny("qwen2")), tmp_path, ["q8_0"])
    report = check_deployment(TorchSession(model), tmp_path / artifact.files[0].path, "q8_0", truth)
    assert report.same
    assert report.results[0].group == "rows alone"


def test_encoders_are_measured_by_their_states(tmp_path: Path) -> None:
    model = open_model(tiny("bert_embed"), "feature-extraction").trunk
    [artifact] = gguf.write(model, tmp_path, ["q8_0"])
    path = tmp_path / artifact.files[0].path
    truth = Truth(model, token_cases(model))
    with LlamaCppSession(path, model.signature, threads=1) as session:
        report = check_deployment(session, path, "q8_0", truth)
    assert report.same
    assert [result.metric for result in report.results] == ["nmse", "cosine"]
    wrong = TorchSession(model, result=lambda states: states * np.float32(1.02))
    assert failed(check_deployment(wrong, path, "q8_0", truth)).keys() == {"nmse"}
    turned = TorchSession(model, result=lambda states: np.roll(states, 1, -1))
    assert failed(check_deployment(turned, path, "q8_0", truth)).keys() == {"nmse", "cosine"}


# ------------------------------------------------------------------ activations, text, budgets
@pytest.mark.parametrize(("kind", "block"), [("Q8_0", 32), ("Q4_K", 256)])
def test_activations_are_rounded_as_ggml_rounds_them(kind: str, block: int) -> None:
    import gguf as quants

    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 512)).astype(np.float32)
    x[0, :block] = 0
    weight = torch.nn.Parameter(torch.eye(512), False)
    with activations({id(weight): kind}):
        found = torch.nn.functional.linear(torch.from_numpy(x), weight).numpy()
    if kind == "Q8_0":
        number = quants.GGMLQuantizationType.Q8_0
        expected = quants.dequantize(quants.quantize(x, number), number)
        assert np.array_equal(found, expected)
    blocks, rounded = x.reshape(-1, block), found.reshape(-1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    assert (np.abs(blocks - rounded) <= 0.505 * scale + 2e-3 * np.abs(blocks).max() * (kind == "Q8_0")).all()
    assert not found[0, :block].any()


def test_matrices_that_are_not_named_are_left_alone() -> None:
    x, weight = torch.randn(3, 64), torch.nn.Parameter(torch.randn(5, 64), False)
    with activations({}):
        assert torch.equal(torch.nn.functional.linear(x, weight), x @ weight.T)
    with pytest.raises(ValueError, match="Q9_9"):
        activations({1: "Q9_9"})


@pytest.mark.parametrize("name", ["qwen2", "gemma3_b", "bert_embed", "llama"])
def test_the_text_is_read_as_the_tokenizer_reads_texts(name: str) -> None:
    from tokenizers import Tokenizer

    model = open_model(tiny(name), "feature-extraction" if name.startswith("bert") else None)
    rows = prose_rows(model)
    assert 1 < len(rows) <= ROWS
    assert max(len(row) for row in rows) <= WINDOW
    tokenizer = Tokenizer.from_file(str(tiny(name) / "tokenizer.json"))
    start = tokenizer.encode(TEXT[:60]).ids
    start = start[:-1] if name.startswith("bert") else start
    assert rows[0].tokens[: len(start) - 3].tolist() == start[:-3]
    begin = tokenizer.encode("").ids[:1]
    assert all(row.tokens[: len(begin)].tolist() == begin for row in rows)


def test_the_text_is_long_enough_and_plain() -> None:
    assert 600 < len(TEXT.split()) < 1200
    assert TEXT.isascii()


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix not in ("f32", "f16", "bf16")])
def test_every_quantization_has_a_budget_with_reasons(mix: str) -> None:
    budget = BUDGETS[mix]
    for tolerance in (budget.kl, budget.top1, budget.greedy, budget.nmse):
        assert tolerance.name.startswith(f"{mix}.")
        assert tolerance.unit
        assert tolerance.reason
        assert tolerance.value > 0
    assert budget.kl.value >= BUDGETS["q8_0"].kl.value


def test_more_bits_are_allowed_less() -> None:
    order = ["q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"]
    limits = [BUDGETS[mix].kl.value for mix in order]
    assert limits == sorted(limits)
    assert set(ROUNDING) | {"TQ1_0", "TQ2_0"} == set(HALVES) | set(WIDE)
    assert QUANTIZED.value < 2


@pytest.mark.parametrize(
    ("dtype", "like"),
    [
        ("q4w", "q4_0"),
        ("q4a-128", "q4_0"),
        ("q4f16", "q4_0"),
        ("q8-16", "q8_0"),
        ("int8", "q8_0"),
        ("q4_k_m", "q4_k_m"),
    ],
)
def test_a_type_has_the_budget_of_its_bits(dtype: str, like: str) -> None:
    assert budget_of(dtype) is BUDGETS[like]


@pytest.mark.parametrize("dtype", ["f32", "f16", "q7_x", ""])
def test_floats_and_unknown_types_have_no_budget(dtype: str) -> None:
    assert budget_of(dtype) is None
