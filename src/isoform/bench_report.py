"""What `isoform bench` found: the machine's limits, the measurements of all candidates, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from isoform.runtimes.choose.candidates import admitted
from isoform.runtimes.choose.choose import Choice, Rival, Series
from isoform.runtimes.choose.probe import Machine
from isoform.runtimes.choose.records import Candidate, Measurement
from isoform.runtimes.choose.work import Share, share_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """`series` starts with today's choice. `choice` is None where no candidate is proven.

    `file` is where the measurements are kept, "" where they could not be. `versions` are those that they hold for.
    """

    model: str
    task: str
    quality: str
    machine: Machine
    series: Series
    choice: Choice | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    @property
    def workloads(self) -> dict[str, str]:
        """Workload -> unit: prompts, decoding, then batches by their size."""
        found = {name: timing.unit for one in self.series.measurements for name, timing in one.timings.items()}
        return {name: found[name] for name in sorted(found, key=_place)}

    @property
    def timed(self) -> list[Measurement]:
        """What was timed to the end, the fastest for a typical request first."""
        done = (one for one in self.series.measurements if one.timings and not one.error)
        return sorted(done, key=self._seconds)

    @property
    def failed(self) -> list[Measurement]:
        """What has no time, or was stopped, with an error that says why."""
        return [one for one in self.series.measurements if one.error or not one.timings]

    def _seconds(self, measurement: Measurement) -> float:
        if self.choice is None:
            return 0.0
        rivals = {rival.candidate: rival.seconds for rival in self.choice.rivals}
        return {**rivals, self.choice.candidate.alone: self.choice.seconds}.get(measurement.candidate) or inf

    @property
    def today(self) -> Measurement | None:
        """What runs the model when nothing is measured."""
        return self.series.measurements[0] if self.series.measurements else None

    @property
    def chosen(self) -> Measurement | None:
        return None if self.choice is None else self.of(self.choice.candidate.alone)

    @property
    def runner_up(self) -> Measurement | None:
        """The fastest proven candidate after the chosen one."""
        rivals = self.choice.rivals if self.choice else ()
        able = [(rival.seconds, self.of(rival.candidate)) for rival in rivals if rival.seconds]
        proven = [pair for pair in able if pair[1] and pair[1].proven and admitted(self.quality, pair[1].candidate)]
        return min(proven, key=lambda pair: pair[0], default=(0.0, None))[1]

    def of(self, candidate: Candidate) -> Measurement | None:
        return next((one for one in self.series.measurements if one.candidate == candidate), None)

    def shares(self, measurement: Measurement) -> Iterator[tuple[str, Share]]:
        """Workload and share of the nearer limit, where what an item needs is known."""
        for name, timing in measurement.timings.items():
            share = share_of(measurement.candidate, name, timing, self.machine)
            if share is not None:
                yield name, share

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "task": self.task,
            "quality": self.quality,
            "machine": self.machine.to_json(),
            "taken": self.series.taken,
            "control": self.series.control,
            "measurements": [
                {**one.to_json(), "shares": {name: share.to_json() for name, share in self.shares(one)}}
                for one in self.series.measurements
            ],
            "choice": None if self.choice is None else _choice_json(self.choice),
            "versions": dict(self.versions),
            "file": self.file,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchReport:
        """Raises KeyError, TypeError or ValueError for what is no such report."""
        chosen = data["choice"]
        return cls(
            model=str(data["model"]),
            task=str(data["task"]),
            quality=str(data["quality"]),
            machine=Machine.from_json(data["machine"]),
            series=Series(
                taken=str(data["taken"]),
                control=float(data["control"]),
                measurements=tuple(map(Measurement.from_json, data["measurements"])),
            ),
            choice=None if chosen is None else _choice(chosen),
            versions={str(name): str(number) for name, number in dict(data["versions"]).items()},
            file=str(data["file"]),
        )


def _place(workload: str) -> tuple[int, int]:
    kind, _, size = workload.partition(" ")
    order = ("prefill", "decode", "batch")
    return order.index(kind) if kind in order else len(order), int(size) if size.isdecimal() else 0


def _choice_json(choice: Choice) -> dict[str, Any]:
    rivals = [{**asdict(rival), "candidate": rival.candidate.to_json()} for rival in choice.rivals]
    return {**asdict(choice), "candidate": choice.candidate.to_json(), "rivals": rivals}


def _choice(data: Mapping[str, Any]) -> Choice:
    rivals = (Rival(**{**rival, "candidate": Candidate.from_json(rival["candidate"])}) for rival in data["rivals"])
    return Choice(**{**data, "candidate": Candidate.from_json(data["candidate"]), "rivals": tuple(rivals)})
