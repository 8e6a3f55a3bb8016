"""What a backend is known to compute differently from the definition, imitated in torch.

A tolerance that only grew with the backend's error would forgive anything; the imitation says how large the error must
be, from the backend's own rule, and the gate is a small multiple of that (`tolerance.DEVIATION`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

REASONS = {"llamacpp": "its GELU comes from a half-precision table"}
"""Backend -> what it does. llama.cpp: tanh's form of GELU, whichever the model has, with argument and value rounded to
half precision (GGML_GELU_FP16 in ggml/src/ggml-cpu/vec.h)."""


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


def activations(kind: str) -> AbstractContextManager[Any]:
    """A context in which the factor of a matrix of ggml's type `kind` (Q8_0) is rounded as llama.cpp does.

    Blocks of 32 values become 8-bit integers times a scale in half precision; where no block divides the row, half
    precision stands in for both factors.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    def rounded(x: Tensor) -> Tensor:
        if x.shape[-1] % 32:
            return x.half().float()
        blocks = x.unflatten(-1, (-1, 32))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        steps = torch.where(scale > 0, blocks / scale, 0.0).round()
        return (steps * scale.half().float()).flatten(-2)

    class Rounded(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.linear:
                args = (rounded(args[0]), *args[1:])
            return function(*args, **(kwargs or {}))

    if kind != "Q8_0":
        raise ValueError(f"llama.cpp's activations for {kind} are not imitated")
    return Rounded()
