"""The reference's answers: each row alone, in float64, and how far torch itself is off in a narrower dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoform.validators.cases import Case, Row
from isoform.validators.compare import difference

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from isoform.reference.model import Model

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Noise:
    """The error of torch in some dtype on some rows; infinite where it gives no finite number."""

    max_abs: float
    rms: float


class Truth:
    """Answers of a model for the rows of these cases. One model at a time is in memory, and none afterwards."""

    def __init__(self, model: Model, cases: Iterable[Case]) -> None:
        import torch

        self.model = model
        self.cases = list(cases)
        self.rows = list(dict.fromkeys(row for case in self.cases for row in case.rows))
        self._outputs = dict(self._run(torch.float64, nullcontext()))
        self._noise: dict[tuple[str, str], dict[Row, list[Noise]]] = {}

    def outputs(self, row: Row) -> Sequence[NDArray[np.float64]]:
        """What the reference says about the row alone: an array per output port, without the batch axis."""
        return self._outputs[row]

    def noise(self, port: int, rows: Sequence[Row], dtype: str, backend: str = "") -> Noise:
        """Torch's error on these rows, and no less than on half of all rows: a short row may be exact by luck.

        With a `backend` torch computes as that backend is known to (see `deviations`).
        """
        import numpy as np

        known = self._measured(dtype, backend)
        own = [known[row][port] for row in rows]
        every = [noise[port] for noise in known.values()]
        return Noise(
            max([n.max_abs for n in own] + [float(np.median([n.max_abs for n in every]))]),
            max([n.rms for n in own] + [float(np.median([n.rms for n in every]))]),
        )

    def _measured(self, dtype: str, backend: str) -> dict[Row, list[Noise]]:
        import torch

        from isoform.validators.deviations import deviation

        mode = deviation(backend)
        key = dtype, backend if mode is not None else ""
        if key not in self._noise:
            self._noise[key] = {
                row: [_noise(got, want) for got, want in zip(outputs, self._outputs[row], strict=True)]
                for row, outputs in self._run(getattr(torch, DTYPES[dtype]), mode or nullcontext())
            }
        return self._noise[key]

    def quantized(self, dtype: str) -> Iterator[tuple[Row, list[NDArray[Any]]]]:
        """What torch gives for one row after the other with weights and activations quantized as llama.cpp's are."""
        import torch

        from isoform.validators.deviations import activations
        from isoform.validators.weights import quantized

        kind = dtype.upper()
        module = self.model.module()
        for name, parameter in module.named_parameters():
            if parameter.dim() == 2 and not name.startswith(("position_embed", "type_embed")):
                fits = parameter.shape[1] % 32 == 0
                parameter.data = quantized(parameter, kind) if fits else parameter.half().float()
        yield from self._run(torch.float32, activations(kind), module)

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
                yield row, [out[0].to(wide).numpy() for out in module(*tensors)]


def _noise(got: NDArray[Any], want: NDArray[Any]) -> Noise:
    found = difference(got, want)
    return Noise(found.max_abs, found.rms)
