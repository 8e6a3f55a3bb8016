"""The base of all pipelines.

A task is three hooks of `BatchPipeline`, and the base does the rest (lists, iterators, batches, order, threads,
parameters, progress):

    prepare(items)    inputs -> the pieces that the model runs over, several for each or one
    forward(batches)  batches of pieces -> an output for each piece
    finish(item)      an input's pieces with their outputs -> its answer

`begin` reads the parameters of a call once, for all three; what it returns is their `call`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from isoform.errors import InputError, UnsupportedModel
from isoform.json_files import read_object
from isoform.progress import Progress
from isoform.runtimes.backends.parallel_runs import run_each
from isoform.runtimes.generation.settings import context_length
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from isoform.runtimes.session import Session
    from isoform.signature import Role

READ = 32  # inputs of an iterable that are answered together
GENERATION = "generation"  # the field of a task's options that takes the settings of generation


@dataclass(slots=True, eq=False)
class InputPiece:
    """A piece of an input, and its output once the model has run over it."""

    value: Any
    output: Any = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class Batches:
    """Pieces that run together, and how many such batches there are (at most, where that is not known)."""

    count: int
    groups: Iterator[list[InputPiece]]


class Pipeline(ABC):
    """Inputs to answers, over a session and the folder with the model's config and tokenizer.

    Call it with one input for one answer, a list for a list, or any other iterable for an iterator that reads and
    answers `batch_size` inputs at a time, 32 without one. Parameters given when it is built hold for every call.
    Answers do not depend on the batch: padding changes nothing. Without a `batch_size`, as many pieces run together as
    is fast on a CPU.

    Close it, or use it as a context manager: it closes its session.
    """

    task: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]  # the ports that the session must have
    options: ClassVar[type[Any]]  # a frozen dataclass: the parameters of a call
    reads_text: ClassVar[bool] = True  # False: the folder needs no tokenizer
    batch_size: int | None = None
    progress: Progress | None = None  # told how much of the work is done

    def __init__(
        self,
        session: Session,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        batch_size: int | None = None,
        keep: Any = None,
        **parameters: Any,
    ) -> None:
        """`facts` are what the manifest or the card says of the model (`reference.facts`).

        `keep` is held until the pipeline closes (what `folder` belongs to); `parameters` are those of a call.
        """
        names = [port.name for port in session.signature.outputs]
        missing = [name for name in self.outputs if name not in names]
        if missing:
            found = ", ".join(port.name for port in session.signature.results)
            raise UnsupportedModel(
                f"{self.task} needs a model that gives {', '.join(missing)}; this one gives {found}. Export or open "
                f"the checkpoint for the task it was trained for"
            )
        self.session, self.folder, self.facts, self._keep = session, Path(folder), facts, keep
        if self.reads_text:
            self.tokenizer = TextTokenizer(self.folder, facts)
        self.config: Mapping[str, Any] = read_object(self.folder / "config.json")
        self.context = context_length(self.config)
        if batch_size is not None:
            whole("batch_size", batch_size)
            self.batch_size = batch_size
        self._check_names(parameters)
        self._parameters = parameters

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """One input -> its answer, a list -> a list, another iterable -> an iterator."""
        self._check_names(parameters)
        if batch_size is not None:
            whole("batch_size", batch_size)
        size = self.batch_size if batch_size is None else batch_size
        together = {**self._parameters, **parameters}
        if self._is_one(inputs):
            return next(self.answers([inputs], size, self._call(together)))
        if isinstance(inputs, list | tuple):
            return list(self.answers(inputs, size, self._call(together)))
        if isinstance(inputs, Iterable) and not isinstance(inputs, bytes | Mapping):
            return self._read(iter(inputs), size, together)
        raise InputError(f"{self.task} takes {self._takes()}, not {inputs!r:.80}")

    def begin(self, options: Any) -> Any:
        """What answering needs of a call's parameters; the options themselves unless there is more to do."""
        return options

    @abstractmethod
    def answers(self, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]:
        """The answers about a list, in its order; `size` is the call's batch size, if it has one."""

    def _is_one(self, inputs: Any) -> bool:
        """Whether this is one input, not a list of them."""
        return isinstance(inputs, str)

    def _takes(self) -> str:
        """What the pipeline takes, in the words of an error."""
        return "a text or a list of texts"

    def _read(self, inputs: Iterator[Any], size: int | None, parameters: dict[str, Any]) -> Iterator[Any]:
        call = self._call(parameters)
        while chunk := list(islice(inputs, size or READ)):
            yield from self.answers(chunk, size, call)

    def _call(self, parameters: Mapping[str, Any]) -> Any:
        names = self._names()
        known = {name: value for name, value in parameters.items() if name in names}
        others = {name: value for name, value in parameters.items() if name not in names}
        return self.begin(self.options(**known, **({GENERATION: others} if others else {})))

    def _check_names(self, parameters: Mapping[str, Any]) -> None:
        """InputError for a parameter that the task does not have."""
        if any(spec.name == GENERATION for spec in fields(self.options)):
            return  # generation itself knows its settings
        for name in parameters:
            if name not in (names := self._names()):
                raise InputError(f"{self.task} has no parameter {name!r}; it has {', '.join(['batch_size', *names])}")

    @classmethod
    def _names(cls) -> list[str]:
        """The call's parameters that are not generation's."""
        return [spec.name for spec in fields(cls.options) if spec.name != GENERATION]

    def _generation(self) -> dict[str, Any]:
        """The settings of generation that hold for every call."""
        names = self._names()
        return {name: value for name, value in self._parameters.items() if name not in names}

    def encode(
        self,
        texts: Sequence[Any],
        pairs: Sequence[str] | None = None,
        *,
        truncation: bool | str = False,
        max_length: int | None = None,
        **options: Any,
    ) -> list[Encoding]:
        """Tokenize for the model. Truncation keeps to its positions too; without it, more tokens are an InputError."""
        limits = [n for n in (max_length if max_length is not None else self.tokenizer.max_length, self.context) if n]
        rows = self.tokenizer.encode(
            texts, pairs, truncation=truncation, max_length=min(limits, default=None), **options
        )
        for text, row in zip(texts, rows, strict=True):
            if self.context is not None and len(row.ids) > self.context:
                raise InputError(
                    f"a text of {len(row.ids)} tokens is too long for the model's {self.context} positions; pass "
                    f"truncation=True to cut it: {text!r:.60}"
                )
        return rows

    def _input(self, role: Role) -> str:
        """The name of the session's input of a role. Raises UnsupportedModel when it has none."""
        port = self.session.signature.port(role)
        if port is None:
            raise UnsupportedModel(f"{self.task} needs a model that takes {role}; this one does not")
        return port.name

    def close(self) -> None:
        """Close the session; doing it twice is fine."""
        self.session.close()
        self._keep = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BatchPipeline(Pipeline):
    """A pipeline of three hooks, whose inputs become pieces that run together in batches."""

    together: ClassVar[int | None] = None  # inputs that are prepared at a time, without a batch size; None: all

    # ------------------------------------------------------------------ the hooks
    def check(self, item: Any) -> None:
        """InputError for an item of a list that is no input; asked for all of them before the first is prepared."""

    @abstractmethod
    def prepare(self, items: Sequence[Any], call: Any) -> Iterable[Iterable[Any]]:
        """The pieces of each item, in order. Several items at a time, because tokenizers and decoders use threads."""

    @abstractmethod
    def forward(self, batches: Iterator[list[Any]], count: int, call: Any) -> Iterator[Sequence[Any]]:
        """For each of about `count` batches of pieces, in order, the outputs of its pieces."""

    @abstractmethod
    def finish(self, item: Any, pieces: Sequence[InputPiece], call: Any) -> Any:
        """The answer about an item, from its pieces and their outputs."""

    @abstractmethod
    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """Which pieces of `count` items run together; see `batching`. `size` is the call's, if it has one."""

    # ------------------------------------------------------------------ what the base does
    def answers(self, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]:
        """See `Pipeline.answers`: each comes as soon as its pieces have run."""
        for item in items:
            self.check(item)
        waiting: deque[tuple[Any, list[InputPiece], list[bool]]] = (
            deque()
        )  # item, its pieces, whether they are all there
        given: deque[list[InputPiece]] = deque()  # batches that have not run yet
        done = [0]  # items
        step = max(len(items), 1) if self.together is None else size or self.together

        def pieces() -> Iterator[InputPiece]:
            for start in range(0, len(items), step):
                chunk = items[start : start + step]
                for item, values in zip(chunk, self.prepare(chunk, call), strict=True):
                    mine: list[InputPiece] = []
                    complete: list[bool] = []
                    waiting.append((item, mine, complete))
                    for value in values:
                        mine.append(InputPiece(value))
                        yield mine[-1]
                    complete.append(True)

        def answered() -> Iterator[Any]:
            while waiting and waiting[0][2] and all(piece.done for piece in waiting[0][1]):
                item, mine, _ = waiting.popleft()
                done[0] += 1
                if self.progress is not None and len(items) > 1:
                    self.progress("answer", done[0], len(items))
                yield self.finish(item, mine, call)

        def values() -> Iterator[list[Any]]:
            for group in batches.groups:
                given.append(group)
                yield [piece.value for piece in group]

        batches = self.batches(pieces(), size, len(items))
        for outputs in self.forward(values(), batches.count, call):
            for piece, output in zip(given.popleft(), outputs, strict=True):
                piece.output, piece.done = output, True
            yield from answered()
        yield from answered()


class OneGraph(BatchPipeline):
    """A pipeline whose model is one graph, run once for each batch; several batches at a time where the backend can."""

    @abstractmethod
    def feed(self, batch: list[Any], call: Any) -> dict[str, NDArray[Any]]:
        """The inputs of the graph for a batch of pieces, by port name."""

    @abstractmethod
    def split(self, batch: list[Any], outputs: dict[str, NDArray[np.float32]]) -> Sequence[Any]:
        """The outputs of each piece without batch axis and padding, by port name."""

    def forward(self, batches: Iterator[list[Any]], count: int, call: Any) -> Iterator[Sequence[Any]]:
        """See `BatchPipeline.forward`."""
        given: deque[list[Any]] = deque()

        def feeds() -> Iterator[dict[str, NDArray[Any]]]:
            for batch in batches:
                given.append(batch)
                yield self.feed(batch, call)

        for outputs in run_each(self.session, feeds(), count):
            yield self.split(given.popleft(), outputs)
