"""A conversation with a model: its messages, its settings, and the KV cache of what has been said.

The prompt of a turn is the whole conversation, rendered by the model's chat template. What the decoder holds of it from
the turn before is not computed again. When the model's context fills up, the oldest turns are left out of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from threading import Event, Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from isoform.errors import InputError
from isoform.runtimes.generation.context import turning_point
from isoform.runtimes.generation.kept_prefix import PrefixDecoder, Stopped
from isoform.runtimes.generation.recomputing import RecomputingDecoder
from isoform.runtimes.generation.text_stream import TextStream

if TYPE_CHECKING:
    from isoform.runtimes.generation.searches import TextRow
    from isoform.runtimes.preprocess.text.chat import ChatTemplate, Message
    from isoform.runtimes.session import Decoder, Session

STOPPED = "stopped"
"""The key of a message that was stopped before its end."""

ROOM = 1 / 4
"""Share of the context that is free after turns have left it. An answer has so much room, or its max_new_tokens."""

REFUSED: Mapping[str, str] = {
    "streamer": "say() gives the pieces of an answer itself",
    "return_full_text": "ask() returns the answer, and messages the conversation",
    "return_text": "ask() returns the answer, and messages the conversation",
    "return_tensors": "ask() returns the answer, and messages the conversation",
    "continue_final_message": "every turn begins a message of the assistant",
    "prefix": "set a system message instead",
    "handle_long_generation": "the oldest turns leave a full context",
    "truncation": "the oldest turns leave a full context",
}
"""Parameters of a call that a conversation does not take -> what it does instead."""


class Writer(Protocol):
    """What a conversation needs of a pipeline."""

    session: Session
    facts: Mapping[str, Any]
    context: int | None
    chat_template: ChatTemplate
    config: Mapping[str, Any]

    def call_of(self, parameters: Mapping[str, Any]) -> Any: ...

    def prepare(self, items: Sequence[Any], call: Any) -> Any: ...

    def continued(self, prompt: Any, call: Any, decoder: Decoder) -> Iterator[TextRow]: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """Figures of one answer. `reason` says why it ended.

    "stop" (the model ended it), "length" (max_new_tokens), "context" (no position is left), "time" (max_time) or
    "stopped".
    """

    prompt_tokens: int
    reused_tokens: int  # of the prompt, those that the KV cache held already
    stepped_tokens: int  # that the model computed: the rest of the prompt, and the new ones but the last
    new_tokens: int
    first_seconds: float  # until the first token
    seconds: float
    reason: str
    left: int  # turns that left the context before this one
    anew: str | None  # why the KV cache could not be used

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Conversation:
    """`ask("Hi")` returns the answer, `say("Hi")` its pieces as they come; `messages` has all that was said.

    It is for one thread at a time; `stop` may be called by any. After an error it is as it was before the message.
    """

    def __init__(self, pipe: Writer, system: str | None, parameters: Mapping[str, Any]) -> None:
        """See `TextGeneration.conversation`. Raises InputError for a model without a chat template."""
        self._pipe = pipe
        self._parameters: dict[str, Any] = {}
        self._stop, self._busy = Event(), Lock()
        self._decoder = PrefixDecoder(self._begun, self._stop.is_set)
        self._first = 0  # of `messages`, where those begin that the model still sees
        self.messages: list[dict[str, Any]] = []
        self.turns: list[Turn] = []
        self.set(**parameters)
        pipe.chat_template.choose(self._parameters.get("chat_template"), self._parameters.get("tools") is not None)
        if system:
            self.system = system

    # ------------------------------------------------------------------ what holds for the turns to come
    @property
    def parameters(self) -> dict[str, Any]:
        """What was set, by name."""
        return dict(self._parameters)

    def set(self, **parameters: Any) -> None:
        """Change parameters for the turns to come; InputError, and no change, where one is not understood."""
        for name in parameters:
            if name in REFUSED:
                raise InputError(f"a conversation has no parameter {name!r}: {REFUSED[name]}")
        merged = {**self._parameters, **parameters}
        settings = self._pipe.call_of(merged).settings
        if settings.num_beams > 1 or settings.num_return_sequences > 1:
            name = "num_beams" if settings.num_beams > 1 else "num_return_sequences"
            raise InputError(f"a conversation has one answer for each message, piece by piece; pass {name}=1")
        if settings.mode == "contrastive":
            raise InputError("contrastive search reads several texts at once, a conversation one; pass penalty_alpha=0")
        if settings.guidance_scale not in (None, 1):
            raise InputError(
                "guidance reads two texts, and a conversation keeps the cache of one; pass guidance_scale=1"
            )
        self._parameters = merged

    @property
    def system(self) -> str | None:
        """The system message, None when there is none. Setting it keeps what was said."""
        begins = self.messages and self.messages[0]["role"] == "system"
        return self.messages[0]["content"] if begins else None

    @system.setter
    def system(self, text: str | None) -> None:
        had = self.system is not None
        self.messages[: int(had)] = [{"role": "system", "content": text}] if text else []
        if self._first:
            self._first += int(bool(text)) - int(had)

    def clear(self) -> None:
        """Forget what was said; the system message stays."""
        system = self.system
        self.messages, self.turns, self._first = [], [], 0
        self.system = system

    def load(self, messages: Sequence[Message]) -> None:
        """Go on with these messages instead; InputError, and no change, where the model's template refuses them."""
        loaded = [dict(message) for message in messages if isinstance(message, Mapping)]
        if len(loaded) < len(messages) or any(not isinstance(m.get("role"), str) for m in loaded):
            raise InputError("a conversation is a list of messages, each with 'role' and 'content'")
        if loaded:
            self._prompt(loaded, self._call())
        self.messages, self.turns, self._first = loaded, [], 0

    @property
    def context(self) -> int | None:
        """How many tokens the model reads; None where there is no limit."""
        return self._pipe.context

    @property
    def left(self) -> int:
        """How many turns the model does not see any more."""
        return sum(turn.left for turn in self.turns)

    # ------------------------------------------------------------------ turns
    def ask(self, message: str | Message) -> str:
        """The whole answer to a message."""
        for _ in self.say(message):
            pass
        return str(self.messages[-1]["content"]) if self.turns[-1].new_tokens else ""

    def say(self, message: str | Message) -> Iterator[str]:
        """The answer to a message, piece by piece; `messages` has both when it ends, `turns` its figures.

        A text is the user's message; any other is given as {"role": …, "content": …}, such as a tool's result. An
        iterator that is closed early ends the answer as `stop` does. InputError for a message that is longer than the
        context.
        """
        said = {"role": "user", "content": message} if isinstance(message, str) else dict(message)
        if not self._busy.acquire(blocking=False):
            raise InputError("this conversation is answering another message; wait for its end, or stop it")
        try:
            self._stop.clear()
            call = self._call()
            prompt, first, left = self._fitting(said, call)
        except BaseException:
            self._busy.release()
            raise
        return self._answered(said, call, prompt, first, left)

    def stop(self) -> None:
        """End the answer after the token that is being computed. What was said stays, marked `STOPPED`."""
        self._stop.set()

    def _answered(self, said: dict[str, Any], call: Any, prompt: Any, first: int, left: int) -> Iterator[str]:
        decoder, text = self._decoder, TextStream(call.decode)
        decoder.begin(self._fresh(len(prompt.ids)))
        start, begun = perf_counter(), 0.0
        made: list[int] = []
        told, reason = 0, None
        try:
            try:
                for row in self._pipe.continued(prompt, call, decoder):
                    begun = begun or perf_counter() - start
                    made, reason = row.made, row.reason
                    new, told = made[told:], len(made)  # several where tokens are guessed
                    for token in new:
                        if piece := text.push(token):
                            yield piece
                    if self._stop.is_set():
                        break
                if piece := text.end():
                    yield piece
            except Stopped:
                pass
            except GeneratorExit:
                self._note(said, call, made, None, prompt, (begun, perf_counter() - start), first, left)
                raise
            self._note(said, call, made, reason, prompt, (begun, perf_counter() - start), first, left)
        finally:
            self._busy.release()

    def _note(
        self,
        said: dict[str, Any],
        call: Any,
        made: Sequence[int],
        reason: str | None,
        prompt: Any,
        seconds: tuple[float, float],
        first: int,
        left: int,
    ) -> None:
        """Add a turn to what was said, unless it was stopped before the first token."""
        whole = len(prompt.ids) + len(made)
        if reason == "length" and self._pipe.context is not None and whole > self._pipe.context:
            reason = "context"
        decoder, reason = self._decoder, reason or STOPPED
        figures = len(prompt.ids), decoder.reused, decoder.stepped, len(made)
        self.turns.append(Turn(*figures, *seconds, reason, left if made else 0, decoder.anew))
        if made:
            answer: dict[str, Any] = {"role": "assistant", "content": call.decode(made)}
            if reason == STOPPED:
                answer[STOPPED] = True
            self.messages += [said, answer]
            self._first = first

    def _fitting(self, said: dict[str, Any], call: Any) -> tuple[Any, int, int]:
        """The prompt of a turn, where the messages that it holds begin, and how many turns leave it now.

        Whole turns leave, the oldest first, when the answer would have no room, and so many that `ROOM` is free. The
        system message and the new message stay.
        """
        messages, context = [*self.messages, said], self._pipe.context
        prompt = self._prompt(self._seen(messages, self._first), call)
        if context is None:
            return prompt, self._first, 0
        free = int(context * ROOM)
        room = free if call.settings.max_new_tokens is None else min(free, call.settings.max_new_tokens)
        first, left = self._first, 0
        if len(prompt.ids) + room > context:
            for start in self._later_turns(messages):
                prompt, first, left = self._prompt(self._seen(messages, start), call), start, left + 1
                if len(prompt.ids) + free <= context:
                    break
        if len(prompt.ids) > context:
            raise InputError(
                f"the message makes a prompt of {len(prompt.ids):,} tokens, and the model reads {context:,}; shorten it"
            )
        return prompt, first, left

    def _later_turns(self, messages: Sequence[Message]) -> list[int]:
        """Where the turns begin after the first one that the model sees; a turn begins with a message of the user."""
        begins = max(self._first, int(self.system is not None))
        starts = [n for n, message in enumerate(messages) if n >= begins and message["role"] == "user"]
        return starts[1:]

    def _seen(self, messages: Sequence[Message], first: int) -> list[Message]:
        """The system message, and the messages from `first` on."""
        system = [] if self.system is None else [messages[0]]
        return [*system, *messages[max(first, len(system)) :]]

    def _call(self) -> Any:
        return self._pipe.call_of({**self._parameters, "continue_final_message": False})

    def _prompt(self, messages: Sequence[Message], call: Any) -> Any:
        """The conversation as the model reads it, without our marks."""
        clean = [{name: value for name, value in message.items() if name != STOPPED} for message in messages]
        ((prompt,),) = self._pipe.prepare([clean], call)
        return prompt

    def _fresh(self, length: int) -> str | None:
        """Why a prompt of so many tokens is computed anew; None where the cache may be used."""
        point = None if self._pipe.facts.get("recompute_beyond") is not None else turning_point(self._pipe.config)
        if point is None or max(length, self._decoder.held) <= point:
            return None
        return f"beyond {point:,} tokens, this model's rotary scaling changes what was cached"

    def _begun(self) -> Decoder:
        """A decoder of one row for the conversation."""
        beyond, session = self._pipe.facts.get("recompute_beyond"), self._pipe.session
        return session.decoder(1) if beyond is None else RecomputingDecoder(session.decoder, 1, beyond)
