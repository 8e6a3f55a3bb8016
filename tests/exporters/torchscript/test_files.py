"""TorchScript files against the eager module: the same operations in the same order, so the same bits."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isoform.errors import UnsupportedExport
from isoform.exporters import torchscript, tracing
from isoform.exporters.torchscript import write
from isoform.formats import FLOATS
from isoform.manifest import Artifact
from isoform.reference.model import Model, open_model
from isoform.signature import BATCH, LENGTH, PAST, TOTAL, Port, Signature, decoder_signature
from tests import oracle
from tests.exports import artifact_of, exported

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")

Tiny = Callable[[str], Path]
SIZES = ((1, 1, 0), (3, 7, 0), (2, 4, 9), (1, 1, 20))  # batch, length, past


def examples(signature: Signature, sizes: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random ids after a random past, the first slot of the last row padded."""
    batch, length, past = sizes
    named = {BATCH: batch, LENGTH: length, PAST: past, TOTAL: past + length}
    generator = torch.Generator().manual_seed(0)

    def example(port: Port) -> Tensor:
        shape = [named[axis] if isinstance(axis, str) else axis for axis in port.axes]
        if port.dtype == "float":
            return torch.randn(shape, generator=generator).to(dtype)
        if port.name == "attention_mask":
            mask = torch.ones(shape, dtype=torch.int64)
            mask[-1, 0] = int(past + length == 1)
            return mask
        if port.name == "position_ids":
            return torch.arange(past, past + length).expand(shape)
        return torch.randint(0, 2 if port.name == "token_type_ids" else 200, shape, generator=generator)

    return tuple(map(example, signature.inputs))


def written(model: Model, folder: Path, dtype: str = "f32") -> Path:
    (artifact,) = write(model, folder, dtype)
    return described(model, folder, artifact, dtype)


def described(model: Model, folder: Path, artifact: Artifact, dtype: str) -> Path:
    """The file of an artifact that says what it is."""
    assert artifact.dtype == dtype
    assert artifact.signature == model.signature
    (file,) = artifact.files
    assert (folder / file.path).stat().st_size == file.size
    return folder / file.path


HALVES = ("bert_qa", "gemma2_b", "qwen3_b")  # layer and rms norms, soft-caps, windows, norms of heads


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "f32") for name in (*oracle.ENCODERS, *oracle.DECODERS)),
        *((name, dtype) for name in HALVES for dtype in ("f16", "bf16")),
    ],
)
def test_a_file_computes_what_the_module_does_at_any_size(name: str, dtype: str, tiny: Tiny) -> None:
    model, folder = open_model(tiny(name)), exported(name, ["torchscript"], dtype)
    kind = getattr(torch, FLOATS[dtype])
    loaded: Any = torch.jit.load(described(model, folder, artifact_of(folder, "torchscript", dtype), dtype))
    module = model.module(kind)
    for weights in (loaded, module):  # a mapped file's may be aligned otherwise, and take another kernel: up to 7e-7
        for weight in weights.parameters():
            weight.data = weight.data.clone()
    for sizes in SIZES:
        inputs = examples(model.signature, sizes, kind)
        with torch.inference_mode():
            got, want = loaded(*inputs), module(*inputs)
        assert isinstance(got, tuple)
        assert [x.shape for x in got] == [x.shape for x in want]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), sizes


def test_a_file_opens_where_isoform_is_not_installed(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("llama"))
    path = written(model, tmp_path)
    inputs = examples(model.signature, (2, 3, 4), torch.float32)
    torch.save(inputs, tmp_path / "inputs.pt")
    script = (
        f"import sys, torch; inputs = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        f"out = torch.jit.load({str(path)!r})(*inputs); torch.save(out, {str(tmp_path / 'out.pt')!r})\n"
        "assert not any(name.startswith('isoform') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True, cwd=tmp_path)
    with torch.inference_mode():
        want = model.module()(*inputs)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), want, rtol=0, atol=0)


