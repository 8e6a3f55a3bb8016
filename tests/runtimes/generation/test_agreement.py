"""Every mode of generation on every backend gives transformers' texts, or is refused by name.

Texts are compared token for token; where they are drawn, the log-probabilities of the tokens with those of
transformers' logits and processors. The gate runs a sample, the nightly tests all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from isoform.errors import InputError
from isoform.manifest import Manifest
from isoform.reference.classes import class_facts
from isoform.runtimes.generation.draft import DraftModel
from isoform.runtimes.generation.grammar import Grammar, Vocabulary
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.processors import log_softmax
from isoform.runtimes.generation.settings import model_settings, resolve
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests import oracle
from tests.exports import exported
from tests.oracle.search_goldens import CASES, COMMON, FILE, PROMPTS
from tests.runtimes.generation.agreement import (
    BACKENDS,
    FAMILIES,
    GATE,
    LANGUAGE,
    MODES,
    READERS,
    refusal,
    renewed,
    runs,
)
from tests.runtimes.generation.test_grammar import bytes_of
from tests.runtimes.generation.test_loop import processed_by_transformers
from tests.runtimes.generation.test_searches import compare
from tests.runtimes.open_sessions import close_all, opened

GOLDENS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["models"]
FORMS = 2e-4  # of a log-probability: float32 sums in other orders, through some layers
HALVES = 5e-3  # llama.cpp's GELU is a table in half precision
ALL = [(name, mode, backend) for name in FAMILIES.values() for mode in MODES for backend in BACKENDS]


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    close_all()


@cache
def theirs(name: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if name in READERS else AutoModelForCausalLM
    return kind.from_pretrained(oracle.tiny(name), attn_implementation="eager").eval()


def made(name: str, mode: str, backend: str) -> tuple[Any, list[Any]]:
    """The settings of a mode and the rows that it gives, of all prompts together."""
    session = opened(name, backend)
    settings = resolve({**COMMON, **MODES[mode]}, model_settings(oracle.tiny(name)))
    options: dict[str, Any] = {"keep_chances": True}
    if mode == "grammar":
        regex = "".join(f"[{letters}]" for letters in LANGUAGE)
        tokenizer = TextTokenizer(oracle.tiny(name), class_facts(oracle.tiny(name)))
        vocabulary = Vocabulary(tokenizer.backend, None, settings.eos_token_id or ())
        options["grammar"] = Grammar(
            json.dumps({"grammars": [{"lark_grammar": f"start: /{regex}/"}]}), vocabulary, "regex"
        )
    if name not in READERS:
        if mode == "assistant":  # which knows the answer
            options["assistant"] = DraftModel(lambda rows: session.decoder(len(rows)))
        return settings, generate(session, PROMPTS, settings, **options)
    width = max(map(len, PROMPTS))
    ids, mask = np.zeros((2, len(PROMPTS), width), np.int64)
    for n, prompt in enumerate(PROMPTS):
        ids[n, : len(prompt)], mask[n, : len(prompt)] = prompt, 1
    ports = {port.role: port.name for port in session.part(session.taking("tokens")).signature.inputs}
    encoded = session.encode({ports["tokens"]: ids, ports["mask"]: mask})
    if mode == "assistant":
        options["assistant"] = DraftModel(lambda rows: session.decoder(encoded.select(np.array(rows))))
    start: Any = [settings.decoder_start_token_id]
    rows = generate(session.decoder(encoded), [start] * len(PROMPTS), settings, sources=PROMPTS, **options)
    return settings, rows


@cache
def pieces(name: str) -> list[bytes]:
    """What every token of a model writes, nothing where it is a sign of its own."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(oracle.tiny(name))
    if name in ("gpt2", "bart"):
        written = bytes_of(tokenizer)
    else:
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        written = [
            bytes([int(token[3:5], 16)]) if re.fullmatch("<0x..>", token) else token.replace("\u2581", " ").encode()
            for token in tokens
        ]
    return [b"" if n in tokenizer.all_special_ids else piece for n, piece in enumerate(written)]


