"""The cases of a graph that attends to a memory: rows of tokens beside what the reference's encoder made of its cases.

Where the memory has no mask, all rows of a case attend to memories of one length. Shorter rows of tokens are padded on
the right only: there is no mask for tokens, and nothing looks ahead. `select` reorders the rows between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.signature import Port, Signature
from isoform.validators.cases.cases import LONG, SHORT, Case, Row, cases_of, positions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model

STATES = "encoder_hidden_states"
MASK = "encoder_attention_mask"
DECODER = "decoder"


def reads_memory(signature: Signature) -> bool:
    return any(port.name == STATES for port in signature.inputs)


def reads_prose(signature: Signature) -> bool:
    """Whether a text alone says what goes in."""
    return any(port.name == "input_ids" for port in signature.inputs) and not reads_memory(signature)


def memory_cases(model: Model, seed: int = 0) -> list[Case]:
    """The cases of a part that reads a memory, the same for the same seed."""
    import numpy as np

    memories = _memories(model, seed)
    random = np.random.default_rng(seed)
    limit, vocabulary = positions(model), model.weights["embed.weight"].shape[0]
    masked = any(port.name == MASK for port in model.signature.inputs)

    def row(length: int, memory: NDArray[np.float32]) -> Row:
        length = max(1, min(length, limit))
        return Row(random.integers(0, vocabulary, length), np.zeros(length, np.int64), {STATES: memory})

    lengths = [len(memory) for memory in memories]
    usual = max(lengths, key=lengths.count)
    alike = [memory for memory in memories if len(memory) == usual]
    first, second, third = ((alike * 3)[n] for n in range(3))
    mixed = (row(SHORT, first), row(1, second), row(LONG, third))
    cases = [
        Case("one row, length 1", (row(1, first),)),
        Case(f"one row, length {SHORT}", (row(SHORT, first),)),
        Case(f"one row, length {LONG}", (row(LONG, memories[-1]),)),  # of the real sound or picture, if there is one
        Case(f"batch of 3, length {SHORT}", tuple(row(SHORT, memory) for memory in (first, second, third))),
        Case(f"right padding, rows of {' '.join(str(len(r)) for r in mixed)}", mixed),
    ]
    others = list({len(memory): memory for memory in memories if len(memory) != usual}.values())
    if masked and others:
        rows = tuple(row(SHORT, memory) for memory in (first, *others[:2]))
        sizes = " ".join(str(len(row.media[STATES])) for row in rows)
        cases.append(Case(f"batch of {len(rows)}, memories of {sizes}", rows))
    cases += [Case(f"one row, memory of {len(memory)}", (row(SHORT, memory),)) for memory in others[:1]]
    if not model.signature.states:
        return cases
    parts = (4, 3, 1, 1, 1, SHORT)
    total = sum(parts)
    steps = " ".join(map(str, parts))
    three = tuple(row(total, memory) for memory in (first, second, third))
    if total <= limit:
        cases += [
            Case(f"cached decoding, 1 row, parts {steps}", (row(total, first),), parts=parts),
            Case(f"cached decoding, 3 rows, parts {steps}", three, parts=parts, last_only=True),
            Case(f"cached decoding, rows 2 0 0 1 of 3, parts {steps}", three, parts=parts, order=(2, 0, 0, 1)),
        ]
    return cases


def _memories(model: Model, seed: int) -> list[NDArray[np.float32]]:
    """What the encoder before this part gives for the rows of its own cases: (S, C) each, of one row at a time."""
    import torch

    encoder = encoder_of(model)
    module, found = encoder.module(), []
    rows = dict.fromkeys(row for case in cases_of(encoder, seed) for row in case.rows)
    with torch.inference_mode():
        for row in rows:
            inputs = Case("", (row,)).inputs(encoder.signature).values()
            found.append(module(*(torch.from_numpy(array) for array in inputs))[0][0].numpy())
    return found


def encoder_of(part: Model) -> Model:
    """The part whose result this one reads."""
    from isoform.reference.model import PartOf

    if not isinstance(part, PartOf):
        raise InputError(f"{part.name} reads a memory, but is no part of a model with an encoder")
    parts = list(part.whole.parts)
    names = [other.part for other in parts]
    end = names.index(DECODER)
    return parts[(names.index(part.part) if part.part in names[:end] else end) - 1]


def fed(port: Port, rows: Sequence[Row]) -> NDArray[Any] | None:
    """What a port of a memory, or of its cache, is given for one pass; None for other ports."""
    import numpy as np

    if port.role == "switch":
        return np.zeros(1, bool)
    if port.name not in (STATES, MASK):
        return None
    lengths = [len(row.media[STATES]) for row in rows]
    if port.name == MASK:
        return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    out = np.zeros((len(rows), max(lengths), rows[0].media[STATES].shape[-1]), np.float32)
    for line, row, length in zip(out, rows, lengths, strict=True):
        line[:length] = row.media[STATES]
    return out


def longest_memory(rows: Sequence[Row]) -> int:
    return max(len(row.media[STATES]) if STATES in row.media else 0 for row in rows)


def decoder_of(session: Any, case: Case, signature: Signature) -> Any:
    """A decoder beside the memories of a case's rows."""
    ports = (port for port in signature.inputs if port.name in (STATES, MASK))
    return session.memory_decoder({port.name: fed(port, case.rows) for port in ports})
