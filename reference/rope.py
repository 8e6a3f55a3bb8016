"""Rotary settings of config.json, in every spelling: the base, the scaling, and the share of a head that is rotated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.sections import short, where

RopeKind = Literal["default", "dynamic", "linear", "llama3", "longrope", "yarn"]

NEEDS: Mapping[str, tuple[str, ...]] = {
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor"),
    "longrope": ("long_factor", "short_factor"),
    "yarn": ("factor",),
}
"""The settings without which a scaling cannot be computed."""

_KNOWN = frozenset(
    (
        *("attention_factor", "beta_fast", "beta_slow", "factor", "high_freq_factor", "long_factor", "low_freq_factor"),
        *("mscale", "mscale_all_dim", "original_max_position_embeddings", "partial_rotary_factor", "rope_theta"),
        *("rope_type", "short_factor", "truncate", "type"),
        "finetuned",  # a note of YaRN's authors
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the base, and how the frequencies are scaled.

    * "linear": every frequency is divided by `factor`;
    * "llama3": low ones are, by `low_freq_factor` and `high_freq_factor`;
    * "yarn": low ones are, between `beta_fast` and `beta_slow` turns within the original length;
    * "longrope": each is divided by its own of `short_factor`, or of `long_factor` in texts beyond the original length;
    * "dynamic": the base grows with a text beyond the original length, by `factor`.

    `original_max_position_embeddings` is that length. Cosines and sines are multiplied by `attention_factor`. `partial`
    is the share of a head's channels that are rotated.
    """

    reads: ClassVar[frozenset[str]] = frozenset(
        ("original_max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta")
    )
    """The keys of config.json that `read_rope` reads."""

    theta: float = 10000.0
    partial: float = 1.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether a token's angle depends on how long the text is when it is computed."""
        return self.kind in ("dynamic", "longrope")

    def effective(self, length: int) -> int:
        """Equal for two lengths of text in which a position has the same angle."""
        if self.kind == "longrope":
            return int(length > self.original_max_position_embeddings)
        return max(length, self.original_max_position_embeddings) if self.kind == "dynamic" else 0

    def context(self, stated: int) -> int:
        """The length of text to which a model of so many positions is stretched."""
        if self.kind not in ("dynamic", "longrope", "yarn"):
            return stated
        return max(stated, int(self.original_max_position_embeddings * self.factor))


def read_rope(
    data: Mapping[str, Any],
    kind: str | None = None,
    theta: float = 10000.0,
    partial: float | None = None,
    context: int = 2048,
) -> RopeConfig:
    """The rotary settings of config.json in either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    `kind` picks the entry of a config that has one per layer type ("full_attention", "sliding_attention"). Defaults of
    the format: `theta` is the base, `context` max_position_embeddings, `partial` the share of a head. None for the
    last: the Hub's code rotates all of a head whatever partial_rotary_factor says, and fails if it is scaled as well.
    """
    place, settings, truncate = _settings(data, kind)
    if unknown := sorted(settings.keys() - _KNOWN):
        raise UnsupportedModel(
            f"{place}.{unknown[0]} is {short(settings[unknown[0]])}: this rotary setting is not known and may change "
            "the results; take it out if it changes nothing"
        )
    name: Any = settings.get("rope_type") or settings.get("type") or "default"
    if name not in get_args(RopeKind):
        raise UnsupportedModel(
            f"rotary scaling {short(name)} is not supported; isoform knows {', '.join(get_args(RopeKind))}"
        )
    held = {key for key, value in settings.items() if value is not None or name == "yarn"}  # null: a ratio of lengths
    if lacks := [key for key in NEEDS.get(name, ()) if key not in held]:
        raise CheckpointError(f"{place} has no {lacks[0]!r}, which the rotary scaling {name!r} needs")
    share = settings.get("partial_rotary_factor")
    share = share or data.get("partial_rotary_factor") or partial or 1.0
    try:
        rope = _rope(data, settings, name, theta, float(share), context, truncate)
    except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise CheckpointError(f"malformed rotary settings, {place} {short(settings)} ({error})") from None
    _check(rope, place, settings)
    if rope.partial != 1 and partial is None:
        if rope.kind != "default":
            raise UnsupportedModel(
                f"{place}: partial rotary embedding ({rope.partial} of each head) with scaling {rope.kind!r} is not "
                "supported by this family, nor by transformers"
            )
        rope = replace(rope, partial=1.0)
    return rope


