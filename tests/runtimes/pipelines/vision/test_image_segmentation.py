"""image-segmentation against transformers' pipeline on the same checkpoints and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isoform import api
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.pipelines.vision.image_segmentation import ImageSegmentation
from isoform.runtimes.preprocess.image.interpolation import bilinear, bilinear_rows, smoothed
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn
from tests import oracle
from tests.exports import exported

Tiny = Callable[[str], Path]
NAMES = ("oneformer", "oneformer_b", "mask2former", "mask2former_b")
LATER = [*NAMES[:3], pytest.param(NAMES[3], marks=pytest.mark.nightly)]
ONCE = [NAMES[0], *(pytest.param(name, marks=pytest.mark.nightly) for name in NAMES[1:])]
BY_CLASS = ("segformer", "segformer_b")
SUBTASKS = (None, "panoptic", "instance", "semantic")


def resized_as_torchvision(image: torch.Tensor, size: Any, interpolation: Any) -> torch.Tensor:
    """What torchvision's resize of a tensor calls, which is not installed here: it smooths unless told otherwise."""
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


@cache
def theirs(name: str) -> Any:
    """transformers' pipeline with its Pillow processor."""
    import transformers
    from transformers.models.mask2former import modeling_mask2former
    from transformers.models.oneformer import image_processing_pil_oneformer, modeling_oneformer

    for module in (modeling_mask2former, modeling_oneformer):
        module.requires_backends = lambda *_: None  # their losses ask for scipy
    modes = SimpleNamespace(BILINEAR="bilinear")
    image_processing_pil_oneformer.tvF = SimpleNamespace(resize=resized_as_torchvision, InterpolationMode=modes)
    folder = str(oracle.tiny(name))
    tasks = {"is_training": False} if name.startswith("oneformer") else {}
    kind = "Semantic" if name in BY_CLASS else "Universal"
    model = getattr(transformers, f"AutoModelFor{kind}Segmentation").from_pretrained(folder, **tasks)
    return transformers.pipeline(
        "image-segmentation",
        model=model,
        image_processor=processor_of(name),
        tokenizer=folder if tasks else None,
        device="cpu",
    )


def processor_of(name: str) -> Any:
    import transformers

    folder = str(oracle.tiny(name))
    named = {"repo_path": folder} if name.startswith("oneformer") else {}
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **named)


def pictures() -> list[Any]:
    return [drawn(), drawn().rotate(90, expand=True), drawn().resize((333, 70)).convert("L")]


def same(ours: list[dict[str, Any]], want: list[dict[str, Any]], pixels: float = 2e-3) -> None:
    """The same segments in the same order, scores to 1e-5; a mask may differ where two queries are as likely."""
    assert [list(one) for one in ours] == [list(one) for one in want]
    assert [one["label"] for one in ours] == [one["label"] for one in want]
    for mine, other in zip(ours, want, strict=True):
        assert type(mine["score"]) is type(other["score"])
        if mine["score"] is not None:
            assert abs(mine["score"] - other["score"]) <= 1e-5
        a, b = np.asarray(mine["mask"]), np.asarray(other["mask"])
        assert (mine["mask"].mode, mine["mask"].size, a.dtype) == (other["mask"].mode, other["mask"].size, b.dtype)
        assert float((a != b).mean()) <= pixels


