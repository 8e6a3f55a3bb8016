"""Measuring candidates one after the other: budgets, memory, the control, and processes that die."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoform.runtimes.choose import measure as measuring
from isoform.runtimes.choose.choose import choose
from isoform.runtimes.choose.measure import Costs, Job, Run, measure
from isoform.runtimes.choose.process import run_job
from isoform.runtimes.choose.records import Candidate, Measurement, Timing

TODAY = Candidate(backend="torch", dtype="f32", threads=2)
BF16 = Candidate(backend="torch", dtype="bf16", threads=2)
INT8 = Candidate(backend="torch", dtype="int8", threads=2)
FREE = Costs(free=lambda: None)


class Clock:
    """A clock that a fake run advances."""

    def __init__(self) -> None:
        self.now, self.jobs = 0.0, list[Job]()

    def __call__(self) -> float:
        return self.now

    def run(self, rates: dict[Candidate, float], seconds: float = 1.0, again: float | None = None) -> Run:
        """A run that takes `seconds` for each candidate, whose rate of decoding is given; `again`: of the control."""

        def run(job: Job) -> Measurement:
            self.now += seconds
            self.jobs.append(job)
            rate = rates.get(job.candidate, 1.0) if job.prove or again is None else again
            timings = {name: Timing(rate=rate, unit="tokens", spread=1.0) for name in ("prefill 128", "decode")}
            return Measurement(candidate=job.candidate, timings=timings)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measuring, "perf_counter", made)
    return made


def test_candidates_are_measured_in_order_then_the_best_in_fewer_threads_then_the_first_again(clock: Clock) -> None:
    told: list[tuple[str, int, int]] = []
    rates = {TODAY: 10.0, BF16: 30.0, INT8: 20.0}
    found = measure([TODAY, BF16, INT8], clock.run(rates), costs=FREE, progress=lambda *step: told.append(step))
    asked = [job.candidate for job in clock.jobs]
    assert asked == [TODAY, BF16, INT8, Candidate(backend="torch", dtype="bf16", threads=1), TODAY]
    assert [one.candidate for one in found.measurements] == asked[:-1]
    assert [job.prove for job in clock.jobs] == [True, True, True, True, False]
    assert found.control == 1.0 and not found.noisy
    assert told[0] == ("measuring torch f32, 2 threads", 0, 4)
    assert told[-1][1:] == (4, 4)


def test_candidates_are_stopped_by_the_best_before_them(clock: Clock) -> None:
    measure([TODAY, BF16, INT8], clock.run({TODAY: 10.0, BF16: 40.0}), costs=FREE)
    best = [job.slowest for job in clock.jobs[:3]]
    assert best[0] is None
    assert best[1] == pytest.approx(3 * 192 / 10) and best[2] == pytest.approx(3 * 192 / 40)


def test_the_budget_leaves_out_what_comes_last(clock: Clock) -> None:
    found = measure([TODAY, BF16, INT8], clock.run({BF16: 2.0}, seconds=20.0), seconds=50.0, costs=FREE)
    first, second, third, *rest = found.measurements
    assert not first.error and not second.error
    assert "left out: it takes 3 s or more to make and open, 0 of 50 s are left" in third.error
    assert all("left out" in one.error for one in rest)
    assert choose(found, "high").candidate == BF16  # type: ignore[union-attr]
    costs = Costs(seconds=lambda one: 0.0 if one == TODAY else 100.0, free=lambda: None)
    found = measure([TODAY, BF16], clock.run({}), seconds=60.0, costs=costs)
    assert "it takes 103 s or more to make" in found.measurements[1].error


def test_no_candidate_but_the_first_takes_the_whole_budget(clock: Clock) -> None:
    costs = Costs(seconds=lambda one: 5.0 if one == INT8 else 0.0, free=lambda: None)
    measure([TODAY, BF16, INT8], clock.run({}, seconds=2.0), seconds=80.0, costs=costs, fewer_threads=False)
    assert [job.seconds for job in clock.jobs] == [80.0, 20.0, 25.0, 74.0]


def test_what_needs_more_than_the_free_memory_is_left_out(clock: Clock) -> None:
    costs = Costs(bytes=lambda one: 1e9 if one == TODAY else 8e9, free=lambda: 2_000_000_000)
    found = measure([TODAY, BF16], clock.run({BF16: 9.0}), costs=costs, fewer_threads=False)
    assert found.measurements[1].error == "left out: it needs about 8.0 GB of memory, 2.0 GB are free"
    assert clock.jobs[0].candidate == TODAY and all(job.candidate != BF16 for job in clock.jobs)
    nothing = measure([TODAY], clock.run({}), costs=Costs(bytes=lambda one: 8e9, free=lambda: 1))
    assert choose(nothing, "exact") is None


def test_a_control_that_moved_makes_the_machine_noisy(clock: Clock) -> None:
    found = measure([TODAY, BF16], clock.run({TODAY: 10.0, BF16: 11.0}, again=8.0), costs=FREE)
    assert found.control == pytest.approx(1.25) and found.noisy
    assert choose(found, "high").candidate == TODAY  # type: ignore[union-attr]


# ------------------------------------------------------------------ processes
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """The name of a module that is run as a worker."""
    (tmp_path / "fake_worker.py").write_text(
        f"import json, os, signal, sys, time\njob = json.load(sys.stdin)\n{body}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_worker"


@pytest.mark.parametrize(
    ("body", "words"),
    {
        "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL (the system does that when memory runs"),
        "crashed": ("print('bad kernel', file=sys.stderr, flush=True)\nos.abort()", "ended by SIGABRT: bad kernel"),
        "failed": ("raise ValueError('no such thing')", "ended with code 1: ValueError: no such thing"),
        "hung": ("time.sleep(60)", "stopped: not done in 1 s"),
        "garbage": ("open(job['answer'], 'w').write('{')", "wrote no measurement: it wrote no message"),
        "nothing": ("", "wrote no measurement"),
        "another thing": ("open(job['answer'], 'w').write('[1]')", "wrote no measurement"),
    }.values(),
    ids=lambda value: str(value)[:12],
)
def test_a_worker_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str) -> None:
    found = run_job(BF16, {}, 1.0, worker(tmp_path, monkeypatch, body))
    assert found.candidate == BF16 and words in found.error and not found.proven


def test_a_worker_gets_its_job_and_measures_nothing_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "from isoform.runtimes.choose.records import Candidate, Measurement\n"
        "told = os.environ['ISOFORM_MEASURE'] + job['task']\n"
        "found = Measurement(candidate=Candidate.from_json(job['candidate']), error=told)\n"
        "open(job['answer'], 'w').write(json.dumps(found.to_json()))"
    )
    monkeypatch.setenv("ISOFORM_MEASURE", "always")
    found = run_job(BF16, {"task": "fill-mask"}, 30.0, worker(tmp_path, monkeypatch, body))
    assert found == Measurement(candidate=BF16, error="neverfill-mask")
