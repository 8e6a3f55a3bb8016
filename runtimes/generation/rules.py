"""What a caller adds to generation: rules for the logits and for the end of a text, ours or transformers'.

Ours are small protocols over NumPy: an object with `process` or `stops`. Everything else that can be called is taken
for transformers' (`LogitsProcessor`, `StoppingCriteria`, or a function like those), and is given torch tensors with an
axis for the batch, which has one row here: a row's text never depends on others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import Processor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.settings import GenerationConfig

PARAMETERS = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria")
"""The parameters of a call that hold rules, under transformers' names."""


@runtime_checkable
class LogitsRule(Protocol):
    """Changes the logits before a token is chosen, after the settings of the call and before sampling."""

    def process(self, ids: NDArray[np.int64], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """ids of the text so far with its prompt (L,), logits (V,) -> logits (V,), in an array of its own."""
        ...


@runtime_checkable
class StopRule(Protocol):
    """Ends a text."""

    def stops(self, ids: NDArray[np.int64]) -> bool:
        """Whether the text ends here; ids of all of it with its prompt (L,)."""
        ...


_Stops = Callable[["NDArray[np.int64]"], bool]
Allowed = Callable[[int, Any], Sequence[int]]

# transformers leaves out the processor of a setting where the caller gives one of the same class.
_REPLACED = {
    "EncoderNoRepeatNGramLogitsProcessor": "encoder_no_repeat_ngram_size",
    "EncoderRepetitionPenaltyLogitsProcessor": "encoder_repetition_penalty",
    "ExponentialDecayLengthPenalty": "exponential_decay_length_penalty",
    "ForcedBOSTokenLogitsProcessor": "forced_bos_token_id",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_token_id",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "NoBadWordsLogitsProcessor": "bad_words_ids",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size",
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "SequenceBiasLogitsProcessor": "sequence_bias",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens",
    "SuppressTokensLogitsProcessor": "suppress_tokens",
}


@dataclass(frozen=True, slots=True)
class CallersRules:
    """`allowed` says which tokens may follow, given the number of a row in its batch and its ids."""

    processors: tuple[Processor, ...] = ()
    stops: tuple[_Stops, ...] = ()
    allowed: Allowed | None = None

    def constraint(self, row: int) -> Processor | None:
        """The processor that leaves only the allowed tokens to a row of its batch."""
        return None if self.allowed is None else partial(_only_allowed, self.allowed, row)

    def stop(self, ids: Sequence[int]) -> bool:
        """Whether any rule ends a text."""
        return bool(self.stops) and any(stops(np.array(ids, np.int64)) for stops in self.stops)


NO_RULES = CallersRules()


def read_rules(
    settings: GenerationConfig, logits_processor: Any, stopping_criteria: Any, prefix_allowed_tokens_fn: Any
) -> tuple[GenerationConfig, CallersRules]:
    """The rules of a call, and its settings without those that the rules replace."""
    processors, stops = [], []
    for rule in _listed("logits_processor", logits_processor):
        if isinstance(rule, LogitsRule):
            processors.append(rule.process)
            continue
        processors.append(partial(_torch_process, rule))
        name = _REPLACED.get(type(rule).__name__)
        if name is not None and is_transformers(rule):
            nothing: dict[str, Any] = {name: None}
            settings = replace(settings, **nothing)
    for rule in _listed("stopping_criteria", stopping_criteria):
        if isinstance(rule, StopRule):
            stops.append(rule.stops)
            continue
        stops.append(partial(_torch_stops, rule))
        if is_transformers(rule) and type(rule).__name__ == "EosTokenCriteria":
            settings = replace(settings, eos_token_id=None)
        if is_transformers(rule) and type(rule).__name__ == "MaxLengthCriteria":
            settings = replace(settings, max_new_tokens=None, max_length=int(rule.max_length))
    if prefix_allowed_tokens_fn is not None and not callable(prefix_allowed_tokens_fn):
        raise InputError(
            f"prefix_allowed_tokens_fn={prefix_allowed_tokens_fn!r:.60} is no function of (row, ids) that gives ids"
        )
    return settings, CallersRules(tuple(processors), tuple(stops), prefix_allowed_tokens_fn)


def is_transformers(value: Any) -> bool:
    """Whether a class of transformers is among those of an object: it wants torch tensors."""
    return any(kind.__module__.partition(".")[0] == "transformers" for kind in type(value).__mro__)


def _listed(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    rules = list(value) if isinstance(value, list | tuple) else [value]
    for rule in rules:
        if not callable(rule) and not isinstance(rule, LogitsRule if name == "logits_processor" else StopRule):
            wanted = "process(ids, logits)" if name == "logits_processor" else "stops(ids)"
            raise InputError(f"{name} holds {rule!r:.60}, which has no {wanted} and is no function of tensors")
    return rules


def _torch_process(rule: Any, ids: NDArray[np.int64], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    scores = rule(torch.from_numpy(ids)[None], torch.from_numpy(np.array(logits, np.float32))[None])
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (1, *logits.shape):
        found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else scores
        raise InputError(f"{_name(rule)} gave {found!r:.60} for scores of shape (1, {len(logits)}); return those")
    changed: NDArray[np.float32] = scores[0].float().numpy()
    return changed


def _torch_stops(rule: Any, ids: NDArray[np.int64]) -> bool:
    import torch

    found = rule(torch.from_numpy(ids)[None], None)
    if isinstance(found, torch.Tensor) and found.numel() != 1:
        raise InputError(f"{_name(rule)} gave {tuple(found.shape)} values for one text; return one for each row")
    return bool(found)


def _only_allowed(
    allowed: Allowed, row: int, ids: NDArray[np.int64], logits: NDArray[np.float32]
) -> NDArray[np.float32]:
    import torch

    tokens = [int(token) for token in allowed(row, torch.from_numpy(ids))]
    if not tokens:
        raise InputError(
            "prefix_allowed_tokens_fn allows no token; return at least one, such as the one that ends a text"
        )
    if min(tokens) < 0 or max(tokens) >= len(logits):
        raise InputError(f"prefix_allowed_tokens_fn allows {max(tokens)}, and there are {len(logits)} tokens")
    out = np.full_like(logits, -np.inf)
    out[tokens] = logits[tokens]
    return out


def _name(rule: Any) -> str:
    return getattr(rule, "__name__", type(rule).__name__)
