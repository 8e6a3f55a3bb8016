"""Configurations: frozen dataclasses whose fields carry the names of config.json."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from isoform.errors import CheckpointError, UnsupportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a family needs of config.json; other keys are ignored."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the fields from a parsed config.json; a missing or mistyped one raises CheckpointError."""
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for spec in fields(cls):
            if spec.name in data and data[spec.name] is not None:
                values[spec.name] = _typed(spec.name, data[spec.name], hints[spec.name])
            elif spec.default is MISSING and spec.default_factory is MISSING:
                raise CheckpointError(f"config.json has no {spec.name!r}, which {cls.__name__} needs")
        return cls(**values)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type, or CheckpointError; whole numbers pass as floats, lists become tuples."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        origin = get_origin(option) or option
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            if value < 0:
                break
            return value
        if origin in (str, bool) and isinstance(value, origin):
            return value
        if isinstance(origin, type) and origin not in (str, bool, int, float, tuple) and isinstance(value, origin):
            return value
    raise CheckpointError(f"config.json: {name} is {value!r}, which is not a valid {hint}")


RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the base and how the frequencies are scaled ("default", "linear" or "llama3")."""

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def read_rope(data: Mapping[str, Any], kind: str | None = None, theta: float = 10000.0) -> RopeConfig:
    """The rotary settings of config.json in either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    `kind` picks the entry of a config that has one per layer type ("full_attention", "sliding_attention");
    `theta` is the format's default base.
    """
    settings = data.get("rope_parameters")
    if settings is None:
        settings = {"rope_theta": data.get("rope_theta") or theta, **(data.get("rope_scaling") or {})}
    elif kind is not None and kind in settings:
        settings = settings[kind]
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"config.json: the rotary settings are {settings!r}, not an object")
    name: Any = settings.get("rope_type") or settings.get("type") or "default"
    if name not in get_args(RopeKind):
        raise UnsupportedModel(f"rotary scaling {name!r} is not supported; isoform knows default, linear and llama3")
    if float(settings.get("partial_rotary_factor") or data.get("partial_rotary_factor") or 1) != 1:
        raise UnsupportedModel(
            "partial rotary embedding (partial_rotary_factor below 1) is not supported by this family"
        )
    try:
        return RopeConfig(
            theta=float(settings.get("rope_theta") or data.get("rope_theta") or theta),
            kind=name,
            factor=float(settings.get("factor", 1.0)),
            low_freq_factor=float(settings.get("low_freq_factor", 1.0)),
            high_freq_factor=float(settings.get("high_freq_factor", 4.0)),
            original_max_position_embeddings=int(settings.get("original_max_position_embeddings", 8192)),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: malformed rotary settings {settings!r} ({error})") from None
