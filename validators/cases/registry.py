"""Which cases a model has: by its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoform.validators.cases.encoder_states import encoder_of, encoder_states_cases, made_states, reads_states
from isoform.validators.cases.media import media_cases
from isoform.validators.cases.text import token_cases

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case


def cases_of(model: Model, seed: int = 0) -> list[Case]:
    """The cases of a model of one part, or of one part of a model, the same for the same seed."""
    if reads_states(model.signature):
        encoder, output = encoder_of(model)
        rows = dict.fromkeys(row for case in cases_of(encoder, seed) for row in case.rows)
        return encoder_states_cases(model, made_states(encoder, output, rows), seed)
    media = any(port.dtype == "float" and port.role != "embeddings" for port in model.signature.given)
    return media_cases(model, seed) if media else token_cases(model, seed)
