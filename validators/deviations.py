"""What a backend is known to compute differently from the definition, imitated in torch.

A tolerance that only grew with the backend's error would forgive anything; the imitation says how large the error must
be, from the backend's own rule, and the gate is a small multiple of that (`tolerance.DEVIATION`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

REASONS = {
    "llamacpp": "llama.cpp takes GELU from a table: tanh's form, argument and value rounded to half precision "
    "(GGML_GELU_FP16 in ggml/src/ggml-cpu/vec.h), whichever form the model has",
}


def deviation(backend: str) -> AbstractContextManager[Any] | None:
    """A context in which torch computes as the backend does, or None when it is not known to differ."""
    return _table_gelu() if backend == "llamacpp" else None


def _table_gelu() -> AbstractContextManager[Any]:
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class TableGelu(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is not F.gelu:
                return function(*args, **(kwargs or {}))
            x = args[0]
            y = F.gelu(x.half().float(), approximate="tanh").half().to(x.dtype)
            return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, y))

    return TableGelu()
