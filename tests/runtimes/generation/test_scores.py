"""Scores of texts and log-probabilities of their tokens: those of transformers' generate, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import pipeline
from isoform.errors import InputError
from isoform.reference.model import open_model
from isoform.runtimes.backends.torch.session import TorchSession
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.processors import log_softmax
from isoform.runtimes.generation.scores import scores_of
from isoform.runtimes.generation.settings import resolve
from tests.runtimes.generation.test_loop import theirs

Tiny = Callable[[str], Path]
LOGS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # float32 logarithms of a softmax over 600 tokens
PROMPT = [5, 17, 33, 80]
SCORED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "length_penalty": 0.7, "num_return_sequences": 3, "eos_token_id": list(range(0, 300, 7))},
    {"num_beams": 2, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(100))},
]


@pytest.mark.parametrize("options", SCORED, ids=lambda o: "-".join(o))
def test_scores_are_those_of_transformers(options: dict[str, Any], tiny: Tiny) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny("llama_b"), attn_implementation="eager")
    asked = {"do_sample": False, "max_new_tokens": 9, **options}
    out = model.generate(torch.tensor([PROMPT]), **asked, return_dict_in_generate=True, output_scores=True)
    beams = {"beam_indices": out.beam_indices} if "num_beams" in options else {}
    terms = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=not beams, **beams).numpy()
    settings = resolve(asked, {"eos_token_id": 2})
    with TorchSession(open_model(tiny("llama_b"), "text-generation")) as session:
        rows = generate(session, [PROMPT], settings, keep_chances=True)
    for n, row in enumerate(rows):
        found = scores_of(row, settings)
        np.testing.assert_allclose(found["token_scores"], terms[n][: len(row.made)], **LOGS)
        whole = out.sequences_scores[n].item() if beams else terms[n].mean()
        assert found["score"] == pytest.approx(whole, rel=1e-5)


def test_sampled_tokens_have_the_log_probabilities_of_their_distribution(tiny: Tiny) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 9, "repetition_penalty": 1.2}
    settings = resolve({"max_new_tokens": 6, "seed": 3, "eos_token_id": [2, 11], **options})
    model = AutoModelForCausalLM.from_pretrained(tiny("llama_b"), attn_implementation="eager")
    with TorchSession(open_model(tiny("llama_b"), "text-generation")) as session:
        (row,) = generate(session, [PROMPT], settings, keep_chances=True)
    ids = np.array(PROMPT + row.made)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[None])).logits[0].numpy()
    for n, (token, found) in enumerate(zip(row.made, scores_of(row, settings)["token_scores"], strict=True)):
        so_far = ids[: len(PROMPT) + n]
        scores = theirs(options, len(PROMPT), so_far, logits[len(so_far) - 1], so_far[: len(PROMPT)])
        assert found == pytest.approx(float(log_softmax(scores)[token]), abs=1e-5)


def test_a_pipeline_returns_scores_beside_every_text(tiny: Tiny) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with pipeline("text-generation", tiny("llama_b")) as pipe:
        plain = pipe(["the cat", "in"], **options)
        scored = pipe(["the cat", "in"], **options, return_scores=True)
        beams = pipe("in", **options, num_beams=3, num_return_sequences=3, return_scores=True)
        assert [[{"generated_text": text["generated_text"]} for text in texts] for texts in scored] == plain
        for text in [*scored[0], *scored[1], *beams]:
            assert text["score"] == pytest.approx(sum(text["token_scores"]) / len(text["token_scores"]), rel=1e-5)
        assert [text["score"] for text in beams] == sorted((text["score"] for text in beams), reverse=True)
        (ids,) = pipe("in", **options, return_scores=True, return_tensors=True)
        assert ids["token_scores"] == pytest.approx(scored[1][0]["token_scores"], rel=1e-5)
        with pytest.raises(InputError, match="return_scores=True"):
            pipe("in", return_dict_in_generate=True, output_scores=True)
        with pytest.raises(InputError, match="stream"):
            next(pipe.stream("in", return_scores=True))  # type: ignore[attr-defined]


def test_text_to_text_returns_scores_and_counts_what_the_encoder_read(tiny: Tiny) -> None:
    """As transformers' generate does; its pipeline left with version 5."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(tiny("t5"), attn_implementation="eager")
    ids = AutoTokenizer.from_pretrained(tiny("t5"))("the cat reads", return_tensors="pt").input_ids
    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "encoder_repetition_penalty": 0.5,
        "encoder_no_repeat_ngram_size": 1,
    }
    with pipeline("text2text-generation", tiny("t5")) as pipe:
        for width in (1, 3):
            (answer,) = pipe("the cat reads", **options, num_beams=width, return_tensors=True, return_scores=True)
            asked = {**options, "num_beams": width, "do_sample": False}
            out = model.generate(ids, **asked, return_dict_in_generate=True, output_scores=True)
            assert answer["generated_token_ids"].tolist() == out.sequences[0].tolist()
            if width > 1:
                assert answer["score"] == pytest.approx(out.sequences_scores[0].item(), rel=1e-5)
            else:
                terms = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
                np.testing.assert_allclose(answer["token_scores"], terms[0].numpy(), **LOGS)
