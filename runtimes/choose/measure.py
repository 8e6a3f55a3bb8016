"""Measures candidates one after the other, the most promising first, within a budget of seconds and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from time import perf_counter

from isoform.progress import Progress
from isoform.runtimes.choose.candidates import in_fewer_threads
from isoform.runtimes.choose.choose import LATENCY, Series, request_seconds
from isoform.runtimes.choose.records import Candidate, Measurement
from isoform.runtimes.devices import memory

SECONDS = 60.0
"""The budget for all candidates of a model."""
SHARE = 4
"""A candidate may take this part of the budget, besides what an export of its form costs; the first may take all."""
SLOWER = 3.0
"""A candidate whose first round is this much slower than the best so far is stopped."""
LEAST = 3.0
"""Seconds in which no process opens a model and runs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A candidate to be measured in a process of its own.

    `seconds` may be spent in all. The candidate is stopped where a typical request of the `use` takes longer than
    `slowest` seconds, and only timed, not proven, unless `prove`.
    """

    candidate: Candidate
    seconds: float
    use: str = LATENCY
    slowest: float | None = None
    prove: bool = True


Run = Callable[[Job], Measurement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What candidates are estimated to need: seconds until they run (an export, say), and bytes of memory."""

    seconds: Callable[[Candidate], float] = lambda candidate: 0.0
    bytes: Callable[[Candidate], float] = lambda candidate: 0.0
    free: Callable[[], int | None] = field(default=lambda: memory()["free"])


def measure(
    candidates: Sequence[Candidate],
    run: Run,
    *,
    seconds: float = SECONDS,
    use: str = LATENCY,
    costs: Costs | None = None,
    fewer_threads: bool = True,
    progress: Progress | None = None,
) -> Series:
    """Measure candidates, of which the first is today's choice; it is measured again at the end, as a control.

    What there is no time or memory for has an error that says so. The fastest proven one is then measured in fewer
    threads.
    """
    costs, start = costs or Costs(), perf_counter()
    found: dict[Candidate, Measurement] = {}
    report = progress or (lambda text, done, total: None)
    total = len(candidates) + 1

    def left() -> float:
        return seconds - (perf_counter() - start)

    def best() -> float | None:
        times = [request_seconds(m.timings, use) for m in found.values() if m.proven]
        return min((time for time in times if time), default=None)

    def take(candidate: Candidate) -> None:
        report(f"measuring {candidate}", len(found), total)
        have = left() - kept
        if refused := _refusal(candidate, costs, seconds, have, first=not found):
            found[candidate] = Measurement(candidate=candidate, error=refused)
            return
        most = min(have, costs.seconds(candidate) + seconds / SHARE) if found else have
        fastest = best()
        slowest = None if fastest is None else fastest * SLOWER
        found[candidate] = run(Job(candidate=candidate, seconds=most, use=use, slowest=slowest))

    kept = 0.0
    for candidate in candidates:
        before = left()
        take(candidate)
        if len(found) == 1:
            kept = min(before - left(), seconds / SHARE)  # for the control, which takes as long
    if fewer_threads and (fastest := best()) is not None:
        winner = next(m for m in found.values() if m.proven and request_seconds(m.timings, use) == fastest)
        for candidate in in_fewer_threads(winner.candidate):
            if candidate not in found:
                take(candidate)
    first = found[candidates[0]]
    control = 1.0
    if not first.error and len(found) > 1:
        report(f"measuring {first.candidate} again", len(candidates), total)
        again = run(Job(candidate=first.candidate, seconds=max(left(), kept, LEAST), use=use, prove=False))
        control = _change(first, again, use)
    report("measured", total, total)
    return Series(taken=date.today().isoformat(), measurements=tuple(found.values()), control=control)


def _refusal(candidate: Candidate, costs: Costs, seconds: float, left: float, *, first: bool) -> str:
    """Why a candidate is not run, or "". The first one always has the time."""
    need, free = costs.bytes(candidate), costs.free()
    if free is not None and need > free:
        return f"left out: it needs about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
    if first:
        return ""
    cost = costs.seconds(candidate) + LEAST
    if cost > left:
        return (
            f"left out: it takes {cost:.0f} s or more to make and open, {max(left, 0):.0f} of {seconds:.0f} s are left"
        )
    return ""


def _change(first: Measurement, again: Measurement, use: str) -> float:
    """The factor by which the seconds of a request changed, at least 1."""
    before, after = request_seconds(first.timings, use), request_seconds(again.timings, use)
    return 1.0 if not before or not after else max(before / after, after / before)


def stopped(measurement: Measurement, seconds: float, slowest: float) -> Measurement:
    """The measurement of a candidate whose first round took too long for it to be chosen."""
    best = slowest / SLOWER
    return replace(
        measurement, error=f"stopped after a round: {seconds / best:.1f} times as slow as the best before it"
    )
