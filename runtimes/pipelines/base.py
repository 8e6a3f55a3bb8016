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
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from isoform.errors import InputError, UnsupportedModel
from isoform.json_files import read_object
from isoform.progress import Progress
from isoform.runtimes.backends.parallel_runs import run_each
from isoform.runtimes.generation.settings import context_length, vocabulary_size
from isoform.runtimes.pipelines.attributes import Attributes
from isoform.runtimes.pipelines.calling import READ, Answers, all_or_error, each, in_batches, is_readable, listed
from isoform.runtimes.pipelines.origin import Origin
from isoform.runtimes.pipelines.parameters import beyond, check_call, merged
from isoform.runtimes.pipelines.reporting import Clock, counted, heard, reporting
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from isoform.runtimes.choose.choose import Choice
    from isoform.runtimes.session import Session
    from isoform.signature import Role

SHARED = ("num_workers", "on_error", "progress")  # parameters that every task has, besides batch_size
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


class Pipeline(Attributes, ABC):
    """Inputs to answers, over a session and the folder with the model's config and tokenizer.

    Call it with one input for one answer, a list for a list, or anything else that holds inputs for an iterator
    (`calling.Answers`) that reads and answers `batch_size` of them at a time. Without a `batch_size`, a dataset is read
    32 items at a time, and an iterator one by one, because what it yields may depend on the answer before.
    Parameters given when the pipeline is built hold for every call. Answers do not depend on the batch: padding changes
    nothing. Without a `batch_size`, as many pieces of a list run together as is fast on a CPU.

    An input of several that has no answer raises `ItemError`, which carries its index and the answers before it; an
    iterator goes on after that. With `on_error="return"` the error takes the place of the answer.

    `progress` is True for a bar on the terminal, False for none, or a function (see `Progress`); without it a terminal
    shows a bar after two seconds. `num_workers` changes nothing.

    `chosen` says what runs the model and why, where `isoform.pipeline` made it (`runtimes.choose.choose.Choice`).

    Close it, or use it as a context manager: it closes its session.
    """

    task: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]  # the ports that the session must have
    options: ClassVar[type[Any]]  # a frozen dataclass: the parameters of a call
    reads_text: ClassVar[bool] = True  # False: the folder needs no tokenizer
    reads_pages: ClassVar[bool] = False  # True: an input is a page of words with boxes
    keywords: ClassVar[tuple[str, ...]] = ("inputs",)  # the names by which inputs may be given
    takes_objects: ClassVar[bool] = False  # True: an input is an object itself, such as a question with its context
    paired: ClassVar[bool] = False  # True: an input is a pair, two arguments of the command line
    counts: ClassVar[bool] = True  # False: the task reports its own progress, in seconds of sound

    def __init__(
        self,
        session: Session,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        called: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_error: str = "raise",
        progress: bool | Progress | None = None,
        keep: Any = None,
        origin: Origin | None = None,
        **parameters: Any,
    ) -> None:
        """`facts` are what the manifest or the card says of the model (`reference.facts`).

        `called`: the name under which the task was asked for, where that is not its own: it stays, as in transformers.
        `keep` is held until the pipeline closes (what `folder` belongs to), and `origin` says where the model is from;
        `parameters` are those of a call.
        """
        if called is not None:
            self.__dict__["task"] = called
        names = [port.name for port in session.signature.outputs]
        missing = [name for name in self.outputs if name not in names]
        if missing:
            found = ", ".join(port.name for port in session.signature.results)
            raise UnsupportedModel(
                f"{self.task} needs a model that gives {', '.join(missing)}; this one gives {found}. Export or open "
                f"the checkpoint for the task it was trained for"
            )
        self.session, self.folder, self.facts, self._keep = session, Path(folder), facts, keep
        self.origin = origin or Origin()
        if self.reads_text:
            self.text_tokenizer = TextTokenizer(self.folder, facts)
        self.config: Mapping[str, Any] = read_object(self.folder / "config.json")
        self.context: int | None = facts.get("context", context_length(self.config))
        self.vocabulary = vocabulary_size(self.config)
        check_call(batch_size, num_workers, on_error, progress)
        self.batch_size, self.on_error, self.progress = batch_size, on_error, progress
        self.clock = Clock()
        self.chosen: Choice | None = None
        self._check_names(parameters)
        self._parameters = parameters

    def __call__(
        self,
        inputs: Any = None,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_error: str | None = None,
        progress: bool | Progress | None = None,
        **parameters: Any,
    ) -> Any:
        """One input -> its answer, a list -> a list, another iterable -> an iterator."""
        inputs = self._inputs(inputs, parameters)
        self._check_names(parameters)
        on_error = self.on_error if on_error is None else on_error
        check_call(batch_size, num_workers, on_error, progress)
        progress = self.progress if progress is None else progress
        size = self.batch_size if batch_size is None else batch_size
        call = self._call(self._together(parameters))
        quiet = self._writes_itself(call)
        if self._is_one(inputs):
            with reporting(progress, quiet=quiet) as report, heard(report), self.clock.running():
                answer = next(iter(self.answers([inputs], size, call)))
            return self._shaped(answer, inputs, parameters)
        if isinstance(inputs, list | tuple):
            answers = (each if on_error == "return" else all_or_error)(self, inputs, size, call)
            with reporting(progress, quiet=quiet) as report, heard(report), self.clock.running():
                answers = counted(answers, len(inputs), report if self.counts else None)
                return self._shaped(listed(answers), inputs, parameters)
        if not is_readable(inputs):
            raise InputError(f"{self.task} takes {self._takes()}, not {inputs!r:.80}")
        total = len(inputs) if isinstance(inputs, Sized) else 0
        read = size or (READ if isinstance(inputs, Sized) else 1)

        def answered(items: Iterator[Any]) -> Iterator[Any]:
            with reporting(progress, quiet=quiet) as report:
                yield from counted(self.clock.timed(in_batches(self, items, size, read, call)), total, report)

        return Answers(inputs, answered, returns=on_error == "return")

    def _writes_itself(self, call: Any) -> bool:
        """Whether a call writes text to the terminal while it runs, which a bar would disturb."""
        return False

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """What a call is about: `inputs`, or the parameter of that meaning, which is taken out."""
        for name in self.keywords:
            if name in parameters:
                given = parameters.pop(name)
                if inputs is not None:
                    raise InputError(f"{self.task} was given its inputs twice; leave {name}= out")
                inputs = given
        if inputs is None:
            raise InputError(f"{self.task} was given no input; it takes {self._takes()}")
        return inputs

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """The answer about one input or a list of them, in the shape that transformers gives it."""
        return answer

    def try_item(self, item: Any, call: Any) -> None:
        """InputError for an item that has no answer, as far as can be told without running the model."""
        return

    def runs_alone(self, size: int | None, call: Any) -> bool:
        """Whether items run one after the other, so that the first without an answer is the one that failed."""
        return False

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

    def _together(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a call over those of the pipeline."""
        return merged(self._parameters, parameters, self._names())

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
                raise InputError(
                    f"{self.task} has no parameter {name!r}; it has {', '.join(['batch_size', *names, *SHARED])}"
                )

    @property
    def generates(self) -> bool:
        """Whether the task writes text, and takes the settings of generation."""
        return any(spec.name == GENERATION for spec in fields(self.options))

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
        limits = [
            n for n in (max_length if max_length is not None else self.text_tokenizer.max_length, self.context) if n
        ]
        rows = self.text_tokenizer.encode(
            texts, pairs, truncation=truncation, max_length=min(limits, default=None), **options
        )
        for text, row in zip(texts, rows, strict=True):
            self._check_ids(row.ids)
            if self.context is not None and len(row.ids) > self.context:
                raise InputError(
                    f"a text of {len(row.ids)} tokens is too long for the model's {self.context} positions; pass "
                    f"truncation=True to cut it: {text!r:.60}"
                )
        return rows

    def _check_ids(self, ids: Sequence[int]) -> None:
        """InputError for a token that the model's embedding has no row for."""
        if self.vocabulary is not None and max(ids, default=0) >= self.vocabulary:
            raise InputError(beyond(self.text_tokenizer.token(max(ids)), max(ids), self.vocabulary))

    def _input(self, role: Role) -> str:
        """The name of the session's input of a role. Raises UnsupportedModel when it has none."""
        port = self.session.signature.port(role)
        if port is None:
            raise UnsupportedModel(f"{self.task} needs a model that takes {role}; this one does not")
        return port.name

    def close(self) -> None:
        """Close the session; doing it twice is fine."""
        self.session.close()
        if callable(close := getattr(self._keep, "close", None)):
            close()
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
    def try_item(self, item: Any, call: Any) -> None:
        """See `Pipeline.try_item`: the item is checked and prepared."""
        self.check(item)
        for pieces in self.prepare([item], call):
            for _ in pieces:
                pass

    def answers(self, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]:
        """See `Pipeline.answers`: each comes as soon as its pieces have run."""
        for item in items:
            self.check(item)
        waiting: deque[tuple[Any, list[InputPiece], list[bool]]] = (
            deque()
        )  # item, its pieces, whether they are all there
        given: deque[list[InputPiece]] = deque()  # batches that have not run yet
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
