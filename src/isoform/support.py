"""The support table: family × task × format, as the formats of the export themselves refuse or accept it.

`python -m isoform.support README.md` makes the table anew in that file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.formats import FORMATS as ORDER

if TYPE_CHECKING:
    from isoform.exporters.format import Format
    from isoform.reference.card import Family, Task

START, END = "<!-- support table: isoform models -->", "<!-- end of support table -->"


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


def markdown() -> str:
    """The table as it stands in the README."""
    lines = ["| family | model_type | task | torch | ONNX | TorchScript | GGUF |", "|---|---|---|---|---|---|---|"]
    previous = ""
    for row in rows():
        family = "" if row["family"] == previous else row["family"]
        types = "" if row["family"] == previous else ", ".join(row["model_types"])
        previous = row["family"]
        cells = (family, types, row["task"], row["torch"], row["onnx"], row["torchscript"], row["gguf"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def renewed(text: str) -> str:
    """A page with its table made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
