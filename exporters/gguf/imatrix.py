"""Importance matrices: how much each column of a weight matters, as the mean square of what it is multiplied with.

llama.cpp's files, both its GGUF ones and the older .dat, are read; ours are measured on the reference, and written as
its GGUF ones. The formats: tools/imatrix/imatrix.cpp in https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoform.errors import CheckpointError, InputError
from isoform.progress import Progress
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.names import GGUF, rename

if TYPE_CHECKING:
    import torch

    from isoform.reference.model import Model

SUMS, COUNTS = ".in_sum2", ".counts"
CONTEXT = 512  # tokens of a chunk, llama.cpp's default


@dataclass(frozen=True, slots=True)
class Importance:
    """Float32 (experts * columns,) by GGUF tensor name; `datasets` and `chunks` say what they were measured on."""

    path: Path
    values: Mapping[str, NDArray[np.float32]]
    datasets: tuple[str, ...] = ()
    chunks: int = 0

    def metadata(self) -> dict[str, Any]:
        """What llama-quantize writes down in the file that it makes with this matrix."""
        found: dict[str, Any] = {"quantize.imatrix.file": self.path.name}
        if self.datasets:
            found["quantize.imatrix.dataset"] = self.datasets[0]
        return found | {
            "quantize.imatrix.entries_count": len(self.values),
            "quantize.imatrix.chunks_count": self.chunks,
        }


def read_importance(path: Path) -> Importance:
    """Read llama.cpp's importance matrix. Raises CheckpointError for any other file, or no weights in it."""
    try:
        with path.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
        found = _read_gguf(path) if is_gguf else _read_legacy(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); give an importance matrix") from None
    for name, values in found.values.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise CheckpointError(f"{path}: the importance of {name} is negative or not finite; measure it again")
    return found


def _read_gguf(path: Path) -> Importance:
    header = read_gguf(path)
    names = [name.removesuffix(SUMS) for name in header.tensors if name.endswith(SUMS)]
    if not names:
        kind = header.metadata.get("general.type", "GGUF file")
        raise CheckpointError(f"{path} is a {kind}, which holds no importance matrix; `isoform imatrix` makes one")
    values = {}
    with path.open("rb") as stream:
        for name in names:
            arrays = []
            for suffix in (SUMS, COUNTS):
                info = header.tensors.get(name + suffix)
                if info is None or info.dtype != "F32":
                    raise CheckpointError(f"{path} has no float32 {name}{suffix}; measure it again")
                stream.seek(info.offset)
                arrays.append(np.frombuffer(stream.read(info.nbytes), np.float32))
            sums, counts = arrays
            if len(sums) % len(counts):
                raise CheckpointError(
                    f"{path}: {name} has {len(sums)} sums for {len(counts)} matrices; measure it again"
                )
            sums, counts = sums.reshape(len(counts), -1), np.rint(counts)[:, None]
            mean = np.ones_like(sums)  # stays so for an expert that no token chose: its columns are alike
            np.divide(sums, counts, where=counts > 0, out=mean)
            values[name] = mean.reshape(-1)
    datasets = header.metadata.get("imatrix.datasets", [])
    return Importance(path, values, tuple(datasets), int(header.metadata.get("imatrix.chunk_count", 0)))


def _read_legacy(path: Path) -> Importance:
    """The .dat format: int32 lengths, names, and sums over the chunks."""
    raw = path.read_bytes()
    values: dict[str, NDArray[np.float32]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("<i", raw, at - 4)[0])

    def text() -> str:
        nonlocal at
        length = number()
        if not 0 <= length <= len(raw) - at:
            raise ValueError("a name is longer than the file")
        at += length
        return raw[at - length : at].decode()

    try:
        count = number()
        for _ in range(count):
            name, calls, length = text(), number(), number()
            if not 0 < length <= (len(raw) - at) // 4 or not name.isprintable():
                raise ValueError(f"{name!r} has {length} values")
            sums = np.frombuffer(raw, "<f4", length, at).astype(np.float32)
            values[name] = sums / np.float32(calls) if calls > 0 else sums
            at += 4 * length
        chunks = number() if at < len(raw) else 0
        datasets = (text(),) if at < len(raw) else ()
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{path} is no importance matrix ({error}); `isoform imatrix` makes one") from None
    if not values:
        raise CheckpointError(f"{path} is no importance matrix (it names no tensor); `isoform imatrix` makes one")
    return Importance(path, values, datasets, chunks)


def weights_for(
    importance: Importance, shapes: Mapping[str, tuple[int, ...]], model: str
) -> dict[str, NDArray[np.float32]]:
    """The matrix for the tensors of a model, whose `shapes` go by GGUF name.

    Raises InputError when it was measured on another model.
    """
    found = {}
    way_out = f"it was measured on another model than {model}; `isoform imatrix {model} TEXT` makes one"
    unknown = [name for name in importance.values if name not in shapes]
    if unknown and not set(unknown) <= {"output.weight"}:
        raise InputError(f"{importance.path} weighs {unknown[0]}, which the model has not: {way_out}")
    for name, values in importance.values.items():
        if name not in shapes:
            continue
        shape = shapes[name]
        if len(values) == (wanted := shape[-1] * prod(shape[:-2])):
            found[name] = values
        elif name != "token_embd.weight":  # rows are looked up there: llama.cpp's own matrices have no use for it
            raise InputError(f"{importance.path} has {len(values)} weights for {name}, which takes {wanted}: {way_out}")
    layers = {layer_of(name) for name, shape in shapes.items() if len(shape) > 1}
    covered = {layer_of(name) for name in importance.values}
    if missing := sorted(layer for layer in layers - covered if layer is not None):
        side, number = missing[0]
        raise InputError(f"{importance.path} weighs nothing in {side}layer {number}: {way_out}")
    return found


