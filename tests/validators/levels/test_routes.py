"""A form of half precision may turn a near tie between experts; what turns a clear choice stays a failure."""

from __future__ import annotations

import shutil
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from isoform.exporters.onnx import write
from isoform.reference.model import Model, open_model
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from isoform.validators.cases.registry import cases_of
from isoform.validators.levels import routes
from isoform.validators.levels.graph import check_graph
from isoform.validators.report.records import Report
from isoform.validators.truth.reference import Truth
from tests.oracle import tiny

NAME = "qwen3_moe_window"


def judged(model: Model, path: Path) -> tuple[Report, bool]:
    """The graph level of a file in float16 along its routes, and whether it passed before."""
    cases = [case for case in cases_of(model) if case.group == "text" and not case.chunks][:2]
    with OnnxRuntimeSession(path, model.signature, strict=True, threads=1) as session:
        report = check_graph(model, session, "f16", truth=Truth(model, cases))
    before = report.same
    routes.along_routes(model, path, "onnxruntime", "f16", report, cases, 1)
    return report, before


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model whose experts weigh as much as the rest, one of whose choices float16 turns, and its graph."""
    folder = shutil.copytree(tiny(NAME), tmp_path_factory.mktemp("strong") / "model")
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if ".experts." in name and "down" in name:
            tensor *= 32**0.5
    save_file(weights, folder / "model.safetensors")
    model = open_model(folder)
    (artifact,) = write(model, folder / "made", "f16", lambda *_: None)
    return model, folder / "made" / artifact.files[0].path


def test_a_near_tie_that_half_precision_turns_is_judged_along_its_route(strong: tuple[Model, Path]) -> None:
    report, before = judged(*strong)
    assert not before
    assert report.same
    assert any("near ties: 1" in result.note for result in report.results)


def test_choices_that_another_router_turns_stay_wrong(strong: tuple[Model, Path]) -> None:
    """Its scores are off by a fifth, which float16 does not explain."""
    model, path = strong

    def module(dtype: torch.dtype | None = None, device: Any = "cpu") -> nn.Module:
        built = model.module(dtype, device)
        for name, parameter in built.named_parameters():
            if "router" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
                parameter.data += (noise * parameter.std() / 5).to(parameter)
        return built

    other = copy(model)
    object.__setattr__(other, "module", module)  # the dataclass is frozen
    report, before = judged(other, path)
    assert not before
    assert not report.same
    assert not any("own routes" in result.note for result in report.results)
