"""Quantized ONNX: the numbers of GGUF, read back from the files, and what ONNX Runtime makes of them on the CPU."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.errors import CheckpointError, InputError
from isoform.exporters.onnx import write
from isoform.exporters.onnx.forms import DATA, SCALES, ZEROS, Blocks, Channels
from isoform.reference.model import open_model
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from isoform.validators.levels.packed import check_packed
from tests import oracle
from tests.exporters.onnx.test_files import Export, forward, inputs, quiet
from tests.exports import artifact_of, exported

TYPES = ("q4_0", "q8_0", "q4a", "q4-16", "q4aw-64", "q8a-64", "q4f16", "int8")
# The reference with the stored weights, both in float32 and summed in another order.
EXACT = 2e-5
# Activations in 8 bits: half a step of 1/127 per value, 0.3 % of its block's size on average, through a few layers.
ROUNDED = 0.05
# float16 adds its own rounding.
COARSE = 0.08


@cache
def export(name: str, kind: str) -> Export:
    folder = exported(name, ["onnx"], kind)
    return Export(open_model(oracle.tiny(name)), folder, artifact_of(folder, "onnx", kind))


def arrays(made: Export) -> dict[str, NDArray[Any]]:
    """Every initializer of a graph by name."""
    model = onnx.load(made.path)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def stored(made: Export) -> dict[str, Tensor]:
    """Every weight as the graph holds it, by the operators' documentation: (integer - zero) * scale."""
    found = arrays(made)
    bits = {
        node.input[1].removesuffix(f".{DATA}"): {a.name: a.i for a in node.attribute}
        for node in made.graph.graph.node
        if node.op_type == "MatMulNBits"
    }
    result = {}
    for name, weight in made.model.weights.items():
        if name in found:
            values = found[name].astype(np.float32)
        elif name in bits:
            values = unpack(found, name, bits[name]["bits"], weight.shape)
        elif f"{name}.{DATA}.2d" in found:  # a table of tokens alone, in 8 or 4 bits
            table = found[f"{name}.{DATA}.2d"]
            count = found[f"{name}.{SCALES}"].shape[1]
            found[f"{name}.{DATA}"] = table.reshape(len(table), count, -1)
            values = unpack(found, name, 8 * table.shape[1] // weight.shape[1], weight.shape)
        else:
            data, scales = found[f"{name}.{DATA}"], found[f"{name}.{SCALES}"]
            values = ((data.astype(np.float32) - 128) * scales).T
        result[name] = torch.from_numpy(np.ascontiguousarray(values))
    return result


def unpack(found: dict[str, NDArray[Any]], name: str, bits: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    def integers(packed: NDArray[Any]) -> NDArray[Any]:
        if bits == 8:
            return packed
        return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)

    data, scales = integers(found[f"{name}.{DATA}"]), found[f"{name}.{SCALES}"].astype(np.float32)
    zeros: Any = 2 ** (bits - 1)
    if f"{name}.{ZEROS}" in found:
        zeros = integers(found[f"{name}.{ZEROS}"])[:, : scales.shape[1], None].astype(np.float32)
    return ((data.astype(np.float32) - zeros) * scales[..., None]).reshape(shape)


def module(made: Export) -> torch.nn.Module:
    """The reference in float64 with the weights that the graph holds."""
    result = made.model.module(torch.float64)
    state = dict(result.named_parameters())
    for name, tensor in stored(made).items():
        state[name].copy_(tensor)
    return result


def gap(got: NDArray[Any], want: NDArray[Any]) -> float:
    """The root mean square of the difference, in that of what is wanted."""
    return float(np.sqrt(np.square(got.astype(np.float64) - want).mean() / np.square(want).mean()))


def steps(made: Export, *, strict: bool) -> list[float]:
    """The gaps of a prefill of 6 tokens and of 4 steps, for a left-padded batch, against the stored weights."""
    rows, length = 2, 10
    values, valid = inputs(made.model.signature, rows, length, 0, "left", 100)
    want = forward(module(made), values, torch.float64)[0]
    gaps = []
    with OnnxRuntimeSession(made.path, made.artifact.signature, strict=strict, threads=1) as session:
        decoder = session.decoder(rows)
        for start, end in ((0, 6), *((n, n + 1) for n in range(6, length))):
            got = decoder.step(
                values["input_ids"][:, start:end],
                mask=values["attention_mask"][:, start:end],
                positions=values["position_ids"][:, start:end],
                last=None,
            )
            seen = valid[:, start:end]
            gaps.append(gap(got[seen], want[:, start:end][seen]))
    return gaps


@pytest.mark.parametrize("name", ["llama", "llama3_instruct", "bert_embed"])
@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_values_are_those_of_gguf(name: str, kind: str) -> None:
    made = export(name, kind)
    found = arrays(made)
    head = "head.weight" if "head.weight" in made.model.weights else "embed.weight"
    checked = 0
    for key, values in stored(made).items():
        if f"{key}.{SCALES}" not in found:
            continue
        source = made.model.weights[key].load().float().numpy()
        number = GGMLQuantizationType.Q8_0 if kind == "q8_0" or key == head else GGMLQuantizationType.Q4_0
        assert np.array_equal(dequantize(quantize(source, number), number), values.numpy())
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4a", "q4-16", "q8a-64", "int8"])
def test_strict_sessions_compute_with_exactly_the_stored_weights(kind: str) -> None:
    assert max(steps(export("llama", kind), strict=True)) < EXACT


@pytest.mark.parametrize("kind", TYPES)
def test_prefill_and_steps_are_close_to_the_stored_weights(kind: str) -> None:
    limit = COARSE if kind == "q4f16" else ROUNDED
    assert max(steps(export("llama", kind), strict=False)) < limit


@pytest.mark.parametrize("kind", TYPES)
def test_encoders_are_close_to_the_stored_weights(kind: str) -> None:
    made = export("bert_embed", kind)
    values, valid = inputs(made.model.signature, 3, 12, 0, "right", 100)
    want = forward(module(made), values, torch.float64)[0]
    with OnnxRuntimeSession(made.path, made.artifact.signature, threads=1) as session:
        got = session.run(values)[made.model.signature.outputs[0].name]
    assert gap(got[valid], want[valid]) < COARSE


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "int8"])
def test_a_tied_head_reads_the_tables_own_bytes(kind: str) -> None:
    made = export("llama", kind)
    places = {
        tensor.name: sorted((item.key, item.value) for item in tensor.external_data)
        for tensor in made.graph.graph.initializer
    }
    assert places[f"embed.weight.{DATA}"] == places[f"embed.weight.{DATA}.2d"]
    assert not any(name.startswith("head.") for name in places)
    rows, columns = made.model.weights["embed.weight"].shape
    length = dict(places[f"embed.weight.{DATA}"])["length"]
    assert int(length) == rows * columns


