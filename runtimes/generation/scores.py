"""How likely a generated text is: its score, and the log-probability of each new token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoform.runtimes.generation.searches import TextRow
    from isoform.runtimes.generation.settings import GenerationConfig


def scores_of(row: TextRow, config: GenerationConfig) -> dict[str, Any]:
    """{"score", "token_scores"} of a row whose log-probabilities were kept (`keep_chances`).

    A token's is its log-probability after all settings: what transformers' `compute_transition_scores` gives, with
    `normalize_logits=True` but for beams. The score is their sum divided by their number to the power of
    `length_penalty`, which is `sequences_scores` for beams.
    """
    terms = list(row.terms or row.chances)
    score = sum(terms) / len(terms) ** config.length_penalty if row.score is None else row.score
    return {"score": score, "token_scores": terms}
