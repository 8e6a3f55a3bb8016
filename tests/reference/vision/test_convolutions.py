"""ResNet and ConvNeXt compute what transformers' code computes, of pictures of every size: alone, and as backbones."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from isoform import api
from isoform.errors import CheckpointError
from isoform.reference.classes import class_facts
from isoform.reference.families import Tower, load_family
from isoform.reference.model import Model, open_model
from isoform.reference.vision.pyramids import pyramid_of
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn
from tests.exports import exported
from tests.oracle import tiny

NAMES = ("resnet_cls", "resnet_b", "convnext_cls", "convnext_b")
ORDER = 1e-5  # of the largest value: float32 sums in another order


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def theirs(name: str) -> Any:
    import transformers

    kind = model(name).checkpoint.config["architectures"][0]
    return getattr(transformers, kind).from_pretrained(tiny(name), dtype=torch.float32).eval()


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ORDER * float(expected.abs().max())


def noise(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_transformers(name: str) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    for port, output in zip(
        model(name).signature.outputs, model(name).module()(golden["in.pixel_values"]), strict=True
    ):
        close(output, golden[f"out.{port.name}"])


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_every_size_equal_those_of_transformers(name: str) -> None:
    """Those that leave pixels over at the edges, too."""
    for height, width in ((64, 33), (35, 97)):
        x = noise(2, height, width)
        with torch.inference_mode():
            close(model(name).module()(x)[0], theirs(name)(pixel_values=x)[0])


@pytest.mark.parametrize("stages", [("stage1", "stage2"), ("stem", "stage3"), ("stage2",)])
@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_a_backbone_gives_the_maps_of_transformers(family: str, stages: tuple[str, ...]) -> None:
    import transformers

    settings: dict[str, Any] = {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "out_features": list(stages)}
    settings |= {"embedding_size": 4} if family == "resnet" else {"num_stages": 3}
    kind = "ResNet" if family == "resnet" else "ConvNext"
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Backbone")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if name.endswith(("running_mean", "bias")) or "norms" in name or "layer_scale" in name:
            torch.nn.init.normal_(tensor)
    card = load_family(family)
    config: Any = card.config.from_dict({**settings, "model_type": family})
    pyramid = pyramid_of(Tower(card, config))
    ours = pyramid.build(config, config.stages).eval()
    held: dict[str, Tensor] = {}
    for key, value in made.state_dict().items():
        spelled = [key] if key.startswith("hidden_states_norms") else [f"{card.prefix}.{key}"]
        names = next(names for rule in card.rules if (names := rule.match(spelled[0])) is not None)
        held |= dict.fromkeys(names, value)
    left = pyramid.left_out(config, config.stages)
    unused = {name for name in held if any(name == part or name.startswith(f"{part}.") for part in left)}
    ours.load_state_dict({name: value for name, value in held.items() if name not in unused})
    x = noise(2, 70, 45)
    with torch.inference_mode():
        found, expected = ours(x), made(x).feature_maps
    sizes = zip(pyramid.channels(config, stages), pyramid.strides(config, stages), strict=True)
    for a, b, (channels, stride) in zip(found, expected, sizes, strict=True):
        close(a, b)
        assert a.shape[1] == channels
        assert a.shape[2] in (70 // stride, -(-70 // stride))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    stored, saved = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    assert {key for key in stored if not key.endswith("num_batches_tracked")} == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in saved)


@pytest.mark.parametrize("name", ["resnet_cls", "convnext_cls"])
def test_pictures_are_classified_as_by_transformers(name: str) -> None:
    import transformers

    pictures = [drawn(), drawn().rotate(90, expand=True), drawn().resize((33, 70))]
    processor = transformers.AutoImageProcessor.from_pretrained(tiny(name), backend="pil")
    pipe = transformers.pipeline("image-classification", str(tiny(name)), image_processor=processor, device="cpu")
    for source, backend in ((tiny(name), "torch"), (exported(name), "onnxruntime")):
        with api.pipeline("image-classification", source, backend=backend) as mine:
            for ours, want in zip(mine(pictures), pipe(pictures), strict=True):
                assert [row["label"] for row in ours] == [row["label"] for row in want]
                np.testing.assert_allclose([row["score"] for row in ours], [row["score"] for row in want], rtol=1e-5)


@pytest.mark.parametrize("settings", [{"size": 224}, {"size": {"shortest_edge": 100}, "crop_pct": 0.7}, {}])
def test_pixels_are_those_of_transformers_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    """Cropped below 384 pixels, warped from there on."""
    import transformers

    given = {"image_processor_type": "ConvNextFeatureExtractor", **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given), encoding="utf-8")
    processor = transformers.ConvNextImageProcessorPil(**settings)
    mine = open_processor(tmp_path, class_facts(tmp_path))
    for picture in (drawn(), drawn().resize((33, 70)), np.asarray(drawn().rotate(90, expand=True))):
        want = processor(picture, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(mine([picture])[0], want)


@pytest.mark.parametrize(
    "settings", [{"crop_pct": 0}, {"crop_pct": "all"}, {"size": {"height": 30, "width": 30}}, {"crop_size": 20}]
)
def test_a_processor_that_makes_no_sense_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    given = {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": "crop_size" in settings, **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"crop_pct|shortest_edge"):
        open_processor(tmp_path, class_facts(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "data", "message"),
    [
        ("resnet", {"layer_type": "wide"}, "layer_type is 'wide'"),
        ("resnet", {"depths": [1, 2]}, "for each stage"),
        ("resnet", {"out_features": ["stage9"]}, "stage9"),
        ("convnext", {"num_stages": 3}, "num_stages is 3"),
        ("convnext", {"depths": [0, 1, 1, 1]}, "for each stage"),
        ("convnext", {"layer_scale_init_value": "small"}, "layer_scale_init_value is 'small'"),
    ],
)
def test_configurations_without_meaning_are_refused(model_type: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_family(model_type).config.from_dict(data)
