"""Diverse beams, constrained beams and contrastive search: the ids and scores of the last transformers with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import pipeline
from isoform.errors import InputError
from isoform.reference.model import open_model
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from isoform.runtimes.backends.torch.session import TorchSession
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.generation.settings import model_settings, resolve
from isoform.runtimes.session import DeepDecoder
from tests import exports
from tests.oracle.search_goldens import CASES, COMMON, FILE, PROMPTS, fingerprint
from tests.runtimes.generation.test_beams import Recomputed
from tests.runtimes.generation.test_loop import Scripted

Tiny = Callable[[str], Path]
GOLDENS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["models"]
CASES_OF = [(mode, n) for mode, cases in CASES.items() for n in range(len(cases))]


class RecomputedDeep(Recomputed):
    """transformers' model as a decoder that keeps hidden states."""

    def keep_hidden_states(self) -> None:
        self._given["output_hidden_states"] = True

    def step(self, tokens: Any, **options: Any) -> Any:
        import torch

        before = 0 if self._ids is None else self._ids.shape[1]
        self._ids = tokens if self._ids is None else np.concatenate((self._ids, tokens), 1)
        encoder = "encoder_outputs" in self._given
        name = "decoder_input_ids" if encoder else "input_ids"
        with torch.no_grad():
            out = self._model(**{name: torch.from_numpy(self._ids)}, **self._given)
        self._hidden = (out.get("decoder_hidden_states") or out.get("hidden_states") or [None])[-1]
        self._start = before
        return out.logits.numpy()[:, -1]

    def hidden_states(self) -> Any:
        return self._hidden.numpy()[:, self._start :]

    def select(self, rows: Any) -> None:
        assert self._ids is not None
        self._ids = self._ids[rows]
        if (encoded := self._given.get("encoder_outputs")) is not None:
            self._given["encoder_outputs"] = (encoded[0][rows],)


def is_told(row: TextRow, golden: dict[str, Any], n: int, pad: Any, scores: float) -> None:
    """The row is the golden's, which may have padding behind it."""
    ids = golden["ids"][n]
    assert row.made == ids[: len(row.made)]
    assert set(ids[len(row.made) :]) <= {pad}
    if "scores" in golden:
        assert row.score == pytest.approx(golden["scores"][n], rel=scores, abs=2e-6)  # the goldens have six decimals
    if "terms" in golden:
        np.testing.assert_allclose(row.chances, golden["terms"][n][: len(row.made)], rtol=10 * scores, atol=2e-5)


