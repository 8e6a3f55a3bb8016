"""llama-quantize itself (cyllama's `model_quantize`) as an oracle: a float32 GGUF in, a quantized one out."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray


class _Params(ctypes.Structure):
    """llama_model_quantize_params of llama.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((name, ctypes.c_bool) for name in ("allow_requantize", "quantize_output_tensor", "only_copy", "pure")),
        *((name, ctypes.c_bool) for name in ("keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
    )


class _Importance(ctypes.Structure):
    """llama_model_imatrix_data."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Override(ctypes.Structure):
    """llama_model_tensor_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int32))


def oracle_quantize(
    source: Path,
    out: Path,
    file_type: int,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    pure: bool = False,
) -> Path:
    """Quantize the file `source` to `out` as llama-quantize would, in two threads.

    `overrides` are (regex, type); `importance` gives the values that llama-quantize takes from an imatrix file.
    """
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

    params = LlamaModelQuantizeParams()
    params.nthread, params.ftype, params.pure = 2, file_type, pure
    raw = _inside(params, file_type)  # it has no setters for pointers
    weights = [
        _Importance(name.encode(), np.ascontiguousarray(v).ctypes.data, v.size)
        for name, v in (importance or {}).items()
    ]
    kinds = [_Override(pattern.encode(), int(GGMLQuantizationType[kind])) for pattern, kind in overrides]
    importances = (_Importance * (len(weights) + 1))(*weights)
    types = (_Override * (len(kinds) + 1))(*kinds)
    if weights:
        raw.imatrix = ctypes.addressof(importances)
    if kinds:
        raw.tt_overrides = ctypes.addressof(types)
    with _quiet():
        model_quantize(str(source), str(out), params)
    return out


def _inside(params: Any, file_type: int) -> _Params:
    """The C structure in the memory of cyllama's object, found by its first members."""
    marker = params.nthread
    for offset in range(16, sys.getsizeof(params), 8):
        found = _Params.from_address(id(params) + offset)
        if (found.nthread, found.ftype) == (
            marker,
            file_type,
        ) and found.output_tensor_type == params.output_tensor_type:
            return found
    raise RuntimeError("llama_model_quantize_params is not where it was in cyllama's object")


@contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp prints a line per tensor to the descriptor itself."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