def layer_of(name: str) -> tuple[str, int] | None:
    """The layer of a tensor by its GGUF name, with the side that it is on; None for those of no layer."""
    match = re.match(r"(enc\.|dec\.)?blk\.(\d+)\.", name)
    return None if match is None else ({"enc.": "encoder ", "dec.": "decoder "}.get(match[1] or "", ""), int(match[2]))


# ------------------------------------------------------------------ measuring
def chunks_of(ids: Sequence[int], frame: Sequence[int], context: int, *, decoder: bool) -> Iterator[list[int]]:
    """Cut a text into chunks of `context` tokens as llama.cpp does, what is left over at the end being dropped.

    `ids` is the whole text; `frame` what the tokenizer makes of no text. In a decoder its first token takes the place
    of the first of each chunk; around an encoder's chunk it stays whole, and `ids` must come without it.
    """
    if decoder:
        for start in range(0, len(ids) - context + 1, context):
            chunk = list(ids[start : start + context])
            yield [*frame[:1], *chunk[len(frame[:1]) :]]
        return
    body = context - len(frame)
    for start in range(0, len(ids) - body + 1, body):
        yield [*frame[:1], *ids[start : start + body], *frame[1:]]


def measure(
    model: Model, chunks: Sequence[Sequence[int]], progress: Progress
) -> dict[str, tuple[NDArray[np.float32], int]]:
    """Run the chunks through the reference: sums of squares (columns,) by GGUF tensor name, and over how many tokens.

    The weights of layers are measured, as in llama.cpp: not the output matrix.
    """
    import torch

    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    module = model.module()
    card = model.family.gguf_of(model.task)
    names = GGUF if card is None else card.tensors
    handles = []
    for path, layer in module.named_modules():
        name = rename(f"{path}.weight", names) if isinstance(layer, torch.nn.Linear) else None
        if name is None or layer_of(name) is None:
            continue

        def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.square().sum(0, dtype=torch.float64)
            counts[name] = counts.get(name, 0) + len(rows)

        handles.append(layer.register_forward_pre_hook(note))
    with torch.inference_mode():
        for done, chunk in enumerate(chunks):
            progress("measuring importance", done, len(chunks))
            module(torch.tensor([chunk]))
    progress("measuring importance", len(chunks), len(chunks))
    for handle in handles:
        handle.remove()
    found = {name: (total.to(torch.float32).numpy(), counts[name]) for name, total in sorted(sums.items())}
    for name, (total, _) in found.items():
        if not np.isfinite(total).all():
            raise CheckpointError(f"{model.name}: what comes into {name} is not finite; check the checkpoint's weights")
    return found


def write_importance(
    out: Path, measured: Mapping[str, tuple[NDArray[np.float32], int]], dataset: str, chunks: int, context: int
) -> None:
    """Write llama.cpp's GGUF imatrix, whole or not at all."""
    from isoform.exporters.gguf.writer import write_arrays

    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": [dataset],
        "imatrix.chunk_count": chunks,
        "imatrix.chunk_size": context,
    }
    tensors: dict[str, tuple[str, tuple[int, ...], NDArray[Any]]] = {}
    for name, (total, count) in measured.items():
        tensors[name + SUMS] = "F32", total.shape, total
        tensors[name + COUNTS] = "F32", (1,), np.array([count], np.float32)
    write_arrays(out, metadata, tensors)


def make_importance(
    model: Model,
    encode: Callable[[str, bool], Sequence[int]],
    text: Path,
    out: Path,
    *,
    context: int = CONTEXT,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Measure the importances of a model over a text file, in chunks of `context` tokens, and write them to `out`.

    `encode` gives the tokens of a text, with or without special ones; at most `limit` chunks are used.
    """
    if len(model.parts) > 1:
        raise InputError(
            f"{model.name} has the parts {', '.join(part.part for part in model.parts)}, and an importance matrix is "
            "measured on a text alone; quantize it without one"
        )
    longest = model.config.context or context
    if not 2 <= context <= longest:
        raise InputError(f"--context {context} is not between 2 and the model's {longest} positions")
    if limit is not None and limit < 1:
        raise InputError(f"--chunks {limit} measures nothing; give 1 or more")
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} is no readable text ({error}); give a text file in UTF-8") from None
    decoder = bool(model.signature.states)
    ids, frame = encode(content, decoder), encode("", True)
    chunks = list(chunks_of(ids, frame, context, decoder=decoder))[:limit]
    if not chunks:
        raise InputError(f"{text} has {len(ids)} tokens, and a chunk takes {context}; give a longer text, or --context")
    measured = measure(model, chunks, progress or (lambda text, done, total: None))
    write_importance(out, measured, str(text), len(chunks), context)
    values = {name: total / np.float32(count) for name, (total, count) in measured.items()}
    return Importance(out, values, (str(text),), len(chunks))
