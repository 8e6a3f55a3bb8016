"""Reports of schema version 1 are read: their texts become the fields of version 2, once, on reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isoform.validators.report import formats
from isoform.validators.report.records import SCHEMA_VERSION, Report
from isoform.validators.report.version1 import fields

FROZEN = Path(__file__).with_name("report_version_1.json")


def test_a_frozen_report_of_version_1_becomes_one_of_version_2() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    before = json.loads(FROZEN.read_text(encoding="utf-8"))
    report = formats.read(FROZEN)
    data = report.to_json()
    assert (before["schema_version"], data["schema_version"]) == (1, SCHEMA_VERSION)
    jsonschema.Draft202012Validator(formats.schema()).validate(data)
    assert Report.from_json(json.loads(json.dumps(data))).results == report.results
    for key in ("results", "skipped", "evidence", "departures", "layers"):
        assert len(data[key]) == len(before[key]), key
    for old, new in zip(before["results"], report.results, strict=True):
        kept = (new.backend, new.level, new.metric, new.value, new.limit, new.passed, new.note)
        assert kept == (
            *(old[key] for key in ("backend", "level", "metric", "value", "limit", "pass")),
            old.get("note", ""),
        )
    assert {(r.part, r.dtype) for r in report.results if r.form == "onnx" and r.level == "graph"} == {
        *(("encoder", "f32"), ("decoder", "f32"), ("encoder", "int8"))
    }
    assert {d.level for d in report.departures} == {"graph", "weights"}
    assert {one.side for profile in report.layers for one in profile.places} == {"in", "out", "state"}


@pytest.mark.parametrize(
    ("backend", "level", "text", "wanted"),
    [
        ("onnxruntime", "graph", "f32 one row, length 7", ("onnx", "f32", "", "one row", "one row, length 7")),
        (
            "onnxruntime",
            "graph",
            "f32 decoder, one row, length 7",
            ("onnx", "f32", "decoder", "one row", "one row, length 7"),
        ),
        (
            "onnxruntime",
            "graph",
            "decoder, f32 one row, length 7",
            ("onnx", "f32", "decoder", "one row", "one row, length 7"),
        ),
        ("onnxruntime", "graph", "decoder, int8", ("onnx", "int8", "decoder", "", "")),
        ("", "graph", "one row, length 1", ("", "", "", "one row", "one row, length 1")),
        (
            *("llamacpp", "graph", "bf16 cached decoding, 1 row, parts 7 1 8"),
            ("gguf", "bf16", "", "cached decoding", "cached decoding, 1 row, chunks 7 1 8"),
        ),
        (
            *("torchscript", "graph", "f32 decoder, batch of 2, memories of 7 9"),
            ("torchscript", "f32", "decoder", "batch of 2", "batch of 2, encoder states of 7 9"),
        ),
        (
            *("onnxruntime", "graph", "f32 past the window of 70, 1 row, parts 62 1 1 6"),
            ("onnx", "f32", "", "past the window", "past the window, of 70, 1 row, chunks 62 1 1 6"),
        ),
        ("llamacpp", "weights", "iq4_nl weights, 8 tensors", ("gguf", "iq4_nl", "", "weights", "weights, 8 tensors")),
        ("onnxruntime", "deployment", "q4a-128 text, 8 rows", ("onnx", "q4a-128", "", "text", "text, 8 rows")),
        ("torch", "files", "source files, a.safetensors", ("", "", "", "source files", "source files, a.safetensors")),
        ("llamacpp", "files", "f32 files, gguf/a.gguf", ("gguf", "f32", "", "files", "files, gguf/a.gguf")),
        ("bundle", "inputs", "token ids, 52 texts", ("", "", "", "token ids", "token ids, 52 texts")),
        ("llamacpp", "cell", "q8_0", ("gguf", "q8_0", "", "", "")),
        ("baseline", "baseline", "regressions", ("", "", "", "regressions", "regressions")),
    ],
)
def test_each_text_of_version_1_says_what_its_fields_say(
    backend: str, level: str, text: str, wanted: tuple[str, str, str, str, str]
) -> None:
    found = fields(backend, level, text)
    assert (found["backend"], found["level"]) == (backend, level)
    assert tuple(found[key] for key in ("form", "dtype", "part", "group", "case")) == wanted
