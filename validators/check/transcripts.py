"""What a session says when it goes on by itself, and in how many words that differs from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isoform.validators.cases.case import Case, Row
from isoform.validators.cases.text import tokenizer
from isoform.validators.truth.distances import edit_distance, log_softmax, words_of
from isoform.validators.truth.losses import CLEAR

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.validators.check.known_answers import Known


def continued(session: Any, model: Model, case: Case) -> NDArray[np.int64]:
    """The tokens that a session over wired parts chooses after the prompt of each row of a case, (B, steps)."""
    import numpy as np

    prompts = [row.tokens[: case.chunks[0]] for row in case.rows]
    rows = (Row(p, np.zeros_like(p), row.media) for p, row in zip(prompts, case.rows, strict=True))
    decoder = session.decoder_of(Case(case.group, tuple(rows)).inputs(model.signature))
    ids, found = np.stack(prompts), []
    for _ in case.chunks:
        ids = decoder.step(ids).argmax(-1)[:, None]
        found.append(ids)
    return np.concatenate(found, 1)


def word_errors(got: NDArray[np.int64], known: Known, model: Model) -> tuple[int, int]:
    """How many words of a transcript are wrong, and how many the reference has; of tokens where none of them is a word.

    A row that leaves the reference at a near tie is not counted as wrong: another rounding may take the other way. Nor
    is the only one of several rows that leaves it elsewhere, as one token of few is not.
    """
    import numpy as np

    reader = tokenizer(model)
    wrong: list[int] = []
    count = 0
    for mine, logits in zip(got, next(iter(known.outputs.values())), strict=True):
        theirs = logits.argmax(-1)
        said, wanted = (words_of(reader.decode(ids.tolist())) if reader else [] for ids in (mine, theirs))
        if not wanted:
            said, wanted = mine.tolist(), theirs.tolist()
        count += len(wanted)
        other = np.flatnonzero(mine != theirs)
        if other.size:
            chance = np.exp(log_softmax(logits[other[0]]))
            clear = chance.max() - chance[mine[other[0]]] >= CLEAR
            wrong += [edit_distance(said, wanted)] if clear else []
    return sum(wrong) if len(wrong) > 1 or len(got) == 1 else 0, count