def test_an_archive_is_sound_and_tells_nothing_of_this_machine(tiny: Tiny, tmp_path: Path) -> None:
    path = written(open_model(tiny("qwen2")), tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert b"/reference/" not in archive.read(entry), entry.filename
            header = path.read_bytes()[entry.header_offset :][:30]
            name, extra = struct.unpack("<HH", header[26:30])
            assert (entry.header_offset + 30 + name + extra) % 64 == 0, entry.filename


def test_records_past_two_gigabytes_stay_aligned() -> None:
    record = zipfile.ZipInfo("archive/data/7")
    record.file_size = record.compress_size = 3 * 2**30
    record.CRC = 0
    torchscript._align(record, 4099)
    header = record.FileHeader(zip64=True)
    assert (4099 + len(header)) % 64 == 0


def test_tied_weights_are_stored_once(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("gemma2"))
    assert model.tied
    with zipfile.ZipFile(written(model, tmp_path)) as archive:
        stored = sum("/data/" in name for name in archive.namelist())
    assert stored == len(model.weights) + len(list(model.skeleton().named_buffers()))


def test_the_same_weights_give_the_same_parameters(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("gemma3_b"))
    loaded = torch.jit.load(written(model, tmp_path))
    parameters = dict(loaded.named_parameters())
    assert parameters.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        assert torch.equal(parameters[name], weight.load().float()), name


def test_a_weight_that_float16_cannot_hold_is_named(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("qwen2"))
    module = model.module()
    module.get_parameter("layers.1.mlp.up.weight")[3, 4] = 70000.0
    model.save(tmp_path / "large", module)
    large = open_model(tmp_path / "large")
    with pytest.raises(UnsupportedExport, match=r"layers\.1\.mlp\.up\.weight holds 70000"):
        write(large, tmp_path, "f16")
    write(large, tmp_path, "bf16")


class Frozen(nn.Module):
    """Scales by the number of tokens, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight * float(x.shape[1]),)


class Branching(Frozen):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight if x.shape[1] > 4 else x + self.weight + 1,)


class Counting(Frozen):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight + torch.arange(x.shape[1], device=x.device),)


@pytest.mark.parametrize(("module", "reason"), [(Frozen, "freezes"), (Branching, "another path")])
def test_a_graph_that_fits_one_size_only_is_refused(module: type[Frozen], reason: str) -> None:
    port = Port("x", "float", (BATCH, LENGTH))
    with pytest.raises(UnsupportedExport, match=reason), torch.device("meta"):
        torchscript._skeleton(module(), Signature((port,), (port,)))


def test_a_tensor_made_on_the_way_lies_on_the_cpu(tmp_path: Path) -> None:
    port = Port("x", "float", (BATCH, LENGTH))
    module = Counting()
    source = torchscript._Source("weight", module.weight, lambda: torch.full((1,), 2.0), lambda: None)
    archive, order = torchscript._skeleton(module.to("meta"), Signature((port,), (port,)))
    assert order == ["weight"]
    torchscript._fill(archive, tmp_path / "model.pt", [source], lambda *report: None)
    (out,) = torch.jit.load(tmp_path / "model.pt")(torch.ones(1, 3))
    assert out.tolist() == [[2.0, 3.0, 4.0]]


def test_an_unknown_dtype_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match="q8_0"):
        write(open_model(tiny("bert")), tmp_path, "q8_0")


def test_progress_counts_the_bytes_of_the_weights(tiny: Tiny, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(open_model(tiny("bert")), tmp_path, "f16", lambda text, done, total: seen.append((done, total)))
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_inputs_come_in_the_order_of_the_signature() -> None:
    sizes = {BATCH: 2, LENGTH: 3, PAST: 5, TOTAL: 8}
    inputs = tracing.examples(decoder_signature(1, 2, 4, 9), sizes, torch.float16)
    assert [tuple(x.shape) for x in inputs] == [(2, 3), (2, 8), (2, 3), (2, 2, 5, 4), (2, 2, 5, 4)]
    assert all(x.device.type == "meta" for x in inputs)
