"""The reference behind the `Session` protocol, to be broken in known ways by the tests of the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from isoform.reference.model import Model
from isoform.runtimes.backends.decoder import extended

Inputs = dict[str, NDArray[Any]]


class TorchSession:
    """`feed` may change the inputs on their way in, `result` the outputs on their way out."""

    def __init__(
        self,
        model: Model,
        module: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        backend: str = "fake",
        feed: Callable[[Inputs], Inputs] = lambda inputs: inputs,
        result: Callable[[NDArray[Any]], NDArray[Any]] = lambda output: output,
    ) -> None:
        self.backend, self.signature = backend, model.signature
        self.module = module or model.module(dtype)
        self.dtype, self.feed, self.result = dtype, feed, result

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Inputs:
        fed = self.feed(dict(inputs))
        tensors = [torch.from_numpy(np.ascontiguousarray(fed[port.name])) for port in self.signature.inputs]
        with torch.inference_mode():
            outputs = self.module(*(t.to(self.dtype) if t.is_floating_point() else t for t in tensors))
        names = [port.name for port in self.signature.outputs]
        return {name: self.result(out.float().numpy()) for name, out in zip(names, outputs, strict=True)}

    def decoder(self, batch: int) -> TorchDecoder:
        return TorchDecoder(self, batch)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TorchDecoder:
    def __init__(self, session: TorchSession, batch: int) -> None:
        self.session = session
        self.mask = np.zeros((batch, 0), np.int64)
        self.past = {state.input: np.zeros(state.shape(batch), np.float32) for state in session.signature.states}

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        position_ids: NDArray[Any] | None = None,
        *,
        all_logits: bool = False,
    ) -> NDArray[Any]:
        if attention_mask is None or position_ids is None:
            attention_mask = extended(self.mask, input_ids.shape[1])
            position_ids = attention_mask.cumsum(1)[:, -input_ids.shape[1] :] - 1
        self.mask = attention_mask
        outputs = self.session.run(
            {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **self.past}
        )
        self.past = {name: outputs[name.replace("past_key_values", "present")] for name in self.past}
        logits = next(iter(outputs.values()))
        return logits if all_logits else logits[:, -1]
