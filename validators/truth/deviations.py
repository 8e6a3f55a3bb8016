"""What a backend is known to compute differently from the definition, imitated in torch.

A tolerance that only grew with the backend's error would forgive anything; the imitation says how large the error must
be, from the backend's own rule, and the gate is a small multiple of that (`tolerance.DEVIATION`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


HALVES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
"""ggml's types of 32 values; a row they multiply becomes blocks of 32 8-bit integers with a scale in half precision."""
WIDE = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
)
"""ggml's types of 256 values; a row they multiply becomes blocks of 256 8-bit integers with a float32 scale."""


def activations(kinds: Mapping[int, str]) -> AbstractContextManager[Any]:
    """A context in which the factor of a matrix is rounded as llama.cpp's CPU code does before a product.

    kinds: id of a weight parameter -> ggml's type that it is stored in. The rules are `vec_dot_type` in
    ggml/src/ggml-cpu/ggml-cpu.c and the quantize_row functions that go with it.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    def by_32(x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, 32))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        steps = torch.where(scale > 0, blocks / scale, 0.0).round()
        return (steps * scale.half().float()).flatten(-2)

    def by_256(x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, 256))
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        inverse = torch.where(largest != 0, -127 / largest, 0.0)
        steps = (blocks * inverse).round().clamp(max=127)
        return torch.where(inverse != 0, steps / inverse, 0.0).flatten(-2)

    rounding: dict[str, Callable[[Tensor], Tensor]] = {
        **dict.fromkeys(HALVES, by_32),
        **dict.fromkeys(WIDE, by_256),
        "F16": lambda x: x.half().float(),
        "BF16": lambda x: x.bfloat16().float(),
        "F32": lambda x: x,
    }
    if unknown := sorted(set(kinds.values()) - set(rounding)):
        raise ValueError(f"llama.cpp's activations for {', '.join(unknown)} are not imitated")

    class BlockActivations(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.linear and id(args[1]) in kinds:
                args = (rounding[kinds[id(args[1])]](args[0]), *args[1:])
            return function(*args, **(kwargs or {}))

    return BlockActivations()
