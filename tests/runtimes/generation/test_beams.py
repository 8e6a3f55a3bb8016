"""Beam search: the ids of transformers, for plain decoders and beside a memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.runtimes.generation.beams import largest
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import model_settings, resolve

Tiny = Callable[[str], Path]


class Recomputed:
    """transformers' model as a decoder without a cache: every step runs the whole rows."""

    def __init__(self, model: Any, **given: Any) -> None:
        self._model, self._given = model, given
        self._ids: NDArray[np.int64] | None = None

    def step(self, tokens: Any, *, mask: Any = None, positions: Any = None, last: int | None = 1) -> Any:
        import torch

        self._ids = tokens if self._ids is None else np.concatenate((self._ids, tokens), 1)
        name = "decoder_input_ids" if self._given else "input_ids"
        with torch.no_grad():
            logits = self._model(**{name: torch.from_numpy(self._ids)}, **self._given).logits
        return logits.numpy()[:, -1] if last == 1 else logits.numpy()

    def select(self, rows: NDArray[np.int64]) -> None:
        assert self._ids is not None
        self._ids = self._ids[rows]
        self._given = {name: value[rows] for name, value in self._given.items()}

    def __len__(self) -> int:
        raise NotImplementedError

    def join(self, other: Any) -> None:
        raise NotImplementedError

    def rewind(self, counts: Any) -> None:
        raise NotImplementedError


BEAMS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3, "eos_token_id": list(range(0, 300, 3))},
    {"num_beams": 3, "length_penalty": 2.0, "eos_token_id": list(range(0, 300, 40))},
    {"num_beams": 3, "length_penalty": -1.0, "eos_token_id": list(range(0, 300, 5)), "num_return_sequences": 2},
    {"num_beams": 4, "early_stopping": True, "eos_token_id": list(range(0, 300, 7)), "num_return_sequences": 4},
    {"num_beams": 4, "early_stopping": "never", "eos_token_id": list(range(0, 300, 7)), "num_return_sequences": 4},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {"num_beams": 2, "min_new_tokens": 6, "eos_token_id": list(range(0, 600, 2)), "suppress_tokens": [3, 4]},
    {"num_beams": 3, "forced_eos_token_id": 7, "bad_words_ids": [[5, 6], [9]]},
]


@pytest.mark.parametrize("options", BEAMS, ids=lambda o: "-".join(o))
def test_beams_give_the_tokens_that_transformers_gives(options: dict[str, Any], tiny: Tiny) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for name in ("llama_b", "qwen2_b"):
        folder = tiny(name)
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        settings = resolve({"do_sample": False, "max_new_tokens": 9, **options}, model_settings(folder))
        prompts = [[5, 17, 33, 80], [61, 2, 9, 44]]
        rows = generate(Recomputed(theirs), prompts, settings)
        count = settings.num_return_sequences
        for n, prompt in enumerate(prompts):
            out = theirs.generate(
                torch.tensor([prompt]),
                **{"do_sample": False, "max_new_tokens": 9, **options},
                return_dict_in_generate=True,
                output_scores=True,
            )
            for row, ids, score in zip(
                rows[n * count : (n + 1) * count], out.sequences.tolist(), out.sequences_scores.tolist(), strict=True
            ):
                assert row.prompt + row.made == ids[: len(prompt) + len(row.made)]
                assert row.score == pytest.approx(score, rel=1e-5)


def test_the_largest_are_found_among_many() -> None:
    random = np.random.default_rng(0)
    for size, count in ((70, 3), (5000, 10), (64 * 40 + 13, 10)):
        scores = random.normal(size=size).astype(np.float32)
        scores[random.integers(0, size, size // 2)] = -np.inf
        assert largest(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


def test_more_rows_than_beams_are_an_input_error(tiny: Tiny) -> None:
    settings = resolve({"num_beams": 2, "num_return_sequences": 3, "max_new_tokens": 2})
    with pytest.raises(InputError, match="num_return_sequences=3 is more than num_beams=2"):
        generate(Recomputed(None), [[1]], settings)


@pytest.mark.parametrize(
    ("name", "backend"), [("whisper", "torch"), ("bart", "torch"), ("bart", "onnxruntime"), ("t5", "torchscript")]
)
def test_rows_that_share_encoder_states_are_as_rows_with_their_own(name: str, backend: str, tiny: Tiny) -> None:
    from isoform.reference.model import open_model
    from isoform.runtimes.open import open_path, open_session
    from tests.exports import exported

    random = np.random.default_rng(0)
    features = {"input_features": random.normal(size=(3, 128, 3000)).astype(np.float32)}
    mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])  # padding on both sides
    texts = {"input_ids": random.integers(3, 90, (3, 6)), "attention_mask": mask}
    start = np.array([[2, 3]] * 3)
    bundled = backend != "torch"
    opened: Any = open_path(exported(name), backend)[0] if bundled else open_session(open_model(tiny(name)), backend)
    with opened as session:
        states = session.encode(features if name == "whisper" else texts)
        for order in ([0, 0, 2, 2], [1, 1, 1], [2, 2, 0, 0], [0, 1, 1]):
            decoder, ids = session.decoder(states), np.arange(5, 5 + len(order))[:, None]
            decoder.step(start)
            decoder.select(np.array(order))
            got = [decoder.step(ids)]
            shared = len(set(order)) if len(order) % len(set(order)) == 0 else len(order)
            assert {len(array) for array in decoder._held.values()} == {shared}
            decoder.select(np.arange(len(order))[::-1].copy())  # against the order of the states
            got.append(decoder.step(ids))
            for n, row in enumerate(order):
                alone = session.decoder(states.select([row]))
                alone.step(start[:1])
                np.testing.assert_allclose(got[0][n], alone.step(ids[n : n + 1])[0], atol=1e-5)
                last = len(order) - 1 - n
                np.testing.assert_allclose(got[1][last], alone.step(ids[last : last + 1])[0], atol=1e-5)


def test_a_cache_follows_the_beams(tiny: Tiny) -> None:
    """Prompts of different lengths together, on a decoder with a cache of its own, as each alone in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from isoform.reference.model import open_model
    from isoform.runtimes.backends.torch.session import TorchSession

    folder = tiny("qwen2_b")
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "eos_token_id": list(range(0, 300, 11))}
    prompts = [[5, 17, 33, 80, 3, 4], [61, 2], [7, 7, 7]]
    with TorchSession(open_model(folder, "text-generation")) as session:
        rows = generate(session, prompts, resolve({"do_sample": False, **options}, model_settings(folder)))
    for row in rows:
        wanted = theirs.generate(torch.tensor([row.prompt]), do_sample=False, **options)[0].tolist()
        assert row.prompt + row.made == wanted[: len(row.prompt) + len(row.made)]


def test_beams_may_be_sampled(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny("llama_b"), attn_implementation="eager")
    options = {"num_beams": 3, "do_sample": True, "max_new_tokens": 6, "seed": 3, "num_return_sequences": 2}
    made = [[row.made for row in generate(Recomputed(theirs), [[5, 6]], resolve(options))] for _ in range(2)]
    assert made[0] == made[1]
    assert made[0][0] != made[0][1]
    other = generate(Recomputed(theirs), [[5, 6]], resolve({**options, "seed": 4}))
    assert [row.made for row in other] != made[0]
