"""A decoder's plan knows the parameters of the module that is built of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.errors import CheckpointError
from isoform.reference.config import RopeConfig
from isoform.reference.modules.decoder import decoder
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind

SIZES: dict[str, Any] = {"vocab": 11, "dim": 12, "hidden": 20, "heads": 4, "kv_heads": 2, "head_dim": 6}
REST: dict[str, Any] = {"act": "silu", "eps": 1e-6, "ropes": {"rope": RopeConfig()}}
OPTIONS = ("qkv_bias", "out_bias", "mlp_bias", "head_norms", "post_norms")


@settings(max_examples=40, deadline=None)
@given(chosen=st.sets(st.sampled_from(OPTIONS)), layers=st.integers(1, 3), head=st.booleans())
def test_a_plan_knows_the_parameters_of_its_module_in_their_order(chosen: set[str], layers: int, head: bool) -> None:
    options: dict[str, Any] = dict.fromkeys(chosen, True)
    plan = DecoderPlan(**SIZES, **REST, kinds=(Kind(),) * layers, **options)
    with torch.device("meta"):
        module = decoder(plan, head)
    made = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert list(plan.shapes(head).items()) == list(made.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kv_heads": 3}, "4 attention heads cannot share 3"), ({"head_dim": 7}, "heads of 7 channels cannot be rotated")],
)
def test_heads_that_no_attention_can_have_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DecoderPlan(**{**SIZES, **change}, **REST, kinds=(Kind(),))
