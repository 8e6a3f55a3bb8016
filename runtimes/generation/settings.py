"""The settings of generation: their names, how a call's, the model's and the defaults are merged, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf, isinf, isnan
from operator import index
from pathlib import Path
from typing import Any, Literal

from isoform.errors import CheckpointError, InputError
from isoform.json_files import is_there, read_object
from isoform.runtimes.generation.context import stretched
from isoform.runtimes.generation.contradictions import refuse_contradictions
from isoform.runtimes.generation.other_settings import HARMLESS, UNSUPPORTED, reason, unsupported

Mode = Literal["greedy", "sampling", "beams", "sampled beams", "diverse beams", "constrained beams", "contrastive"]
"""How the next tokens are found; see `GenerationConfig.mode`."""

Words = tuple[tuple[int, ...], ...]
"""Sequences of tokens, of which a text must hold one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """The settings that decide the text; names and meanings are those of generation_config.json. None is "off".

    Lengths count the tokens of a row without padding. `max_new_tokens` wins over `max_length`, which includes the
    prompt; with neither, 20 tokens are made.
    """

    # length
    max_new_tokens: int | None = None
    max_length: int | None = None  # prompt included
    min_new_tokens: int | None = None
    min_length: int | None = None  # prompt included
    max_time: float | None = None  # seconds
    stop_strings: tuple[str, ...] | None = None  # the text ends with the first that appears, which it keeps
    # choice
    do_sample: bool = False
    num_return_sequences: int = 1
    num_beams: int = 1  # texts that grow side by side; 1 is greedy or plain sampling
    length_penalty: float = 1.0  # a beam's score is divided by its length to this power
    early_stopping: bool | Literal["never"] = False  # see `BeamRules`
    num_beam_groups: int = 1  # groups of beams that avoid each other's tokens
    diversity_penalty: float | None = None  # what a token loses for every beam of an earlier group that has it
    constraints: tuple[Words, ...] | None = None  # of each, the text holds one; only with beams
    force_words_ids: tuple[Words, ...] | None = None  # the same
    penalty_alpha: float | None = None  # above 0, the share of the penalty in contrastive search
    seed: int | None = None  # the same seed gives row n of a call the same text; not a setting of transformers
    # logits, in the order in which they act
    guidance_scale: float | None = None  # how far they move away from those after a negative prompt; 1 is off
    negative_prompt_ids: tuple[tuple[int, ...], ...] | None = None  # one for all prompts, or one for each
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None  # (ids, bias of the last given the others)
    encoder_repetition_penalty: float | None = None  # above 1, what the encoder read becomes likelier; see `steps`
    repetition_penalty: float | None = None  # 1 changes nothing
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None  # no n-gram of what the encoder read
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] | None = None  # the last token when the length is reached
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None  # (after so many new tokens, factor)
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    # only when sampling
    temperature: float | None = None
    top_h: float | None = None
    top_k: int | None = None  # 50 unless set, as in transformers; 0 is off
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    renormalize_logits: bool = False
    # guessed tokens, of which the model keeps those that it would choose: they change the speed alone
    prompt_lookup_num_tokens: int | None = None  # so many at most, found earlier in the text
    max_matching_ngram_size: int = 2  # the last tokens that are looked for there
    num_assistant_tokens: int = 20  # so many at most, from a smaller model
    num_assistant_tokens_schedule: Literal["constant", "heuristic", "heuristic_transient"] = "constant"
    assistant_confidence_threshold: float = 0.4  # a token less likely for the smaller model is its last
    # tokens
    eos_token_id: tuple[int, ...] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None  # stands for an empty prompt
    decoder_start_token_id: int | None = None  # what the decoder of an encoder-decoder is fed first

    @property
    def words(self) -> tuple[Words, ...]:
        """What a text must hold: of each, one."""
        return (*(self.constraints or ()), *(self.force_words_ids or ()))

    @property
    def mode(self) -> Mode:
        """What the settings ask for, by transformers' rules."""
        if self.words:
            return "constrained beams"
        if self.num_beams == 1:
            if self.do_sample:
                return "sampling"
            return "contrastive" if self.penalty_alpha and (self.top_k or 0) > 1 else "greedy"
        if self.num_beam_groups > 1:
            return "diverse beams"
        return "sampled beams" if self.do_sample else "beams"


