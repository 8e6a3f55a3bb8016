"""ggml's own quantizers, called in the library that comes with xllamacpp."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoform.errors import BackendUnavailable
from isoform.exporters.gguf.types import NUMBERS

_DECLARATIONS = """
void ggml_quantize_init(int type);
size_t ggml_quantize_chunk(int type, const float * src, void * dst, int64_t start, int64_t nrows, int64_t n_per_row,
                           const float * imatrix);
"""


@cache
def _library() -> tuple[Any, Any]:
    import cffi

    spec = find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("xllamacpp*.so")) + sorted(folder.glob("xllamacpp*.pyd")) if folder else []
    if not files:
        raise BackendUnavailable("ggml's quantizers come with xllamacpp, which is not installed: pip install xllamacpp")
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    return ffi, ffi.dlopen(str(files[0]))


@cache
def _prepare(kind: str) -> None:
    _library()[1].ggml_quantize_init(NUMBERS[kind][0])


def quantize(rows: NDArray[Any], kind: str, *, imatrix: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """Float32 (n, k), finite, to the bytes of ggml's type (n, k // block * size); `imatrix` float32 (k,)."""
    ffi, library = _library()
    number, block, size = NUMBERS[kind]
    _prepare(kind)
    out = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
    weights = ffi.NULL if imatrix is None else ffi.from_buffer("float[]", imatrix)
    source, target = ffi.from_buffer("float[]", rows), ffi.from_buffer("char[]", out)
    library.ggml_quantize_chunk(number, source, target, 0, len(rows), rows.shape[1], weights)
    return out
