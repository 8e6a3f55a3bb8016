"""The decoders over torch modules: states as tensors that a pass gives, or in buffers that attention extends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from isoform.runtimes.backends.decoder import GraphDecoder, Kept, assembled, fitting, put
from isoform.runtimes.backends.torch.asked import asking
from isoform.runtimes.backends.torch.tensors import tensors, to_numpy
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

FIRST_CAPACITY = 256  # slots of a new cache; it doubles when it is full


class TensorDecoder(GraphDecoder):
    """Over anything that takes and gives tensors as the signature says: a module, a TorchScript file.

    The states that a pass gives go into the next one.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, ...]],
        signature: Signature,
        rows: int | Mapping[str, NDArray[Any]],
        device: torch.device,
        dtype: torch.dtype,
        head: nn.Module | None = None,
    ) -> None:
        """`head`: the module that turns hidden states into logits, where there is one to look at."""
        super().__init__(signature, rows)
        self._forward, self._device, self._dtype, self._head = forward, device, dtype, head
        self._in_groups = device.type == "cpu"  # a GPU is fastest with all rows together
        self._fixed = self._tensors(self._held)
        self._past = {state.input: self._zeros(state.shape(len(self))) for state in self.states}

    def _begun(self, rows: int, slots: int) -> TensorDecoder:
        return type(self)(self._forward, self.signature, rows, self._device, self._dtype)

    def keep_hidden_states(self) -> None:
        """See `GraphDecoder.keep_hidden_states`."""
        if self._head is None:
            super().keep_hidden_states()
        self._go_deep()

    def _watched(self, *given: Tensor) -> tuple[Tensor, ...]:
        """A pass, and what the head was given in it."""
        if self._deep is None or self._head is None:
            return self._forward(*given)
        passes, thread = self._deep, get_ident()

        def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:  # others may run the same module
                passes.append(to_numpy(inputs[0]))

        handle = self._head.register_forward_pre_hook(take)
        try:
            return self._forward(*given)
        finally:
            handle.remove()

    def _tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return dict(zip(arrays, tensors(arrays, self._device, self._dtype), strict=True))

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        import torch

        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _run(self, feeds: dict[str, NDArray[Any]], past: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of one pass, by port."""
        import torch

        given = {**self._fixed, **self._tensors(feeds), **states}
        switch = self.signature.port("switch")
        if switch is not None:
            given[switch.name] = torch.full((1,), past > 0, device=self._device)
        outputs = self._watched(*(given[port.name] for port in self.signature.inputs))
        return {port.name: tensor for port, tensor in zip(self.signature.outputs, outputs, strict=True)}

    def _logits(self, outputs: Mapping[str, Tensor], last: int | None) -> NDArray[np.float32]:
        logits = outputs[self.signature.results[0].name]
        return to_numpy(logits if last is None else logits[:, -1] if last == 1 else logits[:, -last:])

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode(), asking(last):
            outputs = self._run(feeds, past, self._past)
            for state in self.states:
                if not past or state.kind != "once":  # the first pass has computed that
                    self._past[state.input] = outputs[state.output]
            return self._logits(outputs, last)

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        import torch

        with torch.inference_mode():
            order = torch.from_numpy(rows).to(self._device)
            kept = None if held is None else torch.from_numpy(held).to(self._device)
            for state in self.states:
                index = kept if state.kind == "once" else order
                if index is not None:
                    self._past[state.input] = self._past[state.input].index_select(0, index)
            if kept is not None:
                self._fixed = {name: tensor.index_select(0, kept) for name, tensor in self._fixed.items()}

    def _truncate(self, slots: int) -> None:
        for state in self.states:
            if state.kind == "append" and state.slots is not None:
                self._past[state.input] = self._past[state.input].narrow(state.slots, 0, slots)

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        import torch

        with torch.inference_mode():
            self._fixed = self._tensors(self._held)
            self._past = {
                state.input: assembled(
                    state,
                    plan,
                    slots,
                    {id(kept.decoder): kept.decoder._past[state.input] for kept in plan},
                    self._zeros,
                )
                for state in self.states
            }


class BufferDecoder(TensorDecoder):
    """Keys and values lie in buffers with room to spare: `forward` appends to them in place and reads views.

    A copy of the whole cache per token, which the plain operation makes, costs more than the model at long lengths.
    """

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.hands_over = True
        self._past.clear()
        self._make_buffers(len(self), FIRST_CAPACITY)

    def _make_buffers(self, batch: int, capacity: int) -> None:
        shapes = (state.shape(batch, capacity) for state in self.states)
        self._buffers = [self._zeros((rows, slots, heads, dim)) for rows, heads, slots, dim in shapes]

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode(), asking(last):
            if past + length > self._buffers[0].shape[1]:
                self._copy(len(self), past, past + length, slice(None))
            views = {
                state.input: buffer[:, :past].transpose(1, 2)
                for state, buffer in zip(self.states, self._buffers, strict=True)
            }
            return self._logits(self._run(feeds, past, views), last)

    def _copy(self, batch: int, past: int, needed: int, rows: Any) -> None:
        """Move these rows of the first `past` slots to buffers of `needed` slots or some more."""
        old = self._buffers
        self._make_buffers(batch, fitting(needed, FIRST_CAPACITY))
        for n, buffer in enumerate(old):
            self._buffers[n][:, :past] = buffer[:, :past][rows]

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        import torch

        with torch.inference_mode():
            self._copy(len(rows), slots, slots + 1, torch.from_numpy(rows).to(self._device))

    def _slots_of_states(self) -> dict[str, NDArray[Any]]:
        return {
            state.input: to_numpy(buffer[:, : self.slots].transpose(1, 2))
            for state, buffer in zip(self.states, self._buffers, strict=True)
        }

    def _load(self, states: Mapping[str, NDArray[Any]], rows: Sequence[NDArray[np.int64]], slots: int) -> None:
        import torch

        with torch.inference_mode():
            self._make_buffers(len(rows), fitting(slots + 1, FIRST_CAPACITY))
            for state, buffer in zip(self.states, self._buffers, strict=True):
                given = torch.from_numpy(states[state.input]).to(self._device, self._dtype).transpose(1, 2)
                for row, kept in enumerate(rows):
                    buffer[row, slots - len(kept) : slots] = given[row, kept]

    def _truncate(self, slots: int) -> None:
        """Nothing: a pass reads as many slots as there are, and writes behind them."""

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        import torch

        with torch.inference_mode():
            sources = {id(kept.decoder): kept.decoder._buffers for kept in plan}
            self._make_buffers(len(plan), fitting(slots + 1, FIRST_CAPACITY))
            for n, buffer in enumerate(self._buffers):
                for row, kept in enumerate(plan):
                    if kept.slots.size:
                        put(buffer[row], 0, slots, sources[id(kept.decoder)][n][kept.row], kept.slots)