def _settings(data: Mapping[str, Any], kind: str | None) -> tuple[str, dict[str, Any], Any]:
    """The place and the settings of one kind of layer, and YaRN's `truncate`, which stands beside the kinds."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = data.get(name) or {}
        if not isinstance(value, Mapping):
            file, path = where(data, name)
            raise CheckpointError(f"{file}: {path} is {short(value)}, not an object")
        found[name] = value
    old, new = found["rope_scaling"], found["rope_parameters"]
    file, path = where(data, "rope_scaling" if old else "rope_parameters")
    if kind is None:
        settings = dict(old or new)
        return f"{file}: {path}", settings, settings.get("truncate", True)
    if old and "rope_type" not in old and old.get("type", "default") != "default":
        raise UnsupportedModel(
            f"{file}: {path} names its scaling under 'type', which transformers passes over for this family; call it "
            "'rope_type'"
        )
    if new and not new.keys() & {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{file}: {path} has no {kind!r}: this family has rotary settings for each kind of layer")
    entry = new.get(kind) or {}
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{file}: {path}.{kind} is {short(entry)}, not an object")
    # An old file scales the layers that see all.
    return f"{file}: {path}.{kind}", {**entry, **(old if kind == "full_attention" else {})}, new.get("truncate", True)


def _rope(
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    kind: RopeKind,
    theta: float,
    partial: float,
    context: int,
    truncate: Any,
) -> RopeConfig:
    longest = int(data.get("max_position_embeddings") or context)
    stated = data.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    original = longest if kind == "dynamic" else int(stated or longest)
    factor = settings.get("factor")
    if factor is None:
        factor = longest / original if kind in ("longrope", "yarn") else 1.0
    attention = settings.get("attention_factor")
    if kind not in ("longrope", "yarn"):
        attention = 1.0
    elif attention is None and kind == "longrope":
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    elif attention is None:
        scale, all_dims = settings.get("mscale"), settings.get("mscale_all_dim")
        attention = _yarn_scale(factor, 1.0)
        if scale and all_dims:
            attention = _yarn_scale(factor, scale) / _yarn_scale(factor, all_dims)
    return RopeConfig(
        theta=float(settings.get("rope_theta") or data.get("rope_theta") or theta),
        partial=partial,
        kind=kind,
        factor=float(factor),
        low_freq_factor=float(settings.get("low_freq_factor", 1.0)),
        high_freq_factor=float(settings.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=original,
        attention_factor=float(attention),
        beta_fast=float(settings.get("beta_fast") or 32),
        beta_slow=float(settings.get("beta_slow") or 1),
        truncate=bool(truncate),
        short_factor=tuple(float(one) for one in settings.get("short_factor") or ()),
        long_factor=tuple(float(one) for one in settings.get("long_factor") or ()),
    )


def _yarn_scale(factor: float, scale: float) -> float:
    """How much YaRN raises the scores of a text that is stretched by `factor`."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _check(rope: RopeConfig, place: str, settings: Mapping[str, Any]) -> None:
    numbers = (
        *(rope.theta, rope.factor, rope.low_freq_factor, rope.original_max_position_embeddings),
        *(rope.attention_factor, rope.beta_fast, rope.beta_slow, *rope.short_factor, *rope.long_factor),
    )
    ordered = rope.low_freq_factor < rope.high_freq_factor and (rope.kind != "yarn" or rope.theta != 1)
    if not all(0 < number < math.inf for number in numbers) or not ordered:
        raise CheckpointError(f"the rotary settings, {place} {short(settings)}, make no sense")
    if not 0 < rope.partial <= 1:
        raise CheckpointError(f"{place}: partial_rotary_factor is {rope.partial}, which is no share of a head")
