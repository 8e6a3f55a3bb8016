"""Laws of the weight rules: loading and saving undo each other, names lead back, and rows are rows of the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.checkpoints.safetensors_writer import HubTensor, write_safetensors
from isoform.reference.rules import (
    Alias,
    Chain,
    Computed,
    Drop,
    Fold,
    Interleave,
    Rename,
    Rule,
    Split,
    SplitStack,
    Stack,
    Tail,
    Transpose,
    WeightNorm,
    batch_norm,
    below,
)
from isoform.reference.weights import account, find, hub_names, map_weights, saved

CONFIG = SimpleNamespace(heads=2, kv_heads=1, size=4, hidden=3, experts=3)
HUB = "h.*.x"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Law:
    """A rule, the shapes of its tensors in the checkpoint for a width, and whether its numbers are rounded."""

    rule: Rule
    shapes: Callable[[int], tuple[Shape, ...]]
    exact: bool = True


MERGED = Split(HUB, ("l.*.q", "l.*.k", "l.*.v"), lambda c: (c.heads * c.size, c.kv_heads * c.size, c.kv_heads * c.size))
LAWS = {
    "rename": Law(Rename(HUB, "l.*.y"), lambda n: ((5, n),)),
    "scalar": Law(Rename("scale", "scale"), lambda n: ((),)),
    "alias": Law(Alias(HUB, "l.*.y"), lambda n: ((5, n),)),
    "fold": Law(Fold(HUB, "l.*.y", 1.0), lambda n: ((n,),), exact=False),
    "transpose": Law(Transpose(HUB, "l.*.y"), lambda n: ((n, 7),)),
    "transposed experts": Law(Transpose(HUB, "l.*.y"), lambda n: ((3, n, 7),)),
    "transposed vector": Law(Transpose(HUB, "l.*.y"), lambda n: ((7,),)),
    "rotary pairs": Law(Interleave(HUB, "l.*.y", lambda c: (c.heads, c.size // 2, 2)), lambda n: ((8, n),)),
    "head by head": Law(Interleave(HUB, "l.*.y", lambda c: (1, c.heads, 3)), lambda n: ((24, n),)),
    "gate and up in turn": Law(Interleave(HUB, "l.*.y", (1, 3, 2)), lambda n: ((6, n),)),
    "split": Law(MERGED, lambda n: ((16, n),)),
    "split bias": Law(MERGED, lambda n: ((16,),)),
    "split evenly": Law(Split(HUB, ("l.*.gate", "l.*.up")), lambda n: ((6, n),)),
    "stack": Law(Stack("h.*.experts.*.w1", "l.*.experts.gate"), lambda n: ((7, n),) * 3),
    "tail": Law(Tail(HUB, "l.*.y", lambda c: c.hidden), lambda n: ((8, n),)),
    "weight norm": Law(WeightNorm(HUB, "l.*.y", 0), lambda n: ((5, 1, 1), (5, n, 3)), exact=False),
    "transposed and split": Law(
        Chain(Transpose(HUB, "m.*.qkv"), Split("m.*.qkv", ("l.*.q", "l.*.k", "l.*.v"))), lambda n: ((n, 12),)
    ),
    "gates and ups of experts": Law(SplitStack(HUB, ("l.*.gate", "l.*.up")), lambda n: ((3, 6, n),)),
    "in order and split": Law(
        Chain(Interleave(HUB, "m.*.qkv", lambda c: (1, c.heads, 3)), Split("m.*.qkv", ("l.*.q", "l.*.k", "l.*.v"))),
        lambda n: ((24, n),),
    ),
    "stacked and transposed": Law(
        Chain(Stack("h.*.experts.*.w1", "m.*.w"), Transpose("m.*.w", "l.*.experts.gate")), lambda n: ((7, n),) * 3
    ),
}
EVERY = pytest.mark.parametrize("name", LAWS)


def drawn(shapes: tuple[Shape, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(shape, generator=generator) + 0.5 for shape in shapes)  # a norm of 0 has no direction


def readable(tensor: Tensor) -> Computed:
    return Computed(
        tuple(tensor.shape), lambda: tensor, lambda start, stop: tensor[start:stop] if tensor.dim() else tensor
    )


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], exact: bool) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) if exact else torch.allclose(a, b, rtol=2**-21, atol=2**-22) for a, b in pairs)


# ------------------------------------------------------------------ tensors
@EVERY
@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 9), seed=st.integers(0, 999))
def test_loading_and_saving_undo_each_other(name: str, width: int, seed: int) -> None:
    law = LAWS[name]
    rule, stored = law.rule.at(CONFIG), drawn(law.shapes(width), seed)
    loaded = rule.load(*stored)
    again = rule.save(*loaded)
    assert same(rule.load(*again), loaded, law.exact)
    if isinstance(rule, Tail):  # which saves zeros for what it skips
        stored = (stored[0].index_fill(0, torch.arange(CONFIG.hidden), 0.0),)
    if not isinstance(rule, WeightNorm):  # whose direction has any length until it is loaded
        assert same(again, stored, law.exact)
    assert tuple(tuple(t.shape) for t in loaded) == rule.shapes(*(tuple(t.shape) for t in stored))
    assert tuple(tuple(t.shape) for t in again) == rule.saved_shapes(*(tuple(t.shape) for t in loaded))


@EVERY
@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 9), start=st.integers(0, 9), length=st.integers(1, 9))
def test_rows_are_rows_of_the_whole(name: str, width: int, start: int, length: int) -> None:
    law = LAWS[name]
    rule, stored = law.rule.at(CONFIG), drawn(law.shapes(width), width)
    loaded = rule.load(*stored)
    for rows, whole, parts in (
        (rule.load_rows, loaded, [readable(t) for t in stored]),
        (rule.save_rows, rule.save(*loaded), [readable(t) for t in loaded]),
    ):
        for n, tensor in enumerate(whole):
            if not tensor.dim():
                assert torch.equal(rows(parts, n, 0, 1), tensor)
            elif start < len(tensor):
                assert torch.equal(rows(parts, n, start, start + length), tensor[start : start + length])


# ------------------------------------------------------------------ names
@EVERY
def test_names_lead_there_and_back(name: str) -> None:
    rule = LAWS[name].rule.at(CONFIG)
    canonical: tuple[str, ...] | None = None
    if name == "scalar":
        canonical = ("scale",)
    elif name == "weight norm":
        canonical = ("l.7.y.weight",)
    else:
        hub = ("h.7.experts.2.w1.weight",) if "stack" in name else ("h.7.x.weight",)
        canonical = rule.match(hub[0])
    assert canonical
    keys = rule.sources(canonical[0], shape=(3, 1))
    assert keys
    assert all(rule.match(key) == canonical for key in keys)
    assert all(rule.sources(one, shape=(3, 1)) == keys for one in canonical)
    assert rule.match("h.7.other.weight") is None
    assert rule.sources("l.7.other.weight") is None
    lower = rule.below("tower", "vision")
    assert lower.match(f"tower.{keys[0]}") == tuple(f"vision.{one}" for one in canonical)
    assert lower.sources(f"vision.{canonical[0]}", shape=(3, 1)) == tuple(f"tower.{key}" for key in keys)
    assert lower.match(keys[0]) is None


def test_a_tower_s_rules_keep_their_order_and_what_they_drop() -> None:
    rules = below((Rename("a.*.w", "b.*.w"), Drop("a.*.ids")), "model.vision", "vision")
    assert rules == (Rename("model.vision.a.*.w", "vision.b.*.w"), Drop("model.vision.a.*.ids"))
    assert rules[1].match("model.vision.a.3.ids") == ()


def test_what_is_read_in_two_spellings_is_saved_in_the_first() -> None:
    rules = (Alias("language_model.model.norm", "norm"), Rename("model.language_model.norm", "norm"))
    for key in ("language_model.model.norm.weight", "model.language_model.norm.weight"):
        found = find(key, rules, "model")
        assert found is not None
        assert found.names == ("norm.weight",)
    assert hub_names(["norm.weight"], rules)["norm.weight"][0] == "model.language_model.norm.weight"


BATCH_NORM = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
    "num_batches_tracked": "",
}


def test_batch_norm_s_statistics_are_parameters() -> None:
    rules = batch_norm("backbone.*.bn", "stages.*.norm")
    names = {key: found.names for key in BATCH_NORM if (found := find(f"backbone.3.bn.{key}", rules, "")) is not None}
    assert names == {key: (f"stages.3.norm.{name}",) if name else () for key, name in BATCH_NORM.items()}


# ------------------------------------------------------------------ checkpoints
RULES = (
    Rename("model.embed", "embed"),
    Fold("model.norm", "norm", 1.0),
    Transpose("model.h.*.proj", "layers.*.out"),
    Split("model.h.*.qkv", ("layers.*.q", "layers.*.k", "layers.*.v"), lambda c: (8, 4, 4)),
    Stack("model.h.*.experts.*.w1", "layers.*.experts.gate"),
    Interleave("model.h.*.rotary", "layers.*.rotary", (2, 2, 2)),
    WeightNorm("model.conv", "conv", 0),
    Tail("model.positions", "positions", 2),
    Alias("model.lm_head", "head"),
    Rename("lm_head", "head"),
    Drop("model.h.*.ids"),
)
TENSORS: dict[str, Shape] = {
    "model.embed.weight": (9, 4),
    "model.norm.weight": (4,),
    **{f"model.h.{n}.proj.weight": (4, 6) for n in range(2)},
    **{f"model.h.{n}.qkv.weight": (16, 4) for n in range(2)},
    **{f"model.h.{n}.qkv.bias": (16,) for n in range(2)},
    **{f"model.h.{n}.experts.{m}.w1.weight": (5, 4) for n in range(2) for m in range(11)},
    **{f"model.h.{n}.rotary.weight": (8, 4) for n in range(2)},
    "model.conv.weight_g": (3, 1),
    "model.conv.weight_v": (3, 4),
    "model.positions.weight": (6, 4),
    "lm_head.weight": (9, 4),
}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return written(tmp_path / "stored", drawn_checkpoint())


def drawn_checkpoint() -> dict[str, Tensor]:
    tensors = drawn(tuple(TENSORS.values()), 0)
    return {key: tensor.to(torch.bfloat16) for key, tensor in zip(TENSORS, tensors, strict=True)}


def written(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def entries(folder: Path, changed: dict[str, Tensor]) -> list[HubTensor]:
    checkpoint, rules = open_checkpoint(folder), tuple(rule.at(CONFIG) for rule in RULES)
    found = saved(checkpoint, map_weights(checkpoint, rules, "model"), rules, changed)
    return [HubTensor(one.key, one.shape, one.dtype, one.rows, one.release, False) for one in found]


def test_a_checkpoint_saved_again_has_equal_bytes(stored: Path, tmp_path: Path) -> None:
    write_safetensors(tmp_path, entries(stored, {}))
    assert (tmp_path / "model.safetensors").read_bytes() == (stored / "model.safetensors").read_bytes()


def test_a_checkpoint_saved_from_its_parameters_has_equal_values(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoform.reference.checkpoints.safetensors_writer.PIECE", 8)  # rows, not whole tensors
    checkpoint = open_checkpoint(stored)
    weights = map_weights(checkpoint, tuple(rule.at(CONFIG) for rule in RULES), "model")
    (tmp_path / "again").mkdir()
    write_safetensors(tmp_path / "again", entries(stored, {name: weight.load() for name, weight in weights.items()}))
    (tmp_path / "again" / "config.json").write_text("{}")
    again = open_checkpoint(tmp_path / "again")
    assert set(again) == set(checkpoint)
    for key, tensor in again.items():
        if "positions" in key:  # the rows that nothing reads are zeros
            assert torch.equal(tensor[2:], checkpoint[key][2:])
            assert not tensor[:2].any()
        elif "conv" not in key:  # the direction takes the length of the weight
            assert torch.equal(tensor, checkpoint[key]), key
    back = map_weights(again, tuple(rule.at(CONFIG) for rule in RULES), "model")
    assert torch.allclose(back["conv.weight"].load(), weights["conv.weight"].load(), rtol=2**-7)  # bfloat16


def test_every_key_is_accounted_for(stored: Path) -> None:
    checkpoint, rules = open_checkpoint(stored), tuple(rule.at(CONFIG) for rule in RULES)
    weights = map_weights(checkpoint, rules, "model")
    assert sorted({key for weight in weights.values() for key in weight.keys}) == sorted(checkpoint)
    shapes = {name: weight.shape for name, weight in weights.items()}
    assert shapes["layers.1.experts.gate.weight"] == (11, 5, 4)
    assert shapes["layers.0.q.weight"] == (8, 4)
    assert list(account("m", weights, shapes, rules, (), {})) == list(shapes)
    with pytest.raises(CheckpointError, match=r"lacks model\.h\.2\.qkv\.weight, which its config\.json asks for"):
        account("m", weights, shapes | {"layers.2.k.weight": (4, 4)}, rules, (), {})


def test_parts_of_a_file_are_used_where_they_lie(stored: Path) -> None:
    checkpoint = open_checkpoint(stored)
    weights = map_weights(checkpoint, tuple(rule.at(CONFIG) for rule in RULES), "model")
    for name in ("embed.weight", "layers.1.q.weight", "layers.1.k.weight", "layers.1.v.bias", "positions.weight"):
        source = weights[name].source
        assert source is not None
        raw = source.path.read_bytes()[source.offset :][: source.nbytes]
        assert raw == weights[name].load().contiguous().view(torch.uint8).numpy().tobytes(), name
        assert weights[name].stored == "BF16"
    for name in ("norm.weight", "layers.0.out.weight", "layers.0.experts.gate.weight", "layers.0.rotary.weight"):
        assert weights[name].source is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.h.0.experts.4.w1.weight": None}, r"lacks model\.h\.0\.experts\.4\.w1\.weight, the counterpart of"),
        ({"model.h.0.experts.99999999999.w1.weight": (5, 4)}, r"lacks model\.h\.0\.experts\.11\.w1\.weight"),
        ({"model.h.0.experts.4.w1.weight": (5, 3)}, r"different shapes, \[\(5, 3\), \(5, 4\)\]"),
        ({"model.conv.weight_g": None}, r"lacks model\.conv\.weight_g"),
        ({"model.h.0.qkv.weight": (15, 4)}, r"the rows of model\.h\.\*\.qkv \[15, 4\] do not divide into \[8, 4, 4\]"),
        ({"model.h.0.rotary.weight": (9, 4)}, r"the rows of model\.h\.\*\.rotary \[9, 4\] do not divide"),
        ({"model.positions.weight": (2, 4)}, r"model\.positions \[2, 4\] has no rows after the first 2"),
        ({"model.lm_head.weight": (9, 4)}, r"lm_head\.weight and .*lm_head\.weight are the same parameter"),
        ({"model.surprise": (1,)}, r"no rule for model\.surprise"),
    ],
)
def test_a_checkpoint_that_the_rules_cannot_take_is_refused(
    tmp_path: Path, change: dict[str, Shape | None], message: str
) -> None:
    tensors = drawn_checkpoint()
    for key, shape in change.items():
        if shape is None:
            del tensors[key]
        else:
            tensors[key] = torch.zeros(shape, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=message):
        map_weights(open_checkpoint(written(tmp_path / "m", tensors)), tuple(r.at(CONFIG) for r in RULES), "model")


def test_counterparts_of_different_dtypes_are_refused(tmp_path: Path) -> None:
    tensors = drawn_checkpoint()
    tensors["model.h.0.experts.4.w1.weight"] = tensors["model.h.0.experts.4.w1.weight"].float()
    with pytest.raises(CheckpointError, match=r"have different dtypes \(BF16, F32\)"):
        map_weights(open_checkpoint(written(tmp_path / "m", tensors)), tuple(r.at(CONFIG) for r in RULES), "model")
