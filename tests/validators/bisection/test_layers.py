"""How far off every module is: for each form, in the reference's order, and by layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoform.reference.model import open_model
from isoform.validators.bisection.profile import shown_case
from isoform.validators.cases.registry import cases_of
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.report.layers import LayerProfile, by_layer
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
        names = [place for place, _ in profile.places]
        assert "layers.0.mlp.down" in names, profile.backend
        assert names.index("layers.0.mlp.down") < names.index("layers.1.mlp.down")
        assert all(share <= 1 for _, share in profile.places)
        assert profile.case.startswith("f32 text, left padding")


def test_a_layer_is_as_bad_as_its_worst_module() -> None:
    places = (("embed", 0.1), ("layers.0.attn.q", 0.2), ("what goes into layers.0.attn.out", 0.9), ("head", 0.3))
    cache = (("present.0.key", 0.4), ("present.1.value", 0.6))
    assert by_layer((*places, *cache)) == {
        "embed": (0.1, "embed"),
        "layers.0": (0.9, "what goes into layers.0.attn.out"),
        "head": (0.3, "head"),
        "present": (0.6, "present.1.value"),
    }


def test_the_shown_case_runs_in_one_pass() -> None:
    case = shown_case(cases_of(open_model(oracle.tiny("llama"))))
    assert case is not None
    assert not case.parts
    assert shown_case([]) is None


def test_a_profile_is_read_back_with_what_is_not_finite() -> None:
    profile = LayerProfile("llamacpp", "f32 text", (("embed", 0.25), ("head", float("inf"))), "tiny")
    assert LayerProfile.from_json(profile.to_json()) == profile
