"""transformers' Whisper as a speech session: the same numbers, so that only the algorithms are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TransformersSpeech:
    """`model` is a WhisperForConditionalGeneration; its cross-attention is read where it is eager."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        with torch.no_grad():
            return self.model.model.encoder(torch.from_numpy(inputs["input_features"])).last_hidden_state

    def decoder(self, memory: Any) -> TransformersDecoder:
        return TransformersDecoder(self.model, memory)

    def giving(self, role: str) -> str:
        assert role == "attentions"
        return "alignment"

    def run_part(self, name: str, encoded: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """What the aligned heads attend to: input_ids (B, T) -> (B, heads, T, S)."""
        import torch

        self.model.set_attn_implementation("eager")
        with torch.no_grad():
            out = self.model(
                encoder_outputs=(encoded,),
                decoder_input_ids=torch.from_numpy(inputs["input_ids"]),
                output_attentions=True,
            )
        heads = self.model.generation_config.alignment_heads
        weights: NDArray[np.float32] = torch.stack([out.cross_attentions[n][:, h] for n, h in heads], 1).numpy()
        return {"cross_attentions": weights}


class TransformersDecoder:
    def __init__(self, model: Any, memory: Any) -> None:
        self._model, self._memory, self._past = model, memory, None

    def step(self, tokens: Any, *, mask: Any = None, positions: Any = None, last: int | None = 1) -> Any:
        import torch

        with torch.no_grad():
            out = self._model(
                encoder_outputs=(self._memory,),
                decoder_input_ids=torch.from_numpy(tokens),
                past_key_values=self._past,
                use_cache=True,
            )
        self._past = out.past_key_values
        return out.logits.numpy()[:, -1] if last == 1 else out.logits.numpy()

    def select(self, rows: NDArray[np.int64]) -> None:
        import torch

        index = torch.from_numpy(rows)
        self._memory = self._memory[index]
        if self._past is not None:
            self._past.reorder_cache(index)
