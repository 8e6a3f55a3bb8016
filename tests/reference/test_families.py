"""Every family computes what the Hub's own code computes, however its rows are padded, cut or cached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.families import FAMILIES, all_families, family_for, load_family
from isoform.reference.model import Model, open_model
from isoform.reference.rules import Rule
from isoform.reference.weights import find
from isoform.sentence_modules import SENTENCE
from tests.oracle import DECODERS, ENCODERS, SEQUENCE_HEADS, TABLES, TINIES, listed, original, tiny

NAMES = (*ENCODERS, *DECODERS, *listed(TABLES))
LEARNED = ("gpt2", "gpt2_b", "gpt2_unscaled")
"""Decoders with learned positions, whose config.json has one spelling."""


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be off, as a part of the largest magnitude among the expected ones."""

    relative: float
    reason: str

    def check(self, found: Tensor, expected: Tensor) -> None:
        assert found.shape == expected.shape
        worst = float((found.double() - expected.double()).abs().max()) / max(float(expected.abs().max()), 1e-3)
        assert worst <= self.relative, (
            f"off by {worst:.2e} of the largest value; allowed {self.relative} ({self.reason})"
        )


ORDER = Tolerance(1e-5, "float32 sums of some hundred terms through up to seven layers, in another order")


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def module(name: str) -> torch.nn.Module:
    return model(name).module()


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(tiny(name) / "golden.safetensors")


def ids_of(name: str, rows: int, length: int, seed: int = 0) -> Tensor:
    vocabulary: int = model(name).config.vocab_size  # type: ignore[attr-defined]
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def copy_of(name: str, to: Path, config: dict[str, Any] | None = None, **tensors: Tensor) -> Path:
    """A writable copy of a tiny checkpoint; `config` and `tensors` add or replace (`__` stands for a dot)."""
    shutil.copytree(tiny(name), to, ignore=shutil.ignore_patterns("golden.safetensors"))
    if config:
        path = to / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if tensors:
        old = load_file(to / "model.safetensors")
        save_file({**old, **{key.replace("__", "."): t for key, t in tensors.items()}}, to / "model.safetensors")
    return to


# ------------------------------------------------------------------ the Hub's numbers
@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_transformers(name: str) -> None:
    inputs = {key[3:]: value for key, value in golden(name).items() if key.startswith("in.")}
    real = inputs["attention_mask"].bool()
    for port, found in zip(model(name).signature.outputs, module(name)(**inputs), strict=True):
        if port.name.startswith("present.") or port.name == SENTENCE:  # that is sentence-transformers', not theirs
            continue
        expected = golden(name)[f"out.{port.name}"]
        per_token = found.shape[:2] == real.shape
        ORDER.check(*((x[real] for x in (found, expected)) if per_token else (found, expected)))


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_continuations_equal_those_of_transformers(name: str) -> None:
    expected, ids = golden(name)["gen.out"], golden(name)["in.input_ids"]
    past: Sequence[Tensor] = ()
    for _ in range(expected.shape[1] - ids.shape[1]):
        length = past[0].shape[2] if past else 0
        mask = torch.ones_like(ids)
        logits, *past = module(name)(ids[:, length:], mask, None, *past)
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
    assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_the_shapes_of_the_signature(name: str) -> None:
    signature = model(name).signature
    sizes: dict[str, int] = {
        "batch_size": 2,
        "sequence_length": 5,
        "past_sequence_length": 3,
        "total_sequence_length": 8 if signature.states else 5,
    }

    def shape(axes: Sequence[str | int]) -> tuple[int, ...]:
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)

    inputs = [
        torch.ones(shape(port.axes), dtype=torch.int64 if port.dtype == "int64" else torch.float32)
        for port in signature.inputs
    ]
    found = module(name)(*inputs)
    assert [tuple(x.shape) for x in found] == [shape(port.axes) for port in signature.outputs]


