"""The harness of the benchmarks: rounds alternate, failures are named, and ratios are those within a round."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks import engines, machine, without_units
from benchmarks.harness import CONTESTANTS, Contestant, Outcome, compete, first_lines, prepare, ratio
from benchmarks.peers import Engine

CONTESTANT = """
import sys
sys.path.insert(0, {folder!r})
from rounds import NOTES, begin, serve
answers = begin()
NOTES.append("of its own")
print("what a library says")
seconds = iter({seconds!r})
serve(lambda: {{"work": (12, next(seconds))}}, answers)
"""


def contestant(name: str, *seconds: float) -> Contestant:
    """Whose rounds say that they took so long; after the last it fails. The first round does not count."""
    script = CONTESTANT.format(folder=str(CONTESTANTS), seconds=[1.0, *seconds])
    return Contestant(name, (sys.executable, "-c", script))


def test_rates_are_those_of_the_rounds_that_count() -> None:
    (outcome,) = compete([contestant("one", 2.0, 3.0, 6.0)], rounds=3)
    assert outcome.rates("work") == [6.0, 4.0, 2.0]
    assert (outcome.rate("work"), outcome.spread("work")) == (4.0, 3.0)
    assert outcome.peak > 1
    assert outcome.note == "of its own"


def test_a_contestant_that_fails_is_left_out_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Contestant("broken", (sys.executable, "-c", "raise SystemExit('no such model')"))
    outcomes = compete([broken, contestant("tired", 2.0), contestant("good", 1.0, 1.0)], rounds=2)
    assert [outcome.name for outcome in outcomes] == ["good"]
    said = capsys.readouterr().out
    assert "broken failed and is left out:\nno such model" in said
    assert "tired failed and is left out" in said
    assert "StopIteration" in said


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    mine = Outcome("mine", [{"work": (10, 1.0)}, {"work": (10, 10.0)}, {"work": (10, 1.0)}])
    theirs = Outcome("theirs", [{"work": (10, 2.0)}, {"work": (10, 20.0)}, {"work": (10, 8.0)}])
    assert ratio(mine, theirs, "work") == 2.0


def test_a_fresh_process_is_timed_to_its_first_line() -> None:
    slow = Contestant("slow", (sys.executable, "-c", "import time; time.sleep(0.2); print('token')"))
    (outcome,) = first_lines([slow], rounds=1, threads=1)
    assert outcome.rates("first")[0] < 5


def test_what_a_failed_command_left_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    command = (sys.executable, "-c", f"import os; os.mkdir({str(made)!r}); raise SystemExit('half')")
    assert not prepare(made, *command)
    assert not made.exists()
    assert "half" in capsys.readouterr().out


def test_a_table_compares_with_the_best_peer_of_its_quality(tmp_path: Path) -> None:
    race = engines.Race(
        "Model",
        "items per second",
        [
            Engine(contestant("isoform, auto, high", 1.0), "auto", "high"),
            Engine(contestant("isoform, torch f32", 2.0), "form", "exact"),
            Engine(contestant("isoform, torch bf16", 0.5), "form", "high"),
            Engine(contestant("slow, f32", 4.0), "peer", "exact"),
            Engine(contestant("fast, bf16", 0.25), "peer", "high"),
        ],
        {"work": 0.9},
    )
    asked = engines.Asked(
        qualities=("exact", "high"),
        engines=("auto", "forms", "peers"),
        forms=(),
        rounds=1,
        threads=1,
        folder=tmp_path,
        install=False,
    )
    columns, rows, aims = engines.run(race, asked)
    assert columns == ["quality", "Model", "work, items per second", "÷ best peer", "÷ best form"]
    assert ["exact", "isoform, torch f32: of its own", "6.00 (1.00)", "2.00", ""] in rows
    assert ["high", "isoform, auto, high: of its own", "12.0 (1.00)", "0.25", "0.50"] in rows
    assert [row[1] for row in rows if row[0] == "exact"] == [
        "isoform, torch f32: of its own",
        "slow, f32: of its own",
    ]
    others = ["isoform, auto, high", "isoform, torch bf16", "fast, bf16"]
    assert [row[1].partition(":")[0] for row in rows[2:]] == others
    assert [(aim["quality"], aim["isoform"], aim["ratio"]) for aim in aims] == [
        ("exact", "torch f32", 2.0),
        ("high", "auto, high", 0.25),
    ]


def test_no_rounds_only_make_ready(tmp_path: Path) -> None:
    race = engines.Race("Model", "items", [Engine(contestant("one"), "peer", "exact")], {"work": 1.0})
    asked = engines.Asked(
        qualities=("exact",), engines=("peers",), forms=(), rounds=0, threads=1, folder=tmp_path, install=False
    )
    assert engines.run(race, asked) == (["quality", "Model"], [["exact", "one: of its own"]], [])


@pytest.mark.parametrize(
    ("form", "quality"),
    [
        ("torch:f32", "exact"),
        ("openvino:f32-portable:bf16", "high"),
        ("onnxruntime:f32+int8", "high"),
        ("llamacpp:q4_0", "small"),
    ],
)
def test_the_quality_of_a_form_is_that_of_its_coarsest_part(form: str, quality: str) -> None:
    assert engines.quality_of_form(form) == quality


def test_the_machine_is_described_in_words() -> None:
    words = machine.machine()
    assert " cores (" in words
    assert "GB" in words
    assert machine.conditions(("pytest",))["versions"]["pytest"] == pytest.__version__


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (engines, ["--sections", "dekode"], "--sections knows no 'dekode'"),
        (engines, ["--quality", "best"], "--quality knows no 'best'"),
        (without_units, ["--before", "/nowhere"], "is no checkout"),
    ],
)
def test_a_wrong_argument_is_named(
    program: object,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit):
        program.main()  # type: ignore[attr-defined]
    assert message in capsys.readouterr().err
