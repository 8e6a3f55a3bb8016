"""From the states of a text's tokens to one vector, as sentence-transformers does it.

The recipe lies beside the model: modules.json lists the steps, 1_Pooling/config.json says how to pool,
sentence_bert_config.json where to cut, config_sentence_transformers.json what to put before a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.json_files import read_list, read_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_OLD_KEYS = {  # of 1_Pooling/config.json, one switch per mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model makes sentence embeddings. Several modes are joined end to end."""

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True
    max_length: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """The recipe of a folder; mean pooling where there is no modules.json, as sentence-transformers has it."""
        settings = read_object(folder / "config_sentence_transformers.json")
        values: dict[str, Any] = {
            "prompts": {name: text for name, text in (settings.get("prompts") or {}).items() if text is not None},
            "default_prompt": settings.get("default_prompt_name"),
        }
        path = folder / "modules.json"
        if not path.is_file():
            return cls(**values)
        modules = read_list(path)
        for module in modules:
            kind = str(module.get("type", "")).rsplit(".", 1)[-1]
            where = _inside(folder, str(module.get("path") or ""), path)
            if kind == "Transformer":
                first = read_object(where / "sentence_bert_config.json")
                values |= {"max_length": first.get("max_seq_length"), "lowercase": bool(first.get("do_lower_case"))}
            elif kind == "Pooling":
                if not (where / "config.json").is_file():
                    raise CheckpointError(
                        f"{where}/config.json is missing, which says how to pool; fetch the whole repository"
                    )
                values |= _pooling(where / "config.json")
            elif kind == "Normalize":
                values["normalize"] = True
            else:
                raise UnsupportedModel(
                    f"{path} ends with a {kind or 'nameless'} module, which isoform does not compute; it computes "
                    "Pooling and Normalize (feature-extraction gives the token states)"
                )
        return cls(**values)

    def apply(self, states: NDArray[np.float32], prompt_length: int = 0) -> NDArray[np.float32]:
        """Shapes: states (T, C) of one text without padding -> (C,), or (modes · C,)."""
        skip = 0 if self.include_prompt else prompt_length
        vector = np.concatenate([pool(states, mode, skip) for mode in self.modes])
        return normalize(vector) if self.normalize else vector


def pool(states: NDArray[np.float32], mode: str, skip: int = 0) -> NDArray[np.float32]:
    """One vector for the states (T, C) of a text, leaving out the first `skip` tokens."""
    kept = states[skip:] if skip < len(states) else states
    if mode == "cls":
        return kept[0]
    if mode == "max":
        return kept.max(0)
    if mode == "mean":
        return kept.sum(0) / np.float32(len(kept))
    if mode == "mean_sqrt_len_tokens":
        return kept.sum(0) / np.sqrt(np.float32(len(kept)))
    if mode == "weightedmean":
        weights = np.arange(len(states) - len(kept) + 1, len(states) + 1, dtype=np.float32)[:, None]
        return (kept * weights).sum(0) / weights.sum()
    if mode == "lasttoken":
        return kept[-1]
    raise InputError(f"pooling {mode!r} is not one of {', '.join(MODES)}")


def normalize(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, to length 1."""
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), np.float32(1e-12))


def _pooling(path: Path) -> dict[str, Any]:
    config = read_object(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_KEYS.items() if config.get(key)]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if not modes or any(mode not in MODES for mode in modes):
        raise UnsupportedModel(
            f"{path} asks for pooling {', '.join(modes) or 'of no kind'}; isoform has {', '.join(MODES)}"
        )
    return {"modes": modes, "include_prompt": bool(config.get("include_prompt", True))}


def _inside(folder: Path, name: str, path: Path) -> Path:
    """A folder named by a file of the repository, which must not leave it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise CheckpointError(f"{path} names the folder {name!r}, which lies outside the repository")
    return folder / parts
