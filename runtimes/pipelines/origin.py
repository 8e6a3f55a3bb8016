"""Where the model of a pipeline came from: what its attributes need and no session says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOATS: Mapping[str, str] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
"""isoform's names of float dtypes -> torch's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """`name` is the model as the caller gave it, `dtype` the form's ("f32", "q8_0"), `device` "cpu" or "cuda:N".

    `config`: reads config.json with the defaults of its format; None where no family knows it. `count`: counts the
    parameters. `save`: writes the model into a new folder, whole or not at all. `inputs`: what its tokenizer
    gives. `again`: what opens the same model, None where nothing does any more. `beside`: opens another model, given
    it, its tokenizer and its task where that is not this one's, as this one was opened.
    """

    name: str = ""
    device: str = "cpu"
    dtype: str = "f32"
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    config: Callable[[], Any] | None = None
    count: Callable[[], int] | None = None
    save: Callable[[Path], None] | None = None
    again: Any = None
    beside: Callable[..., Any] | None = None

    @property
    def torch_dtype(self) -> Any:
        """The torch dtype that the model computes in: float32 for quantized weights."""
        import torch

        return getattr(torch, FLOATS.get(self.dtype, "float32"))

    @property
    def torch_device(self) -> Any:
        import torch

        return torch.device(self.device)
