"""Logits and hidden states of llama.cpp against transformers, on GGUF files that llama.cpp's own converter wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.runtimes.backends.llamacpp import session as session_module
from isoform.runtimes.backends.llamacpp.session import LlamaCppSession
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import resolve
from isoform.runtimes.session import Decoder, Session
from isoform.signature import BATCH, LENGTH, Port, Signature, decoder_signature
from tests.oracle.convert_gguf import oracle_convert

STRICT = 2e-5  # of the logits' spread: float32 on both sides, summed in another order
GELU = 5e-3  # of the spread: llama.cpp looks the tanh form of GELU up in a table of half-precision floats
DEFAULT = 5e-2  # of the spread: half-precision cache, and flash attention in half precision
CACHED = 1e-5  # of the spread: llama.cpp against itself, with other shapes of matrix products

DECODERS = {"llama": STRICT, "llama3_instruct_b": STRICT, "qwen2": STRICT, "qwen3_b": STRICT, "gemma2": GELU}

Arrays = dict[str, NDArray[np.int64]]


@pytest.fixture(scope="session")
def gguf(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("gguf")

    def convert(name: str) -> Path:
        out = folder / f"{name}.gguf"
        return out if out.exists() else oracle_convert(tiny(name), out, sentencepiece=name.startswith("gemma"))

    return convert


def load(folder: Path, kind: str) -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()


def signature_of(config: Any) -> Signature:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return decoder_signature(config.num_hidden_layers, config.num_key_value_heads, head, config.vocab_size)


def batch(vocab: int, lengths: list[int], side: str, seed: int = 0) -> Arrays:
    """Rows of random tokens, padded on one side."""
    total = max(lengths)
    mask = np.zeros((len(lengths), total), np.int64)
    for row, length in enumerate(lengths):
        mask[row, total - length :] = 1
    if side == "right":
        mask = mask[:, ::-1].copy()
    ids = np.random.default_rng(seed).integers(5, vocab, mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}


def gap(got: NDArray[Any], want: NDArray[Any], mask: NDArray[Any]) -> float:
    """The largest difference at a real token, in units of the reference's standard deviation."""
    assert got.dtype == np.float32
    assert got.shape == want.shape
    return float(np.abs(got - want)[mask != 0].max() / want[mask != 0].std())


@pytest.fixture(scope="module")
def opened(gguf: Callable[[str], Path], tiny: Callable[[str], Path]) -> Iterator[Callable[[str], LlamaCppSession]]:
    """A strict session of a tiny decoder, opened once."""
    from transformers import AutoConfig

    sessions: dict[str, LlamaCppSession] = {}

    def get(name: str) -> LlamaCppSession:
        if name not in sessions:
            signature = signature_of(AutoConfig.from_pretrained(tiny(name)))
            sessions[name] = LlamaCppSession(gguf(name), signature, strict=True)
        return sessions[name]

    yield get
    for session in sessions.values():
        session.close()


