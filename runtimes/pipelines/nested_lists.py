"""Arrays as nested lists of floats or as tensors, which is how transformers' pipelines give the states of a model."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def nested(array: NDArray[Any]) -> list[Any]:
    """`array.tolist()`, without a search for cycles on the way.

    The collector would look at every float of every list so far, again and again, and there are no cycles among them.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return array.tolist()
    finally:
        if collects:
            gc.enable()


def given_as(states: NDArray[Any], tensors: bool | str) -> Any:
    """States as `return_tensors` asks for them: nested lists, a tensor of torch (True or "pt"), or an array ("np").

    Raises InputError for another library.
    """
    if not tensors:
        return nested(states)
    if tensors == "np":
        return states
    if tensors not in (True, "pt"):
        raise InputError(f"return_tensors={tensors!r} is not True, 'pt' (tensors of torch) or 'np' (arrays)")
    import torch

    return torch.from_numpy(np.ascontiguousarray(states))
