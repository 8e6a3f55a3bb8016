"""Bisection: nothing departs in an honest artifact, and a fault is found where it is, on every backend."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isoform.errors import IsoformError
from isoform.exporters import gguf, onnx, torchscript
from isoform.reference.model import Model, open_model
from isoform.validators.bisection import search
from isoform.validators.bisection.bisect import Insides, bisect, first_departure, first_jump
from isoform.validators.bisection.open_probe import open_probe
from isoform.validators.bisection.points import Point, recorded
from isoform.validators.bisection.probe import fitting
from isoform.validators.bisection.search import departures
from isoform.validators.bisection.stored import missing_departure, weight_departure
from isoform.validators.cases.case import Case
from isoform.validators.cases.text import token_cases
from isoform.validators.report.departure import Departure
from isoform.validators.report.layers import layer_of
from isoform.validators.report.records import Report, Result
from isoform.validators.report.remarks import remarks
from isoform.validators.report.subject import Subject
from tests.oracle import tiny

WRITERS: dict[str, Callable[..., Any]] = {
    "onnxruntime": lambda model, folder: onnx.write(model, folder, "f32", lambda *_: None),
    "torchscript": lambda model, folder: torchscript.write(model, folder, "f32"),
    "llamacpp": lambda model, folder: gguf.write(model, folder, ["f32"]),
}


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


def case(name: str, start: str) -> Case:
    return next(case for case in token_cases(model(name)) if case.name.startswith(start))


def file(found: Model, backend: str, folder: Path) -> Path:
    [artifact] = WRITERS[backend](found, folder)
    path: Path = folder / artifact.files[0].path
    return path


def faulty(name: str, change: Callable[[nn.Module], None]) -> Model:
    """A model whose exported definition is another; its weights are honest."""
    found = copy.copy(model(name))
    found.__dict__.pop("parts", None)

    def skeleton(dtype: torch.dtype | None = None) -> nn.Module:
        module = model(name).skeleton(dtype)
        change(module)
        return module

    object.__setattr__(found, "skeleton", skeleton)
    return found


# ------------------------------------------------------------------ honest artifacts
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(("bert_embed", backend) for backend in WRITERS),
        *(("llama", backend) for backend in WRITERS),
        ("albert_b", "onnxruntime"),  # whose layers run several times
        ("gemma2_b", "llamacpp"),
        ("qwen3_b", "onnxruntime"),
    ],
)
def test_nothing_departs_in_an_honest_artifact(name: str, backend: str, tmp_path: Path) -> None:
    path = file(model(name), backend, tmp_path)
    starts = ["left padding"] if not model(name).signature.states else ["left padding", "cached decoding, 1 row"]
    for start in starts:
        asked = case(name, start)
        probe = open_probe(model(name), path, backend, 1)
        inside = list(probe.rows(asked))
        probe.close()
        expected = Insides(model(name), asked.rows, backend, "f32")
        assert first_departure(expected, inside, Subject(backend, "graph", "f32", asked.group, asked.name)) is None
        seen = [
            point
            for point, entry in expected.rows[0].items()
            if fitting(inside[0].values.get(point, []), entry.want.shape, inside[0].mask) is not None
        ]
        assert len(seen) > 0.8 * len(expected.rows[0])  # llama.cpp has fewer names than torch has modules
        *_, last = (point.module.removesuffix(".attn.q") for point in seen if point.module.endswith(".attn.q"))
        for part in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down"):
            assert {Point(f"{last}.{part}", "in"), Point(f"{last}.{part}")} <= set(seen)


# ------------------------------------------------------------------ faults
def late_layer(module: nn.Module) -> None:
    part: Any = module.get_submodule("layers.2.attn.v")
    part.forward = lambda x: F.linear(x, part.weight) * 1.001


def inside_attention(module: nn.Module) -> None:
    part: Any = module.get_submodule("layers.1.attn")
    part.heads = dataclasses.replace(part.heads, scale=part.heads.settings[2] * 1.01)


def between_modules(module: nn.Module) -> None:
    part: Any = module.get_submodule("layers.0.mlp")
    part.act = F.relu


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript"])
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (late_layer, "layers.2.attn.v"),
        (inside_attention, "what goes into layers.1.attn.out"),
        (between_modules, "what goes into layers.0.mlp.down"),
    ],
)
def test_the_first_module_that_departs_is_named(
    change: Callable[[nn.Module], None], place: str, backend: str, tmp_path: Path
) -> None:
    path = file(faulty("llama", change), backend, tmp_path)
    found = bisect(model("llama"), path, backend, "f32", case("llama", "one row, length 24"), threads=1)
    assert found is not None
    assert found.place == place
    assert found.layer == place.partition("layers.")[1] + place.partition("layers.")[2].partition(".")[0]
    assert found.error > found.limit > 0
    assert found.got != found.want
    assert len(found.neighbours) >= 3
    assert found.agreed
    assert {one.place: one.share for one in found.profile}[place] > 1


def test_llamacpp_is_looked_into_by_its_callback(tmp_path: Path) -> None:
    """Another epsilon in the file's metadata: the very first norm."""
    found = model("llama")
    path = file(found, "llamacpp", tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"attention.layer_norm_rms_epsilon") + len("attention.layer_norm_rms_epsilon") + 4
    content[at : at + 4] = np.float32(1e-3).tobytes()
    path.write_bytes(content)
    departed = bisect(found, path, "llamacpp", "f32", case("llama", "one row, length 24"), threads=1)
    assert departed is not None
    assert departed.place == "layers.0.attn_norm"


