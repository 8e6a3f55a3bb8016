"""Keeps measurements in the user's cache folder: a file for each model, task, machine, versions and quality.

What is kept are measurements and not decisions, so that one file serves every use. A file that is damaged, or is about
something else, counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoform.runtimes.choose.choose import Series
from isoform.runtimes.choose.machine import machine, versions
from isoform.runtimes.choose.records import Measurement
from isoform.whole import whole_file

FORMAT = 1
"""Of the files; it grows when measurements of before mean something else."""
LONGEST = 366 * 24 * 3600.0
"""Seconds in calls that a ledger can hold; more is a damaged file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was measured: `model` is the key of its content, `task` the pipeline's, `threads` how many may be used."""

    model: str
    task: str
    quality: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Everything that a measurement holds for."""
        return {
            "model": self.model,
            "task": self.task,
            "quality": self.quality,
            "threads": self.threads,
            "machine": machine(),
            "versions": versions(),
        }


class MeasurementCache:
    """The files of measurements in a folder, which is made when something is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "measured"

    def path(self, subject: Subject) -> Path:
        return self.folder / f"{_digest(subject.to_json())}.json"

    def read(self, subject: Subject) -> Series | None:
        """What was measured of a subject on this machine with these versions; None where there is nothing of use."""
        try:
            data = json.loads(self.path(subject).read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["subject"] != subject.to_json():
                return None
            measurements = tuple(Measurement.from_json(one) for one in data["measurements"])
            control = float(data["control"])
            if not measurements or not control >= 1 or not all(map(_sound, measurements)):
                return None
            return Series(taken=str(data["taken"]), control=control, measurements=measurements)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, subject: Subject, series: Series) -> None:
        """Keep measurements, whole or not at all. Raises OSError where the folder cannot be written."""
        data = {
            "format": FORMAT,
            "subject": subject.to_json(),
            "taken": series.taken,
            "control": series.control,
            "measurements": [one.to_json() for one in series.measurements],
        }
        with whole_file(self.path(subject)) as part:
            part.write_text(json.dumps(data, indent=1, allow_nan=True) + "\n", encoding="utf-8")

    # ------------------------------------------------------------------ the ledger
    def spent(self, model: str, task: str) -> float:
        """The seconds that pipelines of a model and task have spent in calls so far."""
        try:
            seconds = float(self._ledger(model, task).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0
        return seconds if 0 <= seconds <= LONGEST else 0.0

    def spend(self, model: str, task: str, seconds: float) -> None:
        """Add to them. Raises OSError where the folder cannot be written."""
        total = self.spent(model, task) + seconds
        with whole_file(self._ledger(model, task)) as part:
            part.write_text(f"{total:.1f}\n", encoding="utf-8")

    def _ledger(self, model: str, task: str) -> Path:
        return self.folder / f"{_digest({'model': model, 'task': task})}.seconds"


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:24]


def _sound(measurement: Measurement) -> bool:
    """Whether every rate and spread is a number that a clock gives."""
    return all(0 < t.rate < float("inf") and t.spread >= 1 for t in measurement.timings.values())
