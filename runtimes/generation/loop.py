"""Generation: one loop for every backend, over a `Session`'s decoder, with transformers' settings.

Greedy text is token for token what `transformers.generate` gives for the row alone; sampled text is drawn from the same
distribution, with NumPy's random numbers. A row never depends on the rows it is batched with: its lengths, n-grams and
random numbers are its own. What needs a second model is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from sys import maxsize
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.generation.beams import BeamRules, Beams
from isoform.runtimes.generation.processors import Processor, draw, log_softmax, nothing_but_numbers, processors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

Reason = Literal["stop", "length", "time"]
"""Why a row ended: a token or string that ends it, its greatest length, or the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What decides the text; names and meanings are those of generation_config.json. None is "off".

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
    seed: int | None = None  # the same seed gives row n of a call the same text; not a setting of transformers
    # logits, in the order in which they act
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None  # (ids, bias of the last given the others)
    repetition_penalty: float | None = None  # 1 changes nothing
    no_repeat_ngram_size: int | None = None
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
    # tokens
    eos_token_id: tuple[int, ...] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None  # stands for an empty prompt


NAMES = frozenset(spec.name for spec in fields(GenerationConfig))

# Settings that isoform does not have, with the values that change nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "constraints": (None,),
    "custom_generate": (None,),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "prompt_lookup_num_tokens": (None,),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "watermarking_config": (None,),
}
# Settings that do not change the text: how it is computed, and what else is returned.
# fmt: off
_HARMLESS = frozenset((
    "_from_model_config", "assistant_confidence_threshold", "assistant_ensemble_weight",
    "assistant_lookbehind", "cache_config", "cache_implementation", "compile_config",
    "decoder_start_token_id", "disable_compile", "is_assistant", "low_memory",
    "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "output_attentions", "output_hidden_states", "output_logits",
    "output_scores", "prefill_chunk_size", "return_dict_in_generate", "speculation_type",
    "target_lookbehind", "transformers_version", "use_cache",
))
# fmt: on
_DEFAULTS: dict[str, Any] = {"do_sample": False, "num_return_sequences": 1, "top_k": 50}
_NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
}
_TUPLES = ("bad_words_ids", "begin_suppress_tokens", "exponential_decay_length_penalty", "suppress_tokens")
_ONE_OR_MORE = ("eos_token_id", "forced_eos_token_id", "stop_strings")
_WHOLE = ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "no_repeat_ngram_size", "top_k")


def model_settings(folder: Path) -> dict[str, Any]:
    """The settings that the model comes with: generation_config.json, else the token ids of config.json."""
    from isoform.runtimes.preprocess.text.tokenizer import read_object

    path = folder / "generation_config.json"
    if path.is_file():
        settings = read_object(path)
    else:
        config = read_object(folder / "config.json")
        settings = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in settings.items() if value is not None}


