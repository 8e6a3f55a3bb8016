"""A package outside of isoform adds a family, which is exported, run and checked like any other."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from isoform import api
from isoform.errors import UnsupportedModel
from isoform.reference.families import gguf_family, load_family
from isoform.reference.model import open_model

HERE = Path(__file__).parent
CONFIG = {
    "model_type": "moonbeam",
    "architectures": ["MoonbeamForImageClassification"],
    "hidden_size": 12,
    "image_size": 16,
    "id2label": {"0": "dark", "1": "light", "2": "blue"},
    "label2id": {"dark": 0, "light": 1, "blue": 2},
}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as pip installs it: its module and its metadata on the path."""
    install(tmp_path / "site", monkeypatch, tomllib.loads((HERE / "pyproject.toml").read_text())["project"])
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.delitem(sys.modules, "moonbeam", raising=False)


def install(site: Path, monkeypatch: pytest.MonkeyPatch, project: dict[str, Any]) -> None:
    """Write the metadata of a package into a folder on the path."""
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(site)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "moonbeam.stem.convolution.weight": (12, 3, 3, 3),
        **{f"moonbeam.stem.normalization.{name}": (12,) for name in ("weight", "bias", "running_mean", "running_var")},
        "classifier.weight": (3, 12),
        "classifier.bias": (3,),
    }
    tensors = {key: torch.rand(shape, generator=draw) + 0.5 * key.endswith("var") for key, shape in shapes.items()}
    tensors["moonbeam.stem.normalization.num_batches_tracked"] = torch.tensor(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.usefixtures("installed")
def test_a_family_of_another_package_is_exported_run_and_checked(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    manifest, report = api.export_and_check(checkpoint, bundle, to=["onnx", "torchscript"])
    assert report is not None
    assert report.same
    assert manifest.family == "moonbeam"
    assert api.check(bundle).same
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    expected = api.pipeline("image-classification", checkpoint, backend="torch")(picture)
    assert {answer["label"] for answer in expected} == {"dark", "light", "blue"}
    for backend in ("onnxruntime", "torchscript"):
        answers = api.pipeline("image-classification", bundle, backend=backend)(picture)
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
        assert [answer["score"] for answer in answers] == pytest.approx(
            [answer["score"] for answer in expected], abs=1e-6
        )


@pytest.mark.usefixtures("installed")
def test_a_family_of_another_package_is_saved_again(checkpoint: Path, tmp_path: Path) -> None:
    open_model(checkpoint).save(tmp_path / "saved")
    again, source = open_model(tmp_path / "saved").weights, open_model(checkpoint).weights
    assert all(torch.equal(again[name].load(), weight.load()) for name, weight in source.items())
    assert gguf_family("moonbeam", ()) is None


def test_a_model_type_that_no_package_has_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'moonbeam' is not supported.*\(entry point isoform\.families\)"):
        open_model(checkpoint)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module", r"the family 'moonbeam' of broken cannot be imported \(No module named 'no_such_module'\)"),
        ("json:dumps", r"broken registers json:dumps as the family 'moonbeam', which is no card with this model_type"),
        ("isoform.reference.vision.vit", r"which is no card with this model_type"),
    ],
)
def test_a_broken_package_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    entries = {"isoform.families": {"moonbeam": value}}
    install(tmp_path / "site", monkeypatch, {"name": "broken", "version": "1", "entry-points": entries})
    with pytest.raises(UnsupportedModel, match=message):
        open_model(checkpoint)


def test_the_families_of_this_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"isoform.families": {"vit": "no_such_module"}}
    install(tmp_path / "site", monkeypatch, {"name": "other", "version": "1", "entry-points": entries})
    assert load_family("vit").title == "ViT"
