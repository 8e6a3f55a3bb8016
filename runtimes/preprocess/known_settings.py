"""Accounts for the settings of processors: each is read, known to change no value, or refused by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from isoform.errors import UnsupportedModel

HARMLESS = frozenset(
    (
        *("_commit_hash", "_processor_class", "_valid_processor_keys", "auto_map", "device", "disable_grouping"),
        *("feature_extractor_class", "feature_extractor_type", "image_processor_type", "processor_class"),
        *("return_tensors", "transformers_version"),
    )
)
"""What a processor is called, and how its results are held."""


def account_settings(
    data: Mapping[str, Any],
    where: str,
    *,
    read: Collection[str],
    harmless: Collection[str] = (),
    only: Mapping[str, tuple[Any, ...]] | None = None,
) -> None:
    """Raise UnsupportedModel for a setting that may change what a model is given.

    `read`: those that the caller reads. `only`: those for which it knows these values alone. A null sets nothing.
    """
    for key, value in data.items():
        if value is None or key in read or key in harmless or key in HARMLESS:
            continue
        if only is None or key not in only:
            raise UnsupportedModel(
                f"{where}: {key} = {value!r:.60} is not known and may change what the model is given; take the key "
                "out of the file if it changes nothing"
            )
        if value not in only[key]:
            known = " or ".join(map(repr, only[key]))
            raise UnsupportedModel(f"{where}: {key} is {value!r:.60}; isoform prepares inputs with {known} only")
