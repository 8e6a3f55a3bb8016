"""The cases of a model of several parts as a whole: its parts connected by the wires of the card.

Each part is checked alone on what the reference's other parts give. Here an artifact gets what the artifact before it
gives, as in a pipeline, and the tokens are those that the reference chooses one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from isoform.reference.model import Model
from isoform.signature import Port, Signature
from isoform.validators.cases.case import Case, Row
from isoform.wiring import main_part, needed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

GROUP = "wired"
TOKENS = 8  # of a row: one to begin with, and those that the reference chooses after it
CHUNKS = (2, *(1,) * (TOKENS - 2))


@dataclass(frozen=True)
class WiredModel(Model):
    """A model of several parts as one graph, whose inputs are those that no wire feeds, each named "part.port".

    Its outputs are the main part's, without the states.
    """

    whole: Model = field(kw_only=True)

    @classmethod
    def of(cls, model: Model) -> WiredModel:
        return cls(model.checkpoint, model.family, model.config, model.task, whole=model)

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        return {part.part: part.signature for part in self.whole.parts}

    @cached_property
    def main(self) -> str:
        """The part whose outputs are the model's."""
        return main_part(self.signatures)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The main part and all that feeds it, in the order in which they run; host steps among them."""
        return tuple(needed([self.main], self.task.wires, self.signatures))

    @property
    def has_steps(self) -> bool:
        """Whether host steps run between the parts, which the reference does not do."""
        return any(name not in self.signatures for name in self.order)

    @property
    def main_reads_tokens(self) -> bool:
        return self.signatures[self.main].takes("tokens")

    def unwired(self, part: str) -> list[Port]:
        """The inputs of a part that a caller gives."""
        return [port for port in self.signatures[part].given if f"{part}.{port.name}" not in self.task.wires]

    @cached_property
    def signature(self) -> Signature:
        ports = tuple(
            replace(port, name=f"{name}.{port.name}")
            for name in self.order
            if name in self.signatures
            for port in self.unwired(name)
        )
        return Signature(ports, self.signatures[self.main].results)

    def module(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> nn.Module:
        outputs = self.signatures[self.main].outputs
        return results_only(self.whole.module(dtype, device), [port.role != "state" for port in outputs])


def results_only(whole: nn.Module, kept: Sequence[bool]) -> nn.Module:
    """A module with the outputs of `whole` that are `kept`; `whole` is its module `inner`."""
    from torch import Tensor, nn

    class Results(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = whole

        def forward(self, *inputs: Tensor) -> list[Tensor]:
            return [output for output, keep in zip(self.inner(*inputs), kept, strict=True) if keep]

    return Results().eval()


def wired_cases(model: WiredModel, cases: Mapping[str, Sequence[Case]], seed: int = 0) -> list[Case]:
    """One row and a batch of three in one pass, and the batch step by step; `cases` are those of each part."""
    import numpy as np

    starts = np.random.default_rng(seed).integers(0, model.config.vocabulary or 1, 3)
    three = [_inputs(model, cases, n) for n in range(3)]
    module = model.module()
    rows = tuple(_row(model, module, media, start) for media, start in zip(three, starts, strict=True))
    lone = _row(model, module, _inputs(model, cases, None), starts[0])
    found = [
        Case(GROUP, (lone,), detail=f"one row, length {len(lone)}", natural=True),
        Case(GROUP, rows, detail=f"batch of 3, length {len(rows[0])}"),
    ]
    if model.signatures[model.main].states and model.main_reads_tokens:
        detail = f"cached decoding, 3 rows, chunks {' '.join(map(str, CHUNKS))}"
        found.append(Case(GROUP, rows, chunks=CHUNKS, last_only=True, detail=detail))
    return found


def _inputs(model: WiredModel, cases: Mapping[str, Sequence[Case]], n: int | None) -> dict[str, NDArray[Any]]:
    """What the parts are given for row `n` of their batches, or for a natural row, by port.

    The main part's tokens are chosen later.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in model.order[:-1] if model.main_reads_tokens else model.order:
        batch = next(case.rows for case in cases[name] if len(case.rows) == 3)
        natural = next((case.rows[0] for case in cases[name] if case.natural), batch[0])
        inputs = Case("", (natural if n is None else batch[n],)).inputs(model.signatures[name])
        found |= {f"{name}.{port.name}": inputs[port.name][0] for port in model.unwired(name)}
    return found


def _row(model: WiredModel, module: nn.Module, media: Mapping[str, NDArray[Any]], start: np.int64) -> Row:
    """A row whose tokens begin with `start` and go on as the reference does."""
    import numpy as np
    import torch

    tokens = np.array([start], np.int64)
    while len(tokens) < TOKENS and model.main_reads_tokens:
        inputs = Case("", (Row(tokens, np.zeros_like(tokens), media),)).inputs(model.signature).values()
        with torch.inference_mode():
            logits = module(*(torch.from_numpy(array) for array in inputs))[0]
        tokens = np.append(tokens, int(logits[0, -1].argmax()))
    return Row(tokens, np.zeros_like(tokens), media)
