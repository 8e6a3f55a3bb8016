"""Decoders whose angles depend on the length of the text, in every graph format, beside transformers.

Each step is compared, with padding and a cache that was filled at other lengths; so are the tokens of greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from isoform.exporters import onnx
from isoform.reference.facts import facts_of
from isoform.reference.model import open_model
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import model_settings, resolve
from isoform.runtimes.open import open_path, open_session
from isoform.runtimes.session import Session
from isoform.validators.cases.registry import cases_of
from tests.exports import exported
from tests.oracle import LONGER

Tiny = Callable[[str], Path]

FORMS = ("torch", "torchscript", "onnxruntime", "portable")
FLOAT32 = 2e-5  # of the largest value: sums in another order


@pytest.fixture
def opened(tiny: Tiny) -> Iterator[Callable[[str, str], Session]]:
    sessions: list[Session] = []

    def open_(name: str, form: str) -> Session:
        if form == "torch":
            session: Session = open_session(open_model(tiny(name)), "torch")
        else:
            formats = {"torchscript": ["torchscript"]}.get(form, ["onnx"])
            options: dict[str, Any] = (
                {"onnx": onnx.Options(types=("f32",), portable=True)} if form == "portable" else {}
            )
            backend = "torchscript" if form == "torchscript" else "onnxruntime"
            session, _ = open_path(exported(name, formats, **options), backend)
        sessions.append(session)
        return session

    yield open_
    for session in sessions:
        session.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LONGER)
def test_every_step_is_that_of_transformers(
    tiny: Tiny, opened: Callable[[str, str], Session], name: str, form: str
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny(name), attn_implementation="eager").eval()
    ours, random = opened(name, form), np.random.default_rng(0)
    mask = np.ones((2, 0), np.int64)
    kept: Any = None
    past = [np.zeros(state.shape(2), np.float32) for state in ours.signature.states]
    # Across the original lengths, 8 and 16. GroupQueryAttention takes no chunk of several rows after a past.
    for count in (6, *[1] * 14) if form == "onnxruntime" else (6, 1, 1, 7, 1, 9, 1):
        new = np.ones((2, count), np.int64)
        if not mask.shape[1]:
            new[1, :3] = 0  # padding on the left
        mask = np.concatenate((mask, new), 1)
        feeds = {
            "input_ids": random.integers(5, 90, (2, count)),
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, -count:],
        }
        with torch.no_grad():
            tensors = {key: torch.from_numpy(value) for key, value in feeds.items()}
            made = theirs(**tensors, past_key_values=kept, use_cache=True)
        kept, wanted = made.past_key_values, made.logits.numpy()
        states = {state.input: value for state, value in zip(ours.signature.states, past, strict=True)}
        outputs = ours.run({**feeds, **states})
        past = [outputs[state.output] for state in ours.signature.states]
        gap = np.abs(outputs["logits"] - wanted)[new == 1].max()
        assert gap <= FLOAT32 * np.abs(wanted).max(), f"{count} tokens, {mask.shape[1]} in all"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LONGER)
def test_greedy_decoding_goes_on_beyond_the_original_length(
    tiny: Tiny, opened: Callable[[str, str], Session], name: str, form: str
) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    prompts, wanted = golden["in.input_ids"].tolist(), golden["gen.out"].tolist()
    new = len(wanted[0]) - len(prompts[0])
    settings = resolve({"do_sample": False, "max_new_tokens": new}, model_settings(tiny(name)))
    model: Any = open_model(tiny(name))
    (row,) = generate(opened(name, form), prompts, settings, recompute_beyond=facts_of(model).get("recompute_beyond"))
    assert row.prompt + row.made == wanted[0][: len(row.prompt) + len(row.made)]
    assert row.reason == "stop" or len(row.made) == new
    assert len(row.prompt) + len(row.made) > model.config.rope.original_max_position_embeddings


@pytest.mark.parametrize("name", LONGER)
def test_a_row_beside_a_longer_one_is_judged_by_no_case(tiny: Tiny, name: str) -> None:
    """The reference of a check is each row alone."""
    cases = cases_of(open_model(tiny(name)))
    assert {"one row", "batch of 3"} <= {case.group for case in cases}
    assert not any("padding" in case.group for case in cases)
    assert any(len(row) > 16 for case in cases for row in case.rows)