@pytest.mark.parametrize("name", ["bert_embed", "gemma3_b", "llama_b", "qwen3_bias"])
def test_bfloat16_is_as_close_to_float32_as_transformers_bfloat16_is(name: str) -> None:
    import transformers

    inputs = {key[3:]: value for key, value in golden(name).items() if key.startswith("in.")}
    real = inputs["attention_mask"].bool()
    kind = getattr(transformers, model(name).checkpoint.config["architectures"][0])
    theirs = kind.from_pretrained(tiny(name), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        theirs = theirs(**inputs)[0].float()[real]
    ours = model(name).module(torch.bfloat16)(**inputs)[0]
    assert ours.dtype == torch.bfloat16
    truth = module(name)(**inputs)[0][real]
    error, allowed = (ours[real].float() - truth).norm(), 1.5 * (theirs - truth).norm()  # they round in other places
    assert 0 < error < allowed


@pytest.mark.parametrize("name", ["bert", "gemma2", "gemma3_b", "llama", "qwen3_b"])
def test_float64_agrees_with_float32(name: str) -> None:
    inputs = {key[3:]: value for key, value in golden(name).items() if key.startswith("in.")}
    real = inputs["attention_mask"].bool()
    wide = model(name).module(torch.float64)(**inputs)[0]
    assert wide.dtype == torch.float64
    ORDER.check(module(name)(**inputs)[0][real], wide[real])


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite_where_a_row_is_padded(name: str) -> None:
    ids = ids_of(name, 2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for dtype in (torch.float16, torch.bfloat16):
        assert bool(model(name).module(dtype)(ids, mask)[0].isfinite().all())


# ------------------------------------------------------------------ laws
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_row(name: str, side: str) -> None:
    lengths = (11, 7, 1)
    ids = ids_of(name, len(lengths), max(lengths))
    mask = torch.zeros_like(ids)
    where = []
    for row, length in enumerate(lengths):
        where.append(slice(ids.shape[1] - length, None) if side == "left" else slice(0, length))
        mask[row, where[-1]] = 1
    together = module(name)(ids, mask)[0]
    for row, cut in enumerate(where):
        alone = module(name)(ids[row : row + 1, cut])[0][0]
        per_token = together.dim() > 1 and together.shape[1] == ids.shape[1]
        ORDER.check(together[row][cut] if per_token else together[row], alone)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_in_chunks_over_a_cache_equals_one_pass(name: str, side: str) -> None:
    ids = ids_of(name, 2, 13)
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :5] = 0
    if side == "right":
        mask[1, 3:6] = 0  # a prompt padded on the right, then continued: a hole
    run, parts, at = module(name), [], 0
    past: Sequence[Tensor] = ()
    whole, *cache_of_whole = run(ids, mask)
    for size in (6, 1, 1, 3, 2):
        step = slice(at, at + size)
        logits, *past = run(ids[:, step], mask[:, : at + size], None, *past)
        parts.append(logits)
        at += size
    real = mask.bool()
    ORDER.check(torch.cat(parts, 1)[real], whole[real])
    for chunked, full in zip(past, cache_of_whole, strict=True):
        ORDER.check(chunked.transpose(1, 2)[real], full.transpose(1, 2)[real])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["gemma2_b", "gemma3_b", "llama_b", "mistral_b", "qwen2_window"]),
    masks=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=3),
    cut=st.integers(1, 7),
)
def test_any_mask_gives_each_row_what_its_real_tokens_give_alone(name: str, masks: list[list[bool]], cut: int) -> None:
    mask = torch.tensor(masks).long()
    mask[:, -1] = 1
    ids = ids_of(name, len(masks), 8)
    run = module(name)
    first, *past = run(ids[:, :cut], mask[:, :cut])
    second = run(ids[:, cut:], mask, None, *past)[0]
    found = torch.cat((first, second), 1)
    for row in range(len(masks)):
        real = mask[row].bool()
        ORDER.check(found[row][real], run(ids[row][real].unsqueeze(0))[0][0])


@pytest.mark.parametrize(
    ("name", "distance", "seen"), [("mistral_b", 12, True), ("mistral_b", 13, False), ("qwen2_window", 30, True)]
)
def test_a_sliding_window_forgets_what_left_it(name: str, distance: int, seen: bool) -> None:
    """Three layers of a window of 5 reach 3 * (5 - 1) tokens back; one layer that sees all reaches everything."""
    ids = ids_of(name, 1, 40)
    other = ids.clone()
    other[0, -1 - distance] = 3 + (ids[0, -1 - distance] - 2) % 200
    last = [module(name)(x)[0][0, -1] for x in (ids, other)]
    assert torch.equal(*last) != seen


