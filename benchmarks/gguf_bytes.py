"""The bytes of isoform's quantizers against ggml's own: types by shapes, blocks that are equal out of all.

    python -m benchmarks.gguf_bytes [--types Q4_K,IQ4_XS] [--shapes llama,gemma3] [--importance] [--json]

Every matrix of a random checkpoint of each shape is quantized twice: by the exporter's kernels, and by ggml's
`ggml_quantize_chunk` in the library that comes with xllamacpp. A dash stands where no row of the shape is a multiple of
the type's block (there the exporter takes another type, as llama-quantize does). The types below the line run ggml's
own code in the exporter too, so that for them the table can only say that rows, experts and importances reach it right.

With `--importance`, every column gets a random importance; types that make nothing of one are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from isoform.exporters.gguf import ggml  # noqa: E402
from isoform.exporters.gguf.quantize import GGML, KERNELS, NEED_IMPORTANCE, kernel  # noqa: E402
from isoform.exporters.gguf.types import NUMBERS  # noqa: E402

IGNORE_IMPORTANCE = ("MXFP4", "NVFP4", "Q8_0", "TQ1_0", "TQ2_0")

Shape = tuple[int, int]  # rows, columns
SHAPES: dict[str, dict[str, Shape]] = {
    "llama": {"q": (256, 256), "k": (128, 256), "down": (256, 768), "up": (768, 256), "embed": (400, 256)},
    "qwen2": {"q": (512, 512), "k": (128, 512), "down": (512, 1280), "up": (1280, 512), "embed": (320, 512)},
    "gemma3": {"q": (1024, 640), "k": (256, 640), "down": (640, 2048), "out": (640, 1024), "embed": (512, 640)},
    "mixtral": {f"expert {n}": (512, 256) for n in range(8)} | {"down": (256, 512)},
    "odd": {
        "q": (320, 320),
        "down": (320, 544),
        "up": (544, 320),
        "one row": (1, 768),
        "37 rows": (37, 1280),
        "narrow": (7, 96),
    },
}
"""Matrices of each shape; of the rows of `odd`, only those of 768 and 1280 values fit blocks of 256."""


def matrices(shape: str, seed: int = 0) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weights and importances, with a few that quantizers find hard: outliers, zero rows, equal values."""
    draw = np.random.default_rng(seed)
    for count, columns in SHAPES[shape].values():
        rows = draw.standard_normal((count, columns), np.float32) * np.float32(0.03)
        rows[:: max(2, count // 8)] *= np.float32(20)
        rows[:, :: max(2, columns // 5)] *= np.float32(8)
        if count > 3:
            rows[1], rows[2] = 0, np.float32(0.011)
        yield rows, draw.gamma(1.0, 1.0, columns).astype(np.float32)


def equal_blocks(kind: str, shape: str, weighted: bool) -> tuple[int, int]:
    """Blocks that are the same in ours and ggml's, and all."""
    _, block, size = NUMBERS[kind]
    equal = total = 0
    for rows, importance in matrices(shape):
        if rows.shape[1] % block:
            continue
        weights = importance if weighted else None
        ours = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
        if not kernel(kind)(rows.reshape(-1), ours.reshape(-1), weights):
            raise SystemExit(f"{kind} refuses a matrix of {shape}")
        theirs = ggml.quantize(rows, kind, imatrix=weights)
        same = (ours == theirs).reshape(-1, size).all(1)
        equal, total = equal + int(same.sum()), total + len(same)
    return equal, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--types", default=",".join((*sorted(KERNELS), *GGML)))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    shapes, found = given.shapes.split(","), dict[str, dict[str, tuple[int, int]]]()
    left_out = IGNORE_IMPORTANCE if given.importance else NEED_IMPORTANCE
    for kind in (kind for kind in given.types.split(",") if kind not in left_out):
        found[kind] = {shape: equal_blocks(kind, shape, given.importance) for shape in shapes}
        if not given.json:
            if len(found) == 1:
                print(f"| type | {' | '.join(shapes)} |\n|---|{'---:|' * len(shapes)}")
            cells = (f"{equal:,}/{total:,}" if total else "-" for equal, total in found[kind].values())
            print(f"| {kind}{' (ggml)' if kind in GGML else ''} | {' | '.join(cells)} |", flush=True)
    if given.json:
        print(json.dumps(found, indent=2))
    if any(equal != total for row in found.values() for equal, total in row.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