def step(decoder: Decoder, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return decoder.step(inputs["input_ids"], mask=inputs["attention_mask"], positions=inputs["position_ids"])


def steps(decoder: Decoder, inputs: Arrays, sizes: list[int]) -> NDArray[np.float32]:
    """The logits of all positions, by steps of these sizes."""
    out, past = [], 0
    for size in sizes:
        now = slice(past, past + size)
        ids, positions = inputs["input_ids"][:, now], inputs["position_ids"][:, now]
        out.append(decoder.step(ids, mask=inputs["attention_mask"][:, now], positions=positions, last=None))
        past += size
    return np.concatenate(out, 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_strict_logits_equal_transformers(
    name: str, side: str, tiny: Callable[[str], Path], opened: Callable[[str], LlamaCppSession]
) -> None:
    model = load(tiny(name), "AutoModelForCausalLM")
    inputs = batch(model.config.vocab_size, [19, 1, 7], side)
    with torch.no_grad():
        want = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    got = opened(name).run(inputs)
    assert set(got) == {"logits"}
    assert gap(got["logits"], want, inputs["attention_mask"]) < DECODERS[name]


def test_default_settings_stay_near_the_strict_ones(
    gguf: Callable[[str], Path], opened: Callable[[str], LlamaCppSession]
) -> None:
    strict = opened("llama")
    inputs = batch(459, [40], "right")
    with LlamaCppSession(gguf("llama"), strict.signature) as session:
        got = session.run(inputs)["logits"]
    difference = gap(got, strict.run(inputs)["logits"], inputs["attention_mask"])
    assert 1e-5 < difference < DEFAULT  # below, `strict` would make no difference


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_cached_decoding_equals_one_pass(name: str, opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [30, 11, 28], "left")
    session: Session = opened(name)
    want = session.run(inputs)["logits"]
    got = steps(session.decoder(3), inputs, [17, 1, 1, 1, 4, 6])
    assert gap(got, want, inputs["attention_mask"]) < (CACHED if name == "llama" else GELU)


def test_padding_between_steps_is_skipped(opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [20, 12], "right")  # row 1 pauses after its 12 tokens
    session = opened("llama")
    got = steps(session.decoder(2), inputs, [10, 5, 1, 1, 1, 2])
    assert gap(got, session.run(inputs)["logits"], inputs["attention_mask"]) < CACHED
    assert not got[1, 12:].any()


def test_a_decoder_outgrows_its_first_cache(opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [1100, 700], "left")
    session = opened("llama")
    got = steps(session.decoder(2), inputs, [500, 1, 20, 1, 570, 8])
    assert gap(got, session.run(inputs)["logits"], inputs["attention_mask"]) < CACHED


def test_a_step_gives_the_last_logits_only(opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [9, 5], "left")
    session = opened("llama")
    got = step(session.decoder(2), inputs)
    assert got.shape == (2, 459)
    assert np.abs(got - session.run(inputs)["logits"][:, -1]).max() < 1e-5


def test_tokens_alone_go_on_where_the_step_before_has_ended(opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [12, 9], "left")
    ids, mask, positions = (inputs[name] for name in ("input_ids", "attention_mask", "position_ids"))
    decoder = opened("llama").decoder(2)
    want = steps(decoder, inputs, [8, 1, 1, 2])[:, 8:]
    decoder = opened("llama").decoder(2)
    decoder.step(ids[:, :8], mask=mask[:, :8], positions=positions[:, :8])
    got = [decoder.step(ids[:, n : n + size], last=None) for n, size in ((8, 1), (9, 1), (10, 2))]
    np.testing.assert_array_equal(np.concatenate(got, 1), want)
    whole = {"input_ids": ids, "attention_mask": np.ones_like(mask), "position_ids": np.arange(12) + 0 * ids}
    first = opened("llama").decoder(2).step(ids)
    assert np.abs(first - opened("llama").run(whole)["logits"][:, -1]).max() < 1e-4


def test_a_row_that_fills_the_context_leaves_the_others_going_on(opened: Callable[[str], LlamaCppSession]) -> None:
    prompts, settings = [[5, 6, 7, 8, 9, 10], [11, 12]], resolve({"max_new_tokens": 9})
    together = generate(opened("llama"), prompts, settings, context=8)
    alone = [generate(opened("llama"), [prompt], settings, context=8)[0] for prompt in prompts]
    assert [(row.made, row.reason) for row in together] == [(row.made, row.reason) for row in alone]
    assert [len(row.made) for row in together] == [3, 7]


def test_a_run_leaves_the_decoder_alone(opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [12, 12], "left")
    session = opened("llama")
    want = session.run(inputs)["logits"]
    decoder = session.decoder(2)
    first = steps(decoder, inputs, [8])
    session.run(batch(450, [30], "left", seed=1))
    then = decoder.step(inputs["input_ids"][:, 8:], positions=inputs["position_ids"][:, 8:])
    assert gap(first, want[:, :8], np.ones((2, 8))) < CACHED
    assert np.abs(then - want[:, -1]).max() < 1e-4


def test_small_calls_give_what_one_large_call_gives(
    opened: Callable[[str], LlamaCppSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(450, [33, 20, 1, 64, 2], "left")
    session = opened("llama")
    want = session.run(inputs)["logits"]
    for name, value in {"GROUP": 3, "ROWS": 2, "LOGITS": 459 * 5, "BATCH": 512}.items():
        monkeypatch.setattr(session_module, name, value)
    assert gap(session.run(inputs)["logits"], want, inputs["attention_mask"]) < CACHED
    assert gap(steps(session.decoder(5), inputs, [60, 4]), want, inputs["attention_mask"]) < CACHED


def test_rows_without_a_token_give_zeros(opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = batch(450, [4, 0, 2], "right")
    got = opened("llama").run(inputs)["logits"]
    assert got.shape == (3, 4, 459)
    assert not got[1].any()
    empty = {key: value[:0] for key, value in inputs.items()}
    assert opened("llama").run(empty)["logits"].shape == (0, 4, 459)


# ------------------------------------------------------------------ encoders


def encoder_signature(width: int) -> Signature:
    axes = (BATCH, LENGTH)
    ports = (Port(name, "int64", axes) for name in ("input_ids", "attention_mask", "token_type_ids"))
    return Signature(tuple(ports), (Port("last_hidden_state", "float", (*axes, width)),))


@pytest.fixture(scope="module")
def encoder(gguf: Callable[[str], Path]) -> Iterator[LlamaCppSession]:
    with LlamaCppSession(gguf("bert"), encoder_signature(48), strict=True) as session:
        yield session


def encoder_batch(lengths: list[int], side: str) -> Arrays:
    inputs = batch(500, lengths, side)
    del inputs["position_ids"]
    return {**inputs, "token_type_ids": np.zeros_like(inputs["input_ids"])}


@pytest.mark.parametrize("lengths", [[1], [7, 3, 5], [512, 100], [20] * 100], ids=["one", "three", "long", "hundred"])
def test_hidden_states_equal_transformers(
    lengths: list[int], tiny: Callable[[str], Path], encoder: LlamaCppSession
) -> None:
    inputs = encoder_batch(lengths, "right")
    model = load(tiny("bert"), "AutoModel")
    with torch.no_grad():
        want = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).last_hidden_state.numpy()
    got = encoder.run(inputs)
    assert set(got) == {"last_hidden_state"}
    assert gap(got["last_hidden_state"], want, inputs["attention_mask"]) < GELU


def test_left_padding_of_an_encoder_changes_nothing(encoder: LlamaCppSession) -> None:
    inputs = encoder_batch([9, 4], "left")
    alone = {key: value[1:, 5:] for key, value in inputs.items()}
    got = encoder.run(inputs)["last_hidden_state"][1:, 5:]
    assert gap(got, encoder.run(alone)["last_hidden_state"], np.ones((1, 4))) < GELU


def test_a_second_segment_is_refused(encoder: LlamaCppSession) -> None:
    inputs = encoder_batch([4], "right")
    inputs["token_type_ids"][0, 2:] = 1
    with pytest.raises(InputError, match="first token type"):
        encoder.run(inputs)


def test_a_row_beyond_the_learned_positions_is_refused(encoder: LlamaCppSession) -> None:
    with pytest.raises(InputError, match="512 positions"):
        encoder.run(encoder_batch([513], "right"))


def test_an_encoder_does_not_decode(encoder: LlamaCppSession) -> None:
    with pytest.raises(InputError, match="decodes nothing"):
        encoder.decoder(1)


# ------------------------------------------------------------------ requests that make no sense


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "input_ids missing"),
        ({"position_ids": None}, "position_ids missing"),
        ({"pixel_values": np.zeros((1, 3))}, "pixel_values unknown"),
        ({"past_key_values.0.key": np.zeros((1, 2, 3, 8))}, "not empty"),
        ({"input_ids": np.array([[1.0, 2.0, 3.0]])}, "float64"),
        ({"input_ids": np.array([1, 2, 3])}, r"shape \(3,\)"),
        ({"attention_mask": np.ones((1, 4), np.int64)}, r"shape \(1, 4\)"),
        ({"input_ids": np.array([[1, 2, 459]])}, "token id 459"),
        ({"input_ids": np.array([[1, -2, 3]])}, "token id -2"),
        ({"position_ids": np.array([[0, 1, 5]])}, "from 1 to 5"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str, opened: Callable[[str], LlamaCppSession]) -> None:
    inputs = {key: value for key, value in {**batch(450, [3], "left"), **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        opened("llama").run(inputs)


def test_an_empty_past_is_fine(opened: Callable[[str], LlamaCppSession]) -> None:
    past: dict[str, Any] = {
        f"past_key_values.{n}.{kind}": np.zeros((1, 2, 0, 8), np.float32)
        for n in (0, 1, 2)
        for kind in ("key", "value")
    }
    assert opened("llama").run({**batch(450, [3], "left"), **past})["logits"].shape == (1, 3, 459)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": np.array([[1, 1, 1, 1]])}, r"the mask has shape \(1, 4\), not \(1, 1\)"),
        ({"position_ids": np.array([[4]])}, "go on at 4, but its next one is 3"),
        ({"input_ids": np.zeros((2, 1), np.int64)}, r"takes \(1, T\)"),
        ({"input_ids": np.zeros((1, 0), np.int64)}, "at least 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_a_step_that_does_not_follow_is_refused(
    change: dict[str, Any], message: str, opened: Callable[[str], LlamaCppSession]
) -> None:
    decoder = opened("llama").decoder(1)
    step(decoder, batch(450, [3], "left"))
    following = {
        "input_ids": np.array([[7]]),
        "attention_mask": np.ones((1, 1), np.int64),
        "position_ids": np.array([[3]]),
    }
    with pytest.raises(InputError, match=message):
        step(decoder, {**following, **change})
    assert step(decoder, following).shape == (1, 459)


def test_decoders_that_are_gone_leave_their_sequences_to_the_next(opened: Callable[[str], LlamaCppSession]) -> None:
    session = opened("llama")
    inputs = batch(450, [3], "left")
    want = step(session.decoder(1), inputs)
    old = session.decoder(3)
    old.step(np.full((3, 9), 7))
    new = session.decoder(1)
    assert session.sequences.sizes() == {0: 9, 1: 9, 2: 9, 3: 0}
    assert np.abs(step(new, inputs) - want).max() < CACHED, "it begins with an empty cache"
    del old
    assert session.sequences.sizes() == {3: 3}
    assert np.abs(step(session.decoder(2), batch(450, [3, 3], "left"))[0] - want).max() < CACHED


@pytest.mark.parametrize("rows", [0, 257])
def test_a_batch_that_llamacpp_cannot_hold_is_refused(rows: int, opened: Callable[[str], LlamaCppSession]) -> None:
    with pytest.raises(InputError, match="256"):
        opened("llama").decoder(rows)


def test_a_file_of_another_model_is_refused(gguf: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match="size 459, its manifest says 460"):
        LlamaCppSession(gguf("llama"), decoder_signature(3, 2, 8, 460))


def test_outputs_that_llamacpp_lacks_are_refused(gguf: Callable[[str], Path]) -> None:
    signature = Signature(encoder_signature(48).inputs, (Port("logits", "float", (BATCH, LENGTH, 500)),))
    with pytest.raises(BackendUnavailable, match="not logits; use the onnxruntime or torch backend"):
        LlamaCppSession(gguf("bert"), signature)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_refused(device: str, gguf: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="cpu, cuda"):
        LlamaCppSession(gguf("llama"), decoder_signature(3, 2, 8, 459), device=device)
