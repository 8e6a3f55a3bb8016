"""llama.cpp's evaluation callback: every operation with a weight is the module that the weight belongs to.

A weight's name in the file gives the canonical module (`reference.names`), so no table of llama.cpp's own tensor names
is needed but for rotations and the ends of layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.validators.bisection.points import Point, rotation
from isoform.validators.bisection.probe import Inside, Values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case

ROTATED = {"Qcur": 1, "Kcur": 2}  # in the order in which the reference rotates them
OPERATIONS = ("ADD", "GET_ROWS", "MUL", "MUL_MAT")
PROJECTIONS = (".attn.q", ".attn.k")


class LlamaCppProbe:
    """A GGUF file in strict settings, a row at a time: llama.cpp computes each as if it were alone."""

    def __init__(self, model: Model, path: Path, threads: int | None = None) -> None:
        from isoform.reference.modules.attention import Projections
        from isoform.reference.names import GGUF, rename
        from isoform.runtimes.backends.llamacpp.process import Process

        card = model.family.gguf_of(model.task)
        self._interleaved = card is not None and card.interleaved_rope
        table = GGUF if card is None else card.tensors
        skeleton = model.skeleton()
        names = [name for name, _ in skeleton.named_modules()]
        self._modules = {(rename(f"{name}.x", table) or "").removesuffix(".x"): name for name in names}
        self._head_dims = {
            name: part.heads.dim for name, part in skeleton.named_modules() if isinstance(part, Projections)
        }
        self._states = not model.signature.states
        self._process = Process(path, threads=threads or 1, strict=True)

    def rows(self, case: Case) -> Iterator[Inside]:
        import numpy as np

        for r, row in enumerate(case.rows):
            counts = [int(case.mask[r, slots].sum()) for slots in _slots(case)] if case.chunks else [len(row)]
            parts = [count for count in counts if count]
            blocks = [row.tokens.astype(np.int32).tobytes(), np.arange(len(row), dtype=np.int32).tobytes()]
            reply, data = self._process.request("reveal", blocks, parts=parts, states=self._states)
            found: dict[Point, list[NDArray[Any]]] = {}
            for n, count in enumerate(parts):
                for point, array in self._points(reply["seen"], data, n, count):
                    found.setdefault(point, []).append(array)
            values: Values = {point: [np.concatenate(pieces)] for point, pieces in found.items()}
            yield Inside(values, np.ones(len(row), np.int64))

    def _points(
        self, seen: list[dict[str, Any]], data: list[bytearray], part: int, tokens: int
    ) -> Iterator[tuple[Point, NDArray[Any]]]:
        """What one call computed for so many tokens, each point once. A bias comes after its weight: the last word."""
        found: dict[Point, NDArray[Any]] = {}
        for n, entry in enumerate(seen):
            if entry["part"] != part:
                continue
            given, made = (_array(data[2 * n + side], tokens) for side in (0, 1))
            layer = entry["name"].rpartition("-")[2]
            if entry["operation"] == "ROPE":
                name, _, layer = entry["name"].partition("-")
                if name in ROTATED and made is not None:
                    found[rotation(f"layers.{layer}", ROTATED[name])] = self._halves(made, f"layers.{layer}.attn")
                continue
            if not entry["weight"]:
                point = Point(f"layers.{layer}") if entry["name"].startswith("l_out") else Point("logits")
                if made is not None:
                    found[point] = made
                continue
            module = self._module(entry)
            if module is None or entry["operation"] not in OPERATIONS:
                continue
            if given is not None and entry["weight"].endswith(".weight"):
                found.setdefault(Point(module, "in"), given)
            if made is not None and entry["operation"] == "GET_ROWS":
                found.setdefault(Point(module), made)  # rows that are added to the first ones come later
            elif made is not None:
                found[Point(module)] = self._halves(made, module[:-2]) if module.endswith(PROJECTIONS) else made
        yield from found.items()

    def _module(self, entry: dict[str, Any]) -> str | None:
        """The canonical module of a weight; the embedding's matrix in a product is the head."""
        name = re.sub(r"\.(weight|bias)$", "", entry["weight"])
        module = self._modules.get(name)
        return "head" if module == "embed" and entry["operation"] == "MUL_MAT" else module

    def _halves(self, x: NDArray[Any], attention: str) -> NDArray[Any]:
        """Heads as the Hub has them, from rotary pairs that sit side by side: (T, H*D), or (T, H, D)."""
        size = self._head_dims.get(attention)
        if not self._interleaved or size is None:
            return x
        pairs = x.reshape(len(x), -1, size // 2, 2)
        return pairs.swapaxes(-1, -2).reshape(x.shape)

    def close(self) -> None:
        self._process.close()


def _slots(case: Case) -> Iterator[slice]:
    start = 0
    for part in case.chunks:
        yield slice(start, start + part)
        start += part


def _array(data: bytearray, tokens: int) -> NDArray[Any] | None:
    """(T, everything else), or None for what is no array over tokens."""
    import numpy as np

    flat = np.frombuffer(bytes(data), np.float32)
    return flat.reshape(tokens, -1) if flat.size and flat.size % tokens == 0 else None
