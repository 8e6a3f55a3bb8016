"""Configurations: frozen dataclasses whose fields carry the names of config.json, read with their types.

A config may hold configs: the object `text_config` of config.json is read by `section`, and what is wrong in it is
reported as `text_config.hidden_size`. Every key of the file is accounted for, like the tensors of a checkpoint: it is
read, known to change no number, or the model is refused by the key's name.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.checkpoints.checkpoint import Checkpoint
from isoform.reference.harmless import HARMLESS, ONLY, ROPE

_LARGEST = 2**31 - 1
_MAY_BE_ZERO = ("max_window_layers", "pad_token_id")


_PLACE = "<place>"
"""The key under which a section of a file says where it is; no file has one of that name that matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a family needs of config.json. A key of the file that is none of these is refused:

    * a field, or one of `reads`: keys from which `from_dict` makes fields itself;
    * one of `aliases`: another name of a field, which both may give if they agree;
    * `only`: keys that change the numbers, with the values for which this family computes the right ones;
    * `harmless`: keys that change no number in this family, besides those of `harmless.HARMLESS`.

    A subclass adds to the sets of its base, and what it states of a key goes before what `harmless.ONLY` states.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    harmless: ClassVar[frozenset[str]] = frozenset()
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}

    @property
    def context(self) -> int | None:
        """The greatest number of positions of a text; None without a limit. Families with another field override it."""
        found = getattr(self, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def vocabulary(self) -> int | None:
        """How many token ids there are; None for a model that reads no text."""
        found = getattr(self, "vocab_size", None)
        return found if isinstance(found, int) else None

    @property
    def picture(self) -> int | None:
        """The longer side of the pictures that the model was made for, in pixels; None where config.json has none."""
        found = getattr(self, "image_size", None)
        return max(found) if isinstance(found, tuple) else found

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read config.json; a family that needs another file as well overrides this."""
        return cls.from_dict(checkpoint.config)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the fields from a parsed config.json; a missing, mistyped or absurd one raises CheckpointError.

        A null is None where the field may be None, and the default elsewhere. A field whose type is a Config is read
        from the section of its name.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        cls.account(data)
        data = _by_field(data, cls.aliases)
        for spec in fields(cls):
            value, hint = data.get(spec.name), hints[spec.name]
            if isinstance(hint, type) and issubclass(hint, Config) and not isinstance(value, Config):
                values[spec.name] = hint.from_dict(section(data, spec.name))
            elif value is not None:
                values[spec.name] = _typed(where(data, spec.name), spec.name, value, hint)
            elif spec.name in data and types.NoneType in get_args(hint):
                values[spec.name] = None
            elif spec.default is MISSING and spec.default_factory is MISSING:
                file, key = where(data, spec.name)
                raise CheckpointError(f"{file} has no {key!r}, which {cls.__name__} needs")
        return cls(**values)

    @classmethod
    def account(cls, data: Mapping[str, Any]) -> None:
        """Raise UnsupportedModel for a key of `data` that this family does not know, or a value that it cannot compute.

        An unknown key that is null sets nothing and passes.
        """
        read, harmless, only = _known(cls)
        unknown: list[str] = []
        for key, value in data.items():
            if key == _PLACE or key in read:
                continue
            if key in only:
                if not any(value is one or value == one for one in only[key]):
                    raise _other_value(data, key, only[key])
            elif key not in harmless and value is not None:
                unknown.append(key)
        if unknown:
            raise _unknown_keys(data, unknown)


def _by_field(data: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """`data` with the value of each alias under its field's name too. Raises CheckpointError where the two differ."""
    for alias, name in aliases.items():
        if (other := data.get(alias)) is None:
            continue
        if data.get(name) not in (None, other):
            (file, path), (_, field) = where(data, alias), where(data, name)
            raise CheckpointError(
                f"{file}: {path} is {_json(other)} and {field} is {_json(data[name])}, which are the same setting"
            )
        data = {**data, name: other}
    return data


def _known(cls: type[Config]) -> tuple[Collection[str], Collection[str], Mapping[str, tuple[Any, ...]]]:
    """The keys that a config reads, those that change nothing, and those with a choice of values."""
    hints = get_type_hints(cls)
    read = {spec.name for spec in fields(cls)} | cls.aliases.keys()
    if any(hints.get(name) is RopeConfig for name in read):
        read |= ROPE
    harmless: set[str] = set()
    only: dict[str, tuple[Any, ...]] = {}
    for base in reversed(cls.__mro__):
        stated = vars(base)
        read |= stated.get("reads", frozenset())
        harmless |= stated.get("harmless", frozenset())
        only |= stated.get("only", {})
    only = {key: values for key, values in ONLY.items() if key not in harmless} | only
    return read, (harmless | HARMLESS) - only.keys(), only


def _other_value(data: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> UnsupportedModel:
    file, path = where(data, key)
    if key == "quantization_config":
        return UnsupportedModel(
            f"{file}: {path} is set: no family can use quantized weights; take a BF16 or F16 checkpoint"
        )
    values = " or ".join(dict.fromkeys(_json(one) for one in allowed))
    return UnsupportedModel(
        f"{file}: {path} is {_json(data[key])}, and isoform computes this family with {values} only; "
        "its results would be those of another model"
    )


def _unknown_keys(data: Mapping[str, Any], keys: list[str]) -> UnsupportedModel:
    file, path = where(data, keys[0])
    more = f" (and {', '.join(keys[1:4])}{' and others' if len(keys) > 4 else ''})" if len(keys) > 1 else ""
    return UnsupportedModel(
        f"{file}: {path} = {_json(data[keys[0]])}{more} is not known for this family and may change its results; "
        "take the key out of the file if it changes nothing"
    )


def _json(value: Any) -> str:
    try:
        return _short(json.dumps(value), str)
    except (TypeError, ValueError):
        return _short(value)


def where(data: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The file that `data` was read from, and the dotted path of `key` in it."""
    file, path = data.get(_PLACE, ("config.json", ""))
    return file, f"{path}.{key}" if path else key


def section(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under `key` ("text_config"), empty when it is missing; `key`_dict, in old files, takes precedence."""
    file, path = where(data, key)
    old = data.get(f"{key}_dict")
    found = data.get(key) if old is None else old
    if not isinstance(found, Mapping | None):
        raise CheckpointError(f"{file}: {path} is {_short(found)}, not an object")
    return {**(found or {}), _PLACE: (file, path)}


def _typed(place: tuple[str, str], name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type, or CheckpointError; whole numbers pass as floats, lists become tuples."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is tuple:
            kind = get_args(option)[0]
            if isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value):
                return tuple(value)
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST:
                return float(value)
        elif option is int:
            if type(value) is int and (name in _MAY_BE_ZERO or value != 0) and 0 <= value <= _LARGEST:
                return value
        elif isinstance(value, option):
            return value
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options if option is not types.NoneType)
    file, path = place
    raise CheckpointError(f"{file}: {path} is {_short(value)}, which is no valid {wanted}")


def _short(value: Any, show: Callable[[Any], str] = repr) -> str:
    shown = show(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def with_labels(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with `num_labels` counted where `id2label` names them."""
    labels = data.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        file, path = where(data, "id2label")
        raise CheckpointError(f"{file}: {path} is {_short(labels)}, not an object")
    return {**data, "num_labels": len(labels)} if labels else data


RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the base and how the frequencies are scaled ("default", "linear" or "llama3").

    `partial` is the share of a head's channels that are rotated.
    """

    theta: float = 10000.0
    partial: float = 1.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def read_rope(
    data: Mapping[str, Any], kind: str | None = None, theta: float = 10000.0, partial: float | None = None
) -> RopeConfig:
    """The rotary settings of config.json in either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    `kind` picks the entry of a config that has one per layer type ("full_attention", "sliding_attention");
    `theta` is the format's default base, `partial` its default share of a head; None: this family rotates all of it.
    """
    file, path = where(data, "rope_parameters" if data.get("rope_parameters") is not None else "rope_scaling")
    settings = data.get("rope_parameters")
    if settings is None:
        settings = data.get("rope_scaling") or {}
    elif kind is not None and isinstance(settings, Mapping) and kind in settings:
        settings = settings[kind]
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{file}: {path} is {_short(settings)}, not an object")
    name: Any = settings.get("rope_type") or settings.get("type") or "default"
    if name not in get_args(RopeKind):
        raise UnsupportedModel(
            f"rotary scaling {_short(name)} is not supported; isoform knows {', '.join(get_args(RopeKind))}"
        )
    try:
        share = float(settings.get("partial_rotary_factor") or data.get("partial_rotary_factor") or partial or 1)
        rope = RopeConfig(
            theta=float(settings.get("rope_theta") or data.get("rope_theta") or theta),
            partial=share,
            kind=name,
            factor=float(settings.get("factor", 1.0)),
            low_freq_factor=float(settings.get("low_freq_factor", 1.0)),
            high_freq_factor=float(settings.get("high_freq_factor", 4.0)),
            original_max_position_embeddings=int(settings.get("original_max_position_embeddings", 8192)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: malformed rotary settings, {path} {_short(settings)} ({error})") from None
    numbers = (rope.theta, rope.factor, rope.low_freq_factor, rope.original_max_position_embeddings)
    if not all(0 < number < math.inf for number in numbers) or not rope.low_freq_factor < rope.high_freq_factor:
        raise CheckpointError(f"{file}: the rotary settings, {path} {_short(settings)}, make no sense")
    if not 0 < share <= 1:
        raise CheckpointError(f"{file}: partial_rotary_factor is {share}, which is no share of a head")
    if share != 1 and partial is None:
        raise UnsupportedModel(f"partial rotary embedding ({share} of each head) is not supported by this family")
    return rope