NAMES = frozenset(spec.name for spec in fields(GenerationConfig))

_RETURNED = ("output_attentions", "output_hidden_states", "output_logits", "output_scores")
_DEFAULTS: dict[str, Any] = {"do_sample": False, "num_return_sequences": 1, "top_k": 50}
_NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "max_matching_ngram_size": 2,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
}
_SETS = ("begin_suppress_tokens", "suppress_tokens")
_ONE_OR_MORE = ("eos_token_id", "forced_eos_token_id", "stop_strings")
_COUNTS = (
    *("max_matching_ngram_size", "num_assistant_tokens", "num_beam_groups", "num_beams"),
    *("num_return_sequences", "prompt_lookup_num_tokens"),
)
_SCHEDULES = ("constant", "heuristic", "heuristic_transient")
_WHOLE = (
    *("encoder_no_repeat_ngram_size", "max_new_tokens", "max_length", "min_new_tokens", "min_length"),
    *("no_repeat_ngram_size", "top_k"),
)
_OF_CONFIG = (
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    "pad_token_id",
)


def model_settings(folder: Path) -> dict[str, Any]:
    """The settings that the model comes with: generation_config.json, else the token ids of config.json."""
    path = folder / "generation_config.json"
    if is_there(path):
        settings = read_object(path)
    else:
        config = read_object(folder / "config.json")
        settings = {name: config.get(name) for name in _OF_CONFIG}
    return {name: value for name, value in settings.items() if value is not None}


def settings_of(given: Any) -> dict[str, Any]:
    """What a `generation_config` of a call sets: a mapping, or transformers' object without its unset values."""
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    for method in ("to_diff_dict", "to_dict"):
        if callable(read := getattr(given, method, None)):
            stated = dict(read()).items()
            return {name: value for name, value in stated if value is not None and not name.startswith("_")}
    raise InputError(f"generation_config={given!r:.60} is neither a mapping nor has to_dict(); pass settings by name")


