"""A decoder's plan knows the parameters of the module that is built of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.errors import CheckpointError
from isoform.reference.config import RopeConfig
from isoform.reference.modules.decoder import classifier, decoder
from isoform.reference.modules.decoder_plan import Classifier, DecoderPlan, Kind
from isoform.reference.text.llama import LlamaConfig

SIZES: dict[str, Any] = {"vocab": 11, "dim": 12, "hidden": 20, "heads": 4, "kv_heads": 2, "head_dim": 6}
REST: dict[str, Any] = {"act": "silu", "eps": 1e-6, "ropes": {"rope": RopeConfig()}}
OPTIONS = ("qkv_bias", "out_bias", "mlp_bias", "pre_norms", "post_norms")
QUERIES: tuple[dict[str, bool], ...] = ({}, {"head_norms": True}, {"whole_norms": True}, {"merged": True})


@settings(max_examples=40, deadline=None)
@given(
    chosen=st.sets(st.sampled_from(OPTIONS)),
    queries=st.sampled_from(QUERIES),
    layers=st.integers(1, 3),
    head=st.booleans(),
)
def test_a_plan_knows_the_parameters_of_its_module_in_their_order(
    chosen: set[str], queries: dict[str, bool], layers: int, head: bool
) -> None:
    options: dict[str, Any] = {option: option in chosen for option in OPTIONS} | queries
    plan = DecoderPlan(**SIZES, **REST, kinds=(Kind(),) * layers, **options)
    with torch.device("meta"):
        module = decoder(plan, head)
    made = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert list(plan.shapes(head).items()) == list(made.items())


@pytest.mark.parametrize(
    "head",
    [Classifier(kind="sequence", labels=3), Classifier(kind="token", bias=True), Classifier(kind="span")],
    ids=lambda head: head.kind,
)
def test_a_plan_knows_the_parameters_of_a_classifier(head: Classifier) -> None:
    plan = DecoderPlan(**SIZES, **REST, kinds=(Kind(),), tied=True)
    with torch.device("meta"):
        module = classifier(plan, head)
    assert plan.shapes(head) == {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("stated", [-1, None, 7])
def test_a_pad_token_that_is_none_leaves_the_mask_to_say_what_is_padding(stated: int | None) -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig.from_dict({**sizes, "num_attention_heads": 2, "pad_token_id": stated, "id2label": {"0": "a"}})
    assert (config.pad_token_id, config.num_labels) == (7 if stated == 7 else None, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kv_heads": 3}, "4 attention heads cannot share 3"), ({"head_dim": 7}, "heads of 7 channels cannot be rotated")],
)
def test_heads_that_no_attention_can_have_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DecoderPlan(**{**SIZES, **change}, **REST, kinds=(Kind(),))
