"""Every key of config.json is read, known to change nothing, or refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.config import Config, RopeConfig, section
from isoform.reference.families import FAMILIES, load_family
from isoform.reference.harmless import HARMLESS, ONLY
from tests.oracle import TEXT_DECODERS, TINIES, listed, tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Base(Config):
    harmless = frozenset(("note",))
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (True,)}

    width: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    reads = frozenset(("parts",))
    harmless = frozenset(("is_decoder",))
    aliases: ClassVar[Mapping[str, str]] = {"dim": "width"}

    height: int = 4


@pytest.mark.parametrize(
    "data",
    [
        {"width": 3, "note": "mine", "is_causal": True, "dropout": 0.5, "unknown": None},
        {"parts": {"a": 1}, "note": 1, "is_decoder": True, "pruned_heads": {}, "add_cross_attention": False},
    ],
)
def test_what_is_read_or_harmless_passes(data: Mapping[str, Any]) -> None:
    Derived.from_dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"is_causal": False}, r"config\.json: is_causal is false, .* with true only"),
        ({"is_causal": None}, "is_causal is null"),
        ({"pruned_heads": {"0": [1]}}, r'pruned_heads is \{"0": \[1\]\}'),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder is true, .* with false or null only"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is set: .* take a BF16 or F16"),
        ({"swirl": 3}, r"config\.json: swirl = 3 is not known .* take the key out"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, r"a = 1 \(and b, c, d and others\)"),
        ({"rope_theta": 1e4}, "rope_theta = 10000.0 is not known"),
    ],
)
def test_what_may_change_the_numbers_is_refused_by_name(data: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        Derived.from_dict(data)


def test_a_base_does_not_know_what_its_subclass_does() -> None:
    for data in ({"parts": 1}, {"is_decoder": True}, {"dim": 3}, {"height": 3}):
        with pytest.raises(UnsupportedModel):
            Base.from_dict(data)


def test_a_second_name_of_a_field_is_read_and_must_agree() -> None:
    assert Derived.from_dict({"dim": 5}).width == 5
    assert Derived.from_dict({"dim": 5, "width": 5}).width == 5
    with pytest.raises(CheckpointError, match=r"dim is 5 and width is 6, which are the same setting"):
        Derived.from_dict({"dim": 5, "width": 6})


def test_a_key_of_a_section_is_named_with_its_path() -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json: text_config\.swirl = true"):
        Base.from_dict(section({"text_config": {"swirl": True}}, "text_config"))


def test_rotary_settings_are_known_where_they_are_read() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Rotating(Config):
        rope: RopeConfig

    Rotating.account({"rope_theta": 1e4, "rope_scaling": None, "rope_parameters": {}, "partial_rotary_factor": 1.0})


def test_the_common_lists_are_disjoint() -> None:
    assert not HARMLESS & ONLY.keys()


@pytest.mark.parametrize("name", listed(TINIES))
def test_no_family_passes_over_a_key(name: str) -> None:
    data = json.loads((tiny(name) / "config.json").read_text())
    config = load_family(data["model_type"], data).config
    for place in ("", *(key for key, value in data.items() if key.endswith("_config") and isinstance(value, dict))):
        path = f"{place}.swirl" if place else "swirl"
        damaged = {**data, place: {**data[place], "swirl": 3}} if place else {**data, "swirl": 3}
        with pytest.raises(UnsupportedModel, match=rf"config\.json: {path} = 3"):
            config.from_dict(damaged)


@pytest.mark.parametrize("name", listed(TEXT_DECODERS))
@pytest.mark.parametrize(("key", "value"), [("is_causal", False), ("use_bidirectional_attention", True)])
def test_a_decoder_that_sees_both_sides_is_refused(name: str, key: str, value: Any) -> None:
    data = {**json.loads((tiny(name) / "config.json").read_text()), key: value}
    with pytest.raises(UnsupportedModel, match=key):
        card = load_family(data["model_type"])
        card.tasks[0].built(card.config.from_dict(data))


HUB = json.loads((Path(__file__).parent / "hub_configs.json").read_text())
"""Files of the Hub, label names shortened: every key and value that their authors' versions of transformers wrote."""


@pytest.mark.parametrize("name", HUB)
def test_a_file_of_the_hub_opens(name: str) -> None:
    load_family(HUB[name]["model_type"]).config.from_dict(HUB[name])


def test_the_files_of_the_hub_have_every_family() -> None:
    ours = set(FAMILIES)
    assert {data["model_type"] for data in HUB.values()} <= ours
    assert {load_family(data["model_type"]).name for data in HUB.values()} >= {"bert", "clip", "llama", "whisper"}
