"""Which tensors and metadata differ between two checkpoints or artifacts, read piece by piece.

Tensors have their canonical names where a family knows them, so that a Hub checkpoint and a GGUF file can be compared;
`raw` keeps the files' own. No more than a piece of a tensor of each side is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite, prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.progress import Progress
from isoform.reference.checkpoints.checkpoint import SIDECARS
from isoform.validators.levels.weights import PIECE, READERS, StoredTensor
from isoform.validators.tools.sides import Side, find_side

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 80  # characters of a value that are shown


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor that both sides have, and not the same: its dtypes, shapes, and how far the values are apart.

    `differing` of `size` values differ; None where the shapes do, so that nothing can be compared.
    """

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    size: int
    differing: int | None = None
    max_abs: float | None = None
    rms: float | None = None

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return data | {key: None for key in ("max_abs", "rms") if data[key] is not None and not isfinite(data[key])}


@dataclass
class Diff:
    """`a` and `b` are what was compared, `equal` counts the tensors with the same bytes; `notes` say what was not."""

    a: str
    b: str
    equal: int = 0
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    metadata: list[tuple[str, str, str]] = field(default_factory=list)  # key, a, b; "" where a side has none
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.added or self.removed or self.changed or self.metadata)

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "equal": self.equal,
            "added": self.added,
            "removed": self.removed,
            "changed": [change.to_json() for change in self.changed],
            "metadata": [{"key": key, "a": mine, "b": theirs} for key, mine, theirs in self.metadata],
            "notes": self.notes,
        }


@dataclass
class _Opened:
    """`kind` decides whose metadata can be compared; `release` lets go of a tensor that was read."""

    kind: str
    tensors: Mapping[str, StoredTensor]
    metadata: dict[str, str]
    release: Callable[[str], None] = lambda name: None
    canonical: bool = True


def diff(a: str, b: str, *, raw: bool = False, progress: Progress | None = None) -> Diff:
    """Compare two of them; each is what `sides.find_side` takes."""
    found, sides = Diff(a, b), (find_side(a), find_side(b))
    whole = not any(side.format for side in sides)  # an artifact holds no heads of other tasks
    with ExitStack() as stack:
        one, other = (stack.enter_context(_open(side, raw, whole, found.notes)) for side in sides)
        if one.canonical != other.canonical:
            one, other = (stack.enter_context(_open(side, True, whole, [])) for side in sides)
        return _compare(one, other, found, progress)


def _compare(one: _Opened, other: _Opened, found: Diff, progress: Progress | None) -> Diff:
    show = progress or (lambda text, done, total: None)
    found.removed = [name for name in one.tensors if name not in other.tensors]
    found.added = [name for name in other.tensors if name not in one.tensors]
    both = [name for name in one.tensors if name in other.tensors]
    for n, name in enumerate(both):
        show("tensors", n, len(both))
        change = _change(name, one.tensors[name], other.tensors[name])
        one.release(name)
        other.release(name)
        if change is None:
            found.equal += 1
        else:
            found.changed.append(change)
    show("tensors", len(both), len(both))
    if one.kind == other.kind:
        keys = [*one.metadata, *(key for key in other.metadata if key not in one.metadata)]
        pairs = ((key, one.metadata.get(key, ""), other.metadata.get(key, "")) for key in keys)
        found.metadata = [(key, _cut(mine), _cut(theirs)) for key, mine, theirs in pairs if mine != theirs]
    else:
        found.notes.append(f"metadata of {one.kind} and {other.kind} cannot be compared")
    return found


