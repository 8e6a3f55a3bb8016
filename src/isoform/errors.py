"""Every error a user can meet.

    IsoformError
    ├── CheckpointError      a missing, unexpected or misshapen tensor; a truncated, unsafe or missing file
    ├── UnsupportedModel     an architecture, task or option of a model that no family holds
    ├── UnsupportedExport    a model that the asked format cannot hold
    ├── BackendUnavailable   a backend that is not installed or cannot run here (names the package)
    ├── InputError           a request that makes no sense: a wrong task, option, text or file
    │   └── ItemError        one of several inputs has no answer; carries its index and the answers so far
    └── ParityError          two forms differ; carries the report

The command line prints the message in one line and exits with 2 (1 for `ParityError`); a traceback is a bug.
"""

from __future__ import annotations

from typing import Any


class IsoformError(Exception):
    """The root of the tree; the message names the thing, the value and the way out."""


class CheckpointError(IsoformError):
    """A checkpoint cannot be read as it stands."""


class UnsupportedModel(IsoformError):
    """No family holds this architecture, task or option."""


class UnsupportedExport(IsoformError):
    """The format cannot hold this model."""


class BackendUnavailable(IsoformError):
    """The backend is not installed, or does not run on this machine."""


class InputError(IsoformError):
    """The request itself is wrong."""


class ItemError(InputError):
    """One of several inputs has no answer: `index` counts from 0, `item` is the input, `answers` those before it."""

    def __init__(self, message: str, index: int, item: Any, answers: list[Any] | None = None) -> None:
        super().__init__(message)
        self.index, self.item, self.answers = index, item, answers or []


class ParityError(IsoformError):
    """Two forms that should be the same are not; `report` says where."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