# ------------------------------------------------------------------ rules, tasks, spellings
def made_here(tmp_path: Path) -> dict[str, Path]:
    """What no tiny checkpoint has: buffers that old versions stored, heads beside the task's, heads of their own."""
    bert = load_file(tiny("bert") / "model.safetensors")
    embedding = bert["bert.embeddings.word_embeddings.weight"]
    bias = bert["cls.predictions.bias"]
    extra = {
        "bert__embeddings__position_ids": torch.arange(512).unsqueeze(0),
        "cls__predictions__decoder__bias": bias.clone(),
        "cls__seq_relationship__weight": torch.ones(2, 48),
        "cls__seq_relationship__bias": torch.ones(2),
        "bert__pooler__dense__weight": torch.ones(48, 48),
        "bert__pooler__dense__bias": torch.ones(48),
    }
    paths = {
        "pretraining": copy_of("bert", tmp_path / "a", {"architectures": ["BertForPreTraining"]}, **extra),
        "untied": copy_of(
            "bert",
            tmp_path / "b",
            {"tie_word_embeddings": False},
            cls__predictions__decoder__weight=2 * embedding,
        ),
    }
    for name in ("gemma2", "gemma3_new", "llama", "qwen2", "qwen3_b"):
        head = 2 * load_file(tiny(name) / "model.safetensors")["model.embed_tokens.weight"]
        paths[name] = copy_of(
            name,
            tmp_path / name,
            {"tie_word_embeddings": False},
            lm_head__weight=head,
            model__rotary_emb__inv_freq=torch.ones(4),
            model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        )
    return paths


