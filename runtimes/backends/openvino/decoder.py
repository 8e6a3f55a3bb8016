"""Decoding in OpenVINO: states that stay in the graph, or that go out and in again where they are no plain cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.runtimes.backends.decoder import GraphDecoder, Kept, assembled
from isoform.runtimes.backends.openvino.stateful import HIDDEN, ROWS
from isoform.signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.backends.openvino.request import Request


class RequestDecoder(GraphDecoder):
    """A decoder over an infer request; `deep` makes one that gives hidden states."""

    def __init__(
        self,
        request: Request,
        signature: Signature,
        rows: int | Mapping[str, NDArray[Any]],
        deep: Callable[[], Request],
    ) -> None:
        super().__init__(signature, rows)
        self._request, self._deeper = request, deep

    def keep_hidden_states(self) -> None:
        """See `GraphDecoder.keep_hidden_states`."""
        self._go_deep()
        self._request = self._deeper()

    def _logits(self, feeds: Mapping[str, NDArray[Any]], length: int, last: int | None) -> NDArray[np.float32]:
        logits = self._request.logits(feeds, length, last)
        if self._deep is not None:
            self._deep.append(self._request.output(HIDDEN))
        return logits


class StatefulDecoder(RequestDecoder):
    """The states lie in an infer request of its own. Rows are chosen by the next pass, without a copy."""

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self._rows = np.arange(len(self), dtype=np.int32)  # of the states, those that the next pass goes on with

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        given = {**feeds, ROWS: self._rows}
        self._rows = np.arange(len(self), dtype=np.int32)
        return self._logits(given, length, last)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The states by port, each with the rows of this decoder."""
        if not self._request.begun:
            return {state.input: np.zeros(state.shape(len(self)), np.float32) for state in self.states}
        return {name: array[self._rows] for name, array in self._request.states().items()}

    def _put(self, arrays: Mapping[str, NDArray[Any]], rows: int) -> None:
        self._request.put(arrays)
        self._rows = np.arange(rows, dtype=np.int32)

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        self._rows = self._rows[rows] if self._request.begun else np.arange(len(rows), dtype=np.int32)

    def _truncate(self, slots: int) -> None:
        arrays = self._arrays()
        for state in self.states:
            if state.kind == "append" and state.slots is not None:
                arrays[state.input] = arrays[state.input].take(range(slots), state.slots)
        self._put(arrays, len(self))

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        self._put(_assembled(self, plan, slots, lambda decoder: decoder._arrays()), len(plan))


class LoopDecoder(RequestDecoder):
    """What a pass gives as present goes into the next one as past."""

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self._past = {state.input: np.zeros(state.shape(len(self)), np.float32) for state in self.states}

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        given = {**self._held, **feeds, **self._past}
        if (switch := self.signature.port("switch")) is not None:
            given[switch.name] = np.array([past > 0])
        logits = self._logits(given, length, last)
        for state in self.states:
            if not past or state.kind != "once":  # the first pass has computed that
                self._past[state.input] = self._request.output(state.output)
        return logits

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        for state in self.states:
            order = held if state.kind == "once" else rows
            if order is not None:
                self._past[state.input] = self._past[state.input][order]

    def _truncate(self, slots: int) -> None:
        for state in self.states:
            if state.kind == "append" and state.slots is not None:
                self._past[state.input] = self._past[state.input].take(range(slots), state.slots)

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        self._past = _assembled(self, plan, slots, lambda decoder: decoder._past)


def _assembled(
    decoder: GraphDecoder, plan: Sequence[Kept], slots: int, states: Callable[[Any], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """The states of a plan, by port; `states` gives those of a decoder."""
    sources = {id(kept.decoder): states(kept.decoder) for kept in plan}
    make = partial(np.zeros, dtype=np.float32)
    return {
        state.input: assembled(state, plan, slots, {key: arrays[state.input] for key, arrays in sources.items()}, make)
        for state in decoder.states
    }