@pytest.fixture
def sorted_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch leaves the order of the best pairs of a query and a class open, and sorts them where there are 64 times as
    many as are chosen. The tiny checkpoints have fewer, so that they are sorted here."""
    honest = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, count, sorted=True: honest(x, count))


@pytest.mark.usefixtures("sorted_choices")
@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize("name", LATER)
def test_image_segmentation_is_transformers(name: str, subtask: str | None) -> None:
    """At thresholds at which the random weights of the tiny checkpoints find segments."""
    options: dict[str, Any] = {} if subtask is None else {"subtask": subtask}
    calls: tuple[dict[str, Any], ...] = (
        {"threshold": 0.2},
        {"threshold": 0.15, "mask_threshold": 0.2, "overlap_mask_area_threshold": 0.1},
        {},
    )
    found = 0
    with api.pipeline("image-segmentation", oracle.tiny(name)) as pipe:
        for call in calls[: 1 if subtask == "semantic" else None]:
            for picture in pictures():
                ours = pipe(picture, **options, **call)
                same(ours, theirs(name)(picture, **options, **call))
                found += len(ours)
    assert found > 3


@pytest.mark.parametrize("name", BY_CLASS)
def test_the_likeliest_classes_are_those_of_transformers(name: str) -> None:
    """From the checkpoint and from the bundle; a model without masks has one subtask."""
    for source, backend in ((oracle.tiny(name), "torch"), (exported(name), "onnxruntime")):
        with api.pipeline("image-segmentation", source, backend=backend) as pipe:
            calls: tuple[dict[str, Any], ...] = ({}, {"subtask": "semantic", "threshold": 0.2})
            for options in calls:
                for picture, ours in zip(pictures(), pipe(pictures(), **options), strict=True):
                    same(ours, theirs(name)(picture, **options))
                    assert len(ours) > 1
            with pytest.raises(InputError, match="this model can do semantic"):
                pipe(drawn(), subtask="panoptic")


@pytest.mark.parametrize("name", ONCE)
def test_a_bundle_answers_as_the_checkpoint(name: str) -> None:
    with (
        api.pipeline("image-segmentation", oracle.tiny(name), threshold=0.2) as pipe,
        api.pipeline("image-segmentation", exported(name), threshold=0.2) as other,
    ):
        for subtask in ("panoptic", "instance", "semantic"):
            for mine, their in zip(pipe(pictures(), subtask=subtask), other(pictures(), subtask=subtask), strict=True):
                same(their, mine, 1e-2)


def test_a_batch_changes_nothing(tiny: Tiny) -> None:
    many = [drawn(), drawn().transpose(0), drawn()]
    with api.pipeline("image-segmentation", tiny("oneformer"), threshold=0.2) as pipe:
        one, other = (pipe(many, batch_size=size) for size in (1, 3))
        for mine, their in zip(one, other, strict=True):
            same(mine, their)
        alone = pipe(np.asarray(drawn()))
        same(alone, one[0])


def test_no_segment_is_an_empty_list(tiny: Tiny) -> None:
    with api.pipeline("image-segmentation", tiny("oneformer")) as pipe:
        assert pipe(drawn(), threshold=1.0) == []
        assert pipe(drawn(), threshold=1.0, subtask="instance") == []


def test_the_tasks_text_is_filled_up_as_transformers_does_it(tiny: Tiny) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("oneformer"))
    with api.pipeline("image-segmentation", tiny("oneformer")) as pipe:
        assert isinstance(pipe, ImageSegmentation)
        for subtask in ("panoptic", "instance", "semantic"):
            want = tokenizer(f"the task is {subtask}", padding="max_length", max_length=77)["input_ids"]
            named = pipe._named(subtask)
            assert named is not None
            assert named.tolist() == [want]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"subtask": "everything"}, "is not one of panoptic, instance, semantic"),
        ({"threshold": "high"}, "threshold='high' is no number"),
        ({"mask_threshold": float("nan")}, "mask_threshold=nan is no number"),
        ({"overlap_mask_area_threshold": True}, "is no number"),
        ({"treshold": 0.5}, "treshold"),
    ],
)
def test_wrong_parameters_are_refused(tiny: Tiny, parameters: dict[str, Any], message: str) -> None:
    with api.pipeline("image-segmentation", tiny("oneformer")) as pipe, pytest.raises(InputError, match=message):
        pipe(drawn(), **parameters)


def test_pictures_that_become_nothing_are_refused(tiny: Tiny) -> None:
    from PIL import Image

    with api.pipeline("image-segmentation", tiny("oneformer")) as pipe:
        with pytest.raises(InputError, match="would become 256 x 0; crop it first"):
            pipe(Image.new("RGB", (10000, 1)))
        with pytest.raises(InputError, match="height 3 is too small: the model reads at least 4"):
            pipe(Image.new("RGB", (10000, 100)))
        with pytest.raises(InputError, match="takes a picture"):
            pipe(3)
        assert isinstance(pipe(Image.new("RGB", (1, 1))), list)


# ------------------------------------------------------------------ the processor
def prepared(folder: Path, picture: Any) -> Any:
    return open_processor(folder, class_facts(folder))([picture])[0]


@pytest.mark.parametrize("name", (*NAMES, *BY_CLASS))
def test_pixel_values_equal_those_of_transformers_bit_for_bit(name: str) -> None:
    folder, processor = oracle.tiny(name), processor_of(name)
    for picture in (*pictures(), drawn().convert("RGBA"), np.asarray(drawn()), drawn().resize((64, 90))):
        if not name.startswith("oneformer") and not isinstance(picture, np.ndarray):
            picture = picture.convert("RGB")  # which it does not do itself
        want = processor(images=[picture], return_tensors="np")["pixel_values"][0]
        assert np.array_equal(prepared(folder, picture), want)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 50},
        {"size": 50, "max_size": 60},
        {"size": [40, 56]},
        {"size": {"height": 40, "width": 56}, "do_normalize": False},
        {"size": {"shortest_edge": 40, "longest_edge": 50}, "do_rescale": False},
        {"size": {"shortest_edge": 40}, "resample": 0, "do_convert_rgb": None},
        {"do_resize": False, "metadata": {"0": "wall"}, "reduce_labels": True},
        {"image_processor_type": None, "feature_extractor_type": "OneFormerFeatureExtractor"},
    ],
)
def test_other_settings_are_read_as_transformers_reads_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    import transformers

    folder = tmp_path / "model"
    shutil.copytree(oracle.tiny("oneformer"), folder)
    file = folder / "preprocessor_config.json"
    data = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    kind = transformers.OneFormerImageProcessorPil
    want = kind.from_pretrained(folder, repo_path=str(folder))(images=[drawn()], return_tensors="np")["pixel_values"][0]
    assert np.array_equal(prepared(folder, drawn()), want)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": True},
        {"image_processor_type": "SegformerImageProcessorFast", "size": {"height": 40, "width": 56}},
        {"feature_extractor_type": "SegformerFeatureExtractor", "reduce_labels": True, "size": 33, "resample": 3},
        {"do_center_crop": True, "crop_size": {"height": 20, "width": 20}, "size": [30, 44]},
        {"do_resize": False, "do_rescale": False, "do_normalize": False},
    ],
)
def test_settings_of_segformer_are_read_as_transformers_reads_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Its class reduces the labels of a training only, and crops nothing."""
    import transformers

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    want = transformers.SegformerImageProcessorPil.from_pretrained(tmp_path)(images=[drawn()], return_tensors="np")
    assert np.array_equal(prepared(tmp_path, drawn()), want["pixel_values"][0])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": {"shortest_edge": 0.5}}, CheckpointError, "make no sense"),
        ({"size": {"longest_edge": 50}}, CheckpointError, "it has height and width, or shortest_edge"),
        ({"do_magic": True}, UnsupportedModel, "do_magic = True is not known"),
        ({"size_divisor": -1}, CheckpointError, "size_divisor is -1"),
    ],
)
def test_settings_without_meaning_are_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(oracle.tiny("oneformer"), folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(error, match=message):
        prepared(folder, drawn())


# ------------------------------------------------------------------ the arithmetic
@pytest.mark.parametrize(
    ("channels", "old", "new"),
    [(6, (16, 24), (90, 120)), (150, (40, 60), (100, 133)), (6, (64, 90), (37, 50)), (3, (16, 24), (90, 120))],
)
def test_maps_are_resized_as_torch_does_it(channels: int, old: tuple[int, int], new: tuple[int, int]) -> None:
    x = torch.rand(channels, *old, generator=torch.Generator().manual_seed(0))
    want = F.interpolate(x[None], size=new, mode="bilinear", align_corners=False)[0]
    assert np.array_equal(bilinear(x.numpy(), *new), want.numpy())
    rows = np.concatenate(list(bilinear_rows(x.numpy(), *new)), 1)
    np.testing.assert_allclose(rows, want.numpy(), rtol=1e-6)
    want = F.interpolate(x[None], size=new, mode="bilinear", align_corners=False, antialias=True)[0]
    assert np.array_equal(smoothed(x.numpy(), *new), want.numpy())


def test_a_map_that_shrinks_much_is_smoothed_to_a_rounding() -> None:
    x = torch.rand(3, 90, 77, generator=torch.Generator().manual_seed(0))
    want = F.interpolate(x[None], size=(20, 9), mode="bilinear", align_corners=False, antialias=True)[0]
    np.testing.assert_allclose(smoothed(x.numpy(), 20, 9), want.numpy(), rtol=1e-6)
