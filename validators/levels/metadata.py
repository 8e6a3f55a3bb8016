"""The metadata of a GGUF file against what an export of the source would write now.

llama.cpp computes with them (a norm's epsilon, the rotary base, windows, caps), and tokenizes with them. An error there
may hide in the graph's tolerances, or under those of a quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import UnsupportedExport
from isoform.validators.report.departure import Departure
from isoform.validators.report.records import Report, Result
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from isoform.reference.model import Model

LEVEL = "weights"
LONG = 60  # letters of a value that are shown


def check_metadata(model: Model, path: Path, dtype: str, backend: str, pre: str | None = None) -> Report:
    """Compare architecture, settings, tokenizer and the tensors that the checkpoint does not hold.

    One result, how many keys differ; where numbers do, a departure each. `pre` is the pre-tokenizer that the export was
    told; one that was not told, and cannot be found from tokenizer.json, is taken from the file.
    """
    from isoform.exporters.gguf import card_of
    from isoform.exporters.gguf.metadata import metadata
    from isoform.exporters.gguf.tensors import entries
    from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint

    file, card = GgufCheckpoint(path), card_of(model)
    tensors = entries(model, card)
    try:
        wanted = metadata(model, card, tensors, pre)
    except UnsupportedExport:
        wanted = metadata(model, card, tensors, file.metadata.get("tokenizer.ggml.pre"))
    wanted = {key: value for key, value in wanted.items() if _counts(key, card.arch)}
    held = {key: value for key, value in file.metadata.items() if _counts(key, card.arch)}
    for name, values in card.extra(model.config).items():
        wanted[name] = list(values)
        held[name] = _small_tensor(path, name)
    wrong = [key for key in {**wanted, **held} if not alike(held.get(key), wanted.get(key))]
    notes = [f"{key} is {_short(held.get(key))}, not {_short(wanted.get(key))}" for key in wrong]
    note = "; ".join(notes[:3]) + (f"; and {len(notes) - 3} more" if len(notes) > 3 else "")
    subject = Subject(backend, LEVEL, dtype, "metadata", f"metadata, {len(wanted)} keys")
    return Report(
        [Result.of(subject, "wrong_keys", len(wrong), 0, note)],
        departures=[_departure(key, held, wanted, backend, dtype) for key in wrong[:3]],
    )


def _small_tensor(path: Path, name: str) -> list[float] | None:
    """The float32 values of a tensor that is no weight, or None where the file has none."""
    import numpy as np

    from isoform.reference.checkpoints.gguf_file import read_gguf

    info = read_gguf(path).tensors.get(name)
    if info is None or info.dtype != "F32":
        return None
    values: list[float] = np.fromfile(info.path, np.float32, info.nbytes // 4, offset=info.offset).tolist()
    return values


def _counts(key: str, arch: str) -> bool:
    return key == "general.architecture" or key.startswith((f"{arch}.", "tokenizer."))


def alike(got: Any, want: Any) -> bool:
    """Equal, numbers as float32, lists entry by entry."""
    import numpy as np

    if isinstance(want, list | tuple) or isinstance(got, list | tuple):
        both = isinstance(want, list | tuple) and isinstance(got, list | tuple) and len(got) == len(want)
        return both and all(alike(a, b) for a, b in zip(got, want, strict=True))
    if isinstance(want, float) or isinstance(got, float):
        return isinstance(got, int | float) and isinstance(want, int | float) and np.float32(got) == np.float32(want)
    return bool(got == want)


def _departure(key: str, held: Mapping[str, Any], wanted: Mapping[str, Any], backend: str, dtype: str) -> Departure:
    """A key with its two values; of lists the first entry that differs, text as not a number."""
    got, want = held.get(key), wanted.get(key)
    index: tuple[int, ...] = ()
    if isinstance(got, list) and isinstance(want, list):
        at = next(n for n in range(len(got) + 1) if not alike(got[n : n + 1], want[n : n + 1]))
        got, want = (values[at] if at < len(values) else None for values in (got, want))
        index = (at,)

    def number(value: Any) -> float:
        return float(value) if isinstance(value, int | float) else float("nan")

    a, b = number(got), number(want)
    gap = abs(a - b) if a == a and b == b else float("inf")
    return Departure(
        **Subject(backend, LEVEL, dtype, "metadata", "metadata").fields(),
        module=key,
        side="metadata",
        layer="",
        metric="value",
        error=gap,
        limit=0.0,
        row=0,
        index=index,
        want=b,
        got=a,
        neighbours=((b, a),),
        ranges=((b, b), (a, a)),
        agreed="",
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{len(value)} values]"
    text = "absent" if value is None else repr(value)
    return text if len(text) <= LONG else text[:LONG] + "…"
