"""The pipeline of depths against the answers of transformers' on the same checkpoints and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file

from isoform import api
from isoform.cli import app
from isoform.errors import InputError, UnsupportedModel
from isoform.formats import FORMAT_OF
from isoform.manifest import Manifest
from isoform.runtimes.pipelines.vision.depth_estimation import focal_scale, gray
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn
from tests.exports import exported, portable
from tests.oracle.depth_goldens import FILE, pictures

Tiny = Callable[[str], Path]
INVERSE = 2e-5  # of the largest value, or of the largest inverse depth of DepthPro: float32 sums in another order
NAMES = ("depth_anything", "depth_anything_b", "depth_pro", "depth_pro_b")
LEVELS = 1  # of gray: where a value is between two


def close(answer: dict[str, Any], name: str, picture: str) -> None:
    known = load_file(FILE)
    assert list(answer) == ["predicted_depth", "depth"]
    depth, want = np.asarray(answer["predicted_depth"]), known[f"{name}.{picture}.predicted_depth"]
    assert depth.dtype == np.float32
    assert depth.shape == want.shape
    if name.startswith("depth_pro"):
        depth, want = 1 / depth, 1 / want
    np.testing.assert_allclose(depth, want, rtol=0, atol=INVERSE * float(want.max()))
    shown, expected = answer["depth"], known[f"{name}.{picture}.depth"]
    assert (shown.mode, shown.size) == ("L", expected.shape[::-1])
    near = np.abs(np.asarray(shown).astype(int) - expected) <= LEVELS
    assert near.mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_depths_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    asked = {key: image for key, image in pictures().items() if key in ("thumbnail", "small")}
    with api.pipeline("depth-estimation", tiny(name), backend="torch") as pipe:
        for size in (None, 2):
            for picture, answer in zip(asked, pipe(list(asked.values()), batch_size=size), strict=True):
                assert isinstance(answer["predicted_depth"], torch.Tensor)
                close(answer, name, picture)


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_gives_the_depths_of_transformers(name: str) -> None:
    written = {artifact.format for artifact in Manifest.read(exported(name)).artifacts}
    for backend, form in FORMAT_OF.items():
        if form in written:
            source = portable(name) if backend == "openvino" else exported(name)
            with api.pipeline("depth-estimation", source, backend=backend, threads=1) as pipe:
                close(pipe(pictures()["small"]), name, "small")


def test_one_picture_has_one_answer_however_it_is_given(tiny: Tiny, tmp_path: Path) -> None:
    picture = pictures()["small"]
    picture.save(tmp_path / "small.png")
    with api.pipeline("depth-estimation", tiny("depth_pro_b")) as pipe:
        for given in (tmp_path / "small.png", str(tmp_path / "small.png"), np.asarray(picture)):
            close(pipe(given, timeout=3), "depth_pro_b", "small")
        close(pipe(images=picture, parameters={"timeout": 3}), "depth_pro_b", "small")
        for form, kind in (("np", np.ndarray), (False, list), (True, torch.Tensor)):
            assert isinstance(pipe(picture, return_tensors=form)["predicted_depth"], kind)
        assert [answer["depth"].size for answer in pipe(one for one in (drawn(), picture))] == [(160, 120), (31, 47)]


def test_without_a_field_of_view_depths_are_not_scaled(tiny: Tiny, tmp_path: Path) -> None:
    """There transformers' pipeline raises AttributeError; its model and processor give this."""
    folder = shutil.copytree(tiny("depth_pro_b"), tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_fov_model": False}))
    picture = pictures()["small"]
    with api.pipeline("depth-estimation", folder) as pipe:
        answer = pipe(picture)["predicted_depth"]
        pixels = open_processor(folder, pipe.facts)([picture])[0]
        raw = torch.from_numpy(pipe.session.run({"pixel_values": pixels[None]})["predicted_depth"])
    size = picture.size[::-1]
    want = 1 / F.interpolate(raw[None], size=size, mode="bilinear", align_corners=False)[0, 0].clamp(1e-4, 1e4)
    torch.testing.assert_close(1 / answer, 1 / want, rtol=0, atol=INVERSE)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 2)])
def test_the_narrowest_pictures_have_depths_of_their_size(size: tuple[int, int], tiny: Tiny) -> None:
    with api.pipeline("depth-estimation", tiny("depth_pro_b")) as pipe:
        answer = pipe(Image.new("RGB", size, (90, 140, 230)))
    assert tuple(answer["predicted_depth"].shape) == size[::-1]
    assert answer["depth"].size == size


def test_the_scale_follows_the_field_of_view() -> None:
    """Half the picture's width is seen under half the angle: tan(fov / 2) = (width / 2) / focal length."""
    assert focal_scale(90) == pytest.approx(2)
    assert focal_scale(53.1301) == pytest.approx(1)


def test_a_flat_picture_is_black_and_nan_is_nowhere() -> None:
    assert np.asarray(gray(np.full((2, 3), 7, np.float32))).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert np.asarray(gray(np.array([[1, 2, 3]], np.float32))).tolist() == [[0, 127, 255]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"parameters": {"size": 3}}, "a timeout and nothing else"),
        ({"parameters": 3}, "a timeout and nothing else"),
        ({"return_tensors": "tf"}, "is not True, 'pt'"),
        ({"top_k": 3}, "has no parameter 'top_k'"),
    ],
)
def test_parameters_that_say_nothing_are_refused(parameters: dict[str, Any], message: str, tiny: Tiny) -> None:
    with (
        api.pipeline("depth-estimation", tiny("depth_pro_b")) as pipe,
        pytest.raises(InputError, match=message),
    ):
        pipe(drawn(), **parameters)


def test_a_model_of_another_task_and_another_processor_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="depth-estimation"):
        api.pipeline("depth-estimation", tiny("vit_cls"))
    folder = shutil.copytree(tiny("depth_pro_b"), tmp_path / "other")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(UnsupportedModel, match="does not say how depths are resized"):
        api.pipeline("depth-estimation", folder)


def test_the_command_line_gives_depths_and_a_picture(tiny: Tiny, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    pictures()["small"].save(tmp_path / "small.png")
    arguments = ["run", "depth-estimation", str(tiny("depth_pro_b")), str(tmp_path / "small.png"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    answer = found[0] if isinstance(found, list) else found
    assert np.shape(answer["predicted_depth"]) == (47, 31)
    assert answer["depth"].startswith("data:image/png;base64,")
