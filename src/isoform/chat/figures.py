"""What `!stats`, `!status` and `--json` say of a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoform.runtimes.conversation import Conversation, Turn

ENDINGS = {
    "length": "max_new_tokens is reached; !set max_new_tokens=… allows longer answers",
    "context": "the model's context is full",
    "time": "max_time is over",
    "stopped": "stopped",
}
"""Why an answer ended, where the model did not end it."""


def answer_json(talk: Conversation) -> dict[str, Any]:
    """The last answer and its figures."""
    return {"answer": talk.messages[-1]["content"], "stats": talk.turns[-1].to_json()}


def left_note(turn: Turn, context: int | None) -> str:
    """What is said when turns have left the context; empty when none have."""
    if not turn.left:
        return ""
    turns = "the oldest turn has" if turn.left == 1 else f"the {turn.left} oldest turns have"
    return f"{turns} left the context of {context:,} tokens; the model does not see what was said there"


def stats(talk: Conversation, context: int | None) -> list[tuple[str, str]]:
    """The figures of a conversation, as rows of a name and a value."""
    if not talk.turns:
        return [("turns", "none yet")]
    last = talk.turns[-1]
    used = last.prompt_tokens + last.new_tokens
    of = "" if context is None else f" of {context:,} ({used / context:.0%})"
    rows = [
        ("turns", f"{len(talk.turns)}" + (f", of which {talk.left} have left the context" if talk.left else "")),
        ("context", f"{used:,} tokens{of}"),
        ("last prompt", f"{last.prompt_tokens:,} tokens, {last.reused_tokens:,} of them from the KV cache"),
        ("computed", f"{last.stepped_tokens:,} tokens in the last turn, {_sum(talk, 'stepped_tokens'):,} in all"),
        ("last answer", f"{last.new_tokens:,} tokens, {_rate(last)}"),
        ("first token", f"after {last.first_seconds:.3g} s"),
    ]
    if last.anew:
        rows.append(("KV cache", f"begun anew: {last.anew}"))
    return rows


def _sum(talk: Conversation, name: str) -> int:
    return sum(getattr(turn, name) for turn in talk.turns)


def _rate(turn: Turn) -> str:
    rest = turn.seconds - turn.first_seconds
    return f"{(turn.new_tokens - 1) / rest:.1f} tokens/s" if turn.new_tokens > 1 and rest > 0 else "one token or none"
