"""What the command line prints: rich tables for people, JSON for machines. Nothing is measured here."""

from __future__ import annotations

import base64
import json as jsonlib
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from isoform import show_masks
from isoform.progress_bar import bars

if TYPE_CHECKING:
    from isoform.demo import Demo
    from isoform.manifest import Manifest
    from isoform.validators.report.records import Report
    from isoform.validators.tools.compare import Comparison
    from isoform.validators.tools.diff import Diff
    from isoform.validators.tools.forecast import Forecast

out = Console(highlight=False)
progress = bars


def json(data: Any) -> None:
    """One JSON document on standard output; arrays become lists, and pictures a data URL of a PNG file."""
    sys.stdout.write(jsonlib.dumps(data, indent=2, ensure_ascii=False, default=_plain) + "\n")


def json_line(data: Any) -> None:
    """A line of JSON on standard output, which is there at once."""
    sys.stdout.write(jsonlib.dumps(data, ensure_ascii=False, default=_plain) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if show_masks.are_masks(value):
        return show_masks.plain(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "getbands"):  # a PIL picture
        file = BytesIO()
        value.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    raise TypeError(f"{type(value).__name__} has no JSON form")


def table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns in `right` hold numbers."""
    result = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def manifest(manifest: Manifest, folder: Path) -> None:
    """The files of a bundle, and why a format is not among them."""
    rows = table(f"{folder}: {manifest.family}, {manifest.task}", "format", "dtype", "file", "size", right=("size",))
    for artifact in manifest.artifacts:
        for n, file in enumerate(artifact.files):
            first = (artifact.format, artifact.dtype) if n == 0 else ("", "")
            rows.add_row(*first, file.path, size(file.size))
    out.print(rows)
    for form, reason in manifest.missing.items():
        out.print(f"[yellow]no {form}[/]: {Text(reason).markup}")
    for note in manifest.notes:
        out.print(Text.assemble(("note: ", "yellow"), note))


def forecast(found: Forecast) -> None:
    """The places nearest to the end of float16, and what to do about them."""
    table = Table(title="float16", title_justify="left", title_style="bold", header_style="bold")
    for column in ("place", "value of"):
        table.add_column(column, overflow="fold")
    for column in ("largest", "of 65504"):
        table.add_column(column, justify="right")
    table.add_column("")
    colours = {"overflows": "red", "near": "yellow", "fits": "green"}
    for peak in found.worst(8):
        share = f"{peak.share:.1%}"
        verdict = Text(peak.verdict, colours[peak.verdict])
        table.add_row(Text(peak.place), peak.kind, f"{peak.largest:.4g}", share, verdict)
    out.print(table)
    out.print(Text(str(found)))


def checkpoint(written: dict[str, Any]) -> None:
    """The files of a Hub checkpoint."""
    title = "{folder}: {family}, {task}, {parameters:,} parameters in {dtype}".format(**written)
    rows = table(title, "file", "size", right=("size",))
    for file in written["files"]:
        rows.add_row(file["path"], size(file["size"]))
    out.print(rows)


def report(report: Report) -> None:
    """The table of a parity report, its remarks and its verdict."""
    from isoform.validators.report.remarks import remarks
    from isoform.validators.report.tables import tables

    for rows in tables(report):
        out.print(rows)
    for kind, text in remarks(report):
        colour = {"FAIL": "red", "skipped": "yellow"}.get(kind, "dim")
        out.print(Text.assemble((kind, colour), " ", text))
    out.print("[green]the same[/]" if report.same else "[red]not the same[/]")
    serves(report.about.get("serves", {}))


def serves(tasks: Mapping[str, str]) -> None:
    """The pipelines that a bundle serves, and why it does not serve the others."""
    if able := [task for task, reason in tasks.items() if not reason]:
        out.print(Text(f"serves {', '.join(able)}"))
    for task, reason in tasks.items():
        if reason:
            out.print(Text.assemble(("does not serve ", "yellow"), f"{task}: {reason}"))


def comparison(found: Comparison) -> None:
    """Two artifacts side by side, how far apart they are, and the verdict."""
    halves = (found.a, found.b)
    rows = table(None, "", "backend", "dtype", "size", "tokens/s", "decoded/s", right=("size", "tokens/s", "decoded/s"))
    for half in halves:
        decoded = "" if half.step_speed is None else f"{half.step_speed:.0f}"
        sizes = size(half.bytes) if half.bytes else ""
        rows.add_row(Text(half.text), half.backend, half.dtype, sizes, f"{half.pass_speed:.0f}", decoded)
    out.print(rows)
    rows = table(None, "metric", "value", "limit", "used", "", "note", right=("value", "limit", "used"))
    for metric in found.metrics:
        limit = "" if metric.limit is None else f"{metric.limit:.2g}"
        used = f"{metric.value / metric.limit:.0%}" if metric.limit else ""
        mark = Text("") if metric.limit is None else Text("ok", "green") if metric.passed else Text("FAIL", "red")
        rows.add_row(metric.name, f"{metric.value:.2g}", limit, used, mark, Text(metric.note))
    out.print(rows)
    for note in found.notes:
        out.print(Text.assemble(("note", "dim"), " ", note))
    out.print("[green]the same[/]" if found.same else "[red]not the same[/]")


def diff(found: Diff) -> None:
    """Added, removed and changed tensors, changed metadata, and how many are equal."""
    for name, names in (("only in a", found.removed), ("only in b", found.added)):
        for entry in names:
            out.print(Text.assemble((name, "yellow"), " ", entry))
    if found.changed:
        rows = table(None, "tensor", "dtype", "shape", "differing", "max_abs", "rms", right=("max_abs", "rms"))
        for change in found.changed:
            dtypes, shapes = (_change(pair) for pair in (change.dtypes, [list(shape) for shape in change.shapes]))
            if change.differing is None:
                rows.add_row(Text(change.name), dtypes, Text(shapes), "", "", "")
            else:
                numbers = [f"{value:.2g}" for value in (change.max_abs or 0.0, change.rms or 0.0)]
                rows.add_row(Text(change.name), dtypes, Text(shapes), f"{change.differing} of {change.size}", *numbers)
        out.print(rows)
    if found.metadata:
        rows = table(None, "metadata", "a", "b")
        for line in found.metadata:
            rows.add_row(*map(Text, line))
        out.print(rows)
    for note in found.notes:
        out.print(Text.assemble(("note", "dim"), " ", note))
    counts = f"{found.equal} equal, {len(found.changed)} changed, "
    counts += f"{len(found.removed)} only in a, {len(found.added)} only in b"
    out.print(counts + ("" if found.same else f"; {len(found.metadata)} metadata"))


def _change(pair: Sequence[Any]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"


def answer(name: str | None, answer: Any) -> None:
    """Generated text as it is, other answers as tables or JSON; under the name of its input, if it has one."""
    if name is not None:
        out.print(Text(name, style="bold"), soft_wrap=True)
    match answer:
        case [{"generated_text": str(said)}] | [{"summary_text": str(said)}] | [{"translation_text": str(said)}]:
            out.print(Text(said))
        case {"generated_text": str(said)} | {"summary_text": str(said)} | {"translation_text": str(said)}:
            out.print(Text(said))
        case {"sequence": str(), "labels": [*labels], "scores": [*scores]}:
            rows = table(None, "label", "score", right=("score",))
            for label, score in zip(labels, scores, strict=True):
                rows.add_row(str(label), f"{score:.4f}")
            out.print(rows)
        case [{"score": _}, *_]:
            rows = table(None, *answer[0], right=("score",))
            for row in answer:
                rows.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
            out.print(rows)
        case {"text": str(), "chunks": [{"text": str(), "timestamp": _}, *_] as chunks} if len(answer) == 2:
            for chunk in chunks:
                line = Text.assemble((f"{_times(chunk['timestamp'])}  ", "dim"), chunk["text"].strip())
                out.print(line, soft_wrap=True)
        case {"masks": _, "scores": _}:
            rows = table(None, "mask", "score", "of the picture", "pixels", right=("score", "of the picture"))
            for cells in show_masks.lines(answer):
                rows.add_row(*cells)
            out.print(rows)
        case {"text": str(said)} if len(answer) == 1:
            out.print(Text(said.strip()), soft_wrap=True)
        case _:
            json(answer)


def _times(span: Sequence[float | None]) -> str:
    return " – ".join("      ?" if second is None else f"{second:7.2f}" for second in span)


def facts(facts: dict[str, Any]) -> None:
    """What was written or measured, a line for each fact."""
    for key, value in facts.items():
        out.print(Text.assemble((f"{key}: ", "bold"), str(value)))


def backends(states: Sequence[dict[str, Any]]) -> None:
    """What runs here, and what to install for the rest."""
    rows = table(None, *(states[0] if states else ("backend",)))
    for state in states:
        rows.add_row(*(", ".join(v) if isinstance(v, list | tuple) else _mark(v) for v in state.values()))
    out.print(rows)


def _mark(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def demo(result: Demo) -> None:
    """The demo's tables: what was written, whether it is the same, and how fast each backend embeds."""
    manifest(result.manifest, result.folder)
    report(result.report)
    rows = table(
        f"{len(result.sentences)} sentences embedded",
        "backend",
        "sentences/s",
        "max |difference| to torch",
        right=("sentences/s", "max |difference| to torch"),
    )
    for backend, speed, gap in result.speeds:
        rows.add_row(backend, f"{speed:.0f}", f"{gap:.1e}")
    out.print(rows)
    rows = table("Closest sentences (torch)", "sentence", "closest", "cosine", right=("cosine",))
    for sentence, other, cosine in result.closest:
        rows.add_row(sentence, other, f"{cosine:.3f}")
    out.print(rows)
    out.print(f"{result.seconds:.1f} s in all")
