"""Settings that exclude each other: a call that asks for both is told so, in one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

from isoform.errors import InputError


class ModeSettings(Protocol):
    """The settings that decide the mode of generation; see `GenerationConfig`."""

    @property
    def constraints(self) -> Any: ...
    @property
    def diversity_penalty(self) -> float | None: ...
    @property
    def do_sample(self) -> bool: ...
    @property
    def guidance_scale(self) -> float | None: ...
    @property
    def mode(self) -> str: ...
    @property
    def num_beam_groups(self) -> int: ...
    @property
    def num_beams(self) -> int: ...
    @property
    def num_return_sequences(self) -> int: ...
    @property
    def penalty_alpha(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def words(self) -> Any: ...


def refuse_contradictions(config: ModeSettings, asked: Collection[str] = ()) -> None:
    """InputError for settings that exclude each other.

    A setting of a mode that is off counts only where the call asks for it: a model's file may hold it, as in
    transformers.
    """
    for reason in (*_of_words(config), *_of_groups(config, asked), *_of_contrast(config, asked)):
        raise InputError(reason)


def refuse_count(config: ModeSettings) -> None:
    """InputError for more texts of a prompt than the mode gives."""
    for reason in _of_count(config):
        raise InputError(reason)


def _of_words(c: ModeSettings) -> Iterator[str]:
    if not c.words:
        return
    name = "constraints" if c.constraints else "force_words_ids"
    if c.num_beams == 1:
        yield f"{name} are met by beams, and num_beams=1; pass num_beams=2 or more"
    if c.do_sample:
        yield f"{name} are met by the best beams, which are not sampled; pass do_sample=False"
    if c.num_beam_groups > 1:
        yield f"{name} and num_beam_groups={c.num_beam_groups} exclude each other; leave one of them out"


def _of_groups(c: ModeSettings, asked: Collection[str]) -> Iterator[str]:
    penalty = c.diversity_penalty
    if penalty is not None and penalty < 0:
        yield f"diversity_penalty={penalty} is less than 0, so that the groups would be alike; pass a number above 0"
    if c.num_beam_groups == 1:
        if penalty and "diversity_penalty" in asked:
            yield (
                f"diversity_penalty={penalty} is between groups of beams, and there is one; pass num_beam_groups=2 or "
                "more, which divide num_beams"
            )
        return
    if c.num_beams == 1:
        if "num_beam_groups" in asked:
            yield f"num_beam_groups={c.num_beam_groups} are groups of beams, and num_beams=1; pass num_beams as well"
        return
    if c.words:
        return
    if c.num_beams % c.num_beam_groups:
        yield (
            f"num_beams={c.num_beams} cannot be divided into num_beam_groups={c.num_beam_groups} groups of one size; "
            f"pass num_beams={c.num_beam_groups * -(-c.num_beams // c.num_beam_groups)}"
        )
    if c.do_sample:
        yield "beams in groups are the best ones, which are not sampled; pass do_sample=False"
    if not penalty:
        yield "beams in groups would all be the same without a diversity_penalty; pass diversity_penalty=0.5, or more"


def _of_contrast(c: ModeSettings, asked: Collection[str]) -> Iterator[str]:
    alpha = c.penalty_alpha
    if not alpha or ("penalty_alpha" not in asked and c.mode != "contrastive"):
        return
    if not 0 <= alpha <= 1:
        yield f"penalty_alpha={alpha} must lie between 0 and 1"
    if c.num_beams > 1:
        yield f"penalty_alpha={alpha} is contrastive search, which has no beams; pass num_beams=1"
    if c.guidance_scale not in (None, 1):
        yield f"penalty_alpha={alpha} compares texts that guidance_scale={c.guidance_scale:g} mixes; pass one of them"
    if c.do_sample:
        yield f"penalty_alpha={alpha} is contrastive search, which does not sample; pass do_sample=False"
    if (c.top_k or 0) < 2:
        yield f"penalty_alpha={alpha} weighs candidates, and top_k={c.top_k} leaves one; pass top_k=4, or 2 at least"


def _of_count(c: ModeSettings) -> Iterator[str]:
    count, width = c.num_return_sequences, c.num_beams
    if width == 1 and count > 1 and not c.do_sample:
        kind = "texts of contrastive search" if c.mode == "contrastive" else "greedy texts"
        yield f"num_return_sequences={count} {kind} would all be the same; pass do_sample=True"
    if 1 < width < count:
        yield f"num_return_sequences={count} is more than num_beams={width}; ask for fewer, or more beams"
