"""A decoder's plan knows the parameters of the module that is built of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.errors import CheckpointError, IsoformError
from isoform.reference.config import RopeConfig
from isoform.reference.families import load_family
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
    ("model_type", "settings", "message"),
    [
        ("gemma", {"hidden_activation": "gelu"}, 'hidden_activation is "gelu"'),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not known"),
        ("phi3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "no rotary scaling 'linear', only longrope"),
        ("phi3", {"attention_bias": True}, "attention_bias is true"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 3 layers"),
        ("smollm3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0.0, which is no valid float"),
    ],
)
def test_settings_that_no_decoder_can_have_are_refused_by_name(
    model_type: str, settings: dict[str, Any], message: str
) -> None:
    card = load_family(model_type)
    with pytest.raises(IsoformError, match=message):
        card.tasks[0].built(card.config.from_dict({"num_hidden_layers": 3, **settings}))


def test_gemmas_first_name_of_its_activation_means_the_approximation() -> None:
    config = load_family("gemma").config
    found = [config.from_dict({"hidden_act": name}).hidden_act for name in ("gelu", "gelu_pytorch_tanh", "relu")]  # type: ignore[attr-defined]
    assert found == ["gelu_pytorch_tanh", "gelu_pytorch_tanh", "relu"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kv_heads": 3}, "4 attention heads cannot share 3"), ({"head_dim": 7}, "heads of 7 channels cannot be rotated")],
)
def test_heads_that_no_attention_can_have_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DecoderPlan(**{**SIZES, **change}, **REST, kinds=(Kind(),))
