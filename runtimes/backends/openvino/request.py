"""One infer request of a compiled graph: arrays by port in, arrays by port out, and the states that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isoform.runtimes.backends.openvino.library import failed, library
from isoform.runtimes.backends.openvino.stateful import FIRST_LOGITS, variable
from isoform.signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Compiled(Protocol):
    """What a request needs of the session that it belongs to."""

    signature: Signature
    types: Mapping[str, Any]  # NumPy's, by input
    cuts_logits: bool  # whether `FIRST_LOGITS` is an input

    @property
    def native(self) -> Any: ...


class Request:
    """Floats go in and come out as float32, whatever the graph computes in."""

    def __init__(self, session: Compiled) -> None:
        self._session, self._signature = session, session.signature
        self._native = session.native.create_infer_request()
        self.begun = False  # whether the states hold anything

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Run it on these arrays, which are only read. Raises InputError when the session is closed."""
        assert self._session.native is not None
        types = self._session.types
        given = {name: np.ascontiguousarray(array, types[name]) for name, array in feeds.items()}
        try:
            self._native.infer(given, share_inputs=True)
        except RuntimeError as error:
            raise failed(error) from None
        self.begun = True

    def output(self, name: str) -> NDArray[np.float32]:
        """What the last run gave at a port."""
        array: NDArray[np.float32] = self._view(name).copy()
        return array

    def logits(self, feeds: Mapping[str, NDArray[Any]], length: int, last: int | None) -> NDArray[np.float32]:
        """The logits of a pass over so many new slots, as `Decoder.step` gives them."""
        if self._session.cuts_logits:
            feeds = {**feeds, FIRST_LOGITS: np.array([0 if last is None or last >= length else -last])}
        self.infer(feeds)
        logits = self._view(self._signature.results[0].name)
        chosen: NDArray[np.float32] = logits if last is None else logits[:, -1] if last == 1 else logits[:, -last:]
        return chosen.copy()

    def everything(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Run it for all slots."""
        self.infer({**feeds, FIRST_LOGITS: np.array([0])} if self._session.cuts_logits else feeds)

    def states(self) -> dict[str, NDArray[Any]]:
        """A copy of the states, by input port."""
        return {variable(s.name, self._signature): s.state.data.copy() for s in self._native.query_state()}

    def put(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hold these states, by input port. States without slots are those of a new request."""
        if any(0 in array.shape for array in arrays.values()):
            self._native.reset_state()
            self.begun = False
            return
        for state in self._native.query_state():
            array = np.ascontiguousarray(arrays[variable(state.name, self._signature)])
            state.state = library().Tensor(array.astype(state.state.data.dtype, copy=False))
        self.begun = True

    def _view(self, name: str) -> Any:
        return self._native.get_tensor(name).data
