"""ONNX exports against the torch module in float64, in ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from isoform import manifest
from isoform.errors import UnsupportedExport
from isoform.exporters.onnx import Options, write
from isoform.reference.model import Model, open_model
from isoform.signature import LENGTH, TOTAL, Signature
from tests import oracle
from tests.exports import artifact_of, exported
from tests.pairwise import pairwise

Arrays = dict[str, NDArray[Any]]

# Both run in float32, in another order of summation: their distance from float64 may differ by a small factor.
FLOAT32_FACTOR, FLOAT32_FLOOR = 6.0, 1e-6
# float16 is judged by torch's own float16 module: kernels differ in which sums they keep in float32.
FLOAT16_FACTOR = 2.0

DECODERS = oracle.DECODERS
FLOAT16 = ("bert", "bert_seqcls_b", "gemma2", "gemma3_b", "llama", "qwen2_b", "qwen3_b")
PORTABLE = ("bert", "bert_qa", "gemma2_b", "llama", "mistral_b", "qwen2")


@dataclasses.dataclass(frozen=True)
class Export:
    model: Model
    folder: Path
    artifact: manifest.Artifact

    @property
    def path(self) -> Path:
        return self.folder / self.artifact.files[0].path

    @property
    def graph(self) -> onnx.ModelProto:
        return onnx.load(self.path, load_external_data=False)

    def session(self) -> onnxruntime.InferenceSession:
        return session(self.path)


def session(source: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    where = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])


def quiet(text: str, done: int, total: int) -> None:
    pass


@cache
def export(name: str, dtype: str = "f32", portable: bool = False) -> Export:
    folder = exported(name, ["onnx"], dtype, onnx=Options(types=(dtype,), portable=portable))
    return Export(open_model(oracle.tiny(name)), folder, artifact_of(folder, "onnx", dtype))


def mask(batch: int, length: int, side: str) -> NDArray[np.int64]:
    """Row n has 2n padded slots on that side, and at least one real token."""
    result = np.ones((batch, length), np.int64)
    for row in range(batch if side else 0):
        padded = min(2 * row, length - 1)
        result[row, slice(0, padded) if side == "left" else slice(length - padded, length)] = 0
    return result


def inputs(signature: Signature, batch: int, length: int, past: int, side: str, vocab: int) -> tuple[Arrays, Any]:
    """Random inputs (float64 where they are floats), and which of the `length` slots hold a token."""
    rng = np.random.default_rng([batch, length, past, len(side)])
    seen = mask(batch, past + length, side)
    values: Arrays = {
        "input_ids": rng.integers(0, vocab, (batch, length)),
        "attention_mask": seen,
        "position_ids": np.maximum(seen.cumsum(1) - 1, 0)[:, past:],
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }
    values |= {state.input: rng.standard_normal(state.shape(batch, past)) for state in signature.states}
    return {port.name: values[port.name] for port in signature.inputs}, seen[:, past:] != 0


def cases(signature: Signature, rows: bool) -> Iterator[tuple[int, int, int, str]]:
    """Batch, new tokens, cached tokens, padding side. `rows`: also several rows with several tokens after a past."""
    for batch in (1, 3):
        for length in (1, 7, 20):
            for past in (0, 1, 9) if signature.states else (0,):
                if rows or batch == 1 or length == 1 or past == 0:
                    yield from (
                        (batch, length, past, side) for side in (("",) if batch == 1 else ("", "left", "right"))
                    )


def run(session: onnxruntime.InferenceSession, values: Arrays, dtype: type = np.float32) -> list[NDArray[Any]]:
    return session.run(None, {n: v.astype(dtype) if v.dtype == np.float64 else v for n, v in values.items()})


def forward(module: nn.Module, values: Arrays, dtype: torch.dtype) -> list[NDArray[Any]]:
    tensors = (torch.from_numpy(value) for value in values.values())
    return [x.double().numpy() for x in module(*(x.to(dtype) if x.is_floating_point() else x for x in tensors))]


def gap(signature: Signature, got: list[NDArray[Any]], truth: list[NDArray[Any]], valid: Any, past: int) -> float:
    """The largest difference over slots that hold a token."""
    worst = 0.0
    for port, a, b in zip(signature.outputs, got, truth, strict=True):
        assert a.shape == b.shape
        difference = np.abs(a.astype(np.float64) - b)
        if TOTAL in port.axes:  # a cache: what was there before came in from outside
            difference = difference[:, :, past:].swapaxes(1, 2)[valid]
        elif LENGTH in port.axes:
            difference = difference[valid]
        worst = max(worst, float(difference.max()))
    return worst


def check_parity(
    made: Export, dtype: torch.dtype, factor: float, floor: float, rows: bool = False, whole: bool = False
) -> None:
    """In every two sizes and sides that can meet, or in the `whole` product of them."""
    model = made.model
    truth, peer, runtime = model.module(torch.float64), model.module(dtype), made.session()
    vocab = model.weights["embed.weight"].shape[0]
    gaps = []
    product = list(cases(model.signature, rows))
    for batch, length, past, side in product if whole else pairwise(product):
        values, valid = inputs(model.signature, batch, length, past, side, vocab)
        exact = forward(truth, values, torch.float64)
        numpy_type = np.float32 if dtype == torch.float32 else np.float16
        ours = gap(model.signature, run(runtime, values, numpy_type), exact, valid, past)
        theirs = gap(model.signature, forward(peer, values, dtype), exact, valid, past)
        gaps.append((ours, theirs, (batch, length, past, side)))
    limit = factor * max(theirs for _, theirs, _ in gaps) + floor
    assert max(gaps)[0] <= limit, max(gaps)


@pytest.mark.parametrize("name", [*oracle.ENCODERS, *DECODERS])
def test_every_padding_and_past_agrees_with_the_reference(name: str) -> None:
    check_parity(export(name), torch.float32, FLOAT32_FACTOR, FLOAT32_FLOOR)


@pytest.mark.nightly
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", [*oracle.ENCODERS, *DECODERS])
def test_the_whole_product_of_paddings_and_pasts_agrees(name: str, portable: bool) -> None:
    made = export(name, portable=portable)
    check_parity(made, torch.float32, FLOAT32_FACTOR, FLOAT32_FLOOR, rows=portable, whole=True)


@pytest.mark.parametrize("name", PORTABLE)
def test_portable_graph_holds_standard_operators_and_agrees(name: str) -> None:
    made = export(name, portable=True)
    assert [(o.domain, o.version) for o in made.graph.opset_import] == [("", 23)]
    onnx.checker.check_model(made.folder / "onnx/model.onnx", full_check=True)
    check_parity(made, torch.float32, FLOAT32_FACTOR, FLOAT32_FLOOR, rows=True)


@pytest.mark.parametrize("name", FLOAT16)
def test_float16_is_as_close_as_torchs_own(name: str) -> None:
    check_parity(export(name, "f16"), torch.float16, FLOAT16_FACTOR, 0)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("name", ["gemma2", "llama", "qwen2_b"])
def test_decoding_with_the_cache_equals_one_full_pass(name: str, dtype: str) -> None:
    made = export(name, dtype)
    runtime, signature = made.session(), made.model.signature
    full, valid = inputs(signature, 3, 12, 0, "left", 100)
    whole = run(runtime, full, np.float16 if dtype == "f16" else np.float32)
    steps, past = [], list(full.values())[3:]
    for start, end in ((0, 7), *((n, n + 1) for n in range(7, 12))):
        part = {
            "input_ids": full["input_ids"][:, start:end],
            "attention_mask": full["attention_mask"][:, :end],
            "position_ids": full["position_ids"][:, start:end],
        }
        part |= dict(zip([port.name for port in signature.inputs[3:]], past, strict=True))
        logits, *past = run(runtime, part, np.float16 if dtype == "f16" else np.float32)
        steps.append(logits)
    difference = np.abs(np.concatenate(steps, 1).astype(np.float64) - whole[0])[valid]
    scale = float(np.abs(whole[0]).max())
    assert difference.max() <= scale * (2e-2 if dtype == "f16" else 1e-5)


def test_ports_carry_the_signatures_names_and_axes() -> None:
    made = export("llama")
    graph, signature = made.graph.graph, made.model.signature
    for infos, ports in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        assert [info.name for info in infos] == [port.name for port in ports]
        for info, port in zip(infos, ports, strict=True):
            assert tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim) == port.axes


def test_nothing_is_computed_twice_and_nothing_in_vain() -> None:
    for name in ("bert_seqcls", "gemma2", "qwen3_b"):
        graph = export(name).graph.graph
        seen = [(n.op_type, tuple(n.input), tuple(a.SerializeToString() for a in n.attribute)) for n in graph.node]
        assert len(seen) == len(set(seen))
        used = {i for node in graph.node for i in node.input} | {output.name for output in graph.output}
        assert all(used.intersection(node.output) for node in graph.node)
        assert {tensor.name for tensor in graph.initializer} <= used


def test_a_decoder_layer_is_fifteen_nodes() -> None:
    graph = export("llama").graph.graph
    layer = [node.op_type for node in graph.node if node.name.startswith("layers.1.")]
    assert len(layer) == 15
    assert layer.count("GroupQueryAttention") == 1


def test_two_exports_are_byte_identical(tmp_path: Path) -> None:
    first = export("qwen2")
    write(open_model(oracle.tiny("qwen2")), tmp_path, "f32", quiet)
    for name in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "onnx" / name).read_bytes() == (first.folder / "onnx" / name).read_bytes()


def test_an_export_imports_no_compiler(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom isoform.exporters.onnx import write\n"
        "from isoform.reference.model import open_model\n"
        "for n, source in enumerate(sys.argv[2:]):\n"
        "    write(open_model(source), Path(sys.argv[1]) / str(n), 'f32', lambda *_: None)\n"
        "print([name for name in ('sympy', 'torch._dynamo', 'torch._inductor', 'transformers') if name in sys.modules])"
    )
    sources = [str(oracle.tiny(name)) for name in ("bert", "gemma2", "llama")]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), *sources], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_artifact_describes_its_files() -> None:
    made = export("llama")
    assert [file.path for file in made.artifact.files[:2]] == ["onnx/model.onnx", "onnx/model.onnx_data"]
    for file in made.artifact.files:
        assert manifest.describe(made.folder / file.path, made.folder) == file


@pytest.mark.parametrize("name", ["bert", "gemma2", "llama_b", "qwen3_sharded"])
def test_weights_lie_outside_aligned_and_bit_equal(name: str) -> None:
    made = export(name)
    outside = [t for t in made.graph.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    data = (made.folder / "onnx/model.onnx_data").read_bytes()
    assert {t.name for t in outside} == {n for n in made.model.weights if n in {t.name for t in outside}}
    for tensor in outside:
        entry = {item.key: item.value for item in tensor.external_data}
        offset, length = int(entry["offset"]), int(entry["length"])
        assert entry["location"] == "model.onnx_data"
        assert offset % (4096 if length >= 4096 else 64) == 0
        expected = made.model.weights[tensor.name].load().float().contiguous().numpy()
        assert tuple(tensor.dims) == expected.shape
        assert data[offset : offset + length] == expected.tobytes()
    small = [t for t in made.graph.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(t.raw_data) for t in small) < 4096


def test_tied_weights_are_stored_once() -> None:
    made = export("gemma2")
    assert made.model.tied == {"head.weight": "embed.weight"}
    users = [node.name for node in made.graph.graph.node if "embed.weight" in node.input]
    assert users == ["embed.Gather", "head.FusedMatMul"]
    assert "head.weight" not in {tensor.name for tensor in made.graph.graph.initializer}


def test_bfloat16_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match=r"bf16: ONNX Runtime .* cannot run it on a CPU .*choose f32 or f16"):
        write(open_model(oracle.tiny("llama")), tmp_path, "bf16", quiet)


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(oracle.tiny("llama"), source)
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UnsupportedExport, match=r"norm\.weight holds 100000, float16 ends at 65504; export to f32"):
        write(open_model(source), tmp_path / "bundle", "f16", quiet)


def test_progress_ends_with_the_last_byte(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    write(open_model(oracle.tiny("bert_ner")), tmp_path, "f32", lambda *call: calls.append(call))
    text, _, _ = calls[0]
    assert "tracing" in text
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(calls))
