"""T5's encoder and decoder compute what the Hub's own code computes, by parts, padded on either side, step by step."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.model import Model, open_model
from isoform.reference.modules.relative import DistanceTable, one_sided_buckets, two_sided_buckets
from isoform.validators.tools.forecast import float16
from tests.oracle import SEQUENCE_TO_SEQUENCE, tiny

NAMES = SEQUENCE_TO_SEQUENCE["t5"]
ORDER = 1e-5  # of the largest value: float32 sums of some hundred terms through up to seven layers, in another order
HALF = 1e-2  # of the largest value: 11-bit mantissa


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def theirs(path: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()


def golden(name: str) -> dict[str, Tensor]:
    return load_file(tiny(name) / "golden.safetensors")


def part(opened: Model, which: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return next(part for part in opened.parts if part.part == which).module(dtype)


def same(found: Tensor, expected: Tensor, allowed: float = ORDER) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= allowed * float(expected.abs().max())


def copied(name: str, to: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A changed copy of a tiny checkpoint; `__` in a tensor's name stands for a dot."""
    shutil.copytree(tiny(name), to, ignore=shutil.ignore_patterns("golden.safetensors"))
    if config:
        path = to / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if tensors:
        old = load_file(to / "model.safetensors")
        changed = {key.replace("__", "."): tensor.clone() for key, tensor in tensors.items()}
        save_file({**old, **changed}, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("name", NAMES)
def test_encoder_and_logits_are_the_hubs(name: str) -> None:
    known, opened = golden(name), model(name)
    ids, mask, before = (known[f"in.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids"))
    states = part(opened, "encoder")(ids, mask)[0]
    same(states, known["out.encoder_last_hidden_state"])
    logits = part(opened, "decoder")(before, mask, states)[0]
    same(logits, known["out.logits"])
    assert torch.equal(opened.module()(ids, mask, before)[0], logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_long_padded_texts_decode_step_by_step_as_in_transformers(name: str, side: str) -> None:
    """Beyond the farthest distance on both sides; the encoder's padding hides nothing and shifts nothing."""
    vocabulary = model(name).config.vocab_size  # type: ignore[attr-defined]
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (2, 150), generator=random)
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    if side == "right":
        mask = mask.flip(1)
    before = torch.randint(3, vocabulary, (2, 140), generator=random)
    with torch.no_grad():
        known = theirs(tiny(name))(input_ids=ids, attention_mask=mask, decoder_input_ids=before)
        states = part(model(name), "encoder")(ids, mask)[0]
        decoder = part(model(name), "decoder")
        found, past = [], ()
        for start, stop in ((0, 5), (5, 6), (6, 130), (130, 131), (131, 140)):
            cache = (*past, torch.tensor([bool(past)])) if past else ()
            logits, *present = decoder(before[:, start:stop], mask, states, *cache)
            past = tuple(
                old if n % 4 > 1 else new for n, (old, new) in enumerate(zip(past or present, present, strict=True))
            )
            found.append(logits)
    same(states[mask != 0], known.encoder_last_hidden_state[mask != 0])
    same(torch.cat(found, 1), known.logits)


@pytest.mark.parametrize("count", [4, 8, 32])
@pytest.mark.parametrize("farthest", [20, 128])
def test_buckets_of_both_sides_are_those_of_transformers(count: int, farthest: int) -> None:
    distances = torch.arange(300).unsqueeze(0) - torch.arange(200, 300).unsqueeze(1)
    for both, made in ((True, two_sided_buckets), (False, one_sided_buckets)):
        expected = T5Attention._relative_position_bucket(distances, both, count, farthest)
        seen = torch.ones_like(distances) if both else distances <= 0
        found = DistanceTable(made(count, farthest))(100, 200)
        assert torch.equal(found * seen, expected * seen)


@pytest.mark.parametrize(
    ("name", "changes", "copies"),
    [
        ("t5", {}, True),  # the head is there, and the same
        ("t5", {}, False),  # and another one: it is untied, and scaled all the same
        ("t5", {"tie_word_embeddings": False}, None),  # there is none: it is tied, and not scaled
        ("t5", {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}, None),  # never scaled
        ("umt5_b", {"tie_word_embeddings": False}, None),  # always scaled
        ("t5_v1_1", {"dense_act_fn": "relu"}, None),  # what the file states is computed
    ],
)
def test_ties_and_scales_are_those_of_transformers(
    name: str, changes: dict[str, Any], copies: bool | None, tmp_path: Path
) -> None:
    shared = load_file(tiny(name) / "model.safetensors")["shared.weight"]
    head = {} if copies is None else {"lm_head__weight": shared if copies else shared.flip(0)}
    path = copied(name, tmp_path / "m", changes, **head)
    opened = open_model(path)
    ids, before = torch.tensor([[5, 6, 7, 1]]), torch.tensor([[0, 9, 8]])
    with torch.no_grad():
        known = theirs(path)(input_ids=ids, decoder_input_ids=before).logits
        same(opened.module()(ids, torch.ones_like(ids), before)[0], known)


def test_a_table_may_be_stored_under_either_name_and_twice_if_it_is_the_same(tmp_path: Path) -> None:
    tensors = load_file(tiny("t5") / "model.safetensors")
    shared = tensors.pop("shared.weight")
    path = copied("t5", tmp_path / "one")
    save_file({**tensors, "encoder.embed_tokens.weight": shared}, path / "model.safetensors", {"format": "pt"})
    inputs = torch.tensor([[5, 6, 1]]), torch.ones(1, 3, dtype=torch.int64), torch.tensor([[0, 9]])
    assert torch.equal(open_model(path).module()(*inputs)[0], model("t5").module()(*inputs)[0])
    other = copied("t5", tmp_path / "two", decoder__embed_tokens__weight=2 * shared)
    with pytest.raises(CheckpointError, match=r"shared.weight and decoder.embed_tokens.weight differ"):
        assert open_model(other).weights


@pytest.mark.parametrize("name", [*NAMES, "t5_seqcls", "mt5_encoder", "mt5_qa", "umt5_ner"])
def test_saving_gives_the_hubs_tensors_back(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    old, new = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    copies = {f"{side}.embed_tokens.weight" for side in ("encoder", "decoder")}
    assert old.keys() - copies == new.keys()
    assert all(torch.equal(tensor, old[key]) for key, tensor in new.items())


def test_half_precision_survives_states_that_it_cannot_hold(tmp_path: Path) -> None:
    """As large as those of trained models: transformers keeps the MLP's last matrix in float32 for them."""
    tensors = load_file(tiny("t5") / "model.safetensors")
    times = {"wi": 100, "wo": 2000}
    grown = {key: times.get(key.split(".")[-2], 1) * tensor for key, tensor in tensors.items() if "block.0." in key}
    opened = open_model(copied("t5", tmp_path / "m", None, **{key.replace(".", "__"): t for key, t in grown.items()}))
    ids = torch.tensor([[5, 6, 7, 1]])
    mask, before = torch.ones_like(ids), torch.tensor([[0, 9, 8]])
    assert not float16(opened).overflows  # what the definition keeps wide is not looked at
    exact = opened.module()(ids, mask, before)[0]
    half = opened.module(torch.float16)(ids, mask, before)[0]
    assert half.dtype == torch.float16
    same(half.float(), exact, HALF)
    with torch.no_grad():
        known = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "m", dtype=torch.float16).eval()
        other = known(input_ids=ids, decoder_input_ids=before)
        states = known.encoder(input_ids=ids, output_hidden_states=True).hidden_states
    assert max(float(x.abs().max()) for x in states) > 65504
    assert float((half.float() - exact).norm()) <= 1.5 * float((other.logits.float() - exact).norm())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"feed_forward_proj": "double-gelu"}, CheckpointError, "feed_forward_proj is 'double-gelu'"),
        ({"feed_forward_proj": "tanhshrink", "dense_act_fn": None}, UnsupportedModel, "'tanhshrink'"),
        ({"relative_attention_num_buckets": 2}, CheckpointError, "relative_attention_num_buckets is 2"),
        ({"relative_attention_max_distance": 16}, CheckpointError, "relative_attention_max_distance is 16"),
        ({"is_decoder": True}, UnsupportedModel, "is_decoder is true"),
        ({"sliding_window": 4}, UnsupportedModel, "sliding_window = 4"),
    ],
)
def test_configs_that_nothing_computes_are_refused(
    changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    path = copied("t5", tmp_path / "m", changes)
    with pytest.raises(error, match=words):
        open_model(path).module()


def test_a_classifier_needs_an_end_and_a_beginning(tmp_path: Path) -> None:
    for key, value, error in (
        ("eos_token_id", [1, 2], UnsupportedModel),
        ("decoder_start_token_id", None, CheckpointError),
    ):
        path = copied("t5_seqcls", tmp_path / key, {key: value})
        with pytest.raises(error, match=key):
            open_model(path).module()
