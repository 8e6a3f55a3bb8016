"""The onnxruntime package, imported on first use, and its errors; the names of what isoform adds to a graph."""

from __future__ import annotations

from collections.abc import Mapping
from sys import maxsize
from typing import Any

from isoform.errors import BackendUnavailable, InputError, IsoformError
from isoform.runtimes.backends.onnxruntime.graph_file import brief

IN_PLACE, GROWS = "in_place", "grows"  # one buffer may be past and present; present is a new tensor
START, MASK_END = "logits_start", "mask_end"
SETTINGS: Mapping[str, int] = {START: 0, MASK_END: maxsize}
"""Constants of a graph that become inputs: the first slot that gets logits, and how many columns of the mask count."""
ROW_GAPS = "row_gaps"
"""An input of a graph that appends in place: by how many slots each row ends before the longest one."""


def library() -> Any:
    """onnxruntime, or BackendUnavailable."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"the onnxruntime backend needs the package ({error}); pip install onnxruntime"
        ) from None
    return onnxruntime


def errors() -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime; they have no common base but Exception."""
    state = library().capi.onnxruntime_pybind11_state
    found = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*found, RuntimeError)


def failed(error: BaseException) -> IsoformError:
    """The error of a run that ONNX Runtime refused."""
    return InputError(f"ONNX Runtime could not run the model on these inputs: {brief(str(error))}")
