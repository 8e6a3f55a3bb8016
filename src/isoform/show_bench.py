"""How `isoform bench` looks to people: a table of candidates at 80 columns, a block for each where it is narrower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.table import Table
from rich.text import Text

from isoform import show
from isoform.bench_report import BenchReport
from isoform.runtimes.choose.probe import Machine
from isoform.runtimes.choose.records import Candidate, Measurement, Timing
from isoform.runtimes.choose.work import READING, Share

NAME = 14  # columns that the name of a candidate needs at least
GAP = 2  # between columns
UNKEPT = "no file: only some backends were measured, or the cache folder cannot be written (set ISOFORM_CACHE)"


def bench(report: BenchReport) -> None:
    """The machine's limits, a row for each candidate, those without a time, and the choice."""
    _title(report)
    _machine(report.machine)
    if timed := report.timed:
        show.out.print()
        headers = _headers(report)
        needed = NAME + sum(max(map(len, header.split("\n"))) + GAP for header in headers)
        wide = show.out.width >= needed
        if wide:
            show.out.print(_table(report, timed, headers))
        else:
            for one in timed:
                _block(report, one)
        show.out.print()
        for text in _legend(report, timed, wide):
            show.out.print(Text(text, "dim"))
    for one in report.failed:
        line = Text.assemble((str(one.candidate), "yellow"), f": {one.error or 'it has no time'}")
        show.out.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    show.out.print()
    _chosen(report)


def _title(report: BenchReport) -> None:
    show.out.print(Text.assemble((report.model, "bold"), f": {report.task}, quality {report.quality}"))


def _machine(machine: Machine) -> None:
    """The figures of the probe."""
    used = (
        f"{machine.threads} of {machine.cores} cores" if machine.threads < machine.cores else f"{machine.cores} cores"
    )
    _fact("machine", f"{machine.processor or 'not known'}, {used}")
    _fact("reads", f"{machine.bandwidth / 1e9:.1f} GB/s")
    if peaks := [f"{unit} {_number(peak / 1e9)}" for unit, peak in machine.peaks.items()]:
        _fact("multiplies", f"{', '.join(peaks)} Gop/s")
    for unit, reason in machine.missing.items():
        _fact(f"no {unit}", reason, "yellow")
    if machine.noisy:
        text = f"the machine is busy; the probe's figures may be {machine.noise:.1f} times too low"
        _fact("noise", text, "yellow")


def _fact(key: str, text: str, style: str = "") -> None:
    show.out.print(Text.assemble((f"{key}: ", "bold"), (text, style)))


# ------------------------------------------------------------------ candidates
def _headers(report: BenchReport) -> list[str]:
    return ["load\ns", "first\ns", "memory\nMB", *(name.replace(" ", "\n") for name in report.workloads)]


def _table(report: BenchReport, timed: Sequence[Measurement], headers: Sequence[str]) -> Table:
    rows = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", expand=False)
    rows.add_column("\ncandidate", overflow="fold")
    for header in headers:
        rows.add_column(header, justify="right", no_wrap=True)
    same = _same_threads(timed)
    for one in timed:
        shares = dict(report.shares(one))
        spent = (f"{one.load_seconds:.2f}", f"{one.first_seconds:.2f}", _megabytes(one.peak_bytes))
        rates = (_cell(one.timings.get(workload), shares.get(workload)) for workload in report.workloads)
        name = _name(report, one)
        name.append(_named(one.candidate, same))
        rows.add_row(name, *spent, *rates)
    return rows


def _name(report: BenchReport, one: Measurement) -> Text:
    """The mark before a name: chosen, unproven, or neither."""
    if one is report.chosen:
        return Text("* ", "bold green")
    return Text("" if one.proven else "! ", "yellow")


def _same_threads(timed: Sequence[Measurement]) -> bool:
    return len({one.candidate.threads for one in timed}) == 1


def _named(candidate: Candidate, same: bool) -> str:
    """The candidate, without its threads where all have as many."""
    name, _, threads = str(candidate).rpartition(", ")
    return name if same else f"{name}\n{threads}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}" if count else "?"


def _cell(timing: Timing | None, share: Share | None) -> Text:
    """The rate, and below it the share."""
    if timing is None:
        return Text("–")
    if share is None:
        return Text(_number(timing.rate))
    below = f"{share.value:.0%}{'r' if share.limit == READING else ''}"
    return Text.assemble(_number(timing.rate), "\n", (below, "cyan"))


