"""Configurations: frozen dataclasses whose fields carry the names of config.json, read with their types.

A config may hold configs: the object `text_config` of config.json is read by `section`, and what is wrong in it is
reported as `text_config.hidden_size`. Every key of the file is accounted for, like the tensors of a checkpoint: it is
read, known to change no number, or the model is refused by the key's name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from isoform.errors import CheckpointError
from isoform.reference.accounting import KnownKeys, account_keys, by_field
from isoform.reference.checkpoints.checkpoint import Checkpoint
from isoform.reference.harmless import HARMLESS, ONLY
from isoform.reference.rope import RopeConfig as RopeConfig
from isoform.reference.rope import read_rope as read_rope
from isoform.reference.sections import section as section
from isoform.reference.sections import short
from isoform.reference.sections import where as where

_LARGEST = 2**31 - 1
_MAY_BE_ZERO = (
    *("decoder_start_token_id", "eos_token_id", "max_window_layers", "no_aggregation_label_index"),
    *("num_aggregation_labels", "pad_token_id"),
)


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
        found, rope = getattr(self, "max_position_embeddings", None), getattr(self, "rope", None)
        if not isinstance(found, int):
            return None
        return rope.context(found) if isinstance(rope, RopeConfig) else found

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
        data = by_field(data, cls.aliases)
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
        account_keys(data, known_keys(cls))


def known_keys(cls: type[Config]) -> KnownKeys:
    """What a config states of the keys of its file, with what its bases and `harmless` do."""
    hints = get_type_hints(cls)
    read = {spec.name for spec in fields(cls)} | cls.aliases.keys()
    if any(hints.get(name) is RopeConfig for name in read):
        read |= RopeConfig.reads
    harmless: set[str] = set()
    only: dict[str, tuple[Any, ...]] = {}
    for base in reversed(cls.__mro__):
        stated = vars(base)
        read |= stated.get("reads", frozenset())
        harmless |= stated.get("harmless", frozenset())
        only |= stated.get("only", {})
    only = {key: values for key, values in ONLY.items() if key not in harmless} | only
    return KnownKeys(read, (harmless | HARMLESS) - only.keys(), only)


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
    raise CheckpointError(f"{file}: {path} is {short(value)}, which is no valid {wanted}")


def with_labels(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with `num_labels` counted where `id2label` names them."""
    labels = data.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        file, path = where(data, "id2label")
        raise CheckpointError(f"{file}: {path} is {short(labels)}, not an object")
    return {**data, "num_labels": len(labels)} if labels else data