def resolve(
    asked: Mapping[str, Any], model: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """The settings of a call: what is `asked` wins over the model's, those over `defaults`; asking None is "off".

    InputError for a name nobody knows, and for what isoform cannot do. Unknown names in the model's own file are left
    alone: repositories keep notes of other programs there.
    """
    model, defaults = dict(model or {}), dict(defaults or {})
    unknown = [name for name in asked if name not in NAMES and name not in _REFUSED and name not in _HARMLESS]
    if unknown:
        raise InputError(f"{_suggest(unknown[0])}; generation knows {', '.join(sorted(NAMES))}")
    if "max_length" in {**model, **asked}:
        defaults.pop("max_new_tokens", None)  # a default must not override a length that somebody chose
    merged = {**_DEFAULTS, **defaults, **model, **asked}
    for name, neutral in _REFUSED.items():
        if name in merged and merged[name] not in neutral:
            where = "asked for" if name in asked else "set by the model's generation_config.json"
            raise InputError(
                f"{name}={merged[name]!r} is {where}, and isoform decodes greedily, by sampling and by beams; "
                f"pass {name}={neutral[-1]!r}"
            )
    return GenerationConfig(**{name: _typed(name, value) for name, value in merged.items() if name in NAMES})


def _typed(name: str, value: Any) -> Any:
    """JSON's value as the field's type."""
    if value is None:
        return _NEUTRAL.get(name)
    try:
        if name in _ONE_OR_MORE:
            value = (value,) if isinstance(value, int | str) else tuple(value)
            if name == "stop_strings" and not all(isinstance(one, str) and one for one in value):
                raise TypeError
            if name != "stop_strings" and not all(isinstance(one, int) and one >= 0 for one in value):
                raise TypeError
            return value or None
        if name == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            return tuple((tuple(int(i) for i in ids), float(bias)) for ids, bias in pairs) or None
        if name == "bad_words_ids":
            return tuple(tuple(int(i) for i in word) for word in value) or None
        if name in _TUPLES:
            return tuple(value) or None
        if name == "early_stopping":
            if not isinstance(value, bool) and value != "never":
                raise TypeError
            return value
        if name in ("num_beams", "num_return_sequences", *_WHOLE):
            least = 1 if name in ("num_beams", "num_return_sequences") else 0
            if isinstance(value, bool) or int(value) != value or value < least:
                raise TypeError
            return int(value)
        if name in ("do_sample", "remove_invalid_values", "renormalize_logits"):
            if not isinstance(value, bool):
                raise TypeError
            return value
        if name.endswith("_id") or name == "seed":
            if isinstance(value, bool) or not isinstance(value, int):
                value = int(value[0]) if isinstance(value, list | tuple) and len(value) == 1 else None
            if value is None or value < 0:
                raise TypeError
            return value
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}={value!r} is not a value that generation understands") from None


def _suggest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, NAMES, 1)
    return f"there is no parameter {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


# ------------------------------------------------------------------ the loop
@dataclass(slots=True)
class Row:
    """One text being made: its prompt, what was made of it, and why it ended (None while it goes on).

    Of a beam search nothing is known before the end, and then the `score` too. `chances` are the log-probabilities of
    the tokens made, among those that the rules allowed, if they were asked for.
    """

    prompt: list[int]
    made: list[int]
    reason: Reason | None = None
    score: float | None = None
    chances: list[float] = field(default_factory=list)


@runtime_checkable
class Stepper(Protocol):
    """What decodes rows whose prompts have one length, each beside its own memory (an encoder-decoder's decoder)."""

    def step(self, input_ids: NDArray[Any], *, all_logits: bool = False) -> NDArray[np.float32]:
        """Append T tokens to each of B rows. Shapes: input_ids (B, T) -> (B, V) of the last, or (B, T, V)."""
        ...

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, in this order; one may appear several times."""
        ...


Rules = Callable[[int], Sequence[Processor]]
"""The length of a prompt -> processors of the model's own, which act after the settings' and before sampling."""


def generate(
    session: Session | Stepper,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    context: int | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    first_row: int = 0,
    rules: Rules | None = None,
    keep_chances: bool = False,
    seen: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Continue every prompt; each gives `num_return_sequences` rows, in order.

    `session` decodes alone, or is an encoder-decoder's decoder that nothing was fed yet, one row for each prompt; these
    are of one length. `context` is the model's greatest number of positions: a longer prompt is an InputError, and a
    row that fills it ends. `decode` turns ids into text, for `stop_strings`. `first_row` numbers the rows of a call
    made in batches, for their random numbers. `seen` is called with the rows after every token.
    """
    for rows in steps(
        session,
        prompts,
        config,
        context=context,
        decode=decode,
        first_row=first_row,
        rules=rules,
        keep_chances=keep_chances,
    ):
        if seen is not None:
            seen(rows)
    return rows


