"""The support table, made from the family cards: family × task × format."""

from __future__ import annotations

from typing import Any

START, END = "<!-- support table: isoform models -->", "<!-- end of support table -->"


def rows() -> list[dict[str, Any]]:
    """One row per family and task, in the cards' order; a format's value is "yes" or why not."""
    from isoform.reference.families import all_families

    result = []
    for family in all_families():
        for task in family.tasks:
            if family.gguf is None:
                gguf = family.no_gguf
            elif task.name in family.gguf.tasks:
                gguf = "yes"
            else:
                gguf = f"llama.cpp has no {task.name}"
            result.append(
                {
                    "family": family.title,
                    "model_types": list(family.model_types),
                    "task": task.name,
                    "architectures": list(task.architectures),
                    "torch": "yes",
                    "onnx": "yes",
                    "torchscript": "yes",
                    "gguf": gguf,
                }
            )
    return result


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


if __name__ == "__main__":
    print(markdown())
