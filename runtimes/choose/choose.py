"""Chooses the fastest candidate out of measurements, and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from isoform.runtimes.choose.candidates import HANDS_OVER, admitted
from isoform.runtimes.choose.records import Candidate, Measurement, Timing

TIE = 1.03
"""Candidates whose requests take this much longer than the fastest one's, or less, are as fast."""
NOISE = 1.15
"""A machine on which the same candidate's speed changes by this much says nothing about smaller differences."""

HANDOVER = 1.3
"""How many times as fast a second form must read prompts, to be worth a second copy of the weights."""
SHORTEST = 256
"""Tokens of a prompt below which no second form reads it."""

LATENCY, THROUGHPUT = "latency", "throughput"
PROMPT, ANSWER = 128, 64
"""Tokens of a typical request for text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Measurements that were taken one after the other; the first is that of today's choice, the control.

    `taken` is the day. `control`: how much the speed of the first candidate had changed at the end, as a factor of at
    least 1.
    """

    taken: str
    measurements: tuple[Measurement, ...]
    control: float = 1.0

    @property
    def noisy(self) -> bool:
        return self.control > NOISE


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A candidate that was not chosen: the seconds of its typical request (None where it has none), and why not."""

    candidate: Candidate
    seconds: float | None
    reason: str

    def __str__(self) -> str:
        return f"{self.candidate}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What runs a model, at which quality, and why. `measured`: out of measurements of this machine."""

    candidate: Candidate
    reason: str
    quality: str
    measured: bool = False
    seconds: float | None = None
    rivals: tuple[Rival, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.candidate}: {self.reason}"


def request_seconds(timings: Mapping[str, Timing], use: str) -> float | None:
    """The seconds of a typical request: of a prompt and its answer, of one input, or of an item of a batch.

    `use` is "latency" or "throughput". None where the workload was not measured.
    """
    if use == THROUGHPUT:
        batches = [name for name in ("batch 32", "batch 8") if name in timings]
        if batches:
            return 1 / timings[batches[0]].rate
    if "prefill 128" in timings and "decode" in timings:
        return PROMPT / timings["prefill 128"].rate + ANSWER / timings["decode"].rate
    alone = [name for name in ("batch 1", "30 s") if name in timings]
    return 1 / timings[alone[0]].rate if alone else None


def choose(series: Series, quality: str, use: str = LATENCY) -> Choice | None:
    """The candidate whose typical request takes the least time; never one that is unproven or too low in quality.

    Today's choice, the first of the series, wins a tie. None where nothing may be
    chosen.
    """
    seconds = {m.candidate: request_seconds(m.timings, use) for m in series.measurements}
    able = [m for m in series.measurements if m.proven and admitted(quality, m.candidate) and seconds[m.candidate]]
    if not able:
        return None

    def time(one: Measurement) -> float:
        return seconds[one.candidate] or 0.0

    best = min(able, key=time)
    alike = [m for m in able if time(m) <= time(best) * _margin(series, best, m)]
    today = series.measurements[0]
    chosen = today if today in alike else best
    rivals = tuple(
        Rival(
            candidate=m.candidate,
            seconds=seconds[m.candidate],
            reason=_why_not(m, seconds[m.candidate], time(chosen), quality, m in alike),
        )
        for m in series.measurements
        if m is not chosen
    )
    reason = _gain(chosen, today, time(chosen), seconds[today.candidate])
    if series.noisy:
        reason += f", on a noisy machine (the speed of the first one changed by {series.control - 1:.0%})"
    elif time(chosen) > time(best) * TIE:
        reason += f", on a noisy machine ({_short(best.candidate)} is ahead by no more than rounds differ)"
    candidate = chosen.candidate
    if (reader := _reader(chosen, able)) is not None:
        other, start, gain = reader
        candidate = replace(candidate, prefill=f"{other.backend} {other.dtype}", prefill_from=start)
        reason += f"; {other.backend} {other.dtype} reads long prompts {gain:.1f} times as fast"
    return Choice(
        candidate=candidate,
        reason=f"{reason} (measured {series.taken})",
        quality=quality,
        measured=True,
        seconds=time(chosen),
        rivals=rivals,
    )


def _reader(chosen: Measurement, able: Sequence[Measurement]) -> tuple[Candidate, int, float] | None:
    """Who reads long prompts for a candidate that decodes, from how many tokens on, and how many times as fast.

    From so many tokens on the first prompt pays for opening the second form. None where it would not pay.
    """
    one = chosen.candidate
    if "decode" not in chosen.timings or one.backend not in HANDS_OVER:
        return None
    found = []
    for other in able:
        form = other.candidate
        shared = [name for name in ("prefill 1024", "prefill 128") if name in chosen.timings and name in other.timings]
        if shared and form.backend in HANDS_OVER and form.threads == one.threads and form != one:
            found.append((other.timings[shared[0]].rate, chosen.timings[shared[0]].rate, other))
    fast, slow, reader = max(found, key=lambda each: each[0] / each[1], default=(0.0, 1.0, chosen))
    if fast < HANDOVER * slow:
        return None
    pays = reader.load_seconds / (1 / slow - 1 / fast)
    return reader.candidate, max(SHORTEST, ceil(pays)), fast / slow


def _margin(series: Series, best: Measurement, other: Measurement) -> float:
    """How much longer than the best one's a request may take to count as equally fast.

    A median of rounds is off by about half of what the rounds differ by.
    """
    spreads = sorted(timing.spread for one in (best, other) for timing in one.timings.values())
    return max(TIE, series.control if series.noisy else 1.0, spreads[len(spreads) // 2] ** 0.5)


def _gain(chosen: Measurement, today: Measurement, seconds: float, before: float | None) -> str:
    name = _short(today.candidate)
    if chosen is today:
        return "today's choice, and nothing proven is clearly faster"
    if not before:
        return f"the fastest that is proven; today's {name} has no time ({today.error or 'not measured'})"
    return f"{before / seconds:.1f} times today's {name}"


def _short(candidate: Candidate) -> str:
    """A candidate without its threads."""
    return str(replace(candidate, threads=1)).removesuffix(", 1 thread")


def _broken(one: Measurement) -> list[str]:
    """The metrics that are past their limits."""
    pairs = one.proof.items()
    return [f"{name} {value:.3g} (limit {limit:.3g})" for name, (value, limit) in pairs if not value <= limit]


def _why_not(one: Measurement, seconds: float | None, best: float, quality: str, alike: bool) -> str:
    if one.error:
        return one.error
    if not one.proven:
        return f"not proven: {', '.join(_broken(one))}"
    if not admitted(quality, one.candidate):
        return f"not {quality}"
    if seconds is None:
        return "not measured for this use"
    if alike:
        return "as fast, within the noise"
    return f"{seconds / best:.1f} times as slow"
