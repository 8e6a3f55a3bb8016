"""What all pipelines share: how they are called, and running an encoder over texts of different lengths."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.backends.parallel_runs import run_each
from isoform.runtimes.generation.settings import context_length
from isoform.runtimes.preprocess.json_files import read_object
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from isoform.signature import LENGTH

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from isoform.runtimes.session import Session

TOKENS = 384  # in a batch: enough to fill a core's vector units, few enough for its caches
READ = 32  # inputs of an iterable that are answered together


class Pipeline(ABC):
    """Text in, answers out, over a session and the folder with the model's config and tokenizer.

    Call it with one input for one answer, a list for a list, or any other iterable for an iterator that reads and
    answers `batch_size` inputs at a time, 32 without one. Parameters given when it is built hold for every call.
    Answers do not depend on the batch: within a list, inputs of similar length run together, and padding changes
    nothing. Without a `batch_size`, as many run together as is fast on a CPU.

    Close it, or use it as a context manager: it closes its session.
    """

    task: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]  # the ports that the session must have
    reads_text: ClassVar[bool] = True  # False: the folder needs no tokenizer
    batch_size: int | None = None

    def __init__(
        self,
        session: Session,
        folder: Path,
        *,
        batch_size: int | None = None,
        keep: Any = None,
        **parameters: Any,
    ) -> None:
        """`keep` is held until the pipeline closes (what `folder` belongs to); `parameters` are those of a call."""
        names = [port.name for port in session.signature.outputs]
        missing = [name for name in self.outputs if name not in names]
        if missing:
            found = ", ".join(name for name in names if not name.startswith("present."))
            raise UnsupportedModel(
                f"{self.task} needs a model that gives {', '.join(missing)}; this one gives {found}. Export or open "
                f"the checkpoint for the task it was trained for"
            )
        self.session, self.folder, self._keep = session, Path(folder), keep
        if self.reads_text:
            self.tokenizer = TextTokenizer(self.folder)
        self.config: Mapping[str, Any] = read_object(self.folder / "config.json")
        self.context = context_length(self.config)
        if batch_size is not None:
            self.batch_size = _count("batch_size", batch_size)
        self._check(parameters)
        self._parameters = parameters

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """One input -> its answer, a list -> a list, another iterable -> an iterator."""
        self._check(parameters)
        size = self.batch_size if batch_size is None else _count("batch_size", batch_size)
        together = {**self._parameters, **parameters}
        if self._is_one(inputs):
            return self._answer([inputs], size, **together)[0]
        if isinstance(inputs, list | tuple):
            return self._answer(list(inputs), size, **together)
        if isinstance(inputs, Iterable) and not isinstance(inputs, bytes | Mapping):
            return self._answers(iter(inputs), size, together)
        raise InputError(f"{self.task} takes {self._takes()}, not {inputs!r:.80}")

    def _answers(self, inputs: Iterator[Any], size: int | None, parameters: dict[str, Any]) -> Iterator[Any]:
        while chunk := list(islice(inputs, size or READ)):
            yield from self._answer(chunk, size, **parameters)

    @abstractmethod
    def _answer(self, *args: Any, **parameters: Any) -> list[Any]:
        """`_answer(items, batch_size, *, …)`: its keyword-only parameters are those of a call."""

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def _takes(self) -> str:
        return "a text or a list of texts"

    def _check(self, parameters: Mapping[str, Any]) -> None:
        """InputError for a parameter that the task does not have."""
        known = inspect.signature(self._answer).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in known):
            return
        names = [p.name for p in known if p.kind is p.KEYWORD_ONLY]
        for name in parameters:
            if name not in names:
                raise InputError(f"{self.task} has no parameter {name!r}; it has {', '.join(['batch_size', *names])}")

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

    # ------------------------------------------------------------------ encoders
    def _encode(
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

    def _forward(self, rows: Sequence[Encoding], batch_size: int | None) -> list[dict[str, NDArray[np.float32]]]:
        """Run every row, those of similar length together; outputs by port name without batch axis and padding."""
        lengths = [len(row) for row in rows]
        ports = [port for port in self.session.signature.outputs if not port.name.startswith("present.")]
        results: list[dict[str, NDArray[np.float32]]] = [{} for _ in rows]
        groups = list(batches(lengths, batch_size))
        feeds = (self._feed([rows[n] for n in group]) for group in groups)
        for group, out in zip(groups, run_each(self.session, feeds, len(groups)), strict=True):
            for place, n in enumerate(group):
                for port in ports:
                    value = out[port.name][place]
                    results[n][port.name] = value[: lengths[n]] if LENGTH in port.axes[1:2] else value
        return results

    def _feed(self, rows: Sequence[Encoding]) -> dict[str, NDArray[Any]]:
        """The signature's inputs for a batch, padded on the right, with an empty cache where there is one."""
        for row in rows:
            if not row.ids:
                raise InputError("a text without a single token cannot be run; give a text that is not empty")
        batch, signature = self.tokenizer.pad(rows, "right"), self.session.signature
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
            "position_ids": np.maximum(batch.attention_mask.cumsum(1) - 1, 0),
        }
        feeds |= {state.input: np.zeros(state.shape(len(rows)), np.float32) for state in signature.states}
        unknown = [port.name for port in signature.inputs if port.name not in feeds]
        if unknown:
            raise UnsupportedModel(f"{self.task} does not know how to make the model's input {unknown[0]!r}")
        return {port.name: feeds[port.name] for port in signature.inputs}

    def _label(self, index: int) -> str:
        """The name that config.json gives an output class, "LABEL_n" where it gives none."""
        names = self.config.get("id2label") or {}
        if not isinstance(names, Mapping):
            raise CheckpointError(f"{self.folder}/config.json: id2label is {names!r:.60}, not an object")
        return str(names.get(str(index), f"LABEL_{index}"))


def batches(lengths: Sequence[int], size: int | None) -> Iterator[list[int]]:
    """Rows of these lengths in batches of `size`, the longest first; without one, of about `TOKENS` tokens."""
    group: list[int] = []
    longest = 0
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if group and (len(group) == size if size else (len(group) + 1) * longest > TOKENS):
            yield group
            group = []
        longest = longest if group else lengths[n]
        group.append(n)
    if group:
        yield group


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} must be a whole number of at least 1")
    return value


def tokenizer_options(options: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """The tokenizer's part of a call; InputError for what isoform's tokenizer does not have."""
    options = dict(options or {})
    options.pop("padding", None)  # padding changes nothing
    for name in options:
        if name not in ("truncation", "max_length", "add_special_tokens"):
            raise InputError(f"{what} has no option {name!r}; it has truncation, max_length and add_special_tokens")
    return options
