"""Accounts for a model's generation_config.json: a key is applied, known to change no text, or refused by its name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.runtimes.generation.other_settings import HARMLESS, NOTES, UNSUPPORTED
from isoform.runtimes.generation.settings import NAMES, resolve

_FILE = "generation_config.json"
_KNOWN = NAMES | UNSUPPORTED.keys() | HARMLESS | NOTES
_IDS = (
    *("begin_suppress_tokens", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("bad_words_ids", "sequence_bias", "suppress_tokens"),
)
"""The settings that name tokens to be made or not. Those for padding and an empty prompt are read by nothing else."""


def account_file(folder: Path, settings: Mapping[str, Any], *, read: Collection[str] = (), file: str = _FILE) -> None:
    """Raise UnsupportedModel for a key that nobody knows; `read`: the keys that the model's pipeline reads itself.

    What isoform knows and cannot do is refused by `settings.resolve`, where a call may have another value. A file that
    transformers made from config.json may hold any key: it reads only those of generation there.
    """
    if settings.get("_from_model_config"):
        return
    for key, value in settings.items():
        if value is not None and key not in _KNOWN and key not in read:
            raise UnsupportedModel(
                f"{folder / file}: {key} = {value!r:.60} is not known and may change the text; take the key out of "
                "the file if it changes nothing"
            )


def account_ids(folder: Path, settings: Mapping[str, Any], asked: Collection[str], rows: int | None) -> None:
    """Raise CheckpointError for a token of the model's `settings` for which it has no logits, of `rows`.

    Settings that are `asked` for instead are not looked at.
    """
    for name in _IDS:
        if rows is None or name not in settings or name in asked:
            continue
        tokens = _tokens(getattr(resolve({}, {name: settings[name]}), name))
        beyond = next((token for token in tokens if token >= rows), None)
        if beyond is not None:
            path = folder / _FILE
            path = path if path.is_file() else folder / "config.json"
            raise CheckpointError(
                f"{path}: {name} has the token {beyond}, and the model has logits for {rows} tokens; correct the file, "
                f"or pass {name}=None"
            )


def _tokens(value: Any) -> Iterator[int]:
    """The token ids of a setting: one, several, sequences of them, or sequences with their biases."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _tokens(one)
