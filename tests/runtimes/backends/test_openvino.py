"""OpenVINO as a backend: its precision is what was asked for, its states stay inside, and what it refuses."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.api import compare
from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.exporters import onnx
from isoform.formats import FORMAT_OF, checked_on, form_for, options_for, readable
from isoform.manifest import Manifest
from isoform.runtimes import open as backends
from isoform.runtimes.backends.openvino import library
from isoform.runtimes.backends.openvino import session as opening
from isoform.runtimes.backends.openvino.session import OpenVinoSession
from isoform.runtimes.devices import check_device, openvino_device, parse_device
from isoform.runtimes.open import open_path, open_session
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.tools.sides import find_side
from tests.exports import exported, portable
from tests.oracle import tiny

BFLOAT16 = 0.2  # of the largest logit: 8 bits of mantissa, and random weights


def graph(name: str) -> Path:
    return portable(name) / "onnx" / "model_portable.onnx"


def opened(name: str, **options: Any) -> OpenVinoSession:
    session, _ = open_path(portable(name), "openvino", threads=1, **options)
    assert isinstance(session, OpenVinoSession)
    return session


def greedy(session: Any, ids: list[int], count: int) -> np.ndarray:
    decoder, logits = session.decoder(1), []
    step = np.array([ids])
    for _ in range(count):
        logits.append(decoder.step(step)[0])
        step = np.array([[int(logits[-1].argmax())]])
    return np.array(logits)


# ------------------------------------------------------------------ precision
def test_float32_is_float32_whatever_the_processor_has() -> None:
    with opened("qwen2") as session:
        read = session.native.get_property
        assert read("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert read("KV_CACHE_PRECISION").get_type_name() == "f32"
        assert int(read("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0
        assert int(read("INFERENCE_NUM_THREADS")) == 1


def test_another_precision_is_that_of_the_cache_as_well() -> None:
    with opened("qwen2") as exact, open_path(exported("qwen2"), "onnxruntime", threads=1)[0] as other:
        want = greedy(exact, [5, 6, 7], 4)
        np.testing.assert_allclose(greedy(other, [5, 6, 7], 4), want, atol=1e-4)
        try:
            narrow = opened("qwen2", precision="bf16")
        except BackendUnavailable as error:
            assert "in f32 on this cpu where bf16 is asked for" in str(error)
            return
        with narrow:
            assert narrow.native.get_property("KV_CACHE_PRECISION").get_type_name() == "bf16"
            got = greedy(narrow, [5, 6, 7], 1)
            gap = np.abs(got - want[:1]).max() / np.abs(want).max()
            assert 1e-5 < gap < BFLOAT16


def test_a_precision_that_the_device_has_not_is_refused() -> None:
    try:
        opened("bert", precision="f16").close()
    except BackendUnavailable as error:
        assert "where f16 is asked for; choose another precision" in str(error)


# ------------------------------------------------------------------ states
def test_the_states_are_inside_and_attention_is_fused() -> None:
    with opened("llama") as session:
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in session.native.get_runtime_model().get_ops()]
        layers = len(session.signature.states) // 2
        assert kinds.count("ScaledDotProductAttention") == layers
        assert {port.any_name for port in session.native.inputs} == {
            *("input_ids", "attention_mask", "position_ids", "beam_idx", "first_logits")
        }


def test_a_pipeline_writes_what_onnx_runtime_does() -> None:
    texts = ["The small cat", "A red book in"]
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    answers = []
    for folder, backend in ((exported("qwen2"), "onnxruntime"), (portable("qwen2"), "openvino")):
        with isoform.pipeline("text-generation", folder, backend=backend, threads=1, batch_size=2) as pipe:
            answers.append([pipe(texts, **settings), pipe(texts[0], num_beams=3, **settings)])
    assert answers[0] == answers[1]


def test_a_checkpoint_is_exported_in_its_portable_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))
    with isoform.pipeline("feature-extraction", tiny("bert_embed"), backend="openvino", threads=1) as pipe:
        pipe("The small cat")
    (made,) = (path.parent for path in tmp_path.rglob("isoform.json"))
    assert [(a.format, a.dtype) for a in Manifest.read(made).artifacts] == [("onnx", "f32-portable")]


def test_a_bare_graph_runs_without_its_manifest() -> None:
    for name in ("qwen2", "bert"):
        want = Manifest.read(portable(name)).artifacts[0].signature
        session, folder = open_path(graph(name), "openvino", threads=1)
        with session:
            assert (session.signature, folder) == (want, portable(name))


# ------------------------------------------------------------------ what is refused
def test_an_operator_that_it_computes_wrongly_is_named() -> None:
    folder = exported("llama")
    with pytest.raises(BackendUnavailable, match=r"GroupQueryAttention\); export it with --onnx-type f32-portable"):
        open_path(folder, "openvino")


def test_a_check_leaves_out_what_another_backend_than_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "wrong_operators", lambda path: ["Loop"])
    report = check_bundle(portable("bert"), threads=1, limits=Limits(keep=False))
    (reason,) = (skip.reason for skip in report.skipped if skip.backend == "openvino")
    assert "does not take (Loop)" in reason
    assert report.same and "openvino" not in {result.backend for result in report.results}
    monkeypatch.undo()
    only = check_bundle(portable("bert"), threads=1, limits=Limits(keep=False, backends=("onnxruntime",)))
    assert {result.backend for result in only.results if result.level == "graph"} == {"onnxruntime"}


def test_a_check_runs_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_version", lambda package: None if package == "openvino" else version(package))
    report = check_bundle(portable("bert"), threads=1, limits=Limits(keep=False))
    assert [skip.reason for skip in report.skipped if skip.backend == "openvino"] == [
        "openvino does not run here: pip install isoform[openvino]"
    ]
    assert not [result for result in report.results if result.backend == "openvino"]


def test_a_fused_form_of_operators_that_it_takes_is_opened() -> None:
    with open_path(exported("bert"), "openvino", threads=1)[0] as session:
        assert session.backend == "openvino"


def test_a_damaged_file_is_named_in_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(portable("bert"), tmp_path / "b", copy_function=shutil.copyfile))
    signature = Manifest.read(folder).artifacts[0].signature
    main, data = folder / "onnx" / "model_portable.onnx", folder / "onnx" / "model_portable.onnx_data"
    content = data.read_bytes()
    for path, damage in ((data, content[: len(content) // 2]), (data, None), (main, b"\x07" * 99), (main, None)):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="model_portable") as caught:
            open_session(main, "openvino", signature=signature)
        assert "\n" not in str(caught.value)
    other = Manifest.read(portable("qwen2")).artifacts[0].signature
    with pytest.raises(CheckpointError, match="not those of its signature"):
        open_session(graph("bert"), "openvino", signature=other)


def test_an_exception_of_its_own_is_one_line() -> None:
    text = "Exception from src/inference/src/infer.cpp:223:\nCheck 'false' failed at src/x.cpp:7:\nno room\n"
    found = library.failed(RuntimeError(text))
    assert isinstance(found, InputError)
    assert str(found) == "OpenVINO could not run the model on these inputs: no room"


def test_devices_have_names_that_people_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [openvino_device(name) for name in ("cpu", "gpu", "gpu:1", "npu")] == ["CPU", "GPU", "GPU.1", "NPU"]
    for name in ("gpu", "gpu:0", "npu", "cuda:1"):
        check_device(name)
    with pytest.raises(InputError, match=r"cuda.*cpu, gpu, gpu:N and npu"):
        openvino_device("cuda:0")
    for name in ("gpu", "npu"):
        with pytest.raises(InputError, match="backend='openvino'"):
            parse_device(name)
    monkeypatch.setattr(library, "devices", lambda: ["cpu", "gpu:0"])
    for name in ("CPU", "GPU", "GPU.0"):
        library.need(name)
    for name in ("GPU.1", "NPU"):
        with pytest.raises(BackendUnavailable, match=r"sees no (gpu:1|npu) here, only cpu, gpu:0"):
            library.need(name)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match=r"pip install isoform\[openvino\]"):
        opened("bert")


# ------------------------------------------------------------------ which form
def test_a_backend_of_standard_operators_reads_portable_forms_first() -> None:
    held = ["f32", "q4_0", "f32-portable"]
    assert readable("openvino", held) == ["f32-portable", "f32"]
    assert readable("openvino", held, "q4_0") == ["q4_0"]
    assert readable("onnxruntime", ["f32-portable", "f32"], "f32") == ["f32", "f32-portable"]
    assert readable("onnxruntime", held, "f32-portable") == ["f32-portable"]
    assert readable("onnxruntime", [], None) == []
    assert form_for("openvino", "bf16") == form_for("openvino", "f32") == ("onnx", "f32-portable")
    assert form_for("openvino", "int8") == ("onnx", "int8-portable")
    assert form_for("onnxruntime", "q4_0") == ("onnx", "q4_0")
    assert options_for("openvino", "bf16") == {"precision": "bf16"}
    assert options_for("openvino", "int8") == options_for("onnxruntime", "f32") == {}
    assert checked_on("onnx", "int8-portable") == ("onnxruntime", "openvino")
    assert checked_on("onnx", "f32") == ("onnxruntime",)
    assert FORMAT_OF["openvino"] == "onnx"


def test_a_side_of_a_comparison_names_its_backend() -> None:
    folder = exported("bert", ["onnx"], onnx=onnx.Options(types=("f32", "f32-portable")))
    for text, backend, dtype in (
        (f"{folder}::openvino", "openvino", "f32-portable"),
        (f"{folder}::openvino:f32", "openvino", "f32-portable"),
        (f"{folder}::onnxruntime", "onnxruntime", "f32"),
        (f"{folder}::onnx:f32-portable", "onnxruntime", "f32-portable"),
    ):
        side = find_side(text)
        assert (side.backend, side.dtype) == (backend, dtype)
    found = compare(f"{folder}::onnxruntime", f"{folder}::openvino")
    assert found.same, found.metrics