def steps(
    session: Session | Stepper,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    context: int | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    first_row: int = 0,
    rules: Rules | None = None,
    keep_chances: bool = False,
) -> Iterator[list[Row]]:
    """`generate`, token by token: yields the rows (the same objects, growing) after each step."""
    count, width = config.num_return_sequences, config.num_beams
    if width == 1 and count > 1 and not config.do_sample:
        raise InputError(f"num_return_sequences={count} greedy texts would all be the same; pass do_sample=True")
    if 1 < width < count:
        raise InputError(f"num_return_sequences={count} is more than num_beams={width}; ask for fewer, or more beams")
    if config.stop_strings and decode is None:
        raise InputError("stop_strings need a tokenizer; generate through a pipeline, or pass decode=")
    rows = [Row(list(prompt), []) for prompt in prompts for _ in range(count)]
    limits = [_limit(row, config, context) for row in rows]
    chains = [
        processors(config, len(row.prompt), limit, rules(len(row.prompt)) if rules else ())
        for row, limit in zip(rows, limits, strict=True)
    ]
    deadline = None if config.max_time is None else monotonic() + config.max_time
    per_search = 1 if width == 1 else count
    searches: list[_Search] = []
    for n in range(0, len(rows), per_search):
        seed = None if config.seed is None else [config.seed, first_row * count + n]
        random = np.random.default_rng(seed) if config.do_sample else None
        kind = _Alone if width == 1 else _Beamed
        searches.append(kind(rows[n : n + per_search], config, chains[n], limits[n], random, decode, keep_chances))
    filler = config.pad_token_id if config.pad_token_id is not None else min(config.eos_token_id or (0,))

    # The lines of the model that a search holds: at first one, which several texts sampled from a prompt may share.
    shares = width == 1 and isinstance(session, Stepper)
    lines = _Lines(session, prompts if width > 1 or shares else [row.prompt for row in rows], context)
    held = [[n // count if shares else n] for n in range(len(searches))]
    logits = lines.begin()
    still = not shares  # whether every search goes on with the lines that it has
    while True:
        late = deadline is not None and monotonic() > deadline
        tokens: list[int] = []
        going = False
        for n, search in enumerate(searches):
            lane = held[n]
            if not search.done:
                if len(logits) == 1:
                    mine = logits
                else:  # no copy of a single line
                    mine = logits[lane] if len(lane) > 1 else logits[lane[0], None]
                parents = search.advance(mine, late)
                del mine
                if parents is not None:
                    held[n], still = [lane[row] for row in parents], False
            if not search.done:
                going = True
                tokens += search.tokens
            elif width > 1:  # beams leave the batch when they have ended
                held[n] = []
            else:  # and other rows are fed padding until the last has; nobody looks at it
                tokens += [filler] * len(lane)
        del logits  # its memory is free for the next ones
        yield rows
        if not going:
            return
        if not still:
            order = [line for lane in held for line in lane]
            if order != list(range(lines.count)):
                lines.select(order)
            start = 0
            for n, lane in enumerate(held):
                held[n] = list(range(start, start + len(lane)))
                start += len(lane)
            still = width == 1
        logits = lines.feed(tokens)


class _Search(Protocol):
    """How the rows of one prompt are found."""

    @property
    def done(self) -> bool: ...

    @property
    def tokens(self) -> list[int]: ...

    def advance(self, logits: NDArray[np.float32], late: bool) -> list[int] | None:
        """Choose the next tokens. Returns which of its lines go on, None when they do as they are."""


class _Alone:
    """One row, greedy or sampled."""

    def __init__(
        self,
        rows: list[Row],
        config: GenerationConfig,
        chain: Sequence[Processor],
        limit: int,
        random: np.random.Generator | None,
        decode: Callable[[Sequence[int]], str] | None,
        keep_chances: bool,
    ) -> None:
        (self._row,) = rows
        self._chain, self._limit, self._random, self._decode, self._keep = chain, limit, random, decode, keep_chances
        self._ends, self._strings = frozenset(config.eos_token_id or ()), config.stop_strings
        self._looks = bool(chain) or random is not None or keep_chances  # at more than the greatest
        self.done, self.tokens = False, [0]

    def advance(self, logits: NDArray[np.float32], late: bool) -> None:
        row, scores = self._row, logits[0] if self._looks else logits
        if self._chain:
            so_far = np.array(row.prompt + row.made, np.int64)
            for process in self._chain:
                scores = process(so_far, scores)
        token = int(scores.argmax())
        best = scores.item(token)
        if best != best:  # a NaN comes before all numbers
            nothing_but_numbers(scores)
        if self._random is not None:
            token = draw(scores, self._random)
        if self._keep:
            row.chances.append(float(log_softmax(scores)[token]))
        row.made.append(token)
        self.tokens[0] = token
        if token in self._ends or (self._strings and self._decode and _stopped(row, self._strings, self._decode)):
            row.reason = "stop"
        elif len(row.prompt) + len(row.made) >= self._limit:
            row.reason = "length"
        elif late:
            row.reason = "time"
        self.done = row.reason is not None


class _Beamed:
    """The rows of one prompt by beam search."""

    def __init__(
        self,
        rows: list[Row],
        config: GenerationConfig,
        chain: Sequence[Processor],
        limit: int,
        random: np.random.Generator | None,
        decode: Callable[[Sequence[int]], str] | None,
        keep_chances: bool,
    ) -> None:
        prompt, strings, ends = rows[0].prompt, config.stop_strings, frozenset(config.eos_token_id or ())

        def ended(made: Sequence[int]) -> bool:
            return bool(strings and decode and _stopped(Row(prompt, list(made)), strings, decode))

        self._rows, self._limit = rows, limit
        self._stops: Callable[[Sequence[int]], bool] = lambda made: made[-1] in ends or ended(made)
        self._beams = Beams(
            prompt,
            BeamRules(
                width=config.num_beams, length_penalty=config.length_penalty, early_stopping=config.early_stopping
            ),
            chain,
            limit - len(prompt),
            ends=ends,
            ended=ended if strings else None,
            random=random,
            keep_chances=keep_chances,
        )

    @property
    def done(self) -> bool:
        return self._beams.done

    @property
    def tokens(self) -> list[int]:
        return self._beams.tokens

    def advance(self, logits: NDArray[np.float32], late: bool) -> list[int]:
        parents = self._beams.advance(logits, late)
        if self.done:
            for row, beam in zip(self._rows, self._beams.best, strict=False):
                row.made[:], row.chances[:], row.score = beam.made, beam.chances, float(beam.score)
                short = len(row.prompt) + len(row.made) < self._limit
                row.reason = "stop" if self._stops(row.made) else "time" if short else "length"
        return parents


class _Lines:
    """The rows of the model's cache, whether it decodes alone or beside a memory."""

    def __init__(self, session: Session | Stepper, prompts: Sequence[Sequence[int]], context: int | None) -> None:
        self.count, self._made = len(prompts), 0
        self._ids, self._mask, self._positions = _pad_left(prompts)
        self._next, self._at = np.empty((len(prompts), 1), np.int64), self._positions[:, -1]
        self._last = maxsize if context is None else context - 1
        self._free = self._last - int(self._at.max())  # steps that there is a position for in every row
        self._alone = not isinstance(session, Stepper)
        self._decoder: Any = session
        if not isinstance(session, Stepper):
            if not session.signature.states:
                raise InputError(
                    "this model does not generate text: it has no key/value cache; export or open it for "
                    "text-generation"
                )
            self._decoder = session.decoder(len(prompts))
        elif not self._mask.all():
            raise InputError("prompts of different lengths have no common decoder here; group them by length")

    def begin(self) -> NDArray[np.float32]:
        """The logits (B, V) after the prompts."""
        given = (self._mask, self._positions) if self._alone else ()
        logits: NDArray[np.float32] = self._decoder.step(self._ids, *given)
        return logits

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits (B, V) after one more token per row."""
        for row, token in enumerate(tokens):  # what NumPy does to whole arrays takes longer than so few numbers
            self._next[row, 0] = token
        self._made += 1
        more = self._beyond() if self._made > self._free and self._alone else ()
        logits: NDArray[np.float32] = self._decoder.step(self._next, *more)
        return logits

    def _beyond(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The mask and the positions of a step that some rows have no position for, which have ended: padding."""
        places = self._at[:, None] + np.arange(1, self._made + 1)
        real = places <= self._last
        return np.concatenate((self._mask, real), 1), np.where(real, places, 0)[:, -1:]

    def select(self, order: Sequence[int]) -> None:
        if not hasattr(self._decoder, "select"):
            raise InputError("this backend cannot reorder the rows of its cache, which beams need; pass num_beams=1")
        rows = np.array(order, np.int64)
        self._decoder.select(rows)
        self.count, self._next = len(order), np.empty((len(order), 1), np.int64)
        self._mask, self._at = self._mask[rows], self._at[rows]


def _limit(row: Row, config: GenerationConfig, context: int | None) -> int:
    """How long a row may become, prompt included."""
    length = len(row.prompt)
    if not length:
        raise InputError("the prompt is empty and the model has no token that begins a text; give it a text")
    if context is not None and length > context:
        raise InputError(
            f"the prompt has {length} tokens, and the model {context} positions; shorten it, or pass truncation=True"
        )
    if config.max_new_tokens is not None:
        longest = length + config.max_new_tokens
        name = f"max_new_tokens={config.max_new_tokens}"
    elif config.max_length is not None:
        longest, name = config.max_length, f"max_length={config.max_length}"
    else:
        longest, name = length + 20, ""
    if longest <= length:
        raise InputError(f"the prompt has {length} tokens, so {name} leaves nothing to generate; pass max_new_tokens=")
    # The last token is not fed back: it needs no position.
    return longest if context is None else min(longest, context + 1)


def _pad_left(
    prompts: Sequence[Sequence[int]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """ids, mask and positions (B, T); padding is token 0 at position 0, hidden by the mask."""
    shape = len(prompts), max(map(len, prompts))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for n, prompt in enumerate(prompts):
        ids[n, shape[1] - len(prompt) :] = prompt
        mask[n, shape[1] - len(prompt) :] = 1
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def _stopped(row: Row, strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether the last token completes one of the strings; one may begin in the prompt, as in transformers."""
    window = max(len(string.encode()) for string in strings) + 2  # every token writes at least one byte
    tail = [*row.prompt[-window:], *row.made][-window:]
    before, text = decode(tail[:-1]).rstrip("\ufffd"), decode(tail)
    return any(text.find(string, max(0, len(before) - len(string) + 1)) >= 0 for string in strings)


class TextStream:
    """Ids to text as they come. A piece never ends inside a character, and the pieces joined are the whole text.

    (Except where a model writes bytes that are no UTF-8: then the whole text may show one more replacement character.)
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # ids[start:given] has been given out and is decoded again before what is new, for the spaces between tokens.
        self._start = self._given = 0

    def push(self, token: int) -> str:
        """The text that a token completes, often a word, sometimes nothing."""
        self._ids.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return piece

    def end(self) -> str:
        """What is left when no token follows."""
        piece = self._piece()
        self._ids.clear()
        self._start = self._given = 0
        return piece

    def _piece(self) -> str:
        before = self._decode(self._ids[self._start : self._given])
        return self._decode(self._ids[self._start :])[len(before) :]


def context_length(config: Mapping[str, Any]) -> int | None:
    """The number of positions that config.json states, None when it states none."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name in ("max_position_embeddings", "n_positions"):
            value = part.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise CheckpointError(f"config.json: {name} is {value!r}, not a whole number")
                return value if value > 0 else None
    return None
