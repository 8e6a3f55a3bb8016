"""Quantizing with isoform's kernels and with ggml's code: megabytes of float32 per CPU second, on one thread.

    python benchmarks/quantize.py [--types Q4_K,Q6_K] [--rows 512] [--columns 4096] [--rounds 5] [--markdown]

Both run in this process on the same random rows, turn about, and the best round of each counts; ggml gets fewer rows
where it is slow. With and without an importance matrix. The bytes are compared as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isoform.exporters.gguf import ggml
from isoform.exporters.gguf.quantize import KERNELS, kernel
from isoform.exporters.gguf.types import NUMBERS

IGNORE_IMPORTANCE = ("MXFP4", "Q8_0", "TQ1_0", "TQ2_0")
SLOW_ROWS = 32  # for ggml, once it took longer than SLOW for them
SLOW = 0.02


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(
    kind: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None, rounds: int
) -> tuple[float, float, bool]:
    """Megabytes per second of ours and of ggml's, and whether the bytes are the same."""
    run, flat = kernel(kind), rows.reshape(-1)
    out = np.empty((len(rows), rows.shape[1] // NUMBERS[kind][1] * NUMBERS[kind][2]), np.uint8)
    run(flat[: 2 * rows.shape[1]], out[:2].reshape(-1), importance)  # compiles
    few = rows[:SLOW_ROWS]
    theirs = ggml.quantize(few, kind, imatrix=importance)
    if seconds(lambda: ggml.quantize(few, kind, imatrix=importance)) < SLOW:
        few = rows
        theirs = ggml.quantize(few, kind, imatrix=importance)
    ours_best = theirs_best = float("inf")
    for _ in range(rounds):
        ours_best = min(ours_best, seconds(lambda: run(flat, out.reshape(-1), importance)))
        theirs_best = min(theirs_best, seconds(lambda: ggml.quantize(few, kind, imatrix=importance)))
    same = bool((out[: len(few)] == theirs).all())
    return rows.nbytes / ours_best / 1e6, few.nbytes / theirs_best / 1e6, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--types", default=",".join(KERNELS), help="ggml's names, with commas between")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print a table for a README")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((options.rows, options.columns), np.float32) * np.float32(0.02)
    importance = rng.random(options.columns, np.float32)
    line = (
        "| {:8} | {:10} | {:>7} | {:>7} | {:>6} | {:5} |" if options.markdown else "{:8} {:10} {:>7} {:>7} {:>6} {:5}"
    )
    print(line.format("type", "importance", "isoform", "ggml", "ratio", "bytes"))
    if options.markdown:
        print("|---|---|---:|---:|---:|---|")
    for kind in options.types.split(","):
        for weights in (None, importance):
            if weights is not None and kind in IGNORE_IMPORTANCE:
                continue
            ours, theirs, same = measure(kind, rows, weights, options.rounds)
            how = "no" if weights is None else "yes"
            ratio = f"{ours / theirs:.1f}x"
            print(line.format(kind, how, round(ours), round(theirs), ratio, "same" if same else "OTHER"), flush=True)


if __name__ == "__main__":
    main()
