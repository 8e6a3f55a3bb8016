"""Backbones that a config names by their model_type: which of their stages are read, and the card that builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Pyramid
from isoform.reference.families import Tower, tower
from isoform.reference.rules import Drop, Rename, Rule


def backbone(data: Mapping[str, Any], key: str, default: str) -> Tower:
    """The tower that config.json describes under `key`, which must have maps to read. Raises UnsupportedModel."""
    found = tower(data, key, default)
    pyramid_of(found)
    return found


def pyramid_of(found: Tower) -> Pyramid:
    """How a tower's maps are read. Raises UnsupportedModel for a family that has none."""
    if found.family.pyramid is None:
        raise UnsupportedModel(f"config.json: {found.family.title} as a backbone is not supported; it gives no maps")
    return found.family.pyramid


def stages(data: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that a backbone's config asks for, by `out_features` or `out_indices`; without both, the last.

    `names` are all that the backbone has, from the stem on.
    """
    asked, indices = data.get("out_features"), data.get("out_indices")
    numbered: list[str] | None = None
    if indices is not None:
        try:
            numbered = [names[int(n)] for n in indices]
        except (IndexError, TypeError, ValueError, OverflowError):
            raise CheckpointError(
                f"config.json: out_indices is {indices!r:.80}; stages go to {len(names) - 1}"
            ) from None
    if asked is None:
        asked = names[-1:] if numbered is None else numbered
    if not isinstance(asked, list | tuple) or not asked or any(name not in names for name in asked):
        raise CheckpointError(f"config.json: out_features is {asked!r:.80}; the stages are {', '.join(names)}")
    if numbered is not None and {*numbered} != {*asked}:
        raise CheckpointError(
            f"config.json: out_features is {list(asked)!r:.80}, out_indices {indices!r:.80}, which are other stages; "
            "take one of them out"
        )
    return tuple(name for name in names if name in asked)


def backbone_rules(found: Tower, kept: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """A tower's rules as the Hub spells a backbone inside a model: without the name of the trunk ("swin").

    The modules `kept` have it all the same.
    """
    prefix = f"{found.family.prefix}."
    whole = {prefix + name for name in kept}

    def short(rule: Rule) -> Rule:
        if isinstance(rule, Rename | Drop) and rule.hub not in whole:
            return replace(rule, hub=rule.hub.removeprefix(prefix))
        return rule

    return tuple(map(short, found.rules))