def stored_besides(tmp_path: Path) -> list[Path]:
    """Models with what old versions stored, or what other heads of theirs need."""
    blip = load_file(tiny("blip_vqa") / "model.safetensors")
    embedding = blip["text_decoder.bert.embeddings.word_embeddings.weight"]
    positions = torch.arange(9).unsqueeze(0)
    towers = {f"{name}_model__embeddings__position_ids": positions.clone() for name in ("text", "vision")}
    heads = {name: load_file(tiny(name) / "model.safetensors") for name in ("albert", "roberta")}
    mpnet = load_file(tiny("mpnet") / "model.safetensors")
    sam = load_file(tiny("sam") / "model.safetensors")["shared_image_embedding.positional_embedding"]
    t5 = load_file(tiny("t5") / "model.safetensors")["shared.weight"]
    tables = {
        name: load_file(tiny(name) / "model.safetensors")["model.shared.weight"]
        for name in ("bart", "marian", "m2m_100", "mbart", "pegasus")
    }
    extra: dict[str, dict[str, Tensor]] = {
        **{
            name: {
                "model__encoder__embed_tokens__weight": table.clone(),
                "model__decoder__embed_tokens__weight": table.clone(),
                "lm_head__weight": table.clone(),
            }
            for name, table in tables.items()
        },
        "albert": {
            "albert__embeddings__position_ids": positions.clone(),
            "predictions__decoder__weight": heads["albert"]["albert.embeddings.word_embeddings.weight"].clone(),
            "predictions__decoder__bias": heads["albert"]["predictions.bias"].clone(),
            "sop_classifier__classifier__weight": torch.ones(2, 32),
            "sop_classifier__classifier__bias": torch.ones(2),
        },
        "blip_vqa": {
            "text_encoder__embeddings__position_ids": positions,
            "text_decoder__bert__embeddings__position_ids": positions.clone(),
            "text_decoder__cls__predictions__decoder__weight": embedding.clone(),
            "text_decoder__cls__predictions__decoder__bias": blip["text_decoder.cls.predictions.bias"].clone(),
        },
        "clip": towers,
        "deberta": {
            "deberta__embeddings__position_ids": positions.clone(),
            "mask_predictions__dense__weight": torch.ones(32, 32),
            "mask_predictions__LayerNorm__weight": torch.ones(32),
            "mask_predictions__classifier__weight": torch.ones(1, 32),
        },
        "distilbert": {"distilbert__embeddings__position_ids": positions},
        "layoutlmv3": {"layoutlmv3__embeddings__position_ids": positions.clone()},
        "sam": {"prompt_encoder__shared_embedding__positional_embedding": sam.clone()},
        "tapas": {"tapas__embeddings__position_ids": positions.clone()},
        "mpnet": {
            "mpnet__embeddings__position_ids": positions.clone(),
            "lm_head__decoder__weight": mpnet["mpnet.embeddings.word_embeddings.weight"].clone(),
            "lm_head__decoder__bias": mpnet["lm_head.bias"].clone(),
        },
        "gpt2": {
            "h__0__attn__bias": torch.ones(1, 1, 128, 128).tril(),
            "h__0__attn__masked_bias": torch.tensor(-1e4),
            "multiple_choice_head__summary__weight": torch.ones(1, 48),
            "multiple_choice_head__summary__bias": torch.ones(1),
        },
        "electra": {
            "electra__embeddings__position_ids": positions.clone(),
            "discriminator_predictions__dense__weight": torch.ones(32, 32),
            "discriminator_predictions__dense_prediction__weight": torch.ones(1, 32),
        },
        "roberta": {
            "roberta__embeddings__position_ids": positions.clone(),
            "lm_head__decoder__weight": heads["roberta"]["roberta.embeddings.word_embeddings.weight"].clone(),
            "lm_head__decoder__bias": heads["roberta"]["lm_head.bias"].clone(),
        },
        "siglip": towers,
        "t5": {
            "encoder__embed_tokens__weight": t5.clone(),
            "decoder__embed_tokens__weight": t5.clone(),
            "lm_head__weight": t5.clone(),
            "decoder__block__0__layer__1__EncDecAttention__relative_attention_bias__weight": torch.ones(32, 4),
        },
        "swin_cls": {
            "swin__embeddings__mask_token": torch.zeros(1, 1, 24),
            "swin__encoder__layers__0__blocks__0__attention__self__relative_position_index": positions.clone(),
            "hidden_states_norms__stage1__weight": torch.ones(24),
            "decoder__0__weight": torch.ones(3, 48, 1, 1),
        },
        "vit_cls": {"vit__embeddings__mask_token": torch.zeros(1, 1, 4)},
    }
    for side in ("encoder", "decoder"):
        extra["marian"][f"model__{side}__embed_positions__weight"] = torch.zeros(256, 32)
        extra["m2m_100"][f"model__{side}__embed_positions__weights"] = torch.zeros(258, 32)
    return [copy_of(name, tmp_path / f"besides-{name}", {}, **tensors) for name, tensors in extra.items()]


def test_every_rule_of_every_family_is_used_by_a_checkpoint_here(tmp_path: Path) -> None:
    used: set[Rule] = set()
    for path in (*map(tiny, listed(TINIES)), *made_here(tmp_path).values(), *stored_besides(tmp_path)):
        checkpoint = open_checkpoint(path)
        opened = open_model(checkpoint)
        stated = dict(zip(opened.rules, opened.family.rules, strict=False))  # with a config's sizes, and without
        for key in checkpoint:
            found = find(key, opened.rules, opened.family.prefix, opened.family.other_prefix)
            assert found is not None, key
            used.add(stated.get(found[0], found[0]))
        assert all(part.weights for part in opened.parts)
    for family in all_families():
        assert [rule for rule in family.rules if rule not in used] == [], family.name


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    for name, path in made_here(tmp_path).items():
        opened = open_model(path)
        ids = ids_of("bert" if name in ("pretraining", "untied") else name, 1, 6)
        if name == "pretraining":
            ORDER.check(opened.module()(ids)[0], module("bert")(ids)[0])
        elif name == "untied":
            bias = opened.all_weights["head.bias"].load()
            ORDER.check(opened.module()(ids)[0] - bias, 2 * (module("bert")(ids)[0] - bias))
        elif not name.startswith("gemma2"):  # its logits are capped
            ORDER.check(opened.module()(ids)[0], 2 * module(name)(ids)[0])


