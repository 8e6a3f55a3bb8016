"""Measurements are kept for one model, task, quality, machine and set of versions; a damaged file counts as missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoform.runtimes.choose import cache as caching
from isoform.runtimes.choose.cache import MeasurementCache, Subject
from isoform.runtimes.choose.choose import Series
from isoform.runtimes.choose.records import Candidate, Measurement, Timing

SUBJECT = Subject(model="abc", task="fill-mask", quality="high", threads=2)
TAKEN = Series(
    taken="2026-11-30",
    control=1.05,
    measurements=(
        Measurement(
            candidate=Candidate(backend="torch", dtype="bf16", threads=2),
            timings={"batch 1": Timing(rate=12.5, unit="texts", spread=1.1)},
            proof={"kl": (0.001, 0.02), "top1": (float("inf"), 0.1)},
        ),
        Measurement(candidate=Candidate(backend="onnxruntime", dtype="f32", threads=1), error="left out"),
    ),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path)
    assert cache.read(SUBJECT) is None
    cache.write(SUBJECT, TAKEN)
    assert cache.read(SUBJECT) == TAKEN
    assert [path.suffix for path in cache.folder.iterdir()] == [".json"]


@pytest.mark.parametrize("field", ["model", "task", "quality", "threads"])
def test_measurements_are_of_one_subject(tmp_path: Path, field: str) -> None:
    cache = MeasurementCache(tmp_path)
    cache.write(SUBJECT, TAKEN)
    other: dict[str, Any] = {"model": "abc", "task": "fill-mask", "quality": "high", "threads": 2}
    other[field] = 1 if field == "threads" else "exact"
    assert cache.read(Subject(**other)) is None


def test_measurements_are_of_one_machine_and_its_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = MeasurementCache(tmp_path)
    cache.write(SUBJECT, TAKEN)
    with monkeypatch.context() as changed:
        changed.setattr(caching, "machine", lambda: {"processor": "another", "cores": 2, "usable": 2})
        assert cache.read(SUBJECT) is None
    with monkeypatch.context() as changed:
        changed.setattr(caching, "versions", lambda: {"torch": "99"})
        assert cache.read(SUBJECT) is None
    assert cache.read(SUBJECT) == TAKEN


def no_numbers(data: Any) -> Any:
    data["measurements"][0]["timings"]["batch 1"]["rate"] = "fast"
    return data


def no_time(data: Any) -> Any:
    data["measurements"][0]["timings"]["batch 1"]["rate"] = 0
    return data


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: [],
        lambda data: {**data, "format": 0},
        lambda data: {**data, "subject": {}},
        lambda data: {**data, "measurements": []},
        lambda data: {**data, "measurements": [{"candidate": {"backend": "torch"}}]},
        lambda data: {**data, "control": 0.1},
        no_numbers,
        no_time,
    ],
    ids=range(8),
)
def test_a_damaged_file_counts_as_missing(tmp_path: Path, damage: Any) -> None:
    cache = MeasurementCache(tmp_path)
    cache.write(SUBJECT, TAKEN)
    path = cache.path(SUBJECT)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    assert cache.read(SUBJECT) is None
    path.write_text("{")
    assert cache.read(SUBJECT) is None
    path.write_bytes(b"\xff\xfe")
    assert cache.read(SUBJECT) is None
    cache.write(SUBJECT, TAKEN)
    assert cache.read(SUBJECT) == TAKEN


def test_the_ledger_adds_seconds_and_forgives_nonsense(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path)
    assert cache.spent("abc", "fill-mask") == 0
    cache.spend("abc", "fill-mask", 12.5)
    cache.spend("abc", "fill-mask", 3)
    assert cache.spent("abc", "fill-mask") == 15.5
    assert cache.spent("abc", "feature-extraction") == cache.spent("other", "fill-mask") == 0
    [ledger] = cache.folder.glob("*.seconds")
    for nonsense in ("many", "-3", "nan", "1e300", ""):
        ledger.write_text(nonsense)
        assert cache.spent("abc", "fill-mask") == 0