def _change(name: str, mine: StoredTensor, theirs: StoredTensor) -> Change | None:
    """None when dtype, shape and every bit are the same."""
    import torch

    dtypes, shapes, size = (_kind(mine.kind), _kind(theirs.kind)), (mine.shape, theirs.shape), prod(mine.shape)
    if mine.shape != theirs.shape:
        return Change(name, dtypes, shapes, size)
    differing, largest, squares = 0, 0.0, 0.0
    step = max(1, PIECE // max(1, prod(mine.shape[1:])))
    for start in range(0, mine.shape[0] if mine.shape else 1, step):
        x, y = mine.rows(start, start + step), theirs.rows(start, start + step)
        if x.dtype == y.dtype and torch.equal(_bits(x), _bits(y)):
            continue
        gap = (x.double() - y.double()).abs()
        differing += int(torch.count_nonzero(gap)) if x.dtype != y.dtype else int(_count_bits(x, y))
        largest = max(largest, float(gap.nan_to_num(float("inf")).max())) if gap.numel() else largest
        squares += float(gap.square().sum())
    if not differing and dtypes[0] == dtypes[1]:
        return None
    return Change(name, dtypes, shapes, size, differing, largest, sqrt(squares / size) if size else 0.0)


def _bits(x: Tensor) -> Tensor:
    """The bytes: NaN is equal to itself there, and 0 is not -0."""
    import torch

    return x.contiguous().reshape(-1).view(torch.uint8)


def _count_bits(x: Tensor, y: Tensor) -> int:
    import torch

    rows = [_bits(tensor).view(-1, tensor.element_size()) for tensor in (x, y)]
    return int(torch.count_nonzero((rows[0] != rows[1]).any(1)))


# ------------------------------------------------------------------ what can be opened
@contextmanager
def _open(side: Side, raw: bool, whole: bool, notes: list[str]) -> Iterator[_Opened]:
    if side.path.suffix == ".safetensors":
        with _safetensors(side.path) as opened:
            yield opened
    elif side.format == "gguf" or side.path.suffix == ".gguf":
        yield _gguf(side.path, raw, notes)
    elif side.format:
        with READERS[side.format](side.path) as stored:
            yield _Opened(side.format, stored.tensors, _metadata(side))
    else:
        yield _checkpoint(side, raw, whole, notes)


def _checkpoint(side: Side, raw: bool, whole: bool, notes: list[str]) -> _Opened:
    """`whole`: with the heads of other tasks than the checkpoint's own."""
    from isoform.reference.checkpoints.opening import open_checkpoint
    from isoform.reference.model import open_model

    file = open_checkpoint(side.source)
    metadata = _flat("config.json", file.config) | _hashes(file.folder, ("config.json",))
    if not raw:
        try:
            model = open_model(file)
            weights = model.all_weights if whole else model.weights
        except (UnsupportedModel, CheckpointError) as error:
            notes.append(f"{side.text}: the files' own names ({error})")
        else:

            def held(name: str) -> StoredTensor:
                weight = weights[name]
                kind = str(weight.dtype).removeprefix("torch.")
                return StoredTensor(kind, tuple(weight.shape), weight.rows)

            def let_go(name: str) -> None:
                weights[name].release()

            return _Opened("checkpoint", {name: held(name) for name in weights}, metadata, let_go)

    def stored(name: str) -> StoredTensor:
        info = file.info(name)
        return StoredTensor(_kind(info.dtype), info.shape, lambda start, stop: file.rows(name, start, stop))

    return _Opened("checkpoint", {name: stored(name) for name in file}, metadata, file.release, False)


def _kind(dtype: str) -> str:
    """safetensors' and ggml's names as torch's, where it has them."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
    return names.get(dtype, dtype)


def _gguf(path: Path, raw: bool, notes: list[str]) -> _Opened:
    from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint
    from isoform.reference.checkpoints.gguf_file import read_gguf

    header = read_gguf(path)
    metadata = {key: _plain(value) for key, value in header.metadata.items()}
    if not raw:
        try:
            file = GgufCheckpoint(path)
        except IsoformError as error:
            notes.append(f"{path}: the file's own names ({error})")
        else:

            def held(name: str) -> StoredTensor:
                info = file.info(name)
                return StoredTensor(_kind(info.dtype), info.shape, lambda start, stop: file.rows(name, start, stop))

            return _Opened("gguf", {name: held(name) for name in file}, metadata, file.release)
    return _Opened("gguf", _RawGguf(path), metadata, canonical=False)


class _RawGguf(Mapping[str, StoredTensor]):
    """The tensors of one GGUF file of any architecture, under its own names."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        from isoform.reference.checkpoints.gguf_file import read_gguf

        self.infos = read_gguf(path).tensors
        self.bytes = np.memmap(path, np.uint8, "r")

    def __getitem__(self, name: str) -> StoredTensor:
        info = self.infos[name]
        return StoredTensor(_kind(info.dtype), info.shape, lambda start, stop: self._rows(name, start, stop))

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        from isoform.reference.checkpoints.dtypes import DTYPES

        info = self.infos[name]
        count = info.shape[0] if info.shape else 1
        data = self.bytes[info.offset : info.offset + info.nbytes].reshape(count, -1)[start:stop]
        rest = info.shape[1:]
        if (dtype := DTYPES.get(info.dtype)) is not None:
            flat = torch.from_numpy(np.array(data)).reshape(-1).view(dtype)
            return flat.view(len(data), *rest) if info.shape else flat.view(())
        values = dequantize(np.array(data).reshape(len(data) * prod(rest[:-1]), -1), GGMLQuantizationType[info.dtype])
        return torch.from_numpy(values).view(len(data), *rest)


@contextmanager
def _safetensors(path: Path) -> Iterator[_Opened]:
    from safetensors import SafetensorError, safe_open

    from isoform.reference.checkpoints.safetensors_file import read_header

    infos = read_header(path)
    try:
        opened = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); fetch it again") from None
    with opened as file:

        def held(name: str) -> StoredTensor:
            shape = infos[name].shape

            def rows(start: int, stop: int) -> Tensor:
                return file.get_slice(name)[start:stop] if shape else file.get_tensor(name)

            return StoredTensor(_kind(infos[name].dtype), shape, rows)

        metadata = {key: str(value) for key, value in (file.metadata() or {}).items()}
        yield _Opened("safetensors", {name: held(name) for name in infos}, metadata, canonical=False)


# ------------------------------------------------------------------ metadata
def _metadata(side: Side) -> dict[str, str]:
    """Of an ONNX graph: opsets, producer, properties and ports. Of TorchScript: none."""
    if side.format != "onnx":
        return {}
    from isoform.validators.tools.inspection import inspect_onnx

    facts = inspect_onnx(side.path)
    kept = {key: facts[key] for key in ("opsets", "operators", "inputs", "outputs") if key in facts}
    return _flat("", kept)


def _flat(name: str, value: Any) -> dict[str, str]:
    """Nested objects as one level: config.json.rope_scaling.factor."""
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for key, entry in value.items():
            found |= _flat(f"{name}.{key}".lstrip("."), entry)
        return found
    return {name: _plain(value)}


def _plain(value: Any) -> str:
    """Short values as they are, long lists as their length and a hash."""
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes, {hashlib.sha256(value).hexdigest()[:12]}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= ENOUGH:
        return text
    count = f"{len(value)} values" if isinstance(value, list) else f"{len(text)} characters"
    return f"{count}, {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _hashes(folder: Path, known: tuple[str, ...]) -> dict[str, str]:
    """The small files of a checkpoint."""
    files = (name for name in SIDECARS if name not in known and (folder / name).is_file())
    return {name: f"sha256 {hashlib.sha256((folder / name).read_bytes()).hexdigest()[:12]}" for name in files}


def _cut(text: str) -> str:
    return text if len(text) <= ENOUGH else text[: ENOUGH - 1] + "…"
