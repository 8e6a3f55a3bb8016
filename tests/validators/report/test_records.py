"""The report: what it says is the same, its JSON, and its table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from isoform.validators.report.records import Report, Result, Skip, worst
from isoform.validators.report.remarks import remarks
from isoform.validators.report.subject import Subject
from isoform.validators.report.tables import table, tables


def result(
    group: str, detail: str, value: float, limit: float = 1.0, metric: str = "max_abs", note: str = "", part: str = ""
) -> Result:
    subject = Subject("onnxruntime", "graph", "f32", group, f"{group}, {detail}", form="onnx", part=part)
    return Result.of(subject, metric, value, limit, note)


def skip(group: str, reason: str) -> Skip:
    return Skip("llamacpp", "graph", "f32", group, group, reason, form="gguf")


def text(report: Report) -> str:
    console = Console(width=160, record=True, file=None, quiet=True)
    console.print(table(report))
    with console.capture() as capture:
        console.quiet = False
        console.print(table(report))
    return capture.get()


def test_nothing_measured_is_not_the_same() -> None:
    assert not Report().same
    assert not Report(skipped=[skip("", "no")]).same


def test_one_failure_among_many_is_not_the_same() -> None:
    assert Report([result("one row", "length 1", 0.5)]).same
    assert not Report([result("one row", "length 1", 0.5), result("one row", "length 7", 1.5)]).same


def test_json_has_the_published_keys_and_plain_numbers() -> None:
    report = Report(
        [result("one row", "length 1", 0.5), result("text", "length 7", 2.0, note="why", part="decoder")],
        [skip("token types", "only one")],
    )
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data == {
        "schema_version": 2,
        "same": False,
        "results": [
            {
                "backend": "onnxruntime",
                "form": "onnx",
                "dtype": "f32",
                "level": "graph",
                "group": "one row",
                "case": "one row, length 1",
                "metric": "max_abs",
                "value": 0.5,
                "limit": 1.0,
                "pass": True,
            },
            {
                "backend": "onnxruntime",
                "form": "onnx",
                "dtype": "f32",
                "part": "decoder",
                "level": "graph",
                "group": "text",
                "case": "text, length 7",
                "metric": "max_abs",
                "value": 2.0,
                "limit": 1.0,
                "pass": False,
                "note": "why",
            },
        ],
        "skipped": [
            {
                "backend": "llamacpp",
                "form": "gguf",
                "dtype": "f32",
                "level": "graph",
                "group": "token types",
                "case": "token types",
                "reason": "only one",
            }
        ],
    }
    assert "skipped" not in Report([result("x", "y", 0)]).to_json()


def test_the_worst_of_a_group_is_what_fails_or_uses_most_of_its_limit() -> None:
    results = [
        result("one row", "a", 0.5),
        result("one row", "b", 0.1, 0.1),
        result("one row", "c", 0.0, 0.0, "argmax"),
        result("text", "a", 1.0, 0.0, "argmax"),
        result("text", "b", 0.9),
    ]
    assert [r.case for r in worst(results)] == ["one row, b", "text, a"]
    assert Report(results).summary()["worst"][1]["metric"] == "argmax"


def test_the_table_and_the_remarks_name_what_failed_and_what_was_skipped() -> None:
    report = Report(
        [result("one row", "length 1", 0.5), result("left padding", "rows of 7 1", 3.0, note="[x] broken")],
        [skip("token types", "only the [first] type")],
    )
    shown = text(report)
    assert "50%" in shown
    assert "300%  FAIL" in shown
    assert [str(remark) for remark in remarks(report)] == [
        "FAIL onnxruntime graph, f32 left padding, rows of 7 1: [x] broken",
        "skipped llamacpp graph, f32 token types: only the [first] type",
    ]


def test_each_model_has_a_table_of_its_own() -> None:
    report = Report([result("one row", "a", 0.5)])
    both = Report([*report.labelled(model="first").results, *report.labelled(model="second").results])
    assert [str(rows.title) for rows in tables(both)] == ["parity: first", "parity: second"]
    assert [str(rows.title) for rows in tables(report)] == ["parity"]


def test_parts_and_dtypes_are_groups_of_their_own_and_are_named() -> None:
    parts = [result("one row", "a", 0.5, part=part) for part in ("encoder", "decoder")]
    other = Result.of(Subject("onnxruntime", "graph", "f16", "one row", "one row, a"), "rms", 2.0, 1.0, "far off")
    assert worst([*parts, other]) == [*parts, other]
    assert [r.where for r in parts] == ["f32 encoder, one row, a", "f32 decoder, one row, a"]
    assert "f32 decoder, one row" in text(Report(parts))
    assert [str(remark) for remark in remarks(Report([other]).labelled(part="decoder"))] == [
        "FAIL onnxruntime graph, f16 decoder, one row, a: far off"
    ]


@pytest.mark.parametrize(
    ("changed", "covered"),
    [
        ({}, True),
        ({"backend": ""}, True),
        ({"group": "", "case": ""}, True),
        ({"case": "", "part": "decoder"}, True),
        ({"case": "one row, b"}, False),
        ({"dtype": "f16"}, False),
        ({"part": "encoder"}, False),
        ({"level": "weights", "case": ""}, False),
        ({"model": "other"}, False),
    ],
)
def test_a_skip_covers_what_all_of_its_fields_fit(changed: dict[str, str], covered: bool) -> None:
    found = result("one row", "a", 0.5, part="decoder")
    assert replace(Skip.of(found, "no time"), **changed).covers(found) is covered
