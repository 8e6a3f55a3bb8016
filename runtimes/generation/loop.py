"""The loop of generation, one for every backend, with transformers' settings.

`Scheduler.schedule` says what each row of the decoder's batch is fed, the decoder steps, and `Scheduler.update` gives
the logits to the searches. The set of requests is closed here: all are known from the start.

Greedy text is token for token what `transformers.generate` gives for the row alone; sampled text is drawn from the same
distribution, with NumPy's random numbers. A row never depends on the rows it is batched with: its lengths, n-grams and
random numbers are its own. Where tokens are guessed, several go in together (`speculative`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from sys import maxsize
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.contradictions import refuse_contradictions, refuse_count
from isoform.runtimes.generation.contrastive import deepened
from isoform.runtimes.generation.feed import PADDING, Feed, pad_left
from isoform.runtimes.generation.grammar import Grammar, GrammarConstraint
from isoform.runtimes.generation.guidance import GuidedDecoder, negative_prompts
from isoform.runtimes.generation.processors import Processor, processors
from isoform.runtimes.generation.recomputing import RecomputingDecoder
from isoform.runtimes.generation.rules import NO_RULES, CallersRules
from isoform.runtimes.generation.searches import (
    BeamSearch,
    ContrastiveSearch,
    Decode,
    Search,
    Stop,
    TextRow,
    TokenSearch,
    longest,
)
from isoform.runtimes.generation.speculative import (
    Assistant,
    DraftLine,
    PromptLookup,
    Proposer,
    SpeculativeScheduler,
    SpeculativeSearch,
)
from isoform.runtimes.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.settings import GenerationConfig
    from isoform.runtimes.session import Decoder, DeepDecoder


LEAVING = 1 / 4
"""Share of the batch's rows that have ended from which on they leave it: to move the others costs less than padding."""

Rules = Callable[[int], Sequence[Processor]]
"""The length of a prompt -> processors of the model's own, which act after the settings' and before sampling."""


def generate(
    session: Session | Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    context: int | None = None,
    decode: Decode | None = None,
    first_row: int = 0,
    rules: Rules | None = None,
    callers: CallersRules = NO_RULES,
    keep_chances: bool = False,
    recompute_beyond: int | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    assistant: Assistant | None = None,
    grammar: Grammar | None = None,
    seen: Callable[[list[TextRow]], None] | None = None,
) -> list[TextRow]:
    """Continue every prompt; each gives `num_return_sequences` rows, in order.

    `session` makes a decoder, or is one that has not begun, with a row for each prompt. Without a port for a mask, the
    prompts must be of one length. `context` is the model's greatest number of positions: a longer prompt is an
    InputError, and a row that fills it ends. `decode` turns ids into text, for `stop_strings`. `first_row` numbers the
    rows of a call made in batches, for their random numbers. `callers` are rules of the caller's own.
    `recompute_beyond`: a text of more tokens is computed anew from its beginning, once. `sources`: the ids that the
    encoder read, without padding, a row for each prompt; a model without an encoder reads the prompts. `assistant`
    guesses tokens that the model only checks (`speculative`): a step may give a row several. New text follows
    `grammar`. `seen` is called with the rows after every step.
    """
    for rows in steps(
        session,
        prompts,
        config,
        context=context,
        decode=decode,
        first_row=first_row,
        rules=rules,
        callers=callers,
        keep_chances=keep_chances,
        recompute_beyond=recompute_beyond,
        sources=sources,
        assistant=assistant,
        grammar=grammar,
    ):
        if seen is not None:
            seen(rows)
    return rows


