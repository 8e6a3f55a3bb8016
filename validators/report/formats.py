"""A report for others to read: JSON with a published schema, JUnit, Markdown, and a page of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.whole import whole_file

if TYPE_CHECKING:
    from isoform.validators.report.records import Report


def schema() -> dict[str, Any]:
    """The JSON Schema of `check --json`, for the version that this isoform writes."""
    text = (files(__package__) / "report.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def save(report: Report, kind: str, path: Path) -> None:
    """Write a report as one of `KINDS`, whole or not at all."""
    text = KINDS[kind](report)
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another file") from None


def read(path: Path) -> Report:
    """A report that was saved as JSON. Raises InputError for what is none."""
    from isoform.validators.report.records import Report

    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} is not there; write it with `isoform check --write-baseline {path}`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is no report of isoform ({' '.join(reason.split())}); write it again") from None


def _json(report: Report) -> str:
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _junit(report: Report) -> str:
    from isoform.validators.report.junit import junit

    return junit(report)


def _markdown(report: Report) -> str:
    from isoform.validators.report.markdown import markdown

    return markdown(report)


def _html(report: Report) -> str:
    from isoform.validators.report.page import page

    return page(report)


KINDS: dict[str, Callable[[Report], str]] = {"html": _html, "json": _json, "junit": _junit, "markdown": _markdown}
"""Kind of file -> the text of a report as that."""
