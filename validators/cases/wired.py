"""The cases of a model of several parts as a whole: its parts connected by the wires of the card.

Each part is checked alone on what the reference's other parts give. Here an artifact gets what the artifact before it
gives, as in a pipeline, and the tokens are those that the reference chooses one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
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
    def decodes(self) -> bool:
        """Whether the main part goes on from token to token, of which it takes the ids or the embeddings."""
        return bool(self.signatures[self.main].states)

    @cached_property
    def steps(self) -> Mapping[str, Mapping[str, Any]]:
        """The host steps that run between the parts, with their settings."""
        return {name: s for name, s in self.task.steps(self.config).items() if name in self.order}

    @property
    def placeholders(self) -> tuple[int, int]:
        """The token that stands for a feature of a picture, and how many a picture has; none of them without one."""
        if "place_features" not in self.steps:
            return 0, 0
        source = self.task.wires["place_features.features"]
        part, _, name = source.partition(".")
        (port,) = (port for port in self.signatures[part].outputs if port.name == name)
        return self.steps["place_features"]["token"], prod(axis for axis in port.axes[1:-1] if isinstance(axis, int))

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

    def module(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        loaded: dict[str, nn.Parameter] | None = None,
    ) -> nn.Module:
        outputs = self.signatures[self.main].outputs
        return results_only(self.whole.module(dtype, device, loaded), [port.role != "state" for port in outputs])


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

    token, count = model.placeholders
    starts = np.random.default_rng(seed).integers(0, model.config.vocabulary or 1, 3)
    prompts = [np.array([start, *[token] * count], np.int64) for start in starts]
    three = [row_inputs(model, cases, n) for n in range(3)]
    module = model.module()
    rows = tuple(_row(model, module, media, prompt) for media, prompt in zip(three, prompts, strict=True))
    lone = _row(model, module, row_inputs(model, cases, None), prompts[0])
    found = [
        Case(GROUP, (lone,), detail=f"one row, length {len(lone)}", natural=True),
        Case(GROUP, rows, detail=f"batch of 3, length {len(rows[0])}"),
    ]
    if model.decodes:
        chunks = (count + CHUNKS[0], *CHUNKS[1:])
        detail = f"cached decoding, 3 rows, chunks {' '.join(map(str, chunks))}"
        found.append(Case(GROUP, rows, chunks=chunks, last_only=True, detail=detail))
    return found


def row_inputs(model: WiredModel, cases: Mapping[str, Sequence[Case]], n: int | None) -> dict[str, NDArray[Any]]:
    """What the parts are given for row `n` of their batches, or for a natural row, by port.

    The main part's tokens are chosen later.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in model.order[:-1] if model.decodes else model.order:
        if name not in model.signatures or model.signatures[name].output("embeddings") is not None:
            continue
        batch = next(case.rows for case in cases[name] if len(case.rows) == 3)
        natural = next((case.rows[0] for case in cases[name] if case.natural), batch[0])
        inputs = Case("", (natural if n is None else batch[n],)).inputs(model.signatures[name])
        found |= {f"{name}.{port.name}": inputs[port.name][0] for port in model.unwired(name)}
    return found


def _row(model: WiredModel, module: nn.Module, media: Mapping[str, NDArray[Any]], prompt: NDArray[np.int64]) -> Row:
    """A row whose tokens begin with `prompt` and go on as the reference does."""
    import numpy as np
    import torch

    tokens = prompt
    while len(tokens) < len(prompt) + TOKENS - 1 and model.decodes:
        inputs = Case("", (Row(tokens, np.zeros_like(tokens), media),)).inputs(model.signature).values()
        with torch.inference_mode():
            logits = module(*(torch.from_numpy(array) for array in inputs))[0]
        tokens = np.append(tokens, int(logits[0, -1].argmax()))
    return Row(tokens, np.zeros_like(tokens), media)
