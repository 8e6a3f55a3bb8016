"""The report: what it says is the same, its JSON, and its table."""

from __future__ import annotations

import json

from rich.console import Console

from isoform.validators.report.records import Report, Result, Skip, remarks, table, tables, worst


def result(case: str, value: float, limit: float = 1.0, metric: str = "max_abs", note: str = "") -> Result:
    return Result("onnxruntime", "graph", case, metric, value, limit, value <= limit, note)


def text(report: Report) -> str:
    console = Console(width=160, record=True, file=None, quiet=True)
    console.print(table(report))
    with console.capture() as capture:
        console.quiet = False
        console.print(table(report))
    return capture.get()


def test_nothing_measured_is_not_the_same() -> None:
    assert not Report().same
    assert not Report(skipped=[Skip("llamacpp", "graph", "f32", "no")]).same


def test_one_failure_among_many_is_not_the_same() -> None:
    assert Report([result("f32 one row, length 1", 0.5)]).same
    assert not Report([result("f32 one row, length 1", 0.5), result("f32 one row, length 7", 1.5)]).same


def test_json_has_the_published_keys_and_plain_numbers() -> None:
    report = Report(
        [result("f32 one row, length 1", 0.5), result("f32 text, length 7", 2.0, note="why")],
        [Skip("llamacpp", "graph", "f32 token types", "only one")],
    )
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data == {
        "schema_version": 1,
        "same": False,
        "results": [
            {
                "backend": "onnxruntime",
                "level": "graph",
                "case": "f32 one row, length 1",
                "metric": "max_abs",
                "value": 0.5,
                "limit": 1.0,
                "pass": True,
            },
            {
                "backend": "onnxruntime",
                "level": "graph",
                "case": "f32 text, length 7",
                "metric": "max_abs",
                "value": 2.0,
                "limit": 1.0,
                "pass": False,
                "note": "why",
            },
        ],
        "skipped": [{"backend": "llamacpp", "level": "graph", "case": "f32 token types", "reason": "only one"}],
    }
    assert "skipped" not in Report([result("f32 x", 0)]).to_json()


def test_the_worst_of_a_group_is_what_fails_or_uses_most_of_its_limit() -> None:
    results = [
        result("f32 one row, a", 0.5),
        result("f32 one row, b", 0.1, 0.1),
        result("f32 one row, c", 0.0, 0.0, "argmax"),
        result("f32 text, a", 1.0, 0.0, "argmax"),
        result("f32 text, b", 0.9),
    ]
    assert [r.case for r in worst(results)] == ["f32 one row, b", "f32 text, a"]
    assert Report(results).summary()["worst"][1]["metric"] == "argmax"


def test_the_table_and_the_remarks_name_what_failed_and_what_was_skipped() -> None:
    report = Report(
        [result("f32 one row, length 1", 0.5), result("f32 left padding, rows of 7 1", 3.0, note="[x] broken")],
        [Skip("llamacpp", "graph", "f32 token types", "only the [first] type")],
    )
    shown = text(report)
    assert "50%" in shown
    assert "300%  FAIL" in shown
    assert remarks(report) == [
        "FAIL onnxruntime graph, f32 left padding, rows of 7 1: [x] broken",
        "skipped llamacpp graph, f32 token types: only the [first] type",
    ]


def test_each_model_has_a_table_of_its_own() -> None:
    report = Report([result("f32 one row, a", 0.5)])
    both = Report([*report.labelled("first").results, *report.labelled("second").results])
    assert [str(rows.title) for rows in tables(both)] == ["parity: first", "parity: second"]
    assert [str(rows.title) for rows in tables(report)] == ["parity"]
