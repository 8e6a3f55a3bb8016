"""Damaged settings beside the weights: a model opens, or there is one line about it, and neither takes long."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import IsoformError
from isoform.reference.classes import class_facts
from isoform.reference.model import open_model
from isoform.runtimes.generation.settings import context_length, model_settings, resolve
from isoform.runtimes.pipelines.audio.speech.speech_settings import SpeechModel
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings
from isoform.runtimes.preprocess.audio.waveform import WaveformSettings
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.processor import ImageSettings
from isoform.validators.cases.media import drawn
from tests.oracle import tiny

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31 - 1, 2**31, 10**9, 10**30, -(2**40), 0.5, -2.5, 1e300, float("nan")),
    *(
        "",
        "x",
        "é\n",
        "0",
        [],
        [0],
        [-1, 2**31],
        ["x", None],
        [[1, 10**9]],
        {},
        {"x": 1},
        {"0": [1]},
        {"a": {"b": None}},
    ),
)
SECONDS = 5.0  # a build takes 0.05 s; a machine that is busy may be slow

Open = Callable[[Path], object]


def generation(folder: Path) -> None:
    resolve({}, model_settings(folder))


def context(folder: Path) -> None:
    context_length(json.loads((folder / "config.json").read_text()))


def built(folder: Path) -> None:
    model = open_model(folder)
    assert model.signature.inputs
    model.module()


def prepared(folder: Path) -> None:
    open_processor(folder, class_facts(folder))([drawn()])


SEEING = (
    *("beit_cls", "convnext_cls", "deformable_detr", "depth_anything", "depth_pro", "detr", "mask2former", "oneformer"),
    *("resnet_cls", "rt_detr_v2", "segformer", "superglue", "swin_cls", "videomae_cls", "vitpose_plus", "yolos"),
    *("layoutlmv3_qa", "sam"),
)
CASES: list[tuple[str, str, Open, int]] = [
    *((name, "config.json", built, 40) for name in (*SEEING, "tapas_qa")),
    *((name, "preprocessor_config.json", prepared, 40) for name in SEEING),
    *((name, "config.json", built, 60) for name in ("llama_b", "gemma3_new", "bert_seqcls", "llama_yarn", "whisper")),
    *((name, "config.json", built, 60) for name in ("sam", "llava", "clip", "wav2vec2_ctc", "blip_vqa", "dinov2_cls")),
    ("llama_yarn", "config.json", context, 60),
    ("llama_b", "generation_config.json", generation, 60),
    ("whisper", "generation_config.json", generation, 60),
    ("whisper", "generation_config.json", SpeechModel.read, 80),
    ("whisper", "generation_config.json", built, 30),
    ("whisper", "preprocessor_config.json", LogMelSettings.read, 60),
    ("moonshine", "preprocessor_config.json", WaveformSettings.read, 60),
    ("clip", "preprocessor_config.json", lambda folder: ImageSettings.read(folder, class_facts(folder)), 80),
]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands, in objects and lists of any depth."""
    items = data.items() if isinstance(data, dict) else enumerate(data[:3]) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def damaged(data: Any, chance: random.Random) -> tuple[str, Any]:
    """What was done, and a copy of the file in which one value is another, or missing."""
    copy = json.loads(json.dumps(data))
    path = chance.choice(list(places(copy)))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if chance.random() < 0.1:
        del inner[path[-1]]
        return f"without {path}", copy
    inner[path[-1]] = chance.choice(VALUES)
    return f"{path} = {inner[path[-1]]!r}", copy


@pytest.mark.parametrize(("name", "file", "open_", "count"), CASES)
def test_damaged_settings_are_read_or_refused_in_one_line(
    name: str, file: str, open_: Open, count: int, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny(name), tmp_path / name))
    sound = json.loads((folder / file).read_text())
    chance, refused = random.Random(f"{name} {file}"), 0
    for _ in range(count):
        what, data = damaged(sound, chance)
        (folder / file).write_text(json.dumps(data))
        start = time.perf_counter()
        try:
            open_(folder)
        except IsoformError as error:
            refused += 1
            assert "\n" not in str(error), what
            assert len(str(error)) < 600, what
        except Exception as error:
            raise AssertionError(f"{file}: {what} ends in {type(error).__name__}") from error
        assert time.perf_counter() - start < SECONDS, what
    assert refused or (file, open_) == ("generation_config.json", built)  # whose settings no graph needs


def test_more_layers_than_tensors_are_refused_before_they_are_built(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(tiny("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 90_000}))
    with pytest.raises(IsoformError, match=r"asks for 90000 layers \(n_layer\)"):
        open_model(folder)
