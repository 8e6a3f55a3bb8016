"""Arrays as nested lists of floats, which is how transformers' pipelines give the states of a model."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

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
