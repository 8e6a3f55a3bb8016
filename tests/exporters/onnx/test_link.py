"""ONNX whose weights are the checkpoint's own files, linked beside the graph; and what a broken file says."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from isoform import cli
from isoform.errors import CheckpointError, InputError
from isoform.exporters import onnx as exporter
from isoform.exporters.bundle import export
from isoform.manifest import Manifest, describe
from isoform.reference.model import open_model
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from isoform.runtimes.open import open_path
from tests import oracle
from tests.exporters.onnx.test_files import inputs, quiet

LINK = exporter.Options(link=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of a checkpoint that a test may change."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(oracle.tiny("llama"), folder)
    return folder


def run_once(path: Path, source: Path) -> None:
    model = open_model(source)
    values, _ = inputs(model.signature, 2, 7, 0, "left", 100)
    with OnnxRuntimeSession(path, model.signature, threads=1) as session:
        session.run({n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in values.items()})


def test_a_linked_export_copies_no_weight_and_computes_the_same(source: Path, tmp_path: Path) -> None:
    model = open_model(source)
    linked = export(model, ["onnx"], tmp_path / "linked", onnx=LINK)
    copied = export(model, ["onnx"], tmp_path / "copied")
    names = [file.path for file in linked.artifacts[0].files]
    assert names[:2] == ["onnx/model.onnx", "onnx/model.safetensors"]
    weights = tmp_path / "linked/onnx/model.safetensors"
    assert weights.samefile(source / "model.safetensors")
    assert not (tmp_path / "linked/onnx/model.onnx_data").exists()
    entry = linked.artifacts[0].files[1]
    hashes = [file["sha256"] for file in linked.source["files"]]
    assert (entry.size, entry.sha256) == (weights.stat().st_size, hashes[0])
    values, _ = inputs(model.signature, 2, 7, 0, "left", 100)
    results = []
    for folder, artifact in (("linked", linked.artifacts[0]), ("copied", copied.artifacts[0])):
        with OnnxRuntimeSession(tmp_path / folder / artifact.files[0].path, threads=1) as session:
            fed = {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in values.items()}
            results.append(session.run(fed)["logits"])
    assert np.array_equal(results[0], results[1])


def test_every_shard_is_linked(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    where = {name: shards[n % 2] for n, name in enumerate(weights)}
    for shard in shards:
        save_file({name: tensor for name, tensor in weights.items() if where[name] == shard}, source / shard)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (artifact,) = exporter.write(open_model(source), tmp_path / "bundle", "f32", quiet, link=True)
    assert {f"onnx/{shard}" for shard in shards} < {file.path for file in artifact.files}
    run_once(tmp_path / "bundle/onnx/model.onnx", source)


def test_weights_of_another_dtype_cannot_be_linked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weight can be linked: the checkpoint holds bfloat16.*--weights copy"):
        exporter.write(open_model(oracle.tiny("qwen3_sharded")), tmp_path, "f32", quiet, link=True)


def test_what_is_cast_or_computed_lies_in_a_file_of_its_own(tmp_path: Path) -> None:
    """The norms of this family are stored less one; the rest is linked, from under a name that is a link itself."""
    source = tmp_path / "hub"
    source.mkdir()
    for path in oracle.tiny("gemma2").iterdir():
        (source / path.name).symlink_to(path)
    model = open_model(source)
    (artifact,) = exporter.write(model, tmp_path / "bundle", "f32", quiet, link=True)
    names = [file.path for file in artifact.files]
    assert names[:3] == ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.safetensors"]
    linked = tmp_path / "bundle/onnx/model.safetensors"
    assert not linked.is_symlink()
    graph = onnx.load(tmp_path / "bundle/onnx/model.onnx", load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer}
    assert {name for name, place in places.items() if place.get("location") == "model.onnx_data"} == {
        name for name in model.weights if "norm" in name
    }
    run_once(tmp_path / "bundle/onnx/model.onnx", source)


def test_quantized_types_beside_a_linked_one_keep_their_own_file(source: Path, tmp_path: Path) -> None:
    options = exporter.Options(types=("f32", "q4_0"), link=True)
    manifest = export(open_model(source), ["onnx"], tmp_path / "bundle", onnx=options)
    quantized = [file.path for file in manifest.artifacts[1].files]
    assert quantized == ["onnx/model_q4.onnx", "onnx/model_q4.onnx_data"]


def test_the_bundle_outlives_its_source(source: Path, tmp_path: Path) -> None:
    export(open_model(source), ["onnx"], tmp_path / "bundle", onnx=LINK)
    shutil.rmtree(source)
    session, _ = open_path(tmp_path / "bundle", "onnxruntime")
    session.close()


def test_a_source_that_grew_is_refused_at_load(source: Path, tmp_path: Path) -> None:
    export(open_model(source), ["onnx"], tmp_path / "bundle", onnx=LINK)
    with (source / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has \d+ bytes, the manifest says \d+; export"):
        open_path(tmp_path / "bundle", "onnxruntime")


def test_a_source_that_changed_within_is_found_by_its_hash(source: Path, tmp_path: Path) -> None:
    export(open_model(source), ["onnx"], tmp_path / "bundle", onnx=LINK)
    with (source / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    (entry,) = (
        f for f in Manifest.read(tmp_path / "bundle").artifacts[0].files if f.path.endswith("model.safetensors")
    )
    now = describe(tmp_path / "bundle" / entry.path, tmp_path / "bundle")
    assert now.size == entry.size
    assert now.sha256 != entry.sha256


def test_another_file_system_is_refused_with_the_way_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match=r"cannot be linked into .*\(Invalid cross-device link\).*use --weights copy"):
        export(open_model(source), ["onnx"], tmp_path / "bundle", onnx=LINK)
    assert not (tmp_path / "bundle").exists()


def exported(tmp_path: Path) -> Path:
    exporter.write(open_model(oracle.tiny("bert")), tmp_path, "f32", quiet)
    return tmp_path / "onnx" / "model.onnx"


def opening(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        OnnxRuntimeSession(path, threads=1)
    return str(caught.value)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = exported(tmp_path)
    path.with_name("model.onnx_data").unlink()
    assert "model.onnx_data, which is missing beside it; put the whole folder" in opening(path)


def test_weights_that_are_too_short_are_named(tmp_path: Path) -> None:
    path = exported(tmp_path)
    os.truncate(path.with_name("model.onnx_data"), 5000)
    assert "model.onnx_data has 5000 bytes, the graph reads " in opening(path)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path)
    path.with_name("model.onnx_data").rename(tmp_path / "elsewhere")
    path.with_name("model.onnx_data").symlink_to(tmp_path / "elsewhere")
    assert "which leaves the folder; ONNX Runtime reads no others" in opening(path)
    path.with_name("model.onnx_data").unlink()
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere"
    path.write_bytes(model.SerializeToString())
    assert "../elsewhere, which leaves the folder" in opening(path)


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"", b"not a protocol buffer", b"\x08\x0a"):
        path.write_bytes(content)
        assert "is no ONNX file or an incomplete one" in opening(path)


def test_a_file_over_two_gigabytes_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = exported(tmp_path)
    os.truncate(path, 2**31)
    for strict in (False, True):
        with pytest.raises(CheckpointError, match=r"has 2147483648 bytes, and an ONNX file ends at 2 GB: what is"):
            OnnxRuntimeSession(path, threads=1, strict=strict)


def graph_of(kind: str, domain: str = "", opset: int = 23, ir: int = 10) -> bytes:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], domain=domain)], "one", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (graph_of("Relu", opset=99), r"needs opset 99 of ai\.onnx, ONNX Runtime \S+ has \d+; pip install --upgrade"),
        (graph_of("Relu", ir=99), r"is in IR version 99, ONNX Runtime \S+ reads up to \d+; pip install --upgrade"),
        (graph_of("NoSuchThing", "com.microsoft"), r"has no operator NoSuchThing .*pip install --upgrade.*--portable"),
        (graph_of("NoSuchThing"), r"has no operator NoSuchThing .*pip install --upgrade.*--portable"),
    ],
    ids=["opset", "ir", "contrib", "standard"],
)
def test_what_this_onnx_runtime_cannot_read_says_what_to_do(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert re.search(words, opening(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--onnx-type", "q5"], "ONNX type 'q5' is not known; choose from f32"),
        (["--onnx-type", "q4_0", "--portable"], "in standard ONNX there are f32, f16, bf16 and int8"),
        (["--weights", "move"], "--weights 'move' is not known; choose from copy, link"),
        (["--weights", "link", "--dtype", "f16"], "no weight can be linked: the checkpoint holds float32"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["isoform", "export", str(oracle.tiny("bert")), "--out", str(tmp_path / "out"), "--to", "onnx"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
