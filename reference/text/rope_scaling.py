"""llama.cpp's metadata of rotary scaling, both ways, and what llama.cpp does not compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from isoform.errors import UnsupportedModel
from isoform.reference.rope import RopeConfig

MORE = "rope.scaling.attn_factor"
"""By how much more than `_own_factor` cosines and sines are multiplied. llama.cpp passes over "yarn_attn_factor", which
its converter writes."""

BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""The only bounds of YaRN's ramp that llama.cpp has for these architectures; it reads none of the file's."""


def rope_scaling_fields(rope: RopeConfig) -> dict[str, Any]:
    """`rope.scaling.*` for the kinds that llama.cpp knows by metadata alone."""
    if rope.kind not in ("linear", "yarn"):
        return {}
    fields: dict[str, Any] = {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.factor}
    if rope.kind == "yarn":
        fields["rope.scaling.original_context_length"] = rope.original_max_position_embeddings
        if not math.isclose(more := rope.attention_factor / _own_factor(rope.factor), 1):
            fields[MORE] = more
    return fields


def rope_scaling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` of config.json from the metadata, empty without a scaling; UnsupportedModel for other kinds."""
    kind = fields.get("rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(f"rotary scaling {kind!r} is not supported; isoform knows linear, llama3 and yarn")
    found = {"rope_type": kind, "factor": fields["rope.scaling.factor"]}
    if kind == "yarn":
        found["original_max_position_embeddings"] = fields["rope.scaling.original_context_length"]
        if MORE in fields:
            found["attention_factor"] = fields[MORE] * _own_factor(fields["rope.scaling.factor"])
    return found


def rope_refusal(rope: RopeConfig, *, llama3: bool = False) -> str:
    """Why llama.cpp would rotate otherwise; `llama3`: this architecture reads a factor per frequency."""
    if rope.kind == "llama3" and not llama3:
        return "llama.cpp has no llama3 rotary scaling for this architecture"
    if rope.kind == "dynamic":
        return "llama.cpp has no dynamic rotary scaling, whose base grows with the text"
    if rope.kind == "longrope":
        return "llama.cpp chooses LongRoPE's factors by the size of its context, the model by the length of the text"
    if rope.kind == "yarn" and not rope.truncate:
        return "llama.cpp always rounds the bounds of YaRN's ramp (truncate is false)"
    if other := [name for name, value in BETAS.items() if rope.kind == "yarn" and getattr(rope, name) != value]:
        return f"llama.cpp has YaRN's {other[0]} at {BETAS[other[0]]:g} for this architecture, whatever a file says"
    return ""


def _own_factor(factor: float) -> float:
    """What llama.cpp multiplies YaRN's cosines and sines by."""
    return 0.1 * math.log(max(factor, 1)) + 1
