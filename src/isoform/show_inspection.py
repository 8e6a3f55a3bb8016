"""How `isoform inspect`, `models` and `doctor` look to people: legible at 80 columns, without Python's notation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from isoform import show
from isoform.errors import InputError

if TYPE_CHECKING:
    from isoform.validators.report.records import Report

SHORT = 60  # characters of a value that stays on its line


def inspection(facts: Mapping[str, Any]) -> None:
    """What `inspect` found: a bundle as its answers to a person's questions, other files fact by fact."""
    if facts["kind"] == "bundle":
        _bundle(facts)
        return
    for key, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            _rows(key, value)
        elif isinstance(value, dict) and len(line := _line(value)) > SHORT:
            _pairs(key, value)
        elif value not in (None, {}, []):
            _fact(key, line if isinstance(value, dict) else _cell(key, value))


def _fact(key: str, text: str, style: str = "") -> None:
    show.out.print(Text.assemble((f"{key}: ", "bold"), (text, style)), soft_wrap=False)


def _line(pairs: Mapping[str, Any]) -> str:
    """A small mapping on one line: "F32 29, F16 2"."""
    return ", ".join(f"{key} {_cell(key, value)}" for key, value in pairs.items())


def _cell(key: str, value: Any) -> str:
    """A value in words; numbers of bytes have a unit, axes are in brackets, long texts are cut."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in ("bytes", "size") and isinstance(value, int):
        return show.size(value)
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 and not key.startswith("tokenizer.") else str(value)
    if isinstance(value, list | tuple):
        items = ", ".join(str(item).replace("_sequence_length", "").replace("_size", "") for item in value)
        return f"({items})" if key in ("axes", "shape") else items
    if isinstance(value, dict):
        return _line(value)
    text = " ".join(str(value).split())
    return text if len(text) <= 4 * SHORT else f"{text[: 4 * SHORT - 1]}…"


def _pairs(title: str, pairs: Mapping[str, Any]) -> None:
    rows = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for key, value in pairs.items():
        text = _cell(key, value)
        rows.add_row(Text(str(key)), Text(text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"))
    show.out.print(rows)


def _rows(title: str, entries: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    numbers = [name for name in columns if name in ("bytes", "size")]
    rows = show.table(title, *columns, right=numbers)
    for entry in entries:
        rows.add_row(*(Text(_cell(name, entry.get(name, ""))) for name in columns))
    show.out.print(rows)


# ------------------------------------------------------------------ a bundle
def _bundle(facts: Mapping[str, Any]) -> None:
    from isoform.validators.report.tables import tables

    parity = facts["parity"] or {}
    worst = _worst(parity)  # read before anything is shown
    show.out.print(Text.assemble(("bundle", "bold"), f" of {facts['family']} for {facts['task']}"))
    _fact("source", str(facts["source"]) if facts["source"] else "not known")
    if not parity:
        show.out.print(Text("not checked yet; `isoform check` compares it with its source", "yellow"))
    else:
        left = f", {len(parity['skipped'])} skipped" if parity.get("skipped") else ""
        same = bool(parity.get("same"))
        _fact("last check", ("the same" if same else "NOT THE SAME") + left, "green" if same else "red")
    show.serves(facts["serves"])
    if notes := facts.get("notes"):
        _fact("note", notes, "yellow")
    files = [{**file, "state": "" if file["state"] == "ok" else file["state"]} for file in facts["files"]]
    columns = ("format", "dtype", "file", "bytes", *(("state",) if any(file["state"] for file in files) else ()))
    _rows("forms", [{name: file[name] for name in columns} for file in files])
    for form, reason in facts["missing"].items():
        show.out.print(Text.assemble((f"no {form}: ", "yellow"), reason))
    for rows in tables(worst) if parity else ():
        show.out.print(rows)
    _fact("written by", _line(facts["versions"]))


def _worst(parity: Mapping[str, Any]) -> Report:
    """The results of a bundle's last check. Raises InputError for what is no such summary."""
    from isoform.validators.report.records import Report, Result

    try:
        return Report([Result.from_json(entry) for entry in (parity["worst"] if parity else ())])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"isoform.json: parity is not what a check writes ({error!r}); check the bundle again"
        ) from None


# ------------------------------------------------------------------ the families
WORDS = {
    "audio-classification": "sounds",
    "automatic-speech-recognition": "transcribe",
    "depth-estimation": "depths",
    "document-question-answering": "pages",
    "feature-extraction": "embed",
    "fill-mask": "fill",
    "image-classification": "pictures",
    "image-feature-extraction": "embed",
    "image-segmentation": "segments",
    "image-to-text": "caption",
    "keypoint-detection": "keypoints",
    "keypoint-matching": "matches",
    "mask-generation": "masks",
    "object-detection": "objects",
    "pose-estimation": "poses",
    "question-answering": "answers",
    "table-question-answering": "tables",
    "text-classification": "texts",
    "text-generation": "generate",
    "text-ranking": "rank",
    "text2text-generation": "text to text",
    "token-classification": "tokens",
    "video-classification": "videos",
    "visual-question-answering": "vqa",
    "zero-shot-image-classification": "zero-shot",
}
"""Task -> the word for it in a narrow table, which a note explains; a task without one stands there in full."""


def models(families: Sequence[Mapping[str, Any]]) -> None:
    """One line for each family, and notes below."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    rows.add_column("family", no_wrap=True)
    rows.add_column("tasks")
    rows.add_column("in GGUF too", min_width=11, max_width=13)
    for family in families:
        tasks, served = _words(family["tasks"]), _words(family["gguf"])
        rows.add_row(Text(family["family"]), Text(tasks), Text("all" if tasks == served else served))
    show.out.print(rows)
    used = sorted({task for family in families for task in family["tasks"] if task in WORDS})
    notes = (
        "Every family runs in torch, ONNX and TorchScript.",
        "; ".join(f"{WORDS[task]}: {task}" for task in used) + ".",
        "`isoform models --json` has the model types, the classes, and why a form is missing.",
    )
    for note in notes:
        show.out.print(Text(note))


def _words(tasks: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(WORDS.get(task, task) for task in tasks))


# ------------------------------------------------------------------ this machine
def doctor(facts: Mapping[str, Any]) -> None:
    """What this machine has in a line each, then what would be faster or is missing."""
    processor, memory = facts["processor"], facts["memory"]
    units = ", ".join(processor["units"]) or "none that isoform knows of"
    left = {
        name: f"{show.size(c['size'])}, {_bytes(c['free'])} left, {c['path']}" for name, c in facts["caches"].items()
    }
    lines = {
        "system": facts["system"],
        "processor": f"{processor['name']}, {processor['cores']} cores, {processor['threads to use']} in use",
        "units": units,
        "memory": f"{_bytes(memory['all'])}, {_bytes(memory['free'])} free",
        "GPU": ", ".join(facts["gpus"]) or "none",
        **{backend: detail or "not installed" for backend, detail in facts["backends"].items()},
        "packages": ", ".join(f"{name} {found}" for name, found in facts["packages"].items() if name not in SHOWN),
        **{f"{name} cache": text for name, text in left.items()},
        "Hub": facts["hub"],
    }
    for key, text in lines.items():
        _fact(key, text)
    for advice in facts["advice"]:
        show.out.print(Text.assemble(("advice ", "yellow"), advice))
    if not facts["advice"]:
        show.out.print(Text("nothing is missing", "green"))


SHOWN = ("torch", "onnxruntime", "onnxruntime-gpu", "xllamacpp")  # on the lines of their backends


def _bytes(count: int | None) -> str:
    return "not known" if count is None else show.size(count)
