"""Whole bundles: changed files, changed weights, wrong sources, every format on its backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.errors import BackendUnavailable, InputError
from isoform.exporters import gguf
from isoform.manifest import NAME, Artifact, Manifest
from isoform.reference.model import open_model
from isoform.signature import Port
from isoform.validators.check.bundle import check_bundle
from isoform.validators.levels.metadata import check_metadata
from isoform.validators.levels.weights import check_weights
from isoform.validators.report.records import Report
from tests import oracle
from tests.exports import copied, exported
from tests.validators.torch_session import TorchSession


def write(name: str, folder: Path, dtype: str = "f32", types: tuple[str, ...] = ("f32", "q8_0")) -> Path:
    """A bundle of a tiny checkpoint in all three formats, which may be changed."""
    return copied(exported(name, dtype=dtype, gguf=gguf.Options(types=types)), folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("bundles") / "llama")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def honest(path: Path, backend: str, **_: Any) -> TorchSession:
    return TorchSession(open_model(oracle.tiny("llama")), backend=backend)


def keep(bundle: Path, *formats: str) -> Manifest:
    """Leave only the artifacts of these formats in the manifest."""
    manifest = Manifest.read(bundle)
    manifest.artifacts = [a for a in manifest.artifacts if a.format in formats and a.dtype == "f32"]
    manifest.write(bundle)
    return manifest


def failures(report: Report) -> set[tuple[str, str, str]]:
    return {(r.backend, r.level, r.metric) for r in report.results if not r.passed}


def largest(artifact: Artifact) -> str:
    """The file that holds the weights."""
    return max(artifact.files, key=lambda file: file.size).path


def flip(path: Path, where: int) -> None:
    """Change the lowest bit of the byte at `where`."""
    with path.open("r+b") as stream:
        stream.seek(where)
        byte = stream.read(1)[0]
        stream.seek(where)
        stream.write(bytes([byte ^ 1]))


def test_every_format_of_a_decoder_is_the_same_on_its_backend(bundle: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = check_bundle(bundle, progress=lambda *step: seen.append(step), threads=1)
    assert report.same, [r for r in report.results if not r.passed]
    forms = {"onnxruntime": "onnx", "torchscript": "torchscript", "llamacpp": "gguf"}
    assert all(r.form == forms.get(r.backend, "") and not r.part for r in report.results)
    assert {(r.backend, r.level) for r in report.results} == {
        ("torch", "files"),
        ("bundle", "inputs"),
        *((b, level) for b in ("onnxruntime", "torchscript", "llamacpp") for level in ("files", "weights", "graph")),
        ("llamacpp", "deployment"),
    }
    assert [(skip.dtype, skip.case, "activations" in skip.reason) for skip in report.skipped] == [("q8_0", "", True)]
    assert seen[-1][1] == seen[-1][2]
    kept = Manifest.read(bundle).parity
    assert kept is not None
    assert kept["same"] is True
    json.dumps(report.to_json(), allow_nan=False)


def test_an_encoder_is_the_same_and_what_llamacpp_refuses_is_listed(tmp_path: Path) -> None:
    report = check_bundle(write("bert_embed", tmp_path / "out"), threads=1)
    assert report.same, [r for r in report.results if not r.passed]
    assert [skip.kind for skip in report.skipped] == ["f32 token types", "q8_0"]


def test_the_order_of_results_is_the_same_every_time(bundle: Path) -> None:
    keep(bundle, "torchscript")
    one, two = (check_bundle(bundle, threads=1).to_json() for _ in range(2))
    assert [r["case"] + r["metric"] for r in one["results"]] == [r["case"] + r["metric"] for r in two["results"]]


@pytest.mark.parametrize("form", ["onnx", "torchscript", "gguf"])
def test_one_bit_of_one_weight_is_seen_by_its_file_and_its_name(bundle: Path, form: str) -> None:
    artifact = next(a for a in keep(bundle, form).artifacts)
    path = bundle / largest(artifact)
    model = open_model(oracle.tiny("llama"))
    weight = model.weights["norm.weight"]
    content = path.read_bytes()
    at = content.rindex(weight.load().numpy().tobytes())
    flip(path, at)
    report = check_bundle(bundle, open_session=honest)
    assert failures(report) == {(_backend(form), "files", "changed"), (_backend(form), "weights", "differing")}
    notes = {r.level: r.note for r in report.results if not r.passed}
    assert largest(artifact) in notes["files"]
    assert notes["weights"] == "norm.weight (1 values)"
    assert any(r.level == "graph" for r in report.results)  # measured all the same


def _backend(form: str) -> str:
    return {"onnx": "onnxruntime", "gguf": "llamacpp"}.get(form, form)


@pytest.mark.parametrize("form", ["onnx", "torchscript", "gguf"])
@pytest.mark.parametrize("change", ["missing", "cut", "nonsense"])
def test_a_damaged_file_is_a_finding_and_the_rest_goes_on(bundle: Path, form: str, change: str) -> None:
    manifest = Manifest.read(bundle)
    artifact = next(a for a in manifest.artifacts if a.format == form)
    path = bundle / largest(artifact)
    if change == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if change == "cut" else b"nonsense" * 100)
    report = check_bundle(bundle, threads=1)
    wrong = [r for r in report.results if not r.passed]
    assert {r.backend for r in wrong} == {_backend(form)}
    assert {"files", "weights", "graph"} <= {r.level for r in wrong}
    assert all(r.note for r in wrong)
    assert all(r.passed for r in report.results if r.backend != _backend(form))


def test_another_checkpoint_is_not_the_same(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(oracle.tiny("llama"), tmp_path / "other"))
    path = other / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(123).tobytes()
    path.write_bytes(content)
    keep(bundle, "torchscript")
    report = check_bundle(bundle, other, threads=1)
    assert {level for _, level, _ in failures(report)} == {"weights", "graph"}


def test_a_source_that_changed_since_the_export_is_named(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(oracle.tiny("llama"), tmp_path / "other"))
    manifest = keep(bundle, "torchscript")
    manifest.source["path"] = str(other)
    manifest.write(bundle)
    flip(other / "model.safetensors", (other / "model.safetensors").stat().st_size - 1)
    report = check_bundle(bundle, threads=1)
    assert ("torch", "files", "changed") in failures(report)
    assert "model.safetensors has another sha256" in next(r.note for r in report.results if not r.passed)


def test_a_source_that_is_gone_asks_for_another(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    manifest.source["path"] = "/nowhere/model"
    manifest.write(bundle)
    with pytest.raises(InputError, match="--against"):
        check_bundle(bundle)
    assert check_bundle(bundle, oracle.tiny("llama"), open_session=honest).results


def test_a_model_of_another_task_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="text-generation"):
        check_bundle(bundle, open_model(oracle.tiny("llama"), "feature-extraction"))


def test_no_bundle_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=NAME):
        check_bundle(tmp_path)


def test_an_artifact_that_cannot_be_opened_is_not_the_same(bundle: Path) -> None:
    def unavailable(*_: Any, **__: Any) -> Any:
        raise BackendUnavailable("xllamacpp is not installed; pip install xllamacpp")

    keep(bundle, "gguf")
    report = check_bundle(bundle, open_session=unavailable)
    assert failures(report) == {("llamacpp", "graph", "error")}
    assert "pip install" in report.results[-1].note


def test_a_manifest_with_another_signature_is_not_the_same(bundle: Path) -> None:
    def renamed(artifact: Artifact) -> Artifact:
        ports = (Port("ids", "int64", artifact.signature.inputs[0].axes), *artifact.signature.inputs[1:])
        return replace(artifact, signature=replace(artifact.signature, inputs=ports))

    manifest = keep(bundle, "torchscript")
    manifest.artifacts = [renamed(artifact) for artifact in manifest.artifacts]
    manifest.write(bundle)
    report = check_bundle(bundle, open_session=honest)
    assert failures(report) == {("torchscript", "graph", "error")}


def test_a_bundle_that_cannot_be_written_is_checked_all_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    keep(bundle, "torchscript")
    monkeypatch.setattr(Manifest, "write", read_only)
    report = check_bundle(bundle, open_session=honest)
    assert report.same
    assert "Permission denied" in report.skipped[-1].reason


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        (lambda x: x * 2, "kl"),
        (lambda x: np.roll(x, 1, -1), "top1"),
        (lambda x: x * np.float32(np.nan), "nonfinite"),
        (lambda x: x[..., :-1], "mismatch"),
    ],
)
def test_a_quantized_artifact_beyond_its_budget_fails(bundle: Path, fault: Callable[[Any], Any], metric: str) -> None:
    def faulty(path: Path, backend: str, **_: Any) -> TorchSession:
        return TorchSession(open_model(oracle.tiny("llama")), backend=backend, result=fault)

    manifest = Manifest.read(bundle)
    manifest.artifacts = [a for a in manifest.artifacts if a.dtype == "q8_0"]
    manifest.write(bundle)
    assert check_bundle(bundle, open_session=honest).same
    report = check_bundle(bundle, open_session=faulty)
    assert ("llamacpp", "deployment", metric) in failures(report)


def test_a_quantization_without_a_budget_is_not_shown_to_be_the_same(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    manifest.artifacts = [replace(a, dtype="q7_x") for a in manifest.artifacts if a.dtype == "q8_0"]
    manifest.write(bundle)
    report = check_bundle(bundle, open_session=honest)
    assert ("llamacpp", "deployment", "error") in failures(report)
    assert "no budget" in report.results[-1].note


def test_quantized_weights_are_what_the_quantizer_makes_of_the_source(bundle: Path) -> None:
    artifact = next(a for a in Manifest.read(bundle).artifacts if a.dtype == "q8_0")
    path = bundle / artifact.files[0].path
    model = open_model(oracle.tiny("llama"))
    assert check_weights(model, path, "gguf", "q8_0", "llamacpp").same
    info = open_model(path).checkpoint.info("layers.0.mlp.down.weight")
    assert info.dtype == "Q8_0"
    flip(path, info.offset + 2)  # the first value of the first block, after its scale
    report = check_weights(model, path, "gguf", "q8_0", "llamacpp")
    assert report.results[0].note == "layers.0.mlp.down.weight (1 values)"


def test_a_pre_tokenizer_that_the_export_was_told_is_no_difference(tmp_path: Path) -> None:
    model = open_model(oracle.tiny("qwen2"))
    options = gguf.Options(pre="llama-bpe")
    (artifact,) = gguf.write(model, tmp_path, ("f32",), lambda *_: None, options=options)
    path = tmp_path / artifact.files[0].path
    assert check_metadata(model, path, "f32", "llamacpp", artifact.options["pre"]).same
    (result,) = check_metadata(model, path, "f32", "llamacpp").results
    assert not result.passed
    assert "tokenizer.ggml.pre is 'llama-bpe', not 'qwen2'" in result.note
