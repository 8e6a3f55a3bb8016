"""The openvino package, imported on first use: one core for the process, its devices, and its errors in our words."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from isoform.errors import BackendUnavailable, CheckpointError, InputError, IsoformError

_PLACE = re.compile(r"^(Exception from |Check '|[\w/.]+\.(cpp|hpp):\d+|FrontEnd API failed|While validating)")
_NOT_TAKEN = re.compile(r"(?:No conversion rule found for operations|Conversion is failed for): ([\w., -]+)")


def library() -> Any:
    """openvino, or BackendUnavailable."""
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"the openvino backend needs the package ({error}); pip install isoform[openvino]"
        ) from None
    return openvino


@cache
def core() -> Any:
    """The one core of this process: it loads a device's plugin once."""
    return library().Core()


def devices() -> list[str]:
    """The devices that OpenVINO sees, by the names to ask for them: cpu, gpu, gpu:1, npu."""
    try:
        return [name.lower().replace(".", ":") for name in core().available_devices]
    except (BackendUnavailable, RuntimeError):
        return []


def need(name: str) -> None:
    """BackendUnavailable for a device, by OpenVINO's name, that it does not see."""
    found = devices()
    asked = name.lower().replace(".", ":")
    if not any(asked in (device, device.partition(":")[0]) for device in found):
        raise BackendUnavailable(
            f"OpenVINO sees no {asked} here, only {', '.join(found) or 'nothing'}; use one of these, or install the "
            "driver of Intel's that brings the device"
        )


def refused(path: Path, error: BaseException) -> IsoformError:
    """Why a file cannot be opened: operators that OpenVINO does not take, or damage."""
    if (match := _NOT_TAKEN.search(str(error))) is not None:
        return not_taken(path, match[1].strip(" ,."))
    return CheckpointError(f"OpenVINO cannot read {path} ({brief(error)}); export the model again")


def not_taken(path: Path, operators: str) -> BackendUnavailable:
    """The error of a graph with these operators."""
    return BackendUnavailable(
        f"{path} has operators that OpenVINO {library().__version__.partition('-')[0]} does not take ({operators}); "
        "export it with --onnx-type f32-portable"
    )


def failed(error: BaseException) -> IsoformError:
    """The error of a run that OpenVINO refused."""
    return InputError(f"OpenVINO could not run the model on these inputs: {brief(error)}")


def brief(error: BaseException) -> str:
    """The one line of an exception of OpenVINO's that says what is wrong, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not _PLACE.match(line)]
    return (telling or lines or [type(error).__name__])[-1][:300]
