"""The support tables: family × task × format, as the formats of the export themselves refuse or accept it.

`python -m isoform.support README.md docs/support.md` makes the tables of these pages anew: "support" has a row for each
task with the reasons, "families" a row for each family.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.formats import FORMATS as ORDER

if TYPE_CHECKING:
    from isoform.exporters.format import Format
    from isoform.reference.card import Family, Task


def rows() -> list[dict[str, Any]]:
    """One row per family and task, in the cards' order; a format's value is "yes" or why not."""
    from isoform.exporters.bundle import FORMATS
    from isoform.reference.families import all_families

    result = []
    for family in all_families():
        for task in family.tasks:
            row = {
                "family": family.title,
                "model_types": list(family.model_types),
                "task": task.name,
                "architectures": list(task.architectures),
                "torch": "yes",
            }
            result.append(row | {name: _answer(FORMATS[name], family, task) for name in ORDER})
    return result


def _answer(form: Format[Any], family: Family, task: Task) -> str:
    """ "yes", or why not; part by part where some parts can be written."""
    if not (whole := form.refusal(family, task)):
        return "yes"
    reasons = {part: form.refusal(family, task, part) for part in task.parts}
    if all(reasons.values()):
        return whole
    return "; ".join(f"{part}: {reason or 'yes'}" for part, reason in reasons.items())


def families() -> list[dict[str, Any]]:
    """One row per family: its model types, its tasks, and the tasks that each format serves."""
    result = []
    for title, found in groupby(rows(), key=lambda row: row["family"]):
        tasks = list(found)
        row = {"family": title, "model_types": tasks[0]["model_types"], "tasks": [task["task"] for task in tasks]}
        result.append(row | {name: [task["task"] for task in tasks if task[name] == "yes"] for name in ORDER})
    return result


def _support() -> str:
    lines = ["| family | model_type | task | torch | ONNX | TorchScript | GGUF |", "|---|---|---|---|---|---|---|"]
    previous = ""
    for row in rows():
        family = "" if row["family"] == previous else row["family"]
        types = "" if row["family"] == previous else ", ".join(row["model_types"])
        previous = row["family"]
        cells = (family, types, row["task"], row["torch"], row["onnx"], row["torchscript"], row["gguf"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _families() -> str:
    """Families that serve the same tasks are one row."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in families():
        served = ", ".join(row["gguf"]) if 0 < len(row["gguf"]) < len(row["tasks"]) else "yes" if row["gguf"] else ""
        alike.setdefault((", ".join(row["tasks"]), served), []).append(row["family"])
    lines = ["| families | tasks | GGUF |", "|---|---|---|"]
    lines += [f"| {', '.join(titles)} | {tasks} | {served} |" for (tasks, served), titles in alike.items()]
    return "\n".join(lines)


TABLES: Mapping[str, Callable[[], str]] = {"families": _families, "support": _support}
_PLACE = re.compile(r"<!-- (\w+): isoform models -->\n.*?<!-- end of \1 -->", re.DOTALL)


def renewed(text: str) -> str:
    """A page with its tables made anew."""

    def table(place: re.Match[str]) -> str:
        return f"<!-- {place[1]}: isoform models -->\n{TABLES[place[1]]()}\n<!-- end of {place[1]} -->"

    return _PLACE.sub(table, text)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
