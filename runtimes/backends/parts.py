"""A model of several graphs as one session: its parts and host steps, connected by the wires of its card.

Nothing here knows what the parts are. The main part is the one that decodes, or else the last; parts that do not feed
it are opened when they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import InputError
from isoform.runtimes.backends.embedded import EmbeddedDecoder
from isoform.runtimes.session import Decoder, Session
from isoform.signature import BATCH, PICTURES, SENTENCES, Port, Role, Signature
from isoform.steps import load_step
from isoform.wiring import main_part, needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = (BATCH, PICTURES, SENTENCES)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What the parts before the main one gave, by "node.port", as far as a wire reads it; `rows` in a batch.

    `each`: the ports whose first axis is the batch.
    """

    values: Mapping[str, NDArray[Any]]
    rows: int
    each: frozenset[str]

    def __len__(self) -> int:
        return self.rows

    def select(self, rows: Any) -> Encoded:
        """These rows of it, in this order: numbers or a slice."""
        import numpy as np

        values = {name: array[rows] if name in self.each else array for name, array in self.values.items()}
        return Encoded(values, len(np.arange(self.rows)[rows]), self.each)


class PartsSession:
    """A `Session` over the parts of a model: it runs and decodes the main part, and `encode` runs what feeds that.

    `open_part(name)` opens the graph of a part; `signatures` are theirs, in the order in which they run.

    `wires` connect parts and host `steps` (name -> settings), see `isoform.wiring`.
    """

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        open_part: Callable[[str], Session],
        wires: Mapping[str, str],
        steps: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._signatures, self._opener, self._wires = dict(signatures), open_part, dict(wires)
        self._steps = dict(steps or {})
        self._open: dict[str, Session] = {}
        self.main = main_part(signatures)
        order = needed([self.main], wires, signatures)
        for name in order:
            if name not in signatures and name not in self._steps:
                raise InputError(f"a wire reads from {name!r}, which is no part of this model; export it again")
        self._before = order[:-1]
        try:
            for name in order:
                if name in signatures:
                    self.part(name)
        except BaseException:
            self.close()
            raise
        self.backend: str = self._open[self.main].backend
        self.signature: Signature = signatures[self.main]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._signatures)

    def part(self, name: str) -> Session:
        """The session of one graph. Raises InputError when there is none of that name, or all are closed."""
        if name not in self._open:
            if name not in self._signatures:
                raise InputError(
                    f"this model has no part {name!r}; it has {', '.join(self._signatures) or 'been closed'}"
                )
            self._open[name] = self._opener(name)
        return self._open[name]

    def taking(self, role: Role) -> str:
        """The first part with an input of a role. Raises InputError when there is none."""
        return self._with(role, {name: signature.port(role) for name, signature in self._signatures.items()})

    def giving(self, role: Role) -> str:
        """The first part with an output of a role. Raises InputError when there is none."""
        return self._with(role, {name: signature.output(role) for name, signature in self._signatures.items()})

    def _with(self, role: Role, ports: Mapping[str, Port | None]) -> str:
        for name, port in ports.items():
            if port is not None:
                return name
        raise InputError(f"no part of this model has a port for {role}; it has {', '.join(self._signatures)}")

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Encoded:
        """Run what feeds the main part; `inputs` has every input of these parts that no wire feeds, by port name."""
        values, unused = self._forward(self._before, inputs)
        if unused:
            raise InputError(f"inputs: {', '.join(sorted(unused))} unknown to the parts {', '.join(self._before)}")
        read = {name: array for name, array in values.items() if name in self._wires.values()}
        each = frozenset(name for name in read if self._axis(name) in _ROWS)
        rows = next((len(read[name]) for name in read if name in each), 1)
        return Encoded(read, rows, each)

    def feeds(self, name: str, encoded: Encoded) -> dict[str, NDArray[Any]]:
        """The inputs of a part that wires feed, out of what was encoded."""
        ports = [port.name for port in self._signatures[name].inputs if f"{name}.{port.name}" in self._wires]
        return {port: encoded.values[self._wires[f"{name}.{port}"]] for port in ports}

    def decoder(self, rows: Encoded | int | Mapping[str, NDArray[Any]]) -> Decoder:
        """Start decoding the rows that were encoded; or see `Session.decoder`, for the main part.

        A main part over embeddings is fed token ids all the same, through the part that looks them up.
        """
        main = self.part(self.main)
        taken = self.signature.port("embeddings")
        if taken is None:
            return main.decoder(self.feeds(self.main, rows) if isinstance(rows, Encoded) else rows)
        encoded = self.feeds(self.main, rows) if isinstance(rows, Encoded) else {}
        placed = encoded.pop(taken.name, None)
        inner = main.decoder(encoded or (len(rows) if isinstance(rows, Encoded) else rows))
        return EmbeddedDecoder(inner, self._embedded, placed)

    def _embedded(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """The embeddings of token ids, from the part that gives them."""
        name = self.giving("embeddings")
        signature = self._signatures[name]
        taken, given = signature.port("tokens"), signature.output("embeddings")
        if taken is None or given is None:
            raise InputError(f"the part {name} does not turn token ids into embeddings; export the model again")
        return self.part(name).run({taken.name: tokens})[given.name]

    def run_part(
        self, name: str, encoded: Encoded, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one part on what was encoded and these inputs, by port name."""
        return self.part(name).run({**self.feeds(name, encoded), **inputs})

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run the main part once, every port by name; where it keeps no states, with all that feeds it."""
        if self.signature.states:
            return self.part(self.main).run(inputs)
        values, unused = self._forward([*self._before, self.main], inputs)
        if unused:
            raise InputError(f"inputs: {', '.join(sorted(unused))} unknown to the parts {', '.join(self.parts)}")
        return {port.name: values[f"{self.main}.{port.name}"] for port in self.signature.outputs}

    def close(self) -> None:
        for session in self._open.values():
            session.close()
        self._open, self._signatures = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forward(
        self, nodes: Iterable[str], inputs: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], set[str]]:
        """Run these nodes in order -> their inputs and outputs by "node.port", and the inputs that no part took.

        An input that two parts have is given by "part.port".
        """
        values: dict[str, NDArray[Any]] = {}
        unused = set(inputs)
        for node in nodes:
            if node in self._steps:
                step = load_step(node)
                fed = {port: values[self._wires[f"{node}.{port}"]] for port in step.INPUTS}
                values |= {f"{node}.{port}": array for port, array in step.run(fed, **self._steps[node]).items()}
                continue
            session, feed = self.part(node), dict[str, "NDArray[Any]"]()
            for port in session.signature.inputs:
                name = f"{node}.{port.name}"
                if name in self._wires:
                    feed[port.name] = values[self._wires[name]]
                elif (key := name if name in inputs else port.name) in inputs:
                    feed[port.name] = inputs[key]
                    unused.discard(key)
            made = session.run(feed)
            values |= {f"{node}.{port}": array for port, array in (*feed.items(), *made.items())}
        return values, unused

    def _axis(self, name: str) -> Any:
        """The first axis of a node's port."""
        node, _, port = name.partition(".")
        if node not in self._signatures:
            return BATCH
        signature = self._signatures[node]
        return next(p.axes[0] for p in (*signature.inputs, *signature.outputs) if p.name == port)
