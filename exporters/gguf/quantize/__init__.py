"""ggml's quantized types, byte for byte as ggml writes them, and for most types several times as fast.

Kernels of our own, compiled by numba, serve Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, Q2_K Q3_K Q4_K Q5_K Q6_K, IQ4_NL IQ4_XS, TQ1_0
TQ2_0 and MXFP4. ggml's own code, out of the library that comes with xllamacpp, serves IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S
IQ3_XXS IQ3_S and NVFP4, and all of them where numba cannot be imported.

A kernel is compiled when its type is first asked for, which takes seconds, and kept on disk (`isoform.compiled`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from isoform.errors import CheckpointError, InputError
from isoform.exporters.gguf.types import LARGEST_HALF, NUMBERS

Kernel = Callable[[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32] | None], bool]
"""Takes whole rows, one after another, room for their bytes, and the importance of each column; says whether the
values were finite."""

KERNELS = {
    "IQ4_NL": "nonlinear",
    "IQ4_XS": "nonlinear",
    "MXFP4": "blocks",
    "Q2_K": "affine",
    "Q3_K": "symmetric",
    "Q4_0": "blocks",
    "Q4_1": "blocks",
    "Q4_K": "affine",
    "Q5_0": "blocks",
    "Q5_1": "blocks",
    "Q5_K": "affine",
    "Q6_K": "symmetric",
    "Q8_0": "blocks",
    "TQ1_0": "ternary",
    "TQ2_0": "ternary",
}
"""The module that holds a type's kernel, which is called like the type, in lower case."""

GGML = ("IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS", "NVFP4")
PLAIN = ("BF16", "F16")
NEED_IMPORTANCE = ("IQ1_S", "IQ2_XS", "IQ2_XXS")
TYPES = tuple(sorted((*KERNELS, *GGML, *PLAIN)))

MOST, MOST_IMPORTANT = 1e6, 1e12
"""Values and importances beyond these may overflow in ggml's own code, which then ends the process."""


def quantize(
    rows: NDArray[np.float32],
    kind: str,
    *,
    imatrix: NDArray[np.float32] | None = None,
    threads: int = 1,
    name: str = "the tensor",
) -> NDArray[np.uint8]:
    """The bytes of ggml's type `kind` for each row: float32 (n, k) -> uint8 (n, k // block * bytes of a block).

    `imatrix` (k,) says how much each column matters; types without a choice to make ignore it. The rows are shared out
    among `threads`. Raises CheckpointError, which calls the rows `name`, for values that are not finite; InputError for
    an unknown type, rows that are no whole blocks, and an importance matrix that is missing or does not fit.
    """
    if kind not in TYPES:
        raise InputError(f"{kind!r} is no type that isoform quantizes to; choose from {', '.join(TYPES)}")
    _, block, nbytes = NUMBERS[kind]
    if rows.ndim != 2:
        raise InputError(f"{name} has {rows.ndim} dimensions; a type of ggml is made of rows (n, k)")
    count, columns = rows.shape
    if columns % block:
        raise InputError(f"{name} has rows of {columns} values, which is no multiple of the {block} of a {kind} block")
    importance = None if imatrix is None else _importance(imatrix, columns, name)
    if importance is None and kind in NEED_IMPORTANCE:
        raise InputError(f"{kind} is useless without an importance matrix, and {name} has none; choose another type")
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.empty((count, columns // block * nbytes), np.uint8)
    if not out.size:
        return out
    convert = partial(_convert, kernel(kind), rows, out, importance, name)
    parts = [slice(count * i // threads, count * (i + 1) // threads) for i in range(threads)]
    parts = [part for part in parts if part.start < part.stop]
    if len(parts) == 1:
        convert(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(convert, parts))
    return out


@cache
def kernel(kind: str) -> Kernel:
    """What quantizes rows, one after another, into bytes, and says whether they were finite."""
    if kind in PLAIN:
        return partial(_plain, kind)
    if kind in KERNELS and _has_numba():
        return getattr(import_module(f"{__name__}.{KERNELS[kind]}"), kind.lower())
    return partial(_ggml, kind)


@cache
def _has_numba() -> bool:
    try:
        import_module("numba")
    except ImportError:
        return False
    return True


def _convert(
    run: Kernel,
    rows: NDArray[np.float32],
    out: NDArray[np.uint8],
    importance: NDArray[np.float32] | None,
    name: str,
    part: slice,
) -> None:
    if not run(rows[part].reshape(-1), out[part].reshape(-1), importance):
        raise CheckpointError(
            f"{name} holds values that are not finite, or too large for the type, and cannot be quantized"
        )


def _importance(imatrix: NDArray[np.float32], columns: int, name: str) -> NDArray[np.float32]:
    importance = np.ascontiguousarray(imatrix, np.float32)
    if importance.shape != (columns,):
        raise InputError(
            f"the importance matrix has {list(importance.shape)} values for {name}, whose rows have {columns}; "
            "was it made for another model?"
        )
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise InputError(f"the importance matrix holds negative or infinite values for {name}; make it anew")
    return importance


def _plain(kind: str, x: NDArray[np.float32], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> bool:
    from isoform.exporters.gguf.floats import convert_floats

    limit = LARGEST_HALF if kind == "F16" else np.inf
    return bool(convert_floats(x, kind, out) < limit)


def _ggml(kind: str, x: NDArray[np.float32], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> bool:
    """ggml's code, which asserts that it can go on: what would make it fail must not get there."""
    from isoform.exporters.gguf import ggml

    largest = max(abs(float(x.min())), abs(float(x.max())))
    if not largest <= np.finfo(np.float32).max:
        return False
    most_important = 0.0 if importance is None else float(importance.max())
    if kind in GGML and (largest > MOST or most_important > MOST_IMPORTANT):
        what = f"values up to {largest:g}" if largest > MOST else f"importances up to {most_important:g}"
        raise InputError(f"ggml's code for {kind} overflows on {what}; choose another type")
    width = NUMBERS[kind][1] if importance is None else len(importance)
    out[:] = ggml.quantize(x.reshape(-1, width), kind, imatrix=importance).reshape(-1)
    return True
