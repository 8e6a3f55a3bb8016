"""A model of several graphs: one file each under the ecosystem's names, weights stored once, every part checked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from isoform.errors import IsoformError
from isoform.exporters import bundle
from isoform.exporters.onnx import Options
from isoform.manifest import Manifest
from isoform.reference.model import open_model
from isoform.runtimes.open import open_path
from isoform.signature import Signature
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.report.records import Report
from tests.exports import copied, exported
from tests.oracle import tiny


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    both = Options(types=("f32", "int8"))
    return {"moonshine_b": exported("moonshine_b"), "whisper_b": exported("whisper_b", onnx=both)}


def failures(report: Report) -> list[str]:
    return [f"{r.backend} {r.level} {r.where} {r.metric}" for r in report.results if not r.passed]


# ------------------------------------------------------------------ files
def test_files_have_the_names_that_clients_look_for(folders: dict[str, Path]) -> None:
    manifest = Manifest.read(folders["whisper_b"])
    assert [(a.format, a.dtype, a.part, a.files[0].path) for a in manifest.artifacts] == [
        ("onnx", "f32", "encoder", "onnx/encoder_model.onnx"),
        ("onnx", "f32", "decoder", "onnx/decoder_model_merged.onnx"),
        ("onnx", "f32", "alignment", "onnx/alignment_model.onnx"),
        ("onnx", "int8", "encoder", "onnx/encoder_model_quantized.onnx"),
        ("onnx", "int8", "decoder", "onnx/decoder_model_merged_quantized.onnx"),
        ("onnx", "int8", "alignment", "onnx/alignment_model_quantized.onnx"),
        ("torchscript", "f32", "encoder", "torchscript/encoder.pt"),
        ("torchscript", "f32", "decoder", "torchscript/decoder.pt"),
        ("torchscript", "f32", "alignment", "torchscript/alignment.pt"),
    ]
    assert "no architecture that transcribes speech" in manifest.missing["gguf"]
    beside = {path.name for path in folders["whisper_b"].iterdir()}
    assert {"config.json", "generation_config.json", "preprocessor_config.json"} <= beside


def test_the_parts_of_a_manifest_survive_reading_and_old_ones_have_none(folders: dict[str, Path]) -> None:
    path = folders["moonshine_b"] / "isoform.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert [a["part"] for a in data["artifacts"]] == ["encoder", "decoder"] * 2
    states = data["artifacts"][1]["signature"]["states"]
    assert [state["kind"] for state in states] == ["append", "append", "once", "once"]
    assert data["wires"] == {"decoder.encoder_hidden_states": "encoder.last_hidden_state"}
    assert Manifest.read(folders["moonshine_b"]).to_json() == data
    whole = open_model(tiny("llama"))
    assert [part.part for part in whole.parts] == ["model"]
    assert whole.signature.layout() == (3, 2, 8)
    assert Signature.from_json(whole.signature.to_json()) == whole.signature


def test_two_graphs_over_the_same_weights_share_their_file(folders: dict[str, Path]) -> None:
    onnx_folder = folders["whisper_b"] / "onnx"
    assert not (onnx_folder / "alignment_model.onnx_data").exists()

    def places(name: str) -> dict[str, tuple[str, ...]]:
        graph = onnx.load(str(onnx_folder / name), load_external_data=False).graph
        return {t.name: tuple(e.value for e in t.external_data) for t in graph.initializer if t.external_data}

    aligned, decoder = places("alignment_model.onnx"), places("decoder_model_merged.onnx")
    assert aligned
    assert all(decoder[name] == place for name, place in aligned.items() if name in decoder)
    assert {place[0] for place in aligned.values()} == {"decoder_model_merged.onnx_data"}


def test_the_decoder_has_the_ports_of_optimums_merged_graphs(folders: dict[str, Path]) -> None:
    graph = onnx.load(str(folders["moonshine_b"] / "onnx/decoder_model_merged.onnx"), load_external_data=False).graph
    cache = [f"{side}.{kind}" for side in ("decoder", "encoder") for kind in ("key", "value")]
    assert [port.name for port in graph.input] == [
        "input_ids",
        "encoder_hidden_states",
        *(f"past_key_values.0.{name}" for name in cache),
        "use_cache_branch",
    ]
    assert [port.name for port in graph.output] == ["logits", *(f"present.0.{name}" for name in cache)]
    switch = graph.input[-1].type.tensor_type
    assert (switch.elem_type, [d.dim_value for d in switch.shape.dim]) == (onnx.TensorProto.BOOL, [1])
    branches = [node for node in graph.node if node.op_type == "If"]
    assert len(branches) == 2  # attention to the tokens before and to the memory, in the only layer


def test_a_past_of_one_slot_is_ignored_while_the_switch_is_off(folders: dict[str, Path]) -> None:
    """Older clients feed such a dummy in the first step."""
    import onnxruntime

    for name in ("moonshine_b", "whisper_b"):  # heads of 16 channels go to a fused kernel, heads of 12 do not
        session = onnxruntime.InferenceSession(str(folders[name] / "onnx/decoder_model_merged.onnx"))
        ports = {port.name: port.shape for port in session.get_inputs()}
        width = ports["encoder_hidden_states"][2]
        feed: dict[str, Any] = {
            "input_ids": np.array([[3, 5, 4]]),
            "encoder_hidden_states": np.random.default_rng(0).standard_normal((1, 6, width)).astype(np.float32),
            "use_cache_branch": np.array([False]),
        }
        pasts = {port: (shape[1], shape[3]) for port, shape in ports.items() if port.startswith("past")}
        found = [
            session.run(None, feed | {port: np.ones((1, h, slots, d), np.float32) for port, (h, d) in pasts.items()})
            for slots in (0, 1)
        ]
        for empty, dummy in zip(*found, strict=True):
            assert np.array_equal(empty, dummy)


def test_torchscript_keeps_both_sides_of_the_branch_without_isoform(folders: dict[str, Path]) -> None:
    decoder = torch.jit.load(str(folders["moonshine_b"] / "torchscript/decoder.pt"))
    states, empty = torch.randn(2, 5, 48), torch.zeros(2, 3, 0, 16)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.inference_mode():
        whole = decoder(ids, states, *[empty] * 4, torch.tensor([False]))
        first = decoder(ids[:, :2], states, *[empty] * 4, torch.tensor([False]))
        then = decoder(ids[:, 2:], states, *first[1:], torch.tensor([True]))
    assert then[3].shape == (2, 3, 0, 16)
    assert torch.allclose(then[0], whole[0][:, 2:], atol=1e-5)


# ------------------------------------------------------------------ checks
@pytest.mark.parametrize("name", ["moonshine_b", "whisper_b"])
def test_every_part_is_checked_alone_and_with_chosen_rows(name: str, folders: dict[str, Path]) -> None:
    """That all of it passes is the conformance suite's to say, and for the int8 graphs this test's."""
    report = check_bundle(folders[name], limits=Limits(keep=False))
    assert not failures(report)
    graphs = [r for r in report.results if r.level == "graph"]
    parts = {part.part for part in open_model(tiny(name)).parts}
    assert {r.part for r in graphs if r.dtype == "f32"} == {*parts, ""}
    assert all(r.form and r.part in {*parts, ""} for r in report.results if r.backend not in ("torch", "bundle"))
    wired = [r for r in report.results if r.group == "wired"]
    assert {(r.form, r.dtype) for r in wired} == {(r.form, r.dtype) for r in report.results if r.level == "weights"}
    assert not any(r.part for r in wired)
    assert any("rows 2 0 0 1 of 3" in r.case for r in graphs if r.group == "cached decoding")


def test_portable_graphs_are_the_same(tmp_path: Path) -> None:
    model = open_model(tiny("whisper_b"))
    bundle.export(model, ["onnx"], tmp_path / "out", onnx=Options(types=("f32",), portable=True))
    graphs = [onnx.load(str(path), load_external_data=False) for path in (tmp_path / "out/onnx").glob("*.onnx")]
    assert len(graphs) == 3
    assert all([domain.domain for domain in graph.opset_import] == [""] for graph in graphs)
    assert not failures(check_bundle(tmp_path / "out"))


def only_onnx_f32(report_of: Path) -> Report:
    return check_bundle(report_of, limits=Limits(only=lambda a: (a.format, a.dtype) == ("onnx", "f32")))


def test_swapped_keys_and_values_of_the_memory_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mutant"
    copied(folders["moonshine_b"], folder)
    path = folder / "onnx/decoder_model_merged.onnx"
    model = onnx.load(str(path), load_external_data=False)
    swapped = {"layers.0.cross.k.weight": "layers.0.cross.v.weight", "layers.0.cross.k.bias": "layers.0.cross.v.bias"}
    swapped |= {b: a for a, b in swapped.items()}

    def swap(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [swapped.get(name, name) for name in node.input]
            for attribute in node.attribute:
                swap(attribute.g)

    swap(model.graph)
    path.write_bytes(model.SerializeToString())
    found = failures(only_onnx_f32(folder))
    assert any("graph f32 decoder, one row" in failure and "cache_max_abs" in failure for failure in found)
    assert any("cached decoding" in failure for failure in found)
    assert not any("encoder," in failure for failure in found)


def test_a_memory_that_is_computed_again_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    """With the switch stuck, a step attends to the memory all the same, but not to the tokens before it."""
    folder = tmp_path / "mutant"
    copied(folders["moonshine_b"], folder)
    path = folder / "onnx/decoder_model_merged.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "If":
            sides = {attribute.name: attribute.g for attribute in node.attribute}
            sides["then_branch"].CopyFrom(sides["else_branch"])
    path.write_bytes(model.SerializeToString())
    found = failures(only_onnx_f32(folder))
    assert any("cached decoding" in failure for failure in found)


def test_a_part_that_the_model_does_not_have_is_a_finding(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mutant"
    copied(folders["moonshine_b"], folder)
    path = folder / "isoform.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"part": "encoder"', '"part": "vision"'), encoding="utf-8")
    assert any("encoder_model.onnx error" in failure for failure in failures(only_onnx_f32(folder)))


def every_place(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from every_place(inner, (*place, key))


@pytest.mark.parametrize("name", ["llava", "moonshine_b"])
def test_a_damaged_manifest_is_one_clear_error(name: str, tmp_path: Path) -> None:
    """Random values in random places; what still opens is as good as before."""
    draw = random.Random(7)
    folder = copied(exported(name), tmp_path / "bundle")
    sound = json.loads((folder / "isoform.json").read_text(encoding="utf-8"))
    places = [place for place in every_place(sound) if place[0] not in ("parity", "source", "versions")]
    for _ in range(40):
        data = json.loads(json.dumps(sound))
        *parents, last = draw.choice(places)
        owner = data
        for key in parents:
            owner = owner[key]
        owner[last] = draw.choice([None, 5, -1, "x", "../x", [], {}, [1], {"a": 1}, True, 1.5])
        (folder / "isoform.json").write_text(json.dumps(data), encoding="utf-8")
        try:
            open_path(folder)[0].close()
        except IsoformError as error:
            assert len(str(error)) > 10
