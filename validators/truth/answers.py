"""What the reference says about a text, and how it continues it: the measure of quantized artifacts.

Logits over a large vocabulary do not fit into memory for a whole text, so they lie in a temporary file.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoform.signature import LENGTH
from isoform.validators.cases.case import Case, Row
from isoform.validators.cases.encoder_states import reads_prose
from isoform.validators.cases.prose import TEXT, prose_rows
from isoform.validators.truth.losses import kind_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from isoform.reference.model import Model

PROMPT, NEW, PROMPTS = 32, 16, 4  # tokens of a prompt, tokens that continue it, and how many are continued


@dataclass(frozen=True, slots=True)
class Passage:
    """One row, and the positions whose answers count; `greedy`: they are where the reference chose its own tokens."""

    row: Row
    asked: slice
    greedy: bool = False


Run = Callable[[Row], Mapping[str, "NDArray[Any]"]]
"""A row alone -> its outputs by port, without the batch axis."""


class PassageAnswers:
    """The reference's first output, in float32, at the asked positions of every passage."""

    def __init__(self, model: Model, rows: Sequence[Row] | None = None, text: str = TEXT) -> None:
        """Of these rows, or else of `text`; there are no passages when the model has no tokenizer to read it."""
        import numpy as np

        self.model = model
        self.port = model.signature.outputs[0].name
        self.kind = kind_of(model, model.signature.outputs[0])
        given = list(rows) if rows is not None else prose_rows(model, text)
        self.passages = [Passage(row, slice(None) if row.media else slice(0, len(row))) for row in given]
        self._file = tempfile.TemporaryFile(prefix="isoform-")  # noqa: SIM115  closed with the object
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, tuple[int, ...]]] = []
        module = model.module()
        for passage in self.passages:
            self._keep(run_alone(model, module, passage.row)[passage.asked])
        if model.signature.states and reads_prose(model.signature):
            prompts = [row.tokens[:PROMPT] for row in given if len(row) >= PROMPT][:PROMPTS]
            for tokens, logits in greedy(model, module, np.stack(prompts), NEW) if prompts else ():
                row = Row(tokens, np.zeros_like(tokens))
                self.passages.append(Passage(row, slice(PROMPT - 1, len(tokens)), greedy=True))
                self._keep(logits)

    def _keep(self, output: NDArray[Any]) -> None:
        import numpy as np

        self._places.append((self._file.seek(0, 2), output.shape))
        self._file.write(np.ascontiguousarray(output, np.float32).data)

    def __iter__(self) -> Iterator[tuple[Passage, NDArray[np.float32]]]:
        """Each passage with the reference's answers (positions, …)."""
        import numpy as np

        self._file.flush()
        for passage, (offset, shape) in zip(self.passages, self._places, strict=True):
            yield passage, np.memmap(self._file, np.float32, "r", offset, shape)


def run_alone(model: Model, module: nn.Module, row: Row) -> NDArray[Any]:
    """The module's first output for one row, (T, …)."""
    return by_position(model, outputs_alone(model, module, row)[model.signature.outputs[0].name])


def outputs_alone(model: Model, module: nn.Module, row: Row) -> dict[str, NDArray[Any]]:
    """The module's outputs for one row, by port and without the batch axis."""
    import torch

    inputs = [torch.from_numpy(array) for array in Case("", (row,)).inputs(model.signature).values()]
    with torch.inference_mode():
        outputs = module(*inputs)
    return {port.name: output[0].numpy() for port, output in zip(model.signature.outputs, outputs, strict=True)}


def by_position(model: Model, output: NDArray[Any]) -> NDArray[Any]:
    """A first output without its batch axis, one answer for all of a row made a row of its own."""
    port = model.signature.outputs[0]
    return output[None] if len(port.axes) == 2 and LENGTH not in port.axes else output


def greedy(
    model: Model, module: nn.Module, prompts: NDArray[np.int64], new: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Each prompt (T,) with `new` - 1 greedy tokens behind it, and the logits (new, V) that chose them and one more."""
    import numpy as np
    import torch

    signature = model.signature
    names = [port.name for port in signature.outputs]
    tokens, steps = torch.from_numpy(prompts), []
    batch, length = prompts.shape
    case = Case("", tuple(Row(row, np.zeros_like(row)) for row in prompts))
    fed = {name: torch.from_numpy(array) for name, array in case.inputs(signature).items()}
    with torch.inference_mode():
        for _ in range(new):
            outputs = dict(zip(names, module(*fed.values()), strict=True))
            logits = outputs[names[0]]
            steps.append(logits[:, -1].numpy())
            ids = logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat((tokens, ids), 1)
            total = tokens.shape[1]
            step = {
                "tokens": ids,
                "mask": torch.ones((batch, total), dtype=torch.int64),
                "positions": torch.full((batch, 1), total - 1),
            }
            states = {state.input: outputs[state.output] for state in signature.states}
            fed = {
                port.name: states[port.name] if port.name in states else step[port.role or ""]
                for port in signature.inputs
            }
    for n in range(batch):
        yield tokens[n, : length + new - 1].numpy(), np.stack([step[n] for step in steps])


def imitation(model: Model, path: Path) -> tuple[Run, AbstractContextManager[Any]]:
    """Torch with a GGUF file's weights, and the context in which it rounds activations as llama.cpp does."""
    import torch
    from torch import nn

    from isoform.reference.checkpoints.opening import open_checkpoint
    from isoform.validators.truth.deviations import activations

    file, module = open_checkpoint(path), model.skeleton()
    kinds: dict[int, str] = {}
    made: dict[int, nn.Parameter] = {}  # by the id of the empty one: tied parameters stay tied
    for prefix, owner in module.named_modules():
        for leaf, empty in owner._parameters.items():
            if empty is None:
                continue
            if id(empty) not in made:
                name = f"{prefix}.{leaf}"
                values = file[name] if name in file else model.weights[name].load()
                made[id(empty)] = nn.Parameter(values.to(torch.float32), False)
                if name in file:
                    kinds[id(made[id(empty)])] = file.info(name).dtype
            owner._parameters[leaf] = made[id(empty)]
    if (share := getattr(module, "share", None)) is not None:  # parts of the same weights
        share()
    return (lambda row: outputs_alone(model, module, row)), activations(kinds)
