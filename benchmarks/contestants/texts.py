"""The rounds of engines that generate text: one row by CPU time, batches by wall time, or a first token.

An engine's first argument is WORK, as in "decode:1": its name, and how many threads to use. `decode` is a prompt of 128
tokens, then 64 one by one; `prefill` a prompt of 1,024 tokens; `batch` 8, then 32 prompts of 16 to 200 tokens, 64 new
tokens each; and "first:2:FILE" one token after the text in FILE, in a fresh process.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rounds import Clock, Costs, answer, serve

PROMPT, LONG, NEW = 128, 1024, 64
CONTEXT = 1200
"""Positions that an engine needs for each row."""

_PROMPTS = itertools.count()

Generate = Callable[[Sequence[list[int]], int, Callable[[], None]], Sequence[int]]
"""Prompts, how many tokens to make of each without a stop at any, and what to call when the first ones are there ->
how many were made of each."""


def work() -> str:
    return sys.argv[1].split(":")[0]


def threads() -> int:
    return int(sys.argv[1].split(":")[1])


def run(generate: Generate, write: Callable[[str], str], answers: int) -> None:
    """Serve the work of the command line. `write` gives the first token's text after a text."""
    name = work()
    if name == "first":
        text = write(Path(sys.argv[1].split(":", 2)[2]).read_text(encoding="utf-8"))
        if not text:
            sys.exit("no text was made")
        answer(text, answers)
    rounds: dict[str, Callable[[Generate], Costs]] = {"decode": _decode, "prefill": _prefill, "batch": _batch}
    serve(lambda: rounds[name](generate), answers)


def _decode(generate: Generate) -> Costs:
    clock, seconds = Clock(), list[float]()
    made = generate([_tokens(PROMPT)], NEW, lambda: seconds.append(clock.read()))
    _check(made, NEW)
    return {"prefill 128": (PROMPT, seconds[0]), "decode": (NEW - 1, clock.read())}


def _prefill(generate: Generate) -> Costs:
    clock = Clock()
    made = generate([_tokens(LONG)], 1, lambda: None)
    _check(made, 1)
    return {"prefill 1024": (LONG, clock.read())}


def _batch(generate: Generate) -> Costs:
    costs: Costs = {}
    for count in (8, 32):
        lengths = random.Random(count)
        prompts = [_tokens(lengths.randint(16, 200)) for _ in range(count)]
        clock = Clock(wall=True)
        made = generate(prompts, NEW, lambda: None)
        _check(made, NEW)
        costs[f"batch {count}"] = (sum(made), clock.read())
    return costs


def _tokens(length: int) -> list[int]:
    """No prompt begins as another does, in any round: an engine's cache of prefixes holds none of it."""
    begin = 1009 * next(_PROMPTS)
    return [(7 * n + begin) % 30000 + 100 for n in range(length)]


def _check(made: Sequence[int], wanted: int) -> None:
    if set(made) != {wanted}:
        sys.exit(f"{sorted(set(made))} tokens were made, not {wanted}")
