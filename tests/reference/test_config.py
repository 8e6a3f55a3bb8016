"""Configs inside configs: read with their types, and reported with their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.config import Config, read_rope, section
from isoform.reference.families import load_family, tower
from isoform.reference.rules import Rename, below

TEXT = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision(Config):
    hidden_size: int = 8
    image_size: int | tuple[int, ...] = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed(Config):
    vision_config: Vision
    image_token_index: int


def test_a_config_is_read_into_a_config() -> None:
    read = Composed.from_dict({"vision_config": {"hidden_size": 4, "image_size": [2, 3]}, "image_token_index": 5})
    assert read == Composed(vision_config=Vision(hidden_size=4, image_size=(2, 3)), image_token_index=5)
    assert Composed.from_dict({"image_token_index": 5}).vision_config == Vision()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"vision_config": {"hidden_size": "wide"}},
            "config.json: vision_config.hidden_size is 'wide', which is no valid int",
        ),
        ({"vision_config": 3}, "config.json: vision_config is 3, not an object"),
        ({}, "config.json has no 'image_token_index', which Composed needs"),
    ],
)
def test_an_error_names_file_key_and_value(data: Mapping[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Composed.from_dict(data)
    assert str(caught.value) == message


def test_an_error_in_a_section_of_a_section_names_the_whole_path() -> None:
    inner = section(
        section({"thinker_config": {"text_config": {"rope_scaling": "linear"}}}, "thinker_config"), "text_config"
    )
    with pytest.raises(CheckpointError, match=r"config\.json: thinker_config\.text_config\.rope_scaling is 'linear'"):
        read_rope(inner)


def test_a_tower_is_found_by_its_model_type() -> None:
    found = tower({"text_config": TEXT}, "text_config", "qwen2")
    assert found.family is load_family("llama")
    assert found.config == found.family.config.from_dict(TEXT)
    placed = below(found.rules, "language_model", "text")
    assert Rename("language_model.model.embed_tokens", "text.embed") in placed
    unnamed = {key: value for key, value in TEXT.items() if key != "model_type"}
    assert tower({"text_config": unnamed}, "text_config", "qwen2").family is load_family("qwen2")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ({**TEXT, "model_type": "moonbeam"}, UnsupportedModel, r"text_config\.model_type 'moonbeam' is not supported"),
        ({**TEXT, "vocab_size": None}, CheckpointError, r"has no 'text_config\.vocab_size', which LlamaConfig needs"),
        ({**TEXT, "hidden_size": -1}, CheckpointError, r"text_config\.hidden_size is -1"),
        ([], CheckpointError, r"text_config is \[\], not an object"),
    ],
)
def test_a_tower_that_cannot_be_read_is_named(text: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tower({"text_config": text}, "text_config", "llama")


def test_a_card_has_the_rules_of_its_towers() -> None:
    card = replace(load_family("clip"), towers=lambda c: below(c.rules, "language_model", "text"))
    found = tower({"text_config": TEXT}, "text_config", "llama")
    assert card.rules_of(found)[len(card.rules)] == Rename("language_model.model.embed_tokens", "text.embed")