# ------------------------------------------------------------------ which case, and what is said
def failing(*cases: str, metric: str = "max_abs") -> Report:
    return Report([Result("onnxruntime", "graph", "f32", name, name, metric, 2, 1, False) for name in cases])


def test_a_case_in_one_pass_with_enough_tokens_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, asked = token_cases(model("llama")), []
    monkeypatch.setattr(search, "bisect", lambda *args, **_: asked.append(args[4].name))
    names = [case.name for case in cases]
    report = departures(model("llama"), Path("x"), "onnxruntime", "f32", failing(*names), cases)
    assert asked == ["one row, length 24"]
    assert "no module departs" in report.skipped[0].reason
    cached = [name for name in names if name.startswith("cached")]
    departures(model("llama"), Path("x"), "onnxruntime", "f32", failing(*cached), cases)
    assert asked[1:] == [cached[0]]


def test_what_passes_or_cannot_run_is_not_looked_into() -> None:
    cases = token_cases(model("llama"))
    assert departures(model("llama"), Path("x"), "onnxruntime", "f32", Report(), cases) == Report()
    report = failing(cases[0].name, metric="error")
    assert departures(model("llama"), Path("x"), "onnxruntime", "f32", report, cases) == Report()


def test_a_bisection_that_fails_is_said_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise IsoformError("no insides here")

    monkeypatch.setattr(search, "bisect", broken)
    cases = token_cases(model("llama"))
    report = departures(model("llama"), Path("x"), "torchscript", "f32", failing(cases[0].name), cases)
    assert [(skip.level, skip.reason) for skip in report.skipped] == [("bisection", "no insides here")]


def example() -> Departure:
    want = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    got = want.copy()
    got[1, 2] = np.inf
    found = weight_departure("layers.3.attn.out.weight", [(10, got, want)], "onnxruntime", "f32")
    assert found is not None
    return found


def test_a_departure_survives_json_and_is_a_line_of_the_report() -> None:
    found = example()
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Departure.from_json(json.loads(text))
    assert (again.module, again.side, again.layer, again.index) == ("layers.3.attn.out", "weight", "layers.3", (11, 2))
    report = Report(
        [Result("onnxruntime", "weights", "f32", "weights", "weights", "differing", 1, 0, False)], departures=[found]
    )
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).departures[0].place == "layers.3.attn.out.weight"
    lines = [r.text for r in remarks(report) if r.kind == "DEPARTS" and r.text.startswith("onnxruntime, f32 weights")]
    assert len(lines) == 1
    assert "layers.3.attn.out.weight departs" in lines[0]
    assert "got/wanted around" in lines[0]


def test_equal_weights_do_not_depart_and_a_missing_one_does() -> None:
    same = np.ones((2, 2), np.float32)
    assert weight_departure("x.weight", [(0, same, same)], "torchscript", "f32") is None
    assert missing_departure("norm.weight", "torchscript", "f32").place == "norm.weight"


@pytest.mark.parametrize(
    ("shares", "place"),
    [
        ([], None),
        ([0.1, 0.9, 0.5], None),
        ([0.1, 1.5, 30.0], 1),
        ([0.6, 1.05, 0.9, 400.0, 500.0], 3),  # rounding that adds up is no step
        ([0.9, 1.1, 1.2], 1),
        ([0.0, float("inf"), float("inf")], 1),
    ],
)
def test_a_fault_is_a_step(shares: list[float], place: int | None) -> None:
    assert first_jump(shares) == place


def test_real_slots_are_taken_out_of_padding() -> None:
    whole, mask = np.arange(12.0).reshape(4, 3), np.array([0, 1, 1, 0])
    found = fitting([np.zeros(5), whole], (2, 3), mask)
    assert found is not None
    assert found.tolist() == [[3, 4, 5], [6, 7, 8]]
    heads = fitting([np.arange(16.0).reshape(4, 4)], (2, 2, 2), mask)
    assert heads is not None
    assert heads.shape == (2, 2, 2)
    assert fitting([np.zeros((3, 3))], (2, 3), mask) is None


def test_layers_are_read_from_names() -> None:
    assert layer_of("layers.3.attn.out") == "layers.3"
    assert layer_of("layers.12") == "layers.12"
    assert layer_of("embed_norm") == ""


def test_the_order_of_points_is_the_order_of_computation() -> None:
    module = model("qwen3_b").module()
    with recorded(module) as found, torch.inference_mode():
        module(torch.tensor([[1, 2, 3]]))
    names = [str(point) for point in found]
    ordered = [
        *("embed", "layers.0.attn_norm", "layers.0.attn.q", "layers.0.attn.q_norm", "layers.0.rotary"),
        *(
            "layers.0.rotary.2",
            "what goes into layers.0.attn.out",
            "layers.0.attn.out",
            "layers.0",
            "layers.1.attn_norm",
        ),
        *("norm", "head"),
    ]
    assert [name for name in names if name in ordered] == ordered
    with torch.inference_mode():
        module(torch.tensor([[1, 2, 3, 4]]))  # no hook is left
    assert found[Point("embed")].shape[1] == 3
