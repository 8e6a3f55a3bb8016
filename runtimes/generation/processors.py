"""What is done to one row of logits before a token is chosen: transformers' logits processors and warpers, in NumPy.

Each function here makes a `Processor`: ids of the row so far (with the prompt, without padding) and logits in, new
logits out; none changes what it is given. Rows are processed alone, so that a row's text does not depend on
what it is batched with. Arithmetic is float32 throughout, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.settings import GenerationConfig

Processor = Callable[["NDArray[np.int64]", "NDArray[np.float32]"], "NDArray[np.float32]"]
"""ids (L,), logits (V,) -> logits (V,)."""

COLDEST = 1e-20  # logits that are divided by less become infinite
_TOP_H_CANDIDATES = 100  # transformers looks at that many of the best tokens


def processors(
    config: GenerationConfig,
    prompt_length: int,
    max_length: int,
    rules: Sequence[Processor] = (),
    constraint: Processor | None = None,
    source: Sequence[int] = (),
) -> list[Processor]:
    """What `config` asks for, in transformers' order; then `rules`; the warpers at the end only when sampling.

    `constraint` leaves only some tokens; what forces a token comes after it. `source`: what the encoder read, or the
    prompt where there is no encoder.
    """
    c, eos = config, list(config.eos_token_id or ())
    chain: list[Processor] = []
    if c.sequence_bias:
        chain.append(sequence_bias(dict(c.sequence_bias)))
    if c.mode == "diverse beams":
        chain.append(Diversity(c.diversity_penalty or 0.0))
    if c.encoder_repetition_penalty not in (None, 1.0):
        penalty = _positive("encoder_repetition_penalty", c.encoder_repetition_penalty)
        chain.append(source_repetition(source, penalty))
    if c.repetition_penalty not in (None, 1.0):
        chain.append(repetition_penalty(_positive("repetition_penalty", c.repetition_penalty)))
    if c.no_repeat_ngram_size:
        chain.append(no_repeat_ngram(c.no_repeat_ngram_size))
    if c.encoder_no_repeat_ngram_size:
        chain.append(no_source_ngram(source, c.encoder_no_repeat_ngram_size))
    if c.bad_words_ids:
        words = {tuple(word): -np.inf for word in c.bad_words_ids if not (len(word) == 1 and word[0] in eos)}
        if words:
            chain.append(sequence_bias(words))
    if c.min_length and eos:
        chain.append(min_length(c.min_length, eos))
    if c.min_new_tokens and eos:
        chain.append(min_length(prompt_length + c.min_new_tokens, eos))
    if constraint is not None:
        chain.append(constraint)
    if c.forced_bos_token_id is not None:
        chain.append(force_at(1, [c.forced_bos_token_id]))
    if c.forced_eos_token_id:
        chain.append(force_at(max_length - 1, list(c.forced_eos_token_id)))
    if c.remove_invalid_values:
        chain.append(remove_invalid)
    if c.exponential_decay_length_penalty is not None:
        start, factor = c.exponential_decay_length_penalty
        chain.append(exponential_decay(prompt_length + int(start), float(factor), eos))
    if c.suppress_tokens:
        chain.append(suppress(c.suppress_tokens))
    if c.begin_suppress_tokens:
        begin = prompt_length if prompt_length > 1 or c.forced_bos_token_id is None else prompt_length + 1
        chain.append(suppress(c.begin_suppress_tokens, at=begin))
    chain += rules
    if c.do_sample:
        chain += warpers(c)
    if c.renormalize_logits:
        chain.append(lambda ids, scores: log_softmax(scores))
    return chain


def warpers(c: GenerationConfig) -> list[Processor]:
    """What shapes the distribution that is sampled from, in transformers' order.

    Each leaves `least` tokens, where it takes that: the best ones.
    """
    chain: list[Processor] = []
    least = 1 if c.num_beams == 1 else len(c.eos_token_id or (0,)) + 1  # beams need one more than can end them
    if c.temperature not in (None, 1.0):
        chain.append(temperature(_positive("temperature", c.temperature)))
    if c.top_h is not None:
        chain.append(top_h(_within("top_h", c.top_h)))
    if c.top_k:
        chain.append(top_k(max(c.top_k, least)))
    if c.top_p is not None and c.top_p < 1:
        chain.append(top_p(_within("top_p", c.top_p), least))
    if c.min_p is not None:
        chain.append(min_p(_within("min_p", c.min_p), least))
    if c.typical_p is not None and c.typical_p < 1:
        chain.append(typical(_within("typical_p", c.typical_p), least))
    if c.epsilon_cutoff:
        chain.append(epsilon_cutoff(_within("epsilon_cutoff", c.epsilon_cutoff), least))
    if c.eta_cutoff:
        chain.append(eta_cutoff(_within("eta_cutoff", c.eta_cutoff), least))
    return chain


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def draw(scores: NDArray[np.float32], random: np.random.Generator) -> int:
    """A token with the probability that its logit gives it; one of probability 0 is never drawn."""
    cumulative = np.cumsum(softmax(scores.astype(np.float64)))
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))


def some_token(best: float) -> None:
    """InputError if the best score is that of a token that must not come."""
    if best == -np.inf:
        raise InputError(
            "the settings leave no token to go on with; leave out what forbids tokens (suppress_tokens, bad_words_ids, "
            "no_repeat_ngram_size, …)"
        )


def nothing_but_numbers(scores: NDArray[np.float32]) -> None:
    """InputError if a score is NaN."""
    if np.isnan(scores).any():
        raise InputError("the model gave logits that are not numbers; run it in float32, or check the checkpoint")


# ------------------------------------------------------------------ processors
def sequence_bias(biases: Mapping[tuple[int, ...], float]) -> Processor:
    """Add a bias to the token that would complete a sequence; -inf forbids it."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        bias = np.zeros_like(scores)
        for sequence, value in biases.items():
            *before, last = sequence
            if last >= len(scores):
                raise InputError(f"token {last} is biased or forbidden, but the model has {len(scores)} tokens")
            if not before:
                bias[last] = value
        for sequence, value in biases.items():
            *before, last = sequence
            if before and len(before) <= len(ids) and np.array_equal(ids[-len(before) :], before):
                bias[last] += value
        return scores + bias

    return apply