def test_a_stored_head_that_differs_is_not_tied_whatever_the_config_says(tmp_path: Path) -> None:
    import transformers

    embedding = load_file(tiny("qwen2") / "model.safetensors")["model.embed_tokens.weight"]
    same = open_model(copy_of("qwen2", tmp_path / "same", lm_head__weight=embedding.clone()))
    assert same.tied == {"head.weight": "embed.weight"}
    path = copy_of("qwen2", tmp_path / "other", lm_head__weight=embedding.flip(0))
    other = open_model(path)
    assert other.tied == {}
    ids = ids_of("qwen2", 1, 6)
    with torch.no_grad():
        theirs = transformers.Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(ids).logits
    ORDER.check(other.module()(ids)[0], theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_trunk_of_every_checkpoint_serves_feature_extraction(name: str, tmp_path: Path) -> None:
    import transformers

    inputs = {key[3:]: value for key, value in golden(name).items() if key.startswith("in.")}
    real = inputs["attention_mask"].bool()
    opened = open_model(tiny(name), task="feature-extraction")
    found = opened.module()(**inputs)[0]
    folder = tiny(name)
    if any(key.startswith("transformer.") for key in opened.checkpoint):  # transformers finds no trunk of that name
        opened.save(folder := tmp_path / "trunk")
    kind = transformers.AutoModelForTextEncoding if name in listed(SEQUENCE_HEADS) else transformers.AutoModel
    theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state
    assert opened.signature.outputs[0].name == "last_hidden_state"
    ORDER.check(found[real], expected[real])


@pytest.mark.parametrize("name", [name for name in DECODERS if "_new" not in name and original(name) not in LEARNED])
def test_both_spellings_of_a_config_mean_the_same(name: str) -> None:
    """transformers reads the old spelling and writes the new one."""
    import transformers

    data = json.loads((tiny(name) / "config.json").read_text())
    new = transformers.AutoConfig.from_pretrained(tiny(name)).to_dict()
    assert "rope_parameters" in new
    config = family_for(open_checkpoint(tiny(name))).config
    old_config, new_config = config.from_dict(data), config.from_dict(new)

    def facts(typed: Any) -> dict[str, Any]:
        kinds = module(name).kinds if typed is old_config else _rebuilt(name, typed).kinds
        skip = ("layer_types", "sliding_window", "sliding_window_pattern", "max_window_layers")  # kinds says it all
        return {f: getattr(typed, f) for f in typed.__dataclass_fields__ if f not in skip} | {"kinds": kinds}

    assert facts(old_config) == facts(new_config)


def _rebuilt(name: str, typed: Any) -> Any:
    with torch.device("meta"):
        return model(name).task.built(typed)


def test_every_family_says_what_it_is() -> None:
    for model_type in FAMILIES:
        assert model_type in load_family(model_type).model_types
    for family in all_families():
        assert set(family.model_types) <= set(FAMILIES)
        for task in family.tasks:
            assert len(task.architectures) >= len(family.model_types)
        assert (family.gguf is None) == bool(family.no_gguf)


@pytest.mark.parametrize("name", listed(TINIES))
def test_what_a_checkpoint_stores_is_a_parameter_and_no_buffer(name: str) -> None:
    for part in open_model(tiny(name)).parts:
        skeleton = part.skeleton()
        assert set(skeleton.state_dict()) == {key for key, _ in skeleton.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_named_and_ordered_as_the_modules_parameters(name: str) -> None:
    opened = model(name)
    skeleton = opened.skeleton()
    assert list(opened.weights) == [key for key, _ in skeleton.named_parameters()]
    assert all(p.is_meta and not p.requires_grad for p in skeleton.parameters())
    assert all(not b.is_meta for b in skeleton.buffers())
    assert not skeleton.training
    if (shapes := opened.task.shapes) is not None:
        made = skeleton.named_parameters(remove_duplicate=False)
        assert list(shapes(opened.config).items()) == [(key, tuple(p.shape)) for key, p in made]
    built = module(name)
    assert [k for k, _ in built.named_parameters()] == list(opened.weights)
    for shared, stored in opened.tied.items():
        assert built.get_parameter(shared) is built.get_parameter(stored)
