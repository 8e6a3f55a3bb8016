"""Accounts for the keys of config.json, as `weights.account` does for tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.sections import PLACE, short, where


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """The keys that a config reads, those that change no number, and those with the values that it can compute."""

    read: Collection[str]
    harmless: Collection[str]
    only: Mapping[str, tuple[Any, ...]]


def account_keys(data: Mapping[str, Any], known: KnownKeys) -> None:
    """Raise UnsupportedModel for a key of `data` that is not known, or a value that cannot be computed.

    An unknown key that is null sets nothing and passes.
    """
    unknown: list[str] = []
    for key, value in data.items():
        if key == PLACE or key in known.read:
            continue
        if key in known.only:
            if not any(value is one or value == one for one in known.only[key]):
                raise _other_value(data, key, known.only[key])
        elif key not in known.harmless and value is not None:
            unknown.append(key)
    if unknown:
        raise _unknown_keys(data, unknown)


def by_field(data: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
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
        return short(json.dumps(value), str)
    except (TypeError, ValueError):
        return short(value)
