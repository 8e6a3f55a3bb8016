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

    def decoder(self, rows: Any) -> TorchDecoder:
        return TorchDecoder(self, rows)

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
        tokens: Any,
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[Any]:
        self.mask = np.concatenate((self.mask, np.ones(tokens.shape, np.int64) if mask is None else mask), 1)
        places = self.mask.cumsum(1)[:, -tokens.shape[1] :] - 1 if positions is None else positions
        outputs = self.session.run(
            {"input_ids": tokens, "attention_mask": self.mask, "position_ids": places, **self.past}
        )
        self.past = {name: outputs[name.replace("past_key_values", "present")] for name in self.past}
        logits = next(iter(outputs.values()))
        return logits if last is None else logits[:, -1]

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: NDArray[np.int64]) -> None:
        raise NotImplementedError

    def join(self, other: Any) -> None:
        raise NotImplementedError

    def rewind(self, counts: Any) -> None:
        raise NotImplementedError