@pytest.mark.parametrize(("kind", "bits"), [("q4_0", 8), ("q4a", 8), ("q4w", 4), ("q4aw-64", 4), ("q8_0", 8)])
def test_the_head_has_8_bits_unless_the_type_says_whole(kind: str, bits: int) -> None:
    graph = export("llama", kind).graph.graph
    settings = {
        node.input[1]: {a.name: a.i for a in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"
    }
    assert settings[f"embed.weight.{DATA}"]["bits"] == bits
    (table,) = (node for node in graph.node if node.op_type == "GatherBlockQuantized")
    assert {a.name: a.i for a in table.attribute}["bits"] == bits
    assert {found["bits"] for name, found in settings.items() if name.startswith("layers.")} == {int(kind[1])}


def test_rows_that_no_block_divides_stay_as_they_are() -> None:
    made = export("bert", "q4_0")  # 48 channels
    kinds = {node.op_type for node in made.graph.graph.node if node.name.endswith("attn.q.FusedMatMul")}
    assert kinds == {"FusedMatMul"}
    down = [node.op_type for node in made.graph.graph.node if ".mlp.down." in node.name]
    assert "MatMulNBits" in down  # 96 channels


def test_norms_positions_and_biases_stay_in_float() -> None:
    found = arrays(export("bert", "q4-16"))  # 48 channels
    for name in ("position_embed.weight", "type_embed.weight", "embed_norm.weight", "layers.0.attn.q.bias"):
        assert found[name].dtype == np.float32
    assert found["embed.weight.data.2d"].dtype == np.uint8


@pytest.mark.parametrize("kind", ["q4_0", "q4a-16", "q8_0", "int8"])
def test_the_check_accepts_the_weights_and_finds_a_changed_byte(kind: str, tmp_path: Path) -> None:
    model = open_model(oracle.tiny("llama"))
    (artifact,) = write(model, tmp_path, kind, quiet)
    path = tmp_path / artifact.files[0].path
    assert [result.value for result in check_packed(model, path, kind, "onnxruntime").results] == [0, 0]
    graph = onnx.load(path, load_external_data=False).graph
    (data,) = (t for t in graph.initializer if t.name == f"layers.1.mlp.up.weight.{DATA}")
    place = {item.key: item.value for item in data.external_data}
    with path.with_name(place["location"]).open("r+b") as stream:
        stream.seek(int(place["offset"]))
        (byte,) = stream.read(1)
        stream.seek(int(place["offset"]))
        stream.write(bytes([byte ^ 0x0C]))
    differing, _ = check_packed(model, path, kind, "onnxruntime").results
    assert not differing.passed
    assert differing.note.startswith("layers.1.mlp.up.weight")


@pytest.mark.parametrize("kind", ["f16", "q4a", "q8_0", "q4f16", "int8"])
def test_two_exports_of_a_type_are_byte_identical(kind: str, tmp_path: Path) -> None:
    first = export("llama", kind)
    (again,) = write(open_model(oracle.tiny("llama")), tmp_path, kind, quiet)
    assert again == first.artifact
    for file in again.files:
        assert (tmp_path / file.path).read_bytes() == (first.folder / file.path).read_bytes()


def test_types_lie_side_by_side_and_one_trace_serves_them(tmp_path: Path) -> None:
    texts: list[str] = []
    kinds = ("f32", "q4_0", "int8")
    written = write(open_model(oracle.tiny("llama")), tmp_path, kinds, lambda text, *_: texts.append(text))
    assert [artifact.dtype for artifact in written] == list(kinds)
    names = ["model.onnx", "model_q4.onnx", "model_quantized.onnx"]
    assert [artifact.files[0].path for artifact in written] == [f"onnx/{name}" for name in names]
    assert sum("tracing" in text for text in texts) == 1
    assert written[1].files[:2] == export("llama", "q4_0").artifact.files[:2]


@pytest.mark.parametrize("kind", ["q4", "q8", "q5_0", "q4-48", "int4", "q8_0f16", "", "../f32"])
def test_an_unknown_type_is_refused_with_the_choices(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not known; choose from f32, f16, int8, q8_0, q4_0"):
        write(open_model(oracle.tiny("llama")), tmp_path, kind, quiet)
    assert not any(tmp_path.iterdir())


def test_blocks_are_refused_in_standard_onnx(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"q4_0 needs ONNX Runtime's own kernels; in standard ONNX there are f32"):
        write(open_model(oracle.tiny("llama")), tmp_path, "q4_0", quiet, portable=True)


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(oracle.tiny("llama"), source)
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up\.weight holds values that are not finite"):
        write(open_model(source), tmp_path / "bundle", "q4_0", quiet)


FORMS = [Blocks(bits, size, asymmetric) for bits in (4, 8) for size in (16, 32) for asymmetric in (False, True)]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(FORMS),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=64, max_size=64),
)
def test_no_value_is_off_by_more_than_its_step(form: Blocks, values: list[float]) -> None:
    """Half a step; a whole one at the end that 4 symmetric bits do not reach, and what float16 rounds off the scale."""
    rows = torch.tensor([values, values[::-1]], dtype=torch.float32)
    parts = {f"w.{part}": tensor.numpy() for part, tensor in form.encode(rows).items()}
    got = torch.from_numpy(unpack(parts, "w", form.bits, (2, 64)))
    scales = torch.from_numpy(parts[f"w.{SCALES}"]).abs().repeat_interleave(form.size, 1)
    allowed = scales * (1 if form.bits == 4 and not form.asymmetric else 0.5) + rows.abs() * 2**-10 + 1e-6
    assert bool(((got - rows).abs() <= allowed).all())


