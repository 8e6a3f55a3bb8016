"""Arrays as tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


def tensors(arrays: Mapping[str, NDArray[Any]], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Arrays as tensors on the device, floats in `dtype`."""
    import torch

    given = [torch.from_numpy(array) for array in arrays.values()]
    return [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in given]


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().contiguous().cpu().numpy()
    return array


def arrays_of(signature: Signature, outputs: tuple[Tensor, ...]) -> dict[str, NDArray[np.float32]]:
    """Outputs by port name, float32."""
    return {port.name: to_numpy(tensor) for port, tensor in zip(signature.outputs, outputs, strict=True)}