def repetition_penalty(penalty: float) -> Processor:
    """Divide the positive logits of tokens that are there already by `penalty`, multiply the negative ones."""
    return lambda ids, scores: _penalized(scores, ids, penalty)


class Diversity:
    """A `Processor` that takes a penalty off the tokens that beams of earlier groups have just been given."""

    def __init__(self, penalty: float) -> None:
        self._penalty, self.given = np.float32(penalty), list[int]()

    def __call__(self, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.given:
            return scores
        counts = np.bincount(self.given, minlength=len(scores))[: len(scores)]
        lowered: NDArray[np.float32] = scores - self._penalty * counts.astype(np.float32)
        return lowered


def source_repetition(source: Sequence[int], penalty: float) -> Processor:
    """Multiply the positive logits of the source's tokens by `penalty`, divide the negative ones."""
    tokens = np.array(source, np.int64)
    return lambda ids, scores: _penalized(scores, tokens, 1 / penalty)


def _penalized(scores: NDArray[np.float32], tokens: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
    out, seen = scores.copy(), np.unique(tokens[tokens < len(scores)])
    out[seen] = np.where(scores[seen] < 0, scores[seen] * np.float32(penalty), scores[seen] / np.float32(penalty))
    return out


def no_repeat_ngram(size: int) -> Processor:
    """Forbid the token that would repeat an n-gram of the row."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return _without_ngrams(scores, ids, size, ids)

    return apply


def no_source_ngram(source: Sequence[int], size: int) -> Processor:
    """Forbid the token that would complete an n-gram of the source."""
    tokens = np.array(source, np.int64)
    return lambda ids, scores: _without_ngrams(scores, tokens, size, ids)


def _without_ngrams(
    scores: NDArray[np.float32], source: NDArray[np.int64], size: int, ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    if len(source) < size or len(ids) < size - 1:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(source, size)
    tail = ids[len(ids) + 1 - size :]
    last = windows[(windows[:, :-1] == tail).all(1), -1]
    return _forbid(scores, last[last < len(scores)])


def min_length(length: int, eos: Sequence[int]) -> Processor:
    """No end before the row has `length` tokens."""
    return lambda ids, scores: _forbid(scores, _inside(eos, scores)) if len(ids) < length else scores


def force_at(length: int, tokens: Sequence[int]) -> Processor:
    """When the row has `length` tokens, the next is one of `tokens`."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(ids) != length:
            return scores
        out = np.full_like(scores, -np.inf)
        out[_inside(tokens, scores)] = 0
        return out

    return apply


def remove_invalid(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """NaN becomes 0, infinities the largest finite numbers."""
    most = float(np.finfo(np.float32).max)
    return np.nan_to_num(scores, nan=0.0, posinf=most, neginf=-most)


def exponential_decay(start: int, factor: float, eos: Sequence[int]) -> Processor:
    """Raise the logits of the end more with every token after `start`."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(ids) <= start:
            return scores
        out, ends = scores.copy(), _inside(eos, scores)
        rise = np.abs(scores[ends]) * np.float32(factor ** (len(ids) - start) - 1)
        out[ends] += np.where(np.isfinite(scores[ends]), rise, np.float32(0))
        return out

    return apply


def suppress(tokens: Sequence[int], at: int | None = None) -> Processor:
    """Forbid tokens, always or only when the row has `at` tokens."""
    return lambda ids, scores: _forbid(scores, _inside(tokens, scores)) if at in (None, len(ids)) else scores


# ------------------------------------------------------------------ warpers
def temperature(value: float) -> Processor:
    """Divide the logits."""
    if value < COLDEST:
        raise InputError(f"temperature={value} is too small to divide by; for greedy decoding pass do_sample=False")
    return lambda ids, scores: scores / np.float32(value)


def top_k(k: int) -> Processor:
    """Keep the k best, and those that equal the last of them."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        least = np.partition(scores, -min(k, len(scores)))[-min(k, len(scores))]
        return _mask(scores, scores < least)

    return apply


def top_p(p: float, least: int = 1) -> Processor:
    """Keep the smallest set of best tokens whose probability reaches p."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        order = np.argsort(scores, kind="stable")
        drop = np.cumsum(softmax(scores[order]), dtype=np.float32) <= np.float32(1 - p)
        drop[-least:] = False
        mask = np.empty_like(drop)
        mask[order] = drop
        return _mask(scores, mask)

    return apply


def min_p(p: float, least: int = 1) -> Processor:
    """Drop what is less probable than p times the best."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities = softmax(scores)
        drop = probabilities < np.float32(p) * probabilities.max()
        drop[np.argsort(-probabilities, kind="stable")[:least] if least > 1 else probabilities.argmax()] = False
        return _mask(scores, drop)

    return apply


def typical(mass: float, least: int = 1) -> Processor:
    """Keep the tokens whose surprise is nearest to the entropy, up to `mass` of probability (arXiv:2202.00666)."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        logs = log_softmax(scores)
        with np.errstate(invalid="ignore"):  # 0 * -inf, which nansum leaves out
            entropy = -np.nansum(logs * np.exp(logs), dtype=np.float32)
        shift = np.abs(-logs - entropy)
        order = np.argsort(shift, kind="stable")
        cumulative = np.cumsum(softmax(scores[order]), dtype=np.float32)
        last = min(int((cumulative < np.float32(mass)).sum()), len(scores) - 1)
        drop = shift > shift[order[last]]
        drop[order[:least]] = False
        return _mask(scores, drop)

    return apply


def epsilon_cutoff(epsilon: float, least: int = 1) -> Processor:
    """Drop what is less probable than epsilon, except the best."""
    return lambda ids, scores: _mask(scores, (softmax(scores) < np.float32(epsilon)) & _below_best(scores, least))


def eta_cutoff(epsilon: float, least: int = 1) -> Processor:
    """Drop what is less probable than a bound that falls with the entropy, except the best (arXiv:2210.15191)."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        eta = min(np.float32(epsilon), np.sqrt(np.float32(epsilon)) * np.exp(-_entropy(scores)))
        return _mask(scores, (softmax(scores) < eta) & _below_best(scores, least))

    return apply


def top_h(share: float) -> Processor:
    """Keep the best tokens until their entropy reaches a share of the whole (arXiv:2509.02510)."""

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        best = np.argsort(-scores, kind="stable")[: min(_TOP_H_CANDIDATES, len(scores))]
        probabilities = softmax(scores[best])
        with np.errstate(divide="ignore", invalid="ignore"):  # a probability of 0 gives NaN, which is never kept
            terms = np.cumsum(-probabilities * np.log(probabilities), dtype=np.float32)
            keep = terms <= _entropy(scores[best]) * np.float32(share)
        keep[0] = True
        mask = np.ones(len(scores), bool)
        mask[best[keep]] = False
        return _mask(scores, mask)

    return apply


def _below_best(scores: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Which scores are less than the `count` best."""
    count = min(count, len(scores))
    below: NDArray[np.bool_] = scores < (scores.max() if count == 1 else np.partition(scores, -count)[-count])
    return below


def _entropy(scores: NDArray[np.float32]) -> np.float32:
    logs = np.maximum(log_softmax(scores), np.finfo(np.float32).min)
    return np.float32(-(logs * np.exp(logs)).sum(dtype=np.float32))


def _mask(scores: NDArray[np.float32], drop: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(drop, np.float32(-np.inf), scores)


def _forbid(scores: NDArray[np.float32], tokens: Any) -> NDArray[np.float32]:
    out = scores.copy()
    out[tokens] = -np.inf
    return out


def _inside(tokens: Sequence[int], scores: NDArray[np.float32]) -> list[int]:
    return [token for token in tokens if 0 <= token < len(scores)]


def _positive(name: str, value: float | None) -> float:
    if value is None or not value > 0:
        way = "; for greedy decoding pass do_sample=False" if name == "temperature" else ""
        raise InputError(f"{name}={value} must be greater than 0{way}")
    return float(value)


def _within(name: str, value: float) -> float:
    if not 0 <= value <= 1 or (value == 0 and name in ("top_h", "typical_p")):
        raise InputError(f"{name}={value} must lie between 0 and 1")
    return float(value)
