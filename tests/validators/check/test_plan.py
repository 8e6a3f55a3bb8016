"""What a check costs is said before, and a budget keeps the most telling cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isoform.errors import InputError
from isoform.manifest import Manifest
from isoform.reference.model import open_model
from isoform.validators.cases.registry import cases_of
from isoform.validators.check import plan as planning
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.check.plan import Clock, Speed, machine_speed, make_plan, spoken, telling
from tests import oracle
from tests.validators.check.test_bundle import keep, write

SPEED = Speed(1e10, 2e10)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("bundles") / "llama", types=("f32",))


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def test_cached_left_padding_is_kept_longest() -> None:
    cases = cases_of(open_model(oracle.tiny("llama")))
    best = max(cases, key=telling)
    assert (best.group, best.side) == ("cached decoding", "left")
    assert min(cases, key=telling).name == "one row, length 1"


def test_less_time_keeps_fewer_cases_but_one_and_all_are_accounted_for(bundle: Path) -> None:
    model, artifacts = open_model(oracle.tiny("llama")), Manifest.read(bundle).artifacts
    cases = cases_of(model)
    whole = make_plan(model, artifacts, cases, 8, speed=SPEED)
    assert (whole.cases, whole.left_out, whole.passages) == (tuple(cases), (), 8)
    slow = Speed(1e5, 1e5)
    full = make_plan(model, artifacts, cases, 8, speed=slow).seconds
    half = make_plan(model, artifacts, cases, 8, full / 2, slow)
    least = make_plan(model, artifacts, cases, 8, 0.001, slow)
    assert 1 < len(half.cases) < len(cases)
    assert half.seconds <= full / 2
    assert [case.name.split(",")[0] for case in least.cases] == ["cached decoding"]
    assert {*half.cases, *half.left_out} == set(cases)


def test_the_speed_of_this_machine_is_plausible() -> None:
    speed = machine_speed()
    assert 1e8 < speed.bytes < 1e13
    assert 1e8 < speed.operations < 1e15


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (45, "45 s"), (600, "10 min"), (5400, "1 h 30 min")])
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_a_check_says_its_cost_and_a_spent_budget_leaves_out_what_is_least_telling(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    keep(bundle, "onnx", "torchscript")
    monkeypatch.setattr(planning, "machine_speed", lambda: Speed(1e12, 1e13))  # a plan too good to be true
    monkeypatch.setattr(Clock, "up", property(lambda clock: clock.seconds is not None))
    report = check_bundle(bundle, threads=1, limits=Limits(seconds=100, announce=said.append))
    assert len(said) == 1
    assert "GB of memory" in said[0]
    run = {result.backend: result for result in report.results if result.level == "graph"}
    assert run.keys() == {"onnxruntime", "torchscript"}
    assert all((r.dtype, r.group) == ("f32", "cached decoding") and "left padding" in r.case for r in run.values())
    left = [skip for skip in report.skipped if "budget of 2 min" in skip.reason]
    assert {skip.level for skip in left} == {"weights", "graph"}
    assert report.same
    assert report.about["estimate"]["seconds"] > 0


def test_a_budget_that_is_large_enough_changes_nothing_but_the_order_of_work(bundle: Path) -> None:
    keep(bundle, "torchscript")
    plain, timed = (check_bundle(bundle, threads=1, limits=Limits(seconds=s)) for s in (None, 3600))
    assert [(r.case, r.metric) for r in plain.results] == [(r.case, r.metric) for r in timed.results]
    assert plain.skipped == timed.skipped


def test_too_little_memory_is_said_before_anything_runs(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"--memory allows 0\.1 GB"):
        check_bundle(bundle, limits=Limits(bytes=10**8))


def test_a_chosen_tolerance_decides_and_is_in_the_report(bundle: Path) -> None:
    keep(bundle, "torchscript")
    report = check_bundle(bundle, threads=1, limits=Limits(tolerances={"graph.rms": 1e-9, "graph.floor.rms": 0}))
    assert {result.metric for result in report.results if not result.passed} == {"rms", "cache_rms"}
    assert report.about["tolerances"] == {"graph.rms": 1e-9, "graph.floor.rms": 0}


def test_asking_for_a_form_that_is_not_there_is_wrong_input(bundle: Path) -> None:
    with pytest.raises(InputError, match="none of the forms"):
        check_bundle(bundle, limits=Limits(only=lambda artifact: artifact.format == "x"))