def steps(
    session: Session | Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    context: int | None = None,
    decode: Decode | None = None,
    first_row: int = 0,
    rules: Rules | None = None,
    callers: CallersRules = NO_RULES,
    keep_chances: bool = False,
    recompute_beyond: int | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    assistant: Assistant | None = None,
    grammar: Grammar | None = None,
) -> Iterator[list[TextRow]]:
    """`generate`, step by step: yields the rows (the same objects, growing) after each step."""
    count, width = config.num_return_sequences, config.num_beams
    refuse_contradictions(config)
    refuse_count(config)
    contrast = config.mode == "contrastive"
    if config.stop_strings and decode is None:
        raise InputError("stop_strings need a tokenizer; generate through a pipeline, or pass decode=")
    read = _read(session, prompts, config, sources)
    guesses = _guesses(config, assistant is not None)
    rows = [TextRow(list(prompt), []) for prompt in prompts for _ in range(count)]
    limits = [longest(row, config, context, feeds_last=contrast) for row in rows]
    if width > 1:
        _refuse_penalty(config.length_penalty, max(limits))
    negatives = _negatives(config, session, prompts, context)
    if negatives is not None and context is not None:  # neither text has more positions
        spare = [context + 1 - len(negative) for negative in _expanded(negatives, len(rows))]
        limits = [min(n, len(row.prompt) + most) for n, row, most in zip(limits, rows, spare, strict=True)]
    free = [_free(row, limit, config) for row, limit in zip(rows, limits, strict=True)]
    followed = [None if grammar is None else grammar.constraint(*places) for places in free]

    def own(row: TextRow) -> Sequence[Processor]:
        return rules(len(row.prompt)) if rules else ()

    chains = [
        processors(
            config,
            len(row.prompt),
            limit,
            [*own(row), *callers.processors, *([] if (follow := followed[n]) is None else [follow])],
            callers.constraint(n % count if width == 1 else 0),
            read[n // count],
        )
        for n, (row, limit) in enumerate(zip(rows, limits, strict=True))
    ]
    per_search = 1 if width == 1 else count
    guessed: list[SpeculativeSearch] = []
    searches: list[Search] = []
    for n in range(0, len(rows), per_search):
        seed = None if config.seed is None else [config.seed, first_row * count + n]
        random = np.random.default_rng(seed) if config.do_sample else None
        options: dict[str, Any] = {"random": random, "decode": decode, "keep_chances": keep_chances}
        options["stop"] = _stop(callers, None if config.eos_token_id else followed[n])
        if width == 1:
            if guesses:
                guessed.append(SpeculativeSearch(rows[n], config, chains[n], limits[n], **options))
            else:
                kind = ContrastiveSearch if contrast else TokenSearch
                searches.append(kind(rows[n], config, chains[n], limits[n], **options))
        else:
            searches.append(BeamSearch(rows[n : n + count], config, chains[n], limits[n], **options))
    # The rows of the batch that a search holds: at first one, which several texts sampled from a prompt may share.
    shared = width == 1 and not isinstance(session, Session)
    requests = [Request(search, [n // count if shared else n]) for n, search in enumerate(searches)]
    fed = prompts if width > 1 or shared else [row.prompt for row in rows]
    decoder = _decoder(session, fed, recompute_beyond)
    if negatives is not None:
        other = _decoder(session, fed, recompute_beyond)
        assert config.guidance_scale is not None
        decoder = GuidedDecoder(decoder, other, config.guidance_scale, _expanded(negatives, len(fed)))
    scheduler: Scheduler | SpeculativeScheduler
    if not guesses:
        deep = deepened(decoder, getattr(session, "backend", "this backend")) if contrast else None
        scheduler = Scheduler(requests, fed, config, context=context, deep=deep)
    else:
        if assistant is None:
            quoted = None if sources is None else [sources[n // count] for n in range(len(rows))]
            proposer: Proposer = _lookup(config, quoted)
        else:
            # Rules of the caller's may keep a state of the texts that they are shown; guesses are none.
            shaped = [
                processors(
                    config,
                    len(row.prompt),
                    limit,
                    [*own(row), *([] if grammar is None else [grammar.constraint(*places)])],
                )
                for row, limit, places in zip(rows, limits, free, strict=True)
            ]
            lines = [DraftLine(n // count, shaped[n], search.random) for n, search in enumerate(guessed)]
            proposer = assistant.begin(lines, config)
        scheduler = SpeculativeScheduler(guessed, rows, limits, fed, proposer, decoder, config)
    while (feed := scheduler.schedule()) is not None:
        if feed.rows is not None:
            decoder.select(feed.rows)
        if feed.forget is not None:
            decoder.rewind(feed.forget)
        logits = decoder.step(feed.ids, mask=feed.mask, last=feed.last)
        scheduler.update(logits)
        del logits  # its memory is free for the next ones
        yield rows
    if grammar is not None and width > 1:
        _refuse_strays(rows, free, grammar, config)


def _refuse_strays(
    rows: Sequence[TextRow], free: Sequence[tuple[int, int]], grammar: Grammar, config: GenerationConfig
) -> None:
    """InputError where beams found no text that follows the grammar, for want of such texts."""
    texts = [[*row.prompt, *row.made][begin:end] for row, (begin, end) in zip(rows, free, strict=True)]
    if all(grammar.follows(text, row.score) for text, row in zip(texts, rows, strict=True)):
        return
    if config.words:
        raise InputError(f"no text was found that follows {grammar.name} and has the words; leave one of them out")
    raise InputError(
        f"{grammar.name} has fewer texts than num_return_sequences={config.num_return_sequences} asks for with "
        f"num_beams={config.num_beams}; ask for fewer"
    )


def _free(row: TextRow, limit: int, config: GenerationConfig) -> tuple[int, int]:
    """Where the tokens of a text begin and end that no setting forces, in a text of at most `limit` tokens."""
    begin = len(row.prompt)
    forced = config.forced_bos_token_id is not None and begin == 1
    return begin + forced, limit - 1 if config.forced_eos_token_id else limit


def _refuse_penalty(penalty: float, longest_text: int) -> None:
    """InputError where what the scores of beams are divided by is no number in single precision."""
    try:
        divisor = float(longest_text) ** penalty
    except OverflowError:
        divisor = np.inf
    if not np.finfo(np.float32).tiny <= divisor <= np.finfo(np.float32).max:
        raise InputError(f"length_penalty={penalty} leaves no scores of {longest_text} tokens; pass one nearer to 0")


def refuse_settings(config: GenerationConfig, *, guessed: bool) -> None:
    """InputError for settings that no prompt can be continued with; `guessed`: by an assistant."""
    refuse_count(config)
    _guesses(config, guessed)
    processors(config, 1, 2)


def _stop(callers: CallersRules, follow: GrammarConstraint | None) -> Stop | None:
    """What ends a text beside its settings: rules of the caller's, and a complete grammar where no token says so."""
    if follow is None:
        return callers.stop if callers.stops else None
    return lambda ids: follow.complete(ids) or callers.stop(ids)


def _read(
    session: Session | Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    sources: Sequence[Sequence[int]] | None,
) -> Sequence[Sequence[int]]:
    """The ids that the encoder read, those of the prompts where there is none."""
    if sources is not None:
        if len(sources) != len(prompts):
            raise InputError(f"sources has {len(sources)} rows for {len(prompts)} prompts; give one for each")
        return sources
    for name, off in (("encoder_repetition_penalty", (None, 1)), ("encoder_no_repeat_ngram_size", (None, 0))):
        if not isinstance(session, Session) and (value := getattr(config, name)) not in off:
            raise InputError(
                f"{name}={value} counts the ids that an encoder read, and this one reads none; leave it out"
            )
    return prompts


def _decoder(session: Session | Decoder, prompts: Sequence[Sequence[int]], beyond: int | None) -> Decoder:
    """The decoder that the prompts are fed to, with one row each."""
    if not isinstance(session, Session):
        return session
    if not session.signature.states:
        raise InputError(
            "this model does not generate text: it has no key/value cache; export or open it for text-generation"
        )
    return (
        session.decoder(len(prompts)) if beyond is None else RecomputingDecoder(session.decoder, len(prompts), beyond)
    )


def _negatives(
    config: GenerationConfig, session: Session | Decoder, prompts: Sequence[Sequence[int]], context: int | None
) -> list[list[int]] | None:
    """What each prompt is guided away from; None where none is. Raises InputError where it cannot be."""
    scale = config.guidance_scale
    if scale is None or scale == 1:
        if config.negative_prompt_ids is not None:
            raise InputError("a negative prompt changes nothing without guidance_scale; pass one, such as 1.5")
        return None
    if not isinstance(session, Session):
        raise InputError(
            f"guidance_scale={scale:g} compares two prompts of a decoder, and this one reads an encoder's states; pass "
            "guidance_scale=1"
        )
    if config.num_beams > 1:
        raise InputError(
            f"guidance_scale={scale:g} gives no probabilities that num_beams={config.num_beams} could add up; pass "
            "num_beams=1, or guidance_scale=1"
        )
    return negative_prompts(config.negative_prompt_ids, prompts, context)


def _expanded(negatives: Sequence[list[int]], count: int) -> list[list[int]]:
    """One for each of `count` rows, of which every prompt has as many."""
    return [row for row in negatives for _ in range(count // len(negatives))]


def _guesses(config: GenerationConfig, assisted: bool) -> bool:
    """Whether tokens are guessed, `assisted` or not. Raises InputError for settings that exclude each other."""
    count = config.prompt_lookup_num_tokens
    if count is None and not assisted:
        return False
    name, off = ("an assistant model", "leave it out")
    if not assisted:
        name, off = f"prompt_lookup_num_tokens={count}", "pass prompt_lookup_num_tokens=None"
    elif count is not None:
        raise InputError(f"prompt_lookup_num_tokens={count} comes with an assistant model; guess by one of them")
    if config.mode == "contrastive":
        raise InputError(
            f"{name} guesses greedy or sampled text, and penalty_alpha={config.penalty_alpha} asks for contrastive "
            f"search; pass penalty_alpha=None, or {off}"
        )
    if config.num_beams > 1:
        raise InputError(
            f"{name} guesses the tokens of one text, and num_beams={config.num_beams} grows several; pass num_beams=1, "
            f"or {off}"
        )
    return True


def _lookup(config: GenerationConfig, sources: Sequence[Sequence[int]] | None) -> PromptLookup:
    """What guesses tokens without a second model; a source for each row, where there is an encoder."""
    assert config.prompt_lookup_num_tokens is not None
    return PromptLookup(config.prompt_lookup_num_tokens, config.max_matching_ngram_size, sources)


@dataclass(slots=True)
class Request:
    """A search, and its rows of the decoder's batch."""

    search: Search
    rows: list[int]


class Scheduler:
    """Decides what each row of a decoder's batch is fed; `schedule` and `update` are called in turn."""

    def __init__(
        self,
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        context: int | None,
        deep: DeepDecoder | None = None,
    ) -> None:
        """`prompts` has one for each row of the batch. `deep`: the decoder, where searches see its hidden states."""
        self._requests, self._deep = list(requests), deep
        self._single = config.num_beams == 1 and config.mode != "contrastive"  # whether a search has one row
        self._deadline = None if config.max_time is None else monotonic() + config.max_time
        self._ids, self._mask = pad_left(prompts)
        self._next, self._lengths = np.empty((len(prompts), 1), np.int64), self._mask.sum(1)
        self._most = maxsize if context is None else context
        self._free = self._most - int(self._lengths.max())  # steps that every row has a position for
        self._begun, self._made = False, 0
        # Whether no row of the batch moves before the next step.
        self._still = sum(len(request.rows) for request in requests) == len(prompts)

    def schedule(self) -> Feed | None:
        """The next step, None when every search is done."""
        if not self._begun:
            self._begun = True
            return Feed(None, self._ids, None if self._mask.all() else self._mask)
        if self._single and self._still:
            self._leave()
        tokens: list[int] = []
        going = False
        for request in self._requests:
            if not request.search.done:
                going = True
                tokens += request.search.tokens
            elif self._single:  # rows that ended are fed padding until they leave; their logits are not read
                tokens += [PADDING] * len(request.rows)
            else:  # beams leave the batch
                request.rows = []
        if not going:
            return None
        rows = None if self._still else self._moved()
        for row, token in enumerate(tokens):  # what NumPy does to whole arrays takes longer than so few numbers
            self._next[row, 0] = token
        self._made += 1
        return Feed(rows, self._next, self._beyond() if self._made > self._free else None)

    def update(self, logits: NDArray[np.float32]) -> None:
        """Give each search the logits (B, V) of its rows, and the hidden states (B, T, C) where it needs them."""
        hidden = None if self._deep is None else self._deep.hidden_states()
        late = self._deadline is not None and monotonic() > self._deadline
        for request in self._requests:
            if not request.search.done:
                rows = request.rows
                if len(logits) == 1:
                    mine = logits
                else:  # no copy of a single row
                    mine = logits[rows] if len(rows) > 1 else logits[rows[0], None]
                if hidden is not None and isinstance(request.search, ContrastiveSearch):
                    request.search.see(hidden[rows])
                parents = request.search.advance(mine, late)
                if parents is not None:
                    request.rows, self._still = [rows[n] for n in parents], False

    def _leave(self) -> None:
        """Take rows that have ended out of the batch if they are many; those at its end take their places."""
        going = [request for request in self._requests if not request.search.done]
        if not going or len(self._requests) - len(going) < LEAVING * len(self._requests):
            return
        stays = {request.rows[0]: request for request in going if request.rows[0] < len(going)}
        others = iter([request for request in going if request.rows[0] >= len(going)])
        self._requests = [stays[row] if row in stays else next(others) for row in range(len(going))]
        self._still = False

    def _moved(self) -> NDArray[np.int64] | None:
        """Number the rows of the requests anew -> the rows of the batch that go on, None when all do as they are."""
        order = [row for request in self._requests for row in request.rows]
        start = 0
        for request in self._requests:
            stop = start + len(request.rows)
            request.rows = list(range(start, stop))
            start = stop
        self._still = self._single
        if order == list(range(len(self._next))):
            return None
        rows = np.array(order, np.int64)
        self._next = np.empty((len(order), 1), np.int64)
        self._lengths = self._lengths[rows]
        self._free = self._most - int(self._lengths.max())
        return rows

    def _beyond(self) -> NDArray[np.int64]:
        """The mask of a step in which rows that have ended have no position left: they get padding."""
        return (self._lengths + self._made <= self._most).astype(np.int64)[:, None]
