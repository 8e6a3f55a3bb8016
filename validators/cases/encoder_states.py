"""The cases of a part that reads encoder states: rows of tokens, and what the reference's encoder gives for its cases.

Where the encoder states have no mask, those of all rows of a case have one length; else they are padded on either
side. Shorter rows of tokens are padded on the right only: there is no mask for tokens, and no position attends to a
later one. `select` reorders the rows between two steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from isoform.errors import InputError
from isoform.reference.model import PartOf
from isoform.validators.cases.case import ENCODER_STATES, LONG, SHORT, Case, Row
from isoform.validators.cases.text import positions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.signature import Signature

ORDER = (2, 0, 0, 1)
FAR = 300  # encoder states of the longest row, where rows may differ in them


def reads_states(signature: Signature) -> bool:
    """Whether encoder states go in."""
    return signature.takes("encoder_states")


def reads_prose(signature: Signature) -> bool:
    """Whether a text alone says what goes in."""
    return signature.takes("tokens") and not reads_states(signature)


def encoder_states_cases(model: Model, states: Sequence[NDArray[np.float32]], seed: int = 0) -> list[Case]:
    """The cases of a part that reads encoder states, here `states` (S, C), the same for the same seed."""
    import numpy as np

    random = np.random.default_rng(seed)
    limit, vocabulary = positions(model), model.config.vocabulary or 1
    masked = model.signature.takes("encoder_mask")

    def row(length: int, own: NDArray[np.float32]) -> Row:
        length = max(1, min(length, limit))
        return Row(random.integers(0, vocabulary, length), np.zeros(length, np.int64), {ENCODER_STATES: own})

    lengths = [len(own) for own in states]
    usual = max(lengths, key=lengths.count)
    alike = [own for own in states if len(own) == usual]
    first, second, third = ((alike * 3)[n] for n in range(3))
    mixed = (row(SHORT, first), row(1, second), row(LONG, third))
    cases = [
        Case("one row", (row(1, first),), detail="length 1"),
        Case("one row", (row(SHORT, first),), detail=f"length {SHORT}"),
        # Of the real sound or picture, if there is one.
        Case("one row", (row(LONG, states[-1]),), detail=f"length {LONG}"),
        Case("batch of 3", tuple(row(SHORT, own) for own in (first, second, third)), detail=f"length {SHORT}"),
        Case("right padding", mixed, detail=f"rows of {' '.join(str(len(r)) for r in mixed)}"),
    ]
    others = list({len(own): own for own in states if len(own) != usual}.values())
    if masked:
        far = np.resize(states[-1], (FAR, states[-1].shape[1]))  # more of them than any text here has
        rows = tuple(row(SHORT, own) for own in (first, *others[:2], far))
        sizes = " ".join(str(len(row.media[ENCODER_STATES])) for row in rows)
        cases += [
            Case(f"batch of {len(rows)}", rows, side="left", detail=f"encoder states of {sizes}, padded on the left"),
            Case(f"batch of {len(rows)}", rows, detail=f"encoder states of {sizes}"),
        ]
    cases += [Case("one row", (row(SHORT, own),), detail=f"encoder states of {len(own)}") for own in others[:1]]
    if not model.signature.states:
        return cases
    chunks = (4, 3, 1, 1, 1, SHORT)
    total, counts = sum(chunks), f"chunks {' '.join(map(str, chunks))}"
    three = tuple(row(total, own) for own in (first, second, third))
    if total <= limit:
        cases += [
            Case("cached decoding", (row(total, first),), chunks=chunks, detail=f"1 row, {counts}"),
            Case("cached decoding", three, chunks=chunks, last_only=True, detail=f"3 rows, {counts}"),
            Case("cached decoding", three, chunks=chunks, order=ORDER, detail=f"rows 2 0 0 1 of 3, {counts}"),
        ]
    return cases


def made_states(encoder: Model, output: str, rows: Iterable[Row]) -> list[NDArray[np.float32]]:
    """What the reference's encoder gives as this output for each row alone: (S, C)."""
    import torch

    module, found = encoder.module(), []
    at = [port.name for port in encoder.signature.outputs].index(output)
    with torch.inference_mode():
        for row in rows:
            inputs = Case("", (row,)).inputs(encoder.signature).values()
            found.append(module(*(torch.from_numpy(array) for array in inputs))[at][0].numpy())
    return found


def encoder_of(part: Model) -> tuple[Model, str]:
    """The part that gives the encoder states that this one reads, and as which output."""
    port = part.signature.port("encoder_states")
    source = "" if port is None else part.task.wires.get(f"{part.part}.{port.name}", "")
    node, _, output = source.partition(".")
    if not isinstance(part, PartOf) or not source:
        raise InputError(f"{part.name} reads encoder states, but no wire of its card says which part gives them")
    encoder = next((other for other in part.whole.parts if other.part == node), None)
    if encoder is None:
        raise InputError(f"{part.name}: the encoder states of {part.part} come from {node}, which is no part")
    return encoder, output