def resolve(
    asked: Mapping[str, Any], model: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """The settings of a call: what is `asked` wins over the model's, those over `defaults`; asking None is "off".

    InputError for a name nobody knows, and for what isoform cannot do. `model_file` accounts for names in the model's
    own file.
    """
    model, defaults = dict(model or {}), dict(defaults or {})
    asked = {**settings_of(asked.get("generation_config")), **asked}
    asked.pop("generation_config", None)
    unknown = [name for name in asked if name not in NAMES and name not in UNSUPPORTED and name not in HARMLESS]
    if unknown:
        raise InputError(f"{_suggest(unknown[0])}; generation knows {', '.join(sorted(NAMES))}")
    if "max_length" in {**model, **asked}:
        defaults.pop("max_new_tokens", None)  # a default must not override a length that somebody chose
    merged = {**_DEFAULTS, **defaults, **model, **asked}
    for name, neutral in unsupported(merged):
        where = "asked for" if name in asked else "set by the model's generation_config.json"
        raise InputError(f"{name}={merged[name]!r:.60} is {where}, and {reason(name)}; pass {name}={neutral!r}")
    for name in _RETURNED:
        if asked.get(name) and asked.get("return_dict_in_generate"):
            raise InputError(
                f"{name}={asked[name]!r} would add numbers that isoform does not keep; leave it out (there is "
                "return_scores=True of text-generation: the score of a text and the log-probabilities of its tokens)"
            )
    typed: dict[str, Any] = {}
    for name, value in merged.items():
        if name in NAMES:
            try:
                typed[name] = _typed(name, value)
            except InputError as error:
                if name in asked or name not in model:
                    raise
                raise CheckpointError(f"generation_config.json or config.json of the model: {error}") from None
    config = GenerationConfig(**typed)
    refuse_contradictions(config, asked)
    return config


def _typed(name: str, value: Any) -> Any:
    """JSON's value as the field's type."""
    given = value
    if value is None:
        return _NEUTRAL.get(name)
    try:
        if name in _ONE_OR_MORE:
            value = (value,) if isinstance(value, int | str) else tuple(value)
            if name == "stop_strings" and not all(isinstance(one, str) and one for one in value):
                raise TypeError
            if name != "stop_strings":
                value = tuple(one for one in map(_token, value) if one >= 0)  # a negative id is no token: none
            return value or None
        if name == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            biases = tuple((_sequence(ids), float(bias)) for ids, bias in pairs)
            if any(isnan(bias) or bias == inf for _, bias in biases):
                raise TypeError
            return biases or None
        if name == "negative_prompt_ids":
            value = value.tolist() if hasattr(value, "tolist") else list(value)
            rows = value if isinstance(next(iter(value), None), list | tuple) else [value]
            return tuple(_sequence(row) for row in rows)
        if name == "bad_words_ids":
            return tuple(_sequence(word) for word in value) or None
        if name in _SETS:
            return tuple(one for one in map(_token, value) if one >= 0) or None
        if name in ("constraints", "force_words_ids"):
            return tuple(map(_words, value)) or None
        if name == "exponential_decay_length_penalty":
            start, factor = value
            return _token(start), _number(factor)
        if name == "early_stopping":
            if not isinstance(value, bool) and value != "never":
                raise TypeError
            return value
        if name in _COUNTS or name in _WHOLE:
            least = 1 if name in _COUNTS else 0
            if isinstance(value, bool) or int(value) != value or value < least:
                raise TypeError
            return int(value)
        if name in ("do_sample", "remove_invalid_values", "renormalize_logits"):
            if not isinstance(value, bool):
                raise TypeError
            return value
        if name == "num_assistant_tokens_schedule":
            if value not in _SCHEDULES:
                raise TypeError
            return value
        if name.endswith("_id") or name == "seed":
            if isinstance(value, list | tuple) and len(value) < 2:
                value = value[0] if value else -1
            if isinstance(value, bool) or not isinstance(value, int):
                value = None
            if value is None or (value < 0 and not name.endswith("_token_id")):
                raise TypeError
            return value if value >= 0 else None  # a negative id is no token: none
        return _number(value, endless=name == "max_time")
    except (OverflowError, TypeError, ValueError):
        raise InputError(f"{name}={given!r:.200} is not a value that generation understands") from None


def _number(value: Any, *, endless: bool = False) -> float:
    """A number, which may be infinite where it is `endless`."""
    number = float(value)
    if isnan(number) or (isinf(number) and not endless):
        raise TypeError
    return number


def _token(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return index(value)


def _sequence(ids: Any) -> tuple[int, ...]:
    """The ids of a sequence of tokens, of which there is one at least."""
    found = tuple(map(_token, ids))
    if not found or min(found) < 0:
        raise ValueError
    return found


def _words(value: Any) -> Words:
    """A constraint: ids of a phrase, a list of those of which one is enough, or transformers' object for either."""
    if type(value).__name__ in ("PhrasalConstraint", "DisjunctiveConstraint"):
        value = value.token_ids
    several = bool(value) and not any(isinstance(one, int) for one in value)
    words = tuple(map(_sequence, value)) if several else (_sequence(value),)
    for word in words:
        if any(word == other[: len(word)] for other in words if other is not word):
            raise ValueError  # the beginning of another one, after which nobody knows whether to go on
    return words


def _suggest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, NAMES, 1)
    return f"there is no parameter {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def context_length(config: Mapping[str, Any]) -> int | None:
    """The number of positions that config.json states, None when it states none."""
    part, found = next(iter(_stated(config, "max_position_embeddings", "n_positions")), ({}, 0))
    return stretched(part, found) if found > 0 else None


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The number of rows of the embedding of tokens that config.json states, None when it states none.

    Where the whole and its text part state two, the larger: one is left from before tokens were added.
    """
    return max((count for _, count in _stated(config, "vocab_size")), default=0) or None


def _stated(config: Mapping[str, Any], *names: str) -> list[tuple[Mapping[str, Any], int]]:
    """These numbers in config.json, and in what it says of the model's text part, with where they stand."""
    inner = config.get("text_config")
    found: list[tuple[Mapping[str, Any], int]] = []
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name in names:
            value = part.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise CheckpointError(f"config.json: {name} is {value!r}, not a whole number")
                found.append((part, value))
    return found
