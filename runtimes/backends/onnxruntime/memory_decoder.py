"""Decoding beside a memory in ONNX Runtime: every cache stays where a run has put it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoform.runtimes.backends.decoder import MemoryDecoder
from isoform.runtimes.backends.onnxruntime.decoder import Graph
from isoform.runtimes.backends.onnxruntime.library import START, errors, failed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OnnxRuntimeMemoryDecoder(MemoryDecoder):
    """The memory and its keys and values are bound once; those of the tokens go in again as a run gives them."""

    def __init__(self, session: Graph, memory: Mapping[str, NDArray[Any]]) -> None:
        import numpy as np

        super().__init__(session.signature, memory)
        self._session = session
        self._device = session.device
        self._logits = session.signature.outputs[0]
        self._own = [(state.input, state.output) for state in self.states if state.kind != "once"]
        self._crossed = [(state.input, state.output) for state in self.states if state.kind == "once"]
        types = session.types
        self._start({s.input: np.zeros(s.shape(self._rows), types[s.input]) for s in self.states})

    def _start(self, past: dict[str, NDArray[Any]]) -> None:
        """Bind the memory and these arrays as the past; what has no slots yet is to be computed."""
        import numpy as np

        self._binding = self._session.native.io_binding()
        self._arrays = {
            **{name: array.astype(self._session.types[name], copy=False) for name, array in self._memory.items()},
            **past,
            self._switch: np.array([self._past > 0]),
        }
        self._values = {name: self._session.value(array) for name, array in self._arrays.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._bind_outputs(first=self._past == 0)

    def _bind_outputs(self, *, first: bool) -> None:
        self._binding.clear_binding_outputs()
        self._binding.bind_output(self._logits.name, "cpu")
        for _, present in (*self._own, *(self._crossed if first else ())):
            self._binding.bind_output(present, *self._device)

    def _pass(self, ids: NDArray[np.int64], *, all_logits: bool) -> NDArray[np.float32]:
        import numpy as np

        length = ids.shape[1]
        # Grouped-query attention extends a cache by several slots for a batch of one only.
        if self._rows > 1 and length > 1 and self._past:
            each = (np.ascontiguousarray(ids[:, n : n + 1]) for n in range(length))
            slots = [self._run(one, all_logits, self._past) for one in each]
            logits = np.concatenate(slots, 1) if all_logits else slots[-1]
        else:
            logits = self._run(ids, all_logits, self._past)
        return (logits if all_logits else logits[:, -1]).astype(np.float32, copy=False)

    def _run(self, ids: NDArray[np.int64], all_logits: bool, past: int) -> NDArray[Any]:
        """Logits (B, T, V), or (B, 1, V) if only the last slot's are asked for and the graph can choose."""
        import numpy as np

        self._binding.bind_cpu_input("input_ids", ids)
        if self._session.trims:
            start = np.array([0 if all_logits else -1])
            self._binding.bind_cpu_input(START, start)
        try:
            self._session.native.run_with_iobinding(self._binding)
        except errors() as error:
            raise failed(error) from None
        logits, *made = self._binding.get_outputs()
        names = [name for name, _ in (*self._own, *(self._crossed if past == 0 else ()))]
        for name, value in zip(names, made, strict=True):
            self._values[name] = value
            self._arrays.pop(name, None)
            self._binding.bind_ortvalue_input(name, value)
        if past == 0:
            self._arrays[self._switch] = np.array([True])
            self._values[self._switch] = self._session.value(self._arrays[self._switch])
            self._binding.bind_ortvalue_input(self._switch, self._values[self._switch])
        self._bind_outputs(first=False)
        array: NDArray[Any] = logits.numpy()
        return array

    def _reorder(self, rows: NDArray[np.int64], shared: NDArray[np.int64] | None) -> None:
        own = {name: self._values[name].numpy()[rows] for name, _ in self._own}
        if shared is not None:
            self._start({**own, **{name: self._values[name].numpy()[shared] for name, _ in self._crossed}})
            return
        for name, array in own.items():
            self._arrays[name], self._values[name] = array, self._session.value(array)
            self._binding.bind_ortvalue_input(name, self._values[name])
