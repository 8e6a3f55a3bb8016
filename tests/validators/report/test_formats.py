"""Reports for others: the JSON keeps its published schema, JUnit and Markdown say what failed, the page holds all."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import numpy as np
import pytest

from isoform.errors import InputError
from isoform.validators.report import formats as reports
from isoform.validators.report.charts import histogram, line, scatter
from isoform.validators.report.evidence import BINS, Sampler
from isoform.validators.report.page import colour, ink
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject
from tests.validators.report.sample_report import sample

X = Subject("torch", "graph", "f32", "x", "x")


def test_the_json_keeps_its_schema_and_reads_back(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(reports.schema())
    validator = jsonschema.Draft202012Validator(reports.schema())
    for report in (sample(), sample(failing=False), Report(), sample().labelled(model="tiny", part="decoder")):
        reports.save(report, "json", tmp_path / "report.json")
        text = (tmp_path / "report.json").read_text(encoding="utf-8")
        validator.validate(json.loads(text))
        assert reports.read(tmp_path / "report.json") == report
    assert list(validator.iter_errors({**sample().to_json(), "same": "yes"}))
    assert list(validator.iter_errors({**sample().to_json(), "results": [{"backend": "x"}]}))


def test_a_number_that_is_not_finite_is_null_in_json() -> None:
    result = Result("torchscript", "graph", "f32", "one row", "one row", "max_abs", float("inf"), 1.0, False)
    data = json.loads(json.dumps(Report([result]).to_json(), allow_nan=False))
    assert data["results"][0]["value"] is None
    assert Report.from_json(data).results == [result]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no report"), ("[]", "no report"), ("{}", "schema_version"), ('{"schema_version": 99}', "reads 2 and 1")],
)
def test_what_is_no_report_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        reports.read(path)
    with pytest.raises(InputError, match="not there"):
        reports.read(tmp_path / "y.json")


def test_junit_counts_and_names_what_failed() -> None:
    report = sample()
    report.results.append(
        Result("llamacpp", "files", "f32", "files", "files", "changed", 1, 0, False, "a\x00b <&> \ud800")
    )
    root = xml.fromstring(reports.KINDS["junit"](report))
    failed = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert root.get("tests") == str(len(report.results) + len(report.skipped))
    assert root.get("failures") == str(len(failed)) == str(sum(not r.passed for r in report.results))
    assert root.get("skipped") == str(len(report.skipped))
    failure = failed[0].find("failure")
    assert failure is not None
    assert "limit" in (failure.get("message") or "")
    assert float(root.get("time", "0")) == pytest.approx(sum(e.seconds for e in report.evidence), abs=0.01)


def test_markdown_holds_the_verdict_and_cannot_be_broken_by_names() -> None:
    report = sample()
    name = "a|b `c`\nd <img>"
    report.results.append(Result("llamacpp", "files", "f32", name, name, "changed", 1, 0, False, "*why*"))
    text = reports.KINDS["markdown"](report)
    assert text.startswith("## ❌ not the same")
    assert r"a\|b \`c\` d \<img\>" in text
    assert r"\*why\*" in text
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {10}
    assert reports.KINDS["markdown"](sample(failing=False)).startswith("## ✅ the same")


class Page(HTMLParser):
    """Collects tags, links to other places, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [sample(), sample(failing=False), Report()], ids=["failing", "passing", "empty"])
def test_the_page_stands_alone(report: Report) -> None:
    text = reports.KINDS["html"](report)
    page = Page()
    page.feed(text)
    assert not page.open
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    places = [value for _, given in page.seen for key, value in given.items() if key in ("href", "src", "action")]
    assert all(value and value.startswith("#") for value in places)
    names = {given["id"] for _, given in page.seen if given.get("id")}
    assert {str(value)[1:] for value in places} <= names
    assert all(given.get("aria-label") for tag, given in page.seen if tag == "svg")
    if report.results:
        assert text.count("<svg") == 3 + 3 + 2  # one form has nothing compared, another no logits


def test_the_page_shows_names_as_text() -> None:
    case = "<script>alert(1)</script>"
    report = Report([Result("<b>", "graph", "f32", case, case, "rms", 2, 1, False, "<i>&")])
    text = reports.KINDS["html"](report)
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text


def test_every_cell_of_the_heat_map_can_be_read() -> None:
    def light(value: str) -> float:
        parts = [int(value[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for share in (0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.99, 1, 5, float("inf")):
        ground = colour(share)
        one, two = sorted((light(ground), light(ink(ground))))
        assert (two + 0.05) / (one + 0.05) > 4.5, share


@pytest.mark.parametrize(
    "drawn",
    [
        histogram([0] * BINS, -12, 2, 0, "empty"),
        histogram([1] * BINS, -12, 2, 5, "full"),
        histogram([], -12, 2, 5, "exact"),
        scatter([], "none"),
        scatter([(1.0, 1.0)] * 3, "one place"),
        scatter([(-1e30, 1e30), (0.0, 1e-30)], "wide"),
        line([(0, 0.0)], "one"),
        line([(0, 1e-9), (5, 1e3), (2, 0.0)], "several"),
    ],
)
def test_charts_stay_within_their_frame(drawn: str) -> None:
    root = xml.fromstring(drawn)
    for element in root.iter():
        for key, most in (("x", 340), ("cx", 340), ("y", 200), ("cy", 200)):
            if (value := element.get(key)) is not None:
                assert -0.1 <= float(value) <= most + 0.1, xml.tostring(element)


def test_a_sample_counts_errors_by_size_and_leaves_out_what_is_not_finite() -> None:
    sampler = Sampler()
    want = np.zeros(6, np.float32)
    got = np.array([0, 1e-3, 2e-3, np.nan, np.inf, 1e30], np.float32)
    sampler.add(got, want)
    sampler.add(np.zeros(3), np.zeros(4))
    found: Any = sampler.evidence(X, "logits", 0.5)
    assert (found.exact, sum(found.counts), found.counts[-1]) == (1, 3, 1)
    assert len(found.points) == 4
    assert Sampler().evidence(X, "y", 0.5).counts == ()


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        reports.save(sample(), "html", tmp_path / "file" / "report.html")
    reports.save(sample(), "html", tmp_path / "new" / "report.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_skips_and_models_reach_every_form() -> None:
    report = Report([Result.of(X, "rms", 0, 1)], [Skip("llamacpp", "graph", "f32", "", "", "why")])
    for kind in reports.KINDS:
        text = reports.KINDS[kind](report.labelled(model="model-7"))
        assert "model-7" in text, kind
        assert "why" in text, kind
