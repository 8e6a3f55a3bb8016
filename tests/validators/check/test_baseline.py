"""A stored report: what passed must pass, what was measured must be measured, and errors must not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from isoform.validators.check.baseline import compare_with_baseline
from isoform.validators.levels.preprocessing import ORACLE_IDS
from isoform.validators.report import formats
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject
from tests.validators.report.sample_report import sample

VERSION_1 = Path(__file__).parents[1] / "report/report_version_1.json"
ONE_ROW = Subject("onnxruntime", "graph", "f32", "one row", "one row, length 1")


def found(report: Report, stored: Report) -> list[str]:
    added = compare_with_baseline(report, stored)
    assert added.results[-1].metric == "regressions"
    assert added.results[-1].value == len(added.results) - 1
    assert added.same is (len(added.results) == 1)
    return [result.note for result in added.results[:-1]]


def test_the_same_report_has_no_regressions() -> None:
    assert found(sample(), sample()) == []
    assert found(sample(failing=False), sample()) == []  # what failed may pass


def test_what_passed_and_fails_now_is_named() -> None:
    (note,) = found(sample(), sample(failing=False))
    assert note.startswith("passed before and fails now: rms was")


def test_what_is_gone_is_named_unless_it_was_skipped() -> None:
    stored, report = sample(failing=False), sample(failing=False)
    gone = report.results.pop(2)
    (note,) = found(report, stored)
    assert "gone" in note
    report.skipped.append(Skip.of(replace(gone, case=""), "no time was left"))
    assert found(report, stored) == []


@pytest.mark.parametrize(
    ("before", "now", "limit", "grown"),
    [
        (0.2, 0.9, 1.0, True),
        (0.2, 0.3, 1.0, False),  # not by much
        (0.01, 0.4, 1.0, False),  # far from its limit still
        (0.0, 0.6, 1.0, True),
        (0.0, 0.0, 0.0, False),
    ],
)
def test_an_error_that_grew_is_named(before: float, now: float, limit: float, grown: bool) -> None:
    old = Result.of(ONE_ROW, "rms", before, limit)
    notes = found(Report([replace(old, value=now)]), Report([old]))
    assert bool(notes) is grown, notes


def test_a_number_that_became_an_error_is_one_regression() -> None:
    old = Result.of(ONE_ROW, "rms", 0.1, 1.0)
    new = Result.of(ONE_ROW, "error", 1, 0, "it stopped")
    added = compare_with_baseline(Report([new]), Report([old]))
    assert Report([new]).same is False
    assert added.same  # the failed result itself turns the report red


def test_a_baseline_with_a_baseline_in_it_is_read() -> None:
    stored = sample()
    stored.add(compare_with_baseline(stored, sample()))
    assert found(sample(), stored) == []


def test_what_a_budget_leaves_out_and_other_counts_are_no_regressions() -> None:
    stored = Report(
        [
            Result.of(ONE_ROW, "rms", 0.1, 1.0),
            Result("llamacpp", "weights", "q8_0", "weights", "weights, 8 tensors", "differing", 0, 0, True),
            Result("llamacpp", "deployment", "q8_0", "text", "text, 8 rows, 900 positions", "kl", 0.1, 1.0, True),
            Result("bundle", "inputs", "", ORACLE_IDS, f"{ORACLE_IDS}, 34 texts", "differing", 0, 0, True),
        ]
    )
    less = Report(
        [Result("llamacpp", "deployment", "q8_0", "text", "text, 2 rows, 200 positions", "kl", 0.1, 1.0, True)],
        [
            Skip("", "graph", "", "one row", "one row, length 1", "the budget holds fewer cases"),
            Skip("llamacpp", "weights", "q8_0", "", "", "the budget was spent"),
        ],
    )
    assert found(less, stored) == []
    worse = replace(less.results[0], value=2.0, passed=False)
    (note,) = found(Report([worse], less.skipped), stored)
    assert "fails now" in note


def test_a_baseline_of_version_1_is_compared_field_by_field() -> None:
    stored = formats.read(VERSION_1)
    assert found(stored, stored) == []
    decoder = next(r for r in stored.results if (r.part, r.group) == ("decoder", "cached decoding"))
    worse = replace(
        stored, results=[r if r is not decoder else replace(r, value=9.0, passed=False) for r in stored.results]
    )
    (note,) = found(worse, stored)
    assert note.startswith(f"passed before and fails now: {decoder.metric}")
    files = [replace(r, part="decoder") if r.level == "files" else r for r in stored.results]
    assert found(replace(stored, results=files), stored) == []  # version 1 did not say whose part a file is
    less = replace(stored, results=[r for r in stored.results if r is not decoder])
    assert len(found(less, stored)) == 1
    less = replace(less, skipped=[Skip("", "graph", "", decoder.group, decoder.case, "no time", part="decoder")])
    assert found(less, stored) == []
