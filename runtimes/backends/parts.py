"""A model of several graphs as one session: encoders that fill a memory, a decoder that reads it, what stands beside.

The graphs are wired by the names of their ports. Those before the decoder run in order, each with the inputs of the
call and what the ones before it gave; what the last gives as `last_hidden_state` is the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from isoform.errors import InputError
from isoform.runtimes.backends.decoder import MemoryDecoder
from isoform.runtimes.session import Session
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DECODER, ALIGNMENT = "decoder", "alignment"
STATES, MEMORY = "last_hidden_state", "encoder_hidden_states"
MASK, MEMORY_MASK = "attention_mask", "encoder_attention_mask"


class DecodingSession(Session, Protocol):
    """A session over the decoder of an encoder-decoder model."""

    def memory_decoder(self, memory: Mapping[str, NDArray[Any]]) -> MemoryDecoder: ...


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What the encoders gave, by the decoder's names: `encoder_hidden_states` (B, S, C), and its mask if it has one."""

    values: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.values[MEMORY])

    def select(self, rows: Any) -> Memory:
        """These rows of it, in this order: numbers or a slice."""
        return Memory({name: array[rows] for name, array in self.values.items()})


class EncoderDecoderSession:
    """`open_part` opens the graph of a part; those beside encoder and decoder are opened when they are first needed.

    `parts` are the names, in the order in which they run.
    """

    def __init__(self, parts: Mapping[str, Callable[[], Session]]) -> None:
        self._openers = dict(parts)
        self._open: dict[str, Session] = {}
        if DECODER not in parts:
            raise InputError(f"these graphs are {', '.join(parts)}, and none is a decoder; export the model again")
        names = list(parts)
        self._encoders = names[: names.index(DECODER)]
        try:
            for name in (*self._encoders, DECODER):
                self.part(name)
        except BaseException:
            self.close()
            raise
        self.backend: str = self._open[DECODER].backend
        self.signature: Signature = self._open[DECODER].signature

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._openers)

    def part(self, name: str) -> Session:
        """The session of one graph. Raises InputError when there is none of that name, or all are closed."""
        if name not in self._open:
            if name not in self._openers:
                raise InputError(f"this model has no part {name!r}; it has {', '.join(self._openers) or 'been closed'}")
            self._open[name] = self._openers[name]()
        return self._open[name]

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Memory:
        """Run the encoders; `inputs` has every port of theirs that none of them gives, by name."""
        values = dict(inputs)
        unused = set(inputs)
        for name in self._encoders:
            session = self.part(name)
            if STATES in values:
                values[MEMORY] = values[STATES]
            feed = {port.name: values[port.name] for port in session.signature.inputs if port.name in values}
            unused -= feed.keys()
            values.update(session.run(feed))
        if unused:
            raise InputError(f"inputs: {', '.join(sorted(unused))} unknown to the encoder")
        memory = {MEMORY: values[STATES]}
        if any(port.name == MEMORY_MASK for port in self.signature.inputs):
            memory[MEMORY_MASK] = values[MEMORY_MASK] if MEMORY_MASK in values else values[MASK]
        return Memory(memory)

    def decoder(self, memory: Memory) -> MemoryDecoder:
        """Start decoding the rows of a memory; any number of decoders may be alive."""
        session: Any = self.part(DECODER)
        decoder: MemoryDecoder = session.memory_decoder(memory.values)
        return decoder

    def align(self, memory: Memory, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the aligned heads attend to, when the decoder reads whole rows of tokens.

        Shapes: input_ids (B, T) -> (B, heads, T, S). Raises InputError when the model has no such part.
        """
        session = self.part(ALIGNMENT)
        values = {**memory.values, "input_ids": input_ids}
        feed = {port.name: values[port.name] for port in session.signature.inputs}
        return session.run(feed)[session.signature.outputs[0].name]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run the decoder once: every port of its signature by name -> its outputs by name."""
        return self.part(DECODER).run(inputs)

    def close(self) -> None:
        for session in self._open.values():
            session.close()
        self._open, self._openers = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
