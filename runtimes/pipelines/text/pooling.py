"""From the states of a text's tokens to one vector, like sentence-transformers, in NumPy.

A graph that isoform exported computes this itself, as its output `sentence_embedding`. This module serves what has only
states: GGUF files, graphs from elsewhere, and texts with a prompt that pooling leaves out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.json_files import read_object
from isoform.sentence_modules import (
    MODES,
    SENTENCE,
    TOKENS,
    Dense,
    LayerNorm,
    LayerPooling,
    Normalize,
    Pooling,
    SentenceModules,
    Truncate,
    read_sentence_modules,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

ACTIVATIONS: Mapping[str, Callable[[Floats], Any]] = {
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "GELU": lambda x: x * np.float32(0.5) * (1 + np.vectorize(math.erf)(x / math.sqrt(2)).astype(np.float32)),
    "Identity": lambda x: x,
    "LeakyReLU": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "ReLU": lambda x: np.maximum(x, 0),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "Tanh": np.tanh,
}


@dataclass(frozen=True)
class Recipe:
    """How a model makes the vector of a text."""

    modules: SentenceModules

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """The recipe of a folder. Raises UnsupportedModel for modules that isoform does not compute."""
        modules = read_sentence_modules(folder)
        if modules.refusal:
            raise UnsupportedModel(modules.refusal)
        if not read_object(folder / "config.json").get("output_hidden_states"):
            modules = modules.without_layers()
        return cls(modules)

    @cached_property
    def weights(self) -> Mapping[str, Mapping[str, Floats]]:
        """The weights of every module that has some, by its folder."""
        steps = (step for step in self.modules.steps if isinstance(step, Dense | LayerNorm))
        return {step.folder: read_weights(self.modules.root / step.folder) for step in steps}

    def apply(self, states: Floats, prompt_length: int = 0) -> Floats:
        """Shapes: states (T, C) of one text without padding -> (E,). The prompt is left out where the model says so."""
        values = {TOKENS: states}
        for step in self.modules.steps:
            if isinstance(step, Pooling):
                skip = 0 if step.include_prompt else prompt_length
                values[SENTENCE] = np.concatenate([pool(values[TOKENS], mode, skip) for mode in step.modes])
            elif isinstance(step, Normalize):
                values[step.target] = normalize(values[step.source])
            elif isinstance(step, Dense):
                values[step.target] = _dense(step, self.weights[step.folder], values[step.source])
            elif isinstance(step, LayerNorm):
                values[SENTENCE] = _layer_norm(self.weights[step.folder], values[SENTENCE])
            elif isinstance(step, Truncate):
                values[SENTENCE] = values[SENTENCE][: step.size]
            elif isinstance(step, LayerPooling):
                raise UnsupportedModel(
                    f"{self.modules.root / step.folder} weighs the states of every layer, and this form or call gives "
                    f"only the last ones; use a form with the output {SENTENCE} (ONNX, TorchScript or the checkpoint)"
                )
        return values[SENTENCE]


def pool(states: Floats, mode: str, skip: int = 0) -> Floats:
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


def normalize(vector: Floats) -> Floats:
    """Over the last axis, to length 1."""
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), np.float32(1e-12))


def similarity(name: str, one: Floats, other: Floats) -> float:
    """How near two vectors (E,) are, by one of `SIMILARITIES`; more is nearer."""
    if name == "euclidean":
        return -float(np.linalg.norm(one - other))
    if name == "manhattan":
        return -float(np.abs(one - other).sum())
    if name == "cosine":
        one, other = normalize(one), normalize(other)
    return float(one @ other)


def _dense(step: Dense, weights: Mapping[str, Floats], x: Floats) -> Floats:
    y = x @ weights["linear.weight"].T
    if step.bias:
        y = y + weights["linear.bias"]
    y = ACTIVATIONS[step.activation](y).astype(np.float32)
    if not step.residual:
        return y
    return y + (x if step.size_in == step.size_out else x @ weights["residual.weight"].T)


def _layer_norm(weights: Mapping[str, Floats], x: Floats) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(1e-5)) * weights["norm.weight"] + weights["norm.bias"]


def read_weights(folder: Path) -> dict[str, Floats]:
    """The tensors of a small model.safetensors as float32. Raises CheckpointError when there is none to read."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; export the model, which writes it, or fetch the whole repository")
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        return {name: _tensor(entry, data[8 + length :]) for name, entry in header.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({error}); fetch it again") from None


def _tensor(entry: Mapping[str, Any], data: bytes) -> Floats:
    start, stop = entry["data_offsets"]
    held = data[start:stop]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        values = (np.frombuffer(held, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
        values = np.frombuffer(held, kinds[entry["dtype"]]).astype(np.float32)
    return values.reshape(entry["shape"])