def compare(rows: list[TextRow], goldens: list[dict[str, Any]], settings: Any, *, scores: float = 1e-5) -> None:
    """Every text of every prompt; `scores` is the tolerance of theirs, of their size."""
    count = settings.num_return_sequences
    assert len(rows) == count * len(goldens)
    pad = settings.pad_token_id if settings.pad_token_id is not None else (settings.eos_token_id or (0,))[0]
    for n, row in enumerate(rows):
        is_told(row, goldens[n // count], n % count, pad, scores)


@contextmanager
def opened(folder: Path) -> Iterator[TorchSession]:
    with TorchSession(open_model(folder, "text-generation")) as session:
        yield session


@pytest.mark.parametrize("name", ["llama_b", "gpt2", pytest.param("qwen2_b", marks=pytest.mark.nightly)])
def test_decoders_give_the_texts_that_transformers_gave(name: str, tiny: Tiny) -> None:
    assert fingerprint(tiny(name)) == GOLDENS[name]["weights"], "the tiny checkpoint is another; renew the goldens"
    with opened(tiny(name)) as session:
        for mode, n in CASES_OF:
            settings = resolve({**COMMON, **CASES[mode][n]}, model_settings(tiny(name)))
            assert settings.mode == mode
            rows = generate(session, PROMPTS, settings, keep_chances=True)  # prompts of two lengths, together
            compare(rows, GOLDENS[name][mode][n], settings)
            for row in rows if settings.num_beams > 1 else ():
                length = len(row.made) ** settings.length_penalty
                assert row.score == pytest.approx(sum(row.terms) / length, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama_b", "f32"),
        ("gpt2", "f32"),
        *(pytest.param("llama_b", t, marks=pytest.mark.nightly) for t in ("int8", "f16")),
    ],
)
def test_onnx_runtime_gives_hidden_states(name: str, dtype: str, tiny: Tiny) -> None:
    """Those of torch, and with them the same texts by contrast, where the numbers are float32."""
    file = exports.file_of(exports.exported(name, ("onnx",), dtype), "onnx", dtype)
    ids = np.array([[5, 17, 33, 80], [61, 2, 9, 44]])
    with opened(tiny(name)) as torch_session, OnnxRuntimeSession(file) as session:
        hidden = []
        for decoder in (torch_session.decoder(2), session.decoder(2)):
            assert isinstance(decoder, DeepDecoder)
            decoder.keep_hidden_states()
            decoder.step(ids, mask=np.array([[1, 1, 1, 1], [0, 1, 1, 1]]))
            first = decoder.hidden_states()
            assert first.shape[:2] == (2, 4)
            decoder.select(np.array([1, 0, 0]))
            decoder.step(np.array([[7], [8], [9]]))
            hidden.append((first[0], first[1, 1:], decoder.hidden_states()))
        for ours, theirs in zip(hidden[1], hidden[0], strict=True):
            most = {"f32": 1e-5, "f16": 5e-3, "int8": 0.1}[dtype]  # of the largest: rounding, of 11 bits, of 8 bits
            assert np.abs(ours - theirs).max() <= most * np.abs(theirs).max()
        for n, options in enumerate(CASES["contrastive"] if dtype == "f32" else ()):
            settings = resolve({**COMMON, **options}, model_settings(tiny(name)))
            rows = generate(session, PROMPTS, settings, keep_chances=True)
            compare(rows, GOLDENS[name]["contrastive"][n], settings)


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.nightly)])
def test_encoder_decoders_give_the_texts_that_transformers_gave(name: str, tiny: Tiny) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    assert fingerprint(tiny(name)) == GOLDENS[name]["weights"], "the tiny checkpoint is another; renew the goldens"
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny(name), attn_implementation="eager").eval()
    start = model.generation_config.decoder_start_token_id
    for mode, n in CASES_OF:
        settings = resolve({**COMMON, **CASES[mode][n]}, model_settings(tiny(name)))
        rows = []
        for prompt in PROMPTS:
            with torch.no_grad():
                encoded = (model.get_encoder()(torch.tensor([prompt])).last_hidden_state,)
            decoder: Any = RecomputedDeep(model, encoder_outputs=encoded)
            rows += generate(decoder, [[start]], settings, keep_chances=True)
        compare(rows, GOLDENS[name][mode][n], settings)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "pass num_beams=4"),
    ({"num_beams": 4, "num_beam_groups": 2}, "without a diversity_penalty"),
    ({"num_beams": 4, "diversity_penalty": 1.0}, "pass num_beam_groups=2"),
    ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beams=1; pass num_beams"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": -1.0}, "less than 0"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "do_sample=False"),
    ({"force_words_ids": [[5]]}, "num_beams=1; pass num_beams=2"),
    ({"force_words_ids": [[5]], "num_beams": 2, "do_sample": True}, "do_sample=False"),
    ({"constraints": [[5]], "num_beams": 2, "num_beam_groups": 2}, "constraints and num_beam_groups=2 exclude"),
    ({"force_words_ids": [5], "num_beams": 2}, r"force_words_ids=\[5\] is not a value"),
    ({"force_words_ids": [[]], "num_beams": 2}, r"force_words_ids=\[\[\]\] is not a value"),
    ({"force_words_ids": [[[5, 6], [5, 6, 7]]], "num_beams": 2}, "is not a value"),
    ({"force_words_ids": [[[5, 6], 7]], "num_beams": 2}, "is not a value"),
    (
        {"force_words_ids": [[5, 6], [7, 8, 9]], "num_beams": 2, "max_new_tokens": 4},
        "5 tokens, and the text may have 4",
    ),
    ({"force_words_ids": [[700]], "num_beams": 2}, "token 700 must be in the text"),
    ({"penalty_alpha": 0.6, "num_beams": 2}, "no beams; pass num_beams=1"),
    ({"penalty_alpha": 0.6, "do_sample": True}, "does not sample"),
    ({"penalty_alpha": 0.6, "guidance_scale": 1.5}, "guidance_scale=1.5 mixes"),
    ({"penalty_alpha": 0.6, "top_k": 1}, "top_k=1 leaves one"),
    ({"penalty_alpha": 1.6, "top_k": 4}, "between 0 and 1"),
    ({"penalty_alpha": 0.6, "top_k": 4, "num_return_sequences": 2}, "would all be the same"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "compares hidden states, and this form of the model does not"),
    ({"watermarking_config": {}}, "a watermark is hidden"),
    ({"dola_layers": "low"}, "DoLa"),
    ({"custom_generate": "x"}, "code from the Hub"),
]


@pytest.mark.parametrize(
    ("options", "message"), CONTRADICTIONS, ids=lambda o: "-".join(o) if isinstance(o, dict) else ""
)
def test_settings_that_exclude_each_other_are_told_so_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate(Scripted(3).decoder(1), [[1]], resolve(options))
    assert "\n" not in str(caught.value)


def test_constraints_are_plain_data_or_objects_of_transformers() -> None:
    class PhrasalConstraint:
        token_ids = (5, 6)

    class DisjunctiveConstraint:
        token_ids = ([5, 6], [7])

    plain = resolve({"constraints": [[5, 6], [[5, 6], [7]]], "force_words_ids": [[8]], "num_beams": 2})
    given = resolve({"constraints": [PhrasalConstraint(), DisjunctiveConstraint()], "num_beams": 2})
    assert plain.words == (((5, 6),), ((5, 6), (7,)), ((8,),))
    assert given.words == plain.words[:2]
    with pytest.raises(InputError, match="constraints="):
        resolve({"constraints": [object()], "num_beams": 2})


def test_words_that_the_prompt_holds_need_no_room() -> None:
    settings = resolve({"force_words_ids": [[5, 6], [7, 8]], "num_beams": 2, "max_new_tokens": 1})
    (row,) = generate(Scripted(3).decoder(1), [[5, 6, 7]], settings)
    assert row.made == [8]


def test_a_cache_that_is_computed_anew_gives_no_hidden_states(tiny: Tiny) -> None:
    message = "change when a text outgrows its first length"
    with (
        pipeline("text-generation", tiny("phi3_longrope"), do_sample=False) as pipe,
        pytest.raises(InputError, match=message),
    ):
        pipe("the cat", penalty_alpha=0.6, top_k=4)