def _number(value: float) -> str:
    """Three digits at least: 1,474, 64.1, 0.89."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _block(report: BenchReport, one: Measurement) -> None:
    """A candidate over several lines, for a narrow terminal."""
    name = _name(report, one)
    name.append(str(one.candidate), "bold")
    show.out.print(name)
    spent = f"load {one.load_seconds:.2f} s, first {one.first_seconds:.2f} s, {_megabytes(one.peak_bytes)} MB"
    show.out.print(Text(f"  {spent}"))
    shares = dict(report.shares(one))
    for workload, timing in one.timings.items():
        share = shares.get(workload)
        of = "" if share is None else f", {share.value:.0%} of {share.limit}"
        show.out.print(Text(f"  {workload}: {_number(timing.rate)} {timing.unit}/s{of}"))


def _legend(report: BenchReport, timed: Sequence[Measurement], wide: bool) -> Iterator[str]:
    """What the numbers and marks are."""
    units = ", ".join(dict.fromkeys(f"{unit}/s" for unit in report.workloads.values()))
    limits = {share.limit for one in timed for _, share in report.shares(one)}
    threads = timed[0].candidate.threads
    if wide:
        line = f"Rates in {units}"
        if _same_threads(timed):
            line += f", all in {threads} thread{'' if threads == 1 else 's'}"
        if limits:
            line += "; below each, the share of the machine's limit: the peak of the dtype that is multiplied"
            line += ", or with r the bandwidth" if READING in limits else ""
        yield f"{line}."
    yield "Load: opening the model, in seconds. First: the first request after it. Memory: the process's peak."
    marks = ["* chosen"] if report.chosen is not None else []
    if any(not one.proven for one in timed):
        marks.append("! its parity is not proven, so it is never chosen")
    if marks:
        yield "; ".join(marks)


# ------------------------------------------------------------------ the choice
def _chosen(report: BenchReport) -> None:
    if report.choice is None:
        text = f"nothing: no candidate is proven to be {report.quality}; `--why` has the reasons"
        show.out.print(Text.assemble(("chosen: ", "bold"), (text, "yellow")))
        return
    show.out.print(Text.assemble(("chosen: ", "bold"), (str(report.choice.candidate), "green")))
    show.out.print(Text(report.choice.reason))


def why(report: BenchReport) -> None:
    """What was chosen and why, what was left out and why, and where the measurements are."""
    _title(report)
    _chosen(report)
    chosen, today, other = report.chosen, report.today, report.runner_up
    if chosen is not None:
        pairs = [("today's choice", today), ("the runner-up", other)]
        against = [(text, one) for text, one in pairs if one is not None and one is not chosen and one.timings]
        if against and against[0][1] is against[-1][1]:
            against = [("today's choice and the runner-up", against[0][1])] if len(against) > 1 else against
        for text, one in against:
            _times(report, chosen, text, one)
    rivals = report.choice.rivals if report.choice else ()
    reasons = [(rival.candidate, rival.reason) for rival in rivals]
    if report.choice is None:
        reasons = [(one.candidate, one.error or _unproven(one)) for one in report.series.measurements]
    if reasons:
        show.out.print(Text("not taken:", "bold"))
        for candidate, reason in reasons:
            show.out.print(Text.assemble("  ", (str(candidate), "yellow"), f": {reason}"))
    if report.series.noisy:
        text = f"the speed of {_short(today)} changed by {report.series.control - 1:.0%} while the others were measured"
        _fact("noise", f"{text}; measure again on a quiet machine with --again", "yellow")
    show.out.print()
    _machine(report.machine)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    _fact("measured", f"{report.series.taken}{f' with {versions}' if versions else ''}")
    _fact("kept in", report.file or UNKEPT)
    show.out.print(Text("--again measures anew."))


def _short(one: Measurement | None) -> str:
    """A candidate without its threads."""
    return "" if one is None else str(replace(one.candidate, threads=1)).removesuffix(", 1 thread")


def _unproven(one: Measurement) -> str:
    broken = [f"{name} {value:.3g} (limit {limit:.3g})" for name, (value, limit) in one.proof.items() if value > limit]
    return f"not proven: {', '.join(broken)}" if broken else "not good enough for the quality"


def _times(report: BenchReport, chosen: Measurement, text: str, other: Measurement) -> None:
    """By workload, how many times as fast the chosen candidate is."""
    found = [
        f"{workload} {chosen.timings[workload].rate / other.timings[workload].rate:.2f}"
        for workload in report.workloads
        if workload in chosen.timings and workload in other.timings
    ]
    line = f"Times as fast as {text}, {other.candidate}: {', '.join(found)}."
    show.out.print(Text(line))
