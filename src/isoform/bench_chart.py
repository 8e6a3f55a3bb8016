"""The picture of `isoform bench --png`: a column of bars for each workload, with the machine's limits behind them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.runtimes.choose.work import READING, bound, share_of
from isoform.whole import whole_file

if TYPE_CHECKING:
    from isoform.bench_report import BenchReport
    from isoform.runtimes.choose.records import Measurement

CHOSEN, OTHER, UNPROVEN, LIMIT, INK = "#1b7f5a", "#7fa7c9", "#c9c9c9", "#e9edf1", "#222222"
ROOM = 2.5
"""A column ends at so many times its fastest rate at most; a limit beyond that is cut off."""


def check_chart(path: Path) -> None:
    """Raises InputError where the picture could not be drawn or written; before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--png needs matplotlib; pip install isoform[plots]")
    if path.suffix.lower() != ".png":
        raise InputError(f"--png writes PNG, and {path} does not end in .png; name a .png file")
    if path.is_dir():
        raise InputError(f"--png {path} is a folder; name a .png file in it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--png {path}: there is no folder {folder}; make it, or name another file")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--png {path}: {folder} cannot be written to; name a file in another folder")


def draw(report: BenchReport, path: Path) -> None:
    """Write the picture, whole or not at all. Raises InputError where there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, workloads = report.timed, report.workloads
    if not rows:
        raise InputError(f"no candidate of {report.model} has a time, so there is no picture; --why has the reasons")
    figure = Figure(figsize=(2.9 + 2.5 * len(workloads), 1.9 + 0.42 * len(rows)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    columns = figure.subplots(1, len(workloads), sharey=True, squeeze=False)[0]
    for axes, (workload, unit) in zip(columns, workloads.items(), strict=True):
        _column(axes, report, rows, workload, unit)
    columns[0].set_yticks(range(len(rows)), [_label(one) for one in rows], fontsize=9)
    columns[0].set_ylim(len(rows) - 0.45, -0.55)
    for label, one in zip(columns[0].get_yticklabels(), rows, strict=True):
        label.set_color(_colour(report, one) if one is report.chosen else INK)
        label.set_fontweight("bold" if one is report.chosen else "normal")
    _titles(figure, report)
    try:
        with whole_file(path) as part:
            canvas.print_png(str(part), metadata={"Software": "isoform"})  # type: ignore[no-untyped-call]
    except OSError as error:
        raise InputError(f"--png {path} cannot be written ({error.strerror or error}); name another file") from None


def _column(axes: Any, report: BenchReport, rows: list[Measurement], workload: str, unit: str) -> None:
    """The bars of a workload: the rate in front of the rate at which the nearest limit is reached."""
    timings = [one.timings.get(workload) for one in rows]
    end = ROOM * max(timing.rate for timing in timings if timing)
    limits = [
        None if timing is None else bound(one.candidate, workload, timing, report.machine)
        for one, timing in zip(rows, timings, strict=True)
    ]
    reach = min(max([limit or 0.0 for limit in limits] + [end / ROOM]), end)
    for place, (one, timing, limit) in enumerate(zip(rows, timings, limits, strict=True)):
        if timing is None:
            continue
        if limit:
            axes.barh(place, min(limit, reach * 1.02), height=0.78, color=LIMIT, zorder=1)
            if limit <= reach * 1.02:
                axes.plot([limit, limit], [place - 0.39, place + 0.39], color="#8a94a0", linewidth=1.2, zorder=2)
        axes.barh(place, timing.rate, height=0.5, color=_colour(report, one), zorder=3)
        share = share_of(one.candidate, workload, timing, report.machine)
        text = _number(timing.rate)
        if share is not None:
            text += f" · {share.value:.0%}{' r' if share.limit == READING else ''}"
        inside, start = _place(timing.rate, limit, reach)
        axes.text(
            start + (-0.02 if inside else 0.02) * reach,
            place,
            text,
            ha="right" if inside else "left",
            va="center",
            fontsize=8,
            color="white" if inside and one is report.chosen else INK,
            zorder=4,
        )
    axes.set_xlim(0, reach * 1.02)
    axes.set_title(f"{workload}, {unit}/s", fontsize=10, loc="left")
    axes.tick_params(axis="x", labelsize=8, colors="#666666")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if reach >= 20 else f"{value:g}")
    axes.locator_params(axis="x", nbins=4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")


def _place(rate: float, limit: float | None, reach: float) -> tuple[bool, float]:
    """Whether a bar's text is in it, and where the text ends or starts: where it is not across the limit."""
    room = 0.4 * reach
    start = limit if limit and rate < limit < rate + room else rate
    if start + room <= reach or rate < room:
        return False, start if start + room <= reach else rate
    return True, rate


def _titles(figure: Any, report: BenchReport) -> None:
    from matplotlib.patches import Patch

    machine = report.machine
    peaks = ", ".join(f"{unit} {peak / 1e9:,.0f}" for unit, peak in machine.peaks.items())
    threads = f"{machine.threads} thread{'' if machine.threads == 1 else 's'}"
    lines = f"{machine.processor or 'this machine'}, {threads}: reads {machine.bandwidth / 1e9:.1f} GB/s"
    lines += f"; multiplies {peaks} Gop/s. Measured {report.series.taken}."
    figure.suptitle(
        f"{report.model}: {report.task}, quality {report.quality}\n{lines}", x=0.01, ha="left", fontsize=10.5, color=INK
    )
    handles = [Patch(color=CHOSEN, label="chosen")] if report.chosen is not None else []
    handles += [Patch(color=OTHER, label="others")]
    if any(not one.proven for one in report.timed):
        handles += [Patch(color=UNPROVEN, label="parity not proven")]
    if any(True for one in report.timed for _ in report.shares(one)):
        text = (
            "the machine's limit, and the share of it that is reached (r: of the bandwidth; else of the dtype's peak)"
        )
        handles += [Patch(color=LIMIT, label=text)]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8.5, frameon=False)


def _label(one: Measurement) -> str:
    name, _, threads = str(one.candidate).rpartition(", ")
    return f"{name}\n{threads}" if len(name) > 24 else f"{name}, {threads}"


def _colour(report: BenchReport, one: Measurement) -> str:
    return CHOSEN if one is report.chosen else OTHER if one.proven else UNPROVEN


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
