"""The cases of a part that reads encoder states: rows of tokens, and what the reference's encoder gives for its cases.

Where the encoder states have no mask, those of all rows of a case have one length. Shorter rows of tokens are padded on
the right only: there is no mask for tokens, and no position attends to a later one. `select` reorders the rows between
two steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from isoform.errors import InputError
from isoform.validators.cases.case import LONG, SHORT, STATES, STATES_MASK, Case, Row
from isoform.validators.cases.text import positions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.signature import Signature

DECODER = "decoder"


def reads_states(signature: Signature) -> bool:
    """Whether encoder states go in."""
    return any(port.name == STATES for port in signature.inputs)


def reads_prose(signature: Signature) -> bool:
    """Whether a text alone says what goes in."""
    return any(port.name == "input_ids" for port in signature.inputs) and not reads_states(signature)


def encoder_states_cases(model: Model, states: Sequence[NDArray[np.float32]], seed: int = 0) -> list[Case]:
    """The cases of a part that reads encoder states, here `states` (S, C), the same for the same seed."""
    import numpy as np

    random = np.random.default_rng(seed)
    limit, vocabulary = positions(model), model.weights["embed.weight"].shape[0]
    masked = any(port.name == STATES_MASK for port in model.signature.inputs)

    def row(length: int, own: NDArray[np.float32]) -> Row:
        length = max(1, min(length, limit))
        return Row(random.integers(0, vocabulary, length), np.zeros(length, np.int64), {STATES: own})

    lengths = [len(own) for own in states]
    usual = max(lengths, key=lengths.count)
    alike = [own for own in states if len(own) == usual]
    first, second, third = ((alike * 3)[n] for n in range(3))
    mixed = (row(SHORT, first), row(1, second), row(LONG, third))
    cases = [
        Case("one row, length 1", (row(1, first),)),
        Case(f"one row, length {SHORT}", (row(SHORT, first),)),
        Case(f"one row, length {LONG}", (row(LONG, states[-1]),)),  # of the real sound or picture, if there is one
        Case(f"batch of 3, length {SHORT}", tuple(row(SHORT, own) for own in (first, second, third))),
        Case(f"right padding, rows of {' '.join(str(len(r)) for r in mixed)}", mixed),
    ]
    others = list({len(own): own for own in states if len(own) != usual}.values())
    if masked and others:
        rows = tuple(row(SHORT, own) for own in (first, *others[:2]))
        sizes = " ".join(str(len(row.media[STATES])) for row in rows)
        cases.append(Case(f"batch of {len(rows)}, encoder states of {sizes}", rows))
    cases += [Case(f"one row, encoder states of {len(own)}", (row(SHORT, own),)) for own in others[:1]]
    if not model.signature.states:
        return cases
    parts = (4, 3, 1, 1, 1, SHORT)
    total = sum(parts)
    steps = " ".join(map(str, parts))
    three = tuple(row(total, own) for own in (first, second, third))
    if total <= limit:
        cases += [
            Case(f"cached decoding, 1 row, parts {steps}", (row(total, first),), parts=parts),
            Case(f"cached decoding, 3 rows, parts {steps}", three, parts=parts, last_only=True),
            Case(f"cached decoding, rows 2 0 0 1 of 3, parts {steps}", three, parts=parts, order=(2, 0, 0, 1)),
        ]
    return cases


def made_states(encoder: Model, rows: Iterable[Row]) -> list[NDArray[np.float32]]:
    """What the reference's encoder gives for each row alone: (S, C)."""
    import torch

    module, found = encoder.module(), []
    with torch.inference_mode():
        for row in rows:
            inputs = Case("", (row,)).inputs(encoder.signature).values()
            found.append(module(*(torch.from_numpy(array) for array in inputs))[0][0].numpy())
    return found


def encoder_of(part: Model) -> Model:
    """The part whose result this one reads."""
    from isoform.reference.model import PartOf

    if not isinstance(part, PartOf):
        raise InputError(f"{part.name} reads encoder states, but is no part of a model with an encoder")
    parts = list(part.whole.parts)
    names = [other.part for other in parts]
    end = names.index(DECODER)
    return parts[(names.index(part.part) if part.part in names[:end] else end) - 1]
