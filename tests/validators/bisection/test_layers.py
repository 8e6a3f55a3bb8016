"""How far off every module is: for each form, in the reference's order, and by layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoform.reference.model import open_model
from isoform.validators.bisection.profile import shown_case
from isoform.validators.cases.registry import cases_of
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.report.layers import LayerProfile, ModuleShare, by_layer
from tests import oracle
from tests.validators.check.test_bundle import keep, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("bundles") / "llama", types=("f32",))


def test_every_form_shows_its_modules_within_their_limits(bundle: Path) -> None:
    keep(bundle, "onnx", "torchscript", "gguf")
    report = check_bundle(bundle, threads=1, limits=Limits(layers=True, keep=False))
    assert [profile.backend for profile in report.layers] == ["onnxruntime", "torchscript", "llamacpp"]
    for profile in report.layers:
        names = [one.module for one in profile.places]
        assert "layers.0.mlp.down" in names, profile.backend
        assert names.index("layers.0.mlp.down") < names.index("layers.1.mlp.down")
        assert all(one.share <= 1 for one in profile.places)
        assert (profile.dtype, profile.group) == ("f32", "text")
        assert "left padding" in profile.case


def test_a_layer_is_as_bad_as_its_worst_module() -> None:
    embed, head = ModuleShare("embed", "out", 0.1), ModuleShare("head", "out", 0.3)
    query, context = ModuleShare("layers.0.attn.q", "out", 0.2), ModuleShare("layers.0.attn.out", "in", 0.9)
    key, value = ModuleShare("present.0.key", "state", 0.4), ModuleShare("present.1.value", "state", 0.6)
    found = by_layer((embed, query, context, head, key, value))
    assert found == {"embed": embed, "layers.0": context, "head": head, "states": value}
    assert context.place == "what goes into layers.0.attn.out"


def test_the_shown_case_runs_in_one_pass() -> None:
    case = shown_case(cases_of(open_model(oracle.tiny("llama"))))
    assert case is not None
    assert not case.chunks
    assert shown_case([]) is None


def test_a_profile_is_read_back_with_what_is_not_finite() -> None:
    places = (ModuleShare("embed", "in", 0.25), ModuleShare("head", "out", float("inf")))
    profile = LayerProfile("llamacpp", "layers", "f32", "text", "text", places, model="tiny")
    assert LayerProfile.from_json(profile.to_json()) == profile
