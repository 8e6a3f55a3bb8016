"""Classifier-free guidance: transformers' tokens, with a negative prompt and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import isoform
from isoform.errors import InputError
from isoform.reference.model import open_model
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import model_settings, resolve
from isoform.runtimes.open import open_path, open_session
from tests.exports import exported
from tests.oracle import tiny

NAME = "llama_b"
PROMPTS = [[5, 17, 33, 5, 17], [7, 8, 7, 8, 9, 7], [3, 3]]
NEGATIVE = [61, 4, 9, 9, 12, 30, 8]
MODES: list[dict[str, Any]] = [
    {"guidance_scale": 2.0},
    {"guidance_scale": 1.5, "negative_prompt_ids": NEGATIVE},
    {"guidance_scale": 0.4, "negative_prompt_ids": [NEGATIVE], "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
]


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "llamacpp"])
def test_guided_text_is_that_of_transformers(backend: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny(NAME), attn_implementation="eager")
    if backend == "torch":
        session: Any = open_session(open_model(tiny(NAME)), "torch")
    else:
        strict: dict[str, Any] = {"strict": True} if backend == "llamacpp" else {}
        session, _ = open_path(exported(NAME), backend, **strict)
    with session:
        for options in MODES:
            asked = {"do_sample": False, "max_new_tokens": 14, **options}
            settings = resolve(asked, model_settings(tiny(NAME)))
            plain = generate(session, PROMPTS, resolve({"do_sample": False, "max_new_tokens": 14}))
            rows = generate(session, PROMPTS, settings)
            guessed = generate(session, PROMPTS, resolve({**asked, "prompt_lookup_num_tokens": 4}))
            theirs = dict(asked)
            if "negative_prompt_ids" in theirs:
                theirs["negative_prompt_ids"] = torch.tensor([NEGATIVE])
            for row, other in zip(rows, guessed, strict=True):
                out = model.generate(torch.tensor([row.prompt]), num_beams=1, **theirs)[0].tolist()
                assert row.prompt + row.made == out
                assert other.made == row.made
            assert [row.made for row in rows] != [row.made for row in plain]


def test_a_negative_prompt_may_be_a_text() -> None:
    with isoform.pipeline("text-generation", tiny(NAME), backend="torch", do_sample=False, max_new_tokens=9) as made:
        pipe: Any = made
        ids = pipe.text_tokenizer.encode(["a dog ran"])[0].ids
        for inputs in ("the cat", ["the cat", "in"]):
            wanted = pipe(inputs, guidance_scale=2, negative_prompt_ids=ids)
            assert pipe(inputs, guidance_scale=2, negative_prompt="a dog ran") == wanted
            padded = {
                "negative_prompt_ids": np.array([[0, *ids]]),
                "negative_prompt_attention_mask": [[0, *[1] * len(ids)]],
            }
            assert pipe(inputs, guidance_scale=2, **padded) == wanted
            assert pipe(inputs, guidance_scale=1) == pipe(inputs) != wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_prompt": "a"}, "changes nothing without guidance_scale"),
        ({"guidance_scale": 2, "num_beams": 2}, "gives no probabilities that num_beams=2"),
        ({"guidance_scale": 2, "negative_prompt": 3}, "negative_prompt=3 is no text"),
        ({"guidance_scale": 2, "negative_prompt": "a", "negative_prompt_ids": [3]}, "are both given"),
        ({"guidance_scale": 2, "negative_prompt_ids": [[3], [4]]}, "has 2 rows"),
        ({"guidance_scale": 2, "negative_prompt_ids": []}, "is not a value that generation understands"),
        ({"guidance_scale": float("nan")}, "is not a value that generation understands"),
        ({"guidance_scale": 2, "negative_prompt_ids": [10**6]}, "token"),
        (
            {"guidance_scale": 2, "negative_prompt_ids": [5], "negative_prompt_attention_mask": [[1, 1]]},
            "another shape",
        ),
        ({"guidance_scale": 2, "negative_prompt": "a " * 2000}, "the negative prompt has"),
    ],
)
def test_guidance_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with isoform.pipeline("text-generation", tiny(NAME), backend="torch", max_new_tokens=3) as made:
        pipe: Any = made
        with pytest.raises(InputError, match=message):
            pipe("the cat", **options)


def test_an_encoder_decoder_is_not_guided() -> None:
    session: Any = open_session(open_model(tiny("whisper_b")), "torch")
    with session:
        encoded = session.encode({"input_features": np.zeros((1, 80, 100), np.float32)})
        with pytest.raises(InputError, match="reads an encoder's states"):
            generate(session.decoder(encoded), [[5]], resolve({"guidance_scale": 2}))
