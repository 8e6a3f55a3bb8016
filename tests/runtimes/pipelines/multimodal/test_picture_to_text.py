"""Answers about pictures and captions equal transformers' `generate`, on every backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isoform
from isoform.errors import CheckpointError, InputError
from tests.oracle import tiny

pipeline: Any = isoform.pipeline
TOKENS = 6
QUESTIONS = ("what is in the picture?", "how many?", "where is the house that stands by the river?")


@cache
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(7)
    return [Image.fromarray(random.integers(0, 255, (50 + 9 * n, 80, 3), dtype=np.uint8)) for n in range(3)]


@cache
def oracle(name: str) -> tuple[Any, Any, Any]:
    import transformers

    folder = tiny(name)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return (
        model,
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.BlipImageProcessorPil.from_pretrained(folder),
    )


def wanted(name: str, picture: Image.Image, text: str | None, **settings: Any) -> str:
    model, tokenizer, processor = oracle(name)
    words = tokenizer(text, return_tensors="pt", return_token_type_ids=False) if text else {}
    pixels = processor(picture, return_tensors="pt").pixel_values
    ids = model.generate(pixel_values=pixels, **words, max_new_tokens=TOKENS, **settings)
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module", params=["torch", "torchscript", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_answers(backend: str) -> None:
    with pipeline("visual-question-answering", tiny("blip_vqa_b"), backend=backend) as pipe:
        pairs = [{"image": a, "question": b} for a, b in zip(pictures(), QUESTIONS, strict=True)]
        expected = [
            [{"answer": wanted("blip_vqa_b", a, b).strip()}] for a, b in zip(pictures(), QUESTIONS, strict=True)
        ]
        assert pipe(pairs, max_new_tokens=TOKENS) == expected
        assert pipe(image=pictures()[0], question=QUESTIONS[0], max_new_tokens=TOKENS) == expected[0]
        beams = wanted("blip_vqa_b", pictures()[2], QUESTIONS[2], num_beams=3).strip()
        found = pipe(pictures()[2], QUESTIONS[2], generate_kwargs={"num_beams": 3, "max_new_tokens": TOKENS})
        assert found == [{"answer": beams}]


def test_captions(backend: str) -> None:
    with pipeline("image-to-text", tiny("blip_caption_b"), backend=backend, batch_size=2) as pipe:
        expected = [[{"generated_text": wanted("blip_caption_b", a, None)}] for a in pictures()]
        assert pipe(pictures(), max_new_tokens=TOKENS) == expected
        begun = wanted("blip_caption_b", pictures()[1], "a picture of")
        assert pipe(pictures()[1], prompt="a picture of", max_new_tokens=TOKENS) == [{"generated_text": begun}]


def test_several_questions_about_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    pictures()[0].save(path)
    with pipeline("vqa", tiny("blip_vqa"), max_new_tokens=3) as pipe:
        several = pipe(image=path, question=list(QUESTIONS))
        assert several == [pipe({"image": str(path), "question": one}) for one in QUESTIONS]


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ("house.png", {}, "question="),
        ("house.png", {"question": "what?"}, "house.png"),
        ({"image": "house.png"}, {}, "question"),
        ({"image": "house.png", "question": " "}, {}, "not empty"),
        (["a.png", "b.png"], {"question": ["1?", "2?", "3?"]}, "2 pictures came with 3 questions"),
        ({"image": "a.png", "question": "what?"}, {"max_new_token": 3}, "max_new_tokens"),
    ],
)
def test_bad_questions(inputs: Any, parameters: dict[str, Any], message: str) -> None:
    with (
        pipeline("visual-question-answering", tiny("blip_vqa")) as pipe,
        pytest.raises(InputError, match=message.replace("?", r"\?")),
    ):
        pipe(inputs, **parameters)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bos_token_id": None}, "bos_token_id"),
        ({"sep_token_id": "[SEP]"}, "sep_token_id"),
        ({"sep_token_id": 10**6}, "sep_token_id"),
        ("no object", "text_config"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(settings: Any, named: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("blip_vqa"), tmp_path / "blip")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] = {**config["text_config"], **settings} if isinstance(settings, dict) else settings
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=named):
        pipeline("visual-question-answering", folder)