def test_zeros_and_ties_are_quantized_as_ggml_does() -> None:
    rows = torch.zeros(4, 32)
    rows[1] = torch.tensor([1.0, -1.0] * 16)
    rows[2] = torch.tensor([-1.0, 1.0] * 16)
    rows[3, 7] = 1e-41  # so small that its inverse overflows
    for bits, kind in ((4, GGMLQuantizationType.Q4_0), (8, GGMLQuantizationType.Q8_0)):
        parts = Blocks(bits).encode(rows[:3])
        packed = quantize(rows[:3].numpy(), kind)
        assert np.array_equal(parts[SCALES].to(torch.float16).view(torch.uint8).numpy(), packed[:, :2])
        low = parts[DATA][:, 0].numpy()
        if bits == 4:
            values = np.stack((low & 15, low >> 4), -1).reshape(3, 32)
            assert np.array_equal(values[:, :16] | values[:, 16:] << 4, packed[:, 2:])
        else:
            assert np.array_equal(low - np.uint8(128), packed[:, 2:])


def test_channels_are_turned_and_signed_by_an_offset() -> None:
    rows = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    parts = Channels().encode(rows)
    assert parts[DATA].tolist() == [[192, 1, 128], [128, 128, 128]]
    assert Channels().types(2, 3)[DATA].shape == (3, 2)
