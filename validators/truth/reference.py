"""The reference's answers: each row alone, in float64, and how far torch itself is off in a narrower dtype."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from isoform.formats import FLOATS
from isoform.validators.cases.case import Case, Row
from isoform.validators.truth.deviations import REASONS, deviation
from isoform.validators.truth.distances import difference

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from isoform.reference.model import Model
    from isoform.validators.truth.answers import PassageAnswers


@dataclass(frozen=True, slots=True)
class Noise:
    """The error of torch in some dtype on some rows; infinite where it gives no finite number."""

    max_abs: float
    rms: float


class Truth:
    """Answers of a model for the rows of these cases. One model at a time is in memory, and none afterwards.

    `passages`: of the text at most so many; `text` replaces our own.
    """

    def __init__(self, model: Model, cases: Iterable[Case], passages: int | None = None, text: str = "") -> None:
        import torch

        self.model, self.passages, self.text = model, passages, text
        self.cases = list(cases)
        self.rows = list(dict.fromkeys(row for case in self.cases for row in case.rows))
        self._outputs = dict(self._run(torch.float64, nullcontext()))
        self.reads_text = True
        self._noise: dict[tuple[str, str], dict[Row, list[Noise]]] = {}

    def outputs(self, row: Row) -> Sequence[NDArray[np.float64]]:
        """What the reference says about the row alone: an array per output port, without the batch axis."""
        return self._outputs[row]

    def noise(self, port: int, rows: Sequence[Row], dtype: str) -> Noise:
        """Torch's error on these rows, and no less than on half of all rows: a short row may be exact by luck."""
        import numpy as np

        known = self._measured(dtype, "")
        own, every = [known[row][port] for row in rows], [noise[port] for noise in known.values()]
        return Noise(
            max([n.max_abs for n in own] + [float(np.median([n.max_abs for n in every]))]),
            max([n.rms for n in own] + [float(np.median([n.rms for n in every]))]),
        )

    def deviation(self, port: int, backend: str) -> Noise:
        """Torch's error on the worst row when it computes as `backend` is known to (see `deviations`).

        A coarse rounding falls the other way after an error in the last place, and a deep model makes much of that:
        of two backends with the same deviation each has its bad rows, but they are other ones.
        """
        every = [noise[port] for noise in self._measured("f32", backend).values()]
        return Noise(max(n.max_abs for n in every), max(n.rms for n in every))

    def prepare(self, dtypes: Collection[str], backends: Collection[str]) -> None:
        """Measure the noise in these dtypes and the deviations of these backends, with one load of the model each."""
        for dtype in dtypes:
            self._measure(dtype, ["", *(b for b in backends if dtype == "f32" and b in REASONS)])

    def _measured(self, dtype: str, backend: str) -> dict[Row, list[Noise]]:
        if (dtype, backend) not in self._noise:
            self._measure(dtype, [backend])
        return self._noise[dtype, backend]

    def _measure(self, dtype: str, backends: Sequence[str]) -> None:
        import torch

        kind = getattr(torch, FLOATS[dtype])
        module = self.model.module(kind)
        for backend in backends:
            mode = deviation(backend) or nullcontext()
            self._noise[dtype, backend] = {
                row: [_noise(got, want) for got, want in zip(outputs, self._outputs[row], strict=True)]
                for row, outputs in self._run(kind, mode, module)
            }

    @cached_property
    def answers(self) -> PassageAnswers:
        """The reference on a text; on the rows of the cases when the model has no tokenizer to read one."""
        from isoform.validators.cases.encoder_states import reads_prose
        from isoform.validators.cases.prose import TEXT, prose_rows
        from isoform.validators.truth.answers import PassageAnswers

        reads = reads_prose(self.model.signature) and self.model.signature.output("cells") is None
        found = PassageAnswers(self.model, prose_rows(self.model, self.text or TEXT)[: self.passages] if reads else [])
        self.reads_text = bool(found.passages)
        if self.reads_text:
            return found
        rows = dict.fromkeys(row for case in self.cases if not case.optional for row in case.rows)
        return PassageAnswers(self.model, list(rows))

    def _run(
        self, dtype: torch.dtype, mode: AbstractContextManager[Any], module: nn.Module | None = None
    ) -> Iterator[tuple[Row, list[NDArray[Any]]]]:
        """The outputs of one row after the other."""
        import torch

        module = module or self.model.module(dtype)
        with torch.inference_mode(), mode:
            for row in self.rows:
                inputs = Case("", (row,)).inputs(self.model.signature)
                tensors = [torch.from_numpy(array) for array in inputs.values()]
                tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
                wide = torch.promote_types(dtype, torch.float32)
                with trimmed(module, row):
                    outputs = [out[0] for out in module(*tensors)]
                outputs[0] = outputs[0][-row.asked :] if row.asked else outputs[0]
                yield row, [out.to(wide).numpy() for out in outputs]


def trimmed(module: nn.Module, row: Row) -> AbstractContextManager[Any]:
    """A context in which a head makes no other logits than those that are asked for: a vocabulary is large."""
    head = getattr(module, "head", None)
    if not row.asked or head is None:
        return nullcontext()
    return _Handle(head.register_forward_pre_hook(lambda _, given: (given[0][:, -row.asked :], *given[1:])))


class _Handle(AbstractContextManager[None]):
    """A hook that is removed at the end."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _noise(got: NDArray[Any], want: NDArray[Any]) -> Noise:
    found = difference(got, want)
    return Noise(found.max_abs, found.rms)