def allowed(name: str, begin: int) -> Callable[[int, Any], list[int]]:
    """transformers' `prefix_allowed_tokens_fn` of the language of the grammar, for what follows `begin` tokens."""
    ends = theirs(name).generation_config.eos_token_id

    def follows(text: bytes) -> bool:
        return len(text) <= len(LANGUAGE) and all(chr(b) in some for b, some in zip(text, LANGUAGE, strict=False))

    def tokens(row: int, ids: Any) -> list[int]:
        made = b"".join(pieces(name)[n] for n in ids[begin:].tolist())
        found = [n for n, piece in enumerate(pieces(name)) if piece and follows(made + piece)]
        return found or [ends[0] if isinstance(ends, list) else ends]

    return tokens


def likely(name: str, prompt: list[int], row: Any, options: dict[str, Any]) -> list[float]:
    """The log-probabilities of a row's new tokens by transformers' logits and processors."""
    import torch

    before = len(row.prompt)
    ids = np.array([*row.prompt, *row.made])
    given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.from_numpy(ids[None])}
    with torch.no_grad():
        out = theirs(name)(**given) if name in READERS else theirs(name)(torch.from_numpy(ids[None]))
    logits, beams, found = out.logits[0].numpy(), options["num_beams"] > 1, []
    for n, token in enumerate(row.made):
        so_far = ids[: before + n]
        given = logits[len(so_far) - 1]
        scores = processed_by_transformers(
            theirs(name).generation_config, options, before, so_far, log_softmax(given) if beams else given
        )
        found.append(float(scores[token] if beams else log_softmax(scores)[token]))
    return found


def test_the_page_has_the_table_of_these_tests() -> None:
    page = (oracle.ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    assert page == renewed(page), "run python -m tests.runtimes.generation.agreement docs/generation.md"
    for name in FAMILIES.values():
        forms = {artifact.format for artifact in Manifest.read(exported(name)).artifacts}
        assert ("gguf" in forms) is runs(name, "llamacpp")


@pytest.mark.parametrize(
    ("name", "mode", "backend"),
    [
        case if case in GATE else pytest.param(*case, marks=pytest.mark.nightly)
        for case in ALL
        if runs(case[0], case[2])
    ],
)
def test_a_mode_gives_the_texts_of_transformers_or_is_refused(name: str, mode: str, backend: str) -> None:
    import torch

    if (message := refusal(name, mode, backend)) is not None:
        with pytest.raises(InputError, match=message):
            made(name, mode, backend)
        return
    settings, rows = made(name, mode, backend)
    off = HALVES if backend == "llamacpp" else FORMS
    if mode in CASES:
        golden = GOLDENS[name][mode][CASES[mode].index(MODES[mode])]
        compare(rows, golden, settings, scores=off)
        return
    asked = {**COMMON, **MODES[mode]}
    for n, row in enumerate(rows):
        prompt = PROMPTS[n // settings.num_return_sequences]
        if settings.do_sample:
            np.testing.assert_allclose(row.terms or row.chances, likely(name, prompt, row, asked), atol=off)
            continue
        plain = {key: value for key, value in asked.items() if "assistant" not in key and "lookup" not in key}
        if mode == "grammar":
            forced = theirs(name).generation_config.forced_bos_token_id is not None
            plain["prefix_allowed_tokens_fn"] = allowed(name, 1 + forced if name in READERS else len(prompt))
            assert len(row.made) > 3
        out = theirs(name).generate(torch.tensor([prompt]), **plain)[n % settings.num_return_sequences].tolist()
        ids = out[1:] if name in READERS else out[len(prompt) :]
        assert row.made == ids[: len(row.made)]
        assert len(set(ids[len(row.made) :])) < 2, "nothing but padding behind it"
