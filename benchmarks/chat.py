"""What the tenth turn of a conversation costs, with the KV cache of the turns before it and without.

    python -m benchmarks.chat MODEL [--backends torch,onnxruntime] [--machine WORDS]

Ten questions, greedy answers of at most 32 tokens. Of the tenth turn: the tokens of the prompt that are computed, and
the seconds until the first token (wall clock, one thread, the best of three), through a conversation and through a call
with the same messages, whose answer must be the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import noise

RESULT = Path(__file__).parent / "results" / "chat.json"
ROUNDS = 3
OPTIONS: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
QUESTIONS = (
    "What is the capital of France?",
    "And of Italy?",
    "How many days are in a week?",
    "Name three colours.",
    "What is water made of?",
    "Who wrote Hamlet?",
    "What do bees make?",
    "Name a large animal.",
    "What is two and two?",
    "Say goodbye.",
)


def best(run: Callable[[], float]) -> float:
    return min(run() for _ in range(ROUNDS))


def measure(model: str, backend: str) -> list[str]:
    """A row of the table."""
    import isoform

    pipe: Any = isoform.pipeline("text-generation", model, backend=backend, threads=1)
    with pipe:
        talk = pipe.conversation(**OPTIONS)
        for question in QUESTIONS[:-1]:
            talk.ask(question)
        messages = [*talk.messages, {"role": "user", "content": QUESTIONS[-1]}]

        def without() -> float:
            start = time.perf_counter()
            pieces = pipe.stream(messages, **OPTIONS)
            next(pieces)
            seconds = time.perf_counter() - start
            pieces.close()
            return seconds

        def within() -> float:
            """The tenth turn, after which the ninth is asked again: then the cache is as before the tenth."""
            talk.ask(QUESTIONS[-1])
            kept.append(talk.turns[-1])
            del talk.messages[len(messages) - 3 :]
            talk.ask(QUESTIONS[-2])
            return float(kept[-1].first_seconds)

        kept: list[Any] = []
        slow, quick = best(without), best(within)
        answer = pipe(messages, **OPTIONS)[0]["generated_text"][-1]["content"]
        talk.ask(QUESTIONS[-1])
        if talk.messages[-1]["content"] != answer:
            raise SystemExit(f"{backend}: the answer differs from that without the cache")
        turn = kept[-1]
        computed = turn.prompt_tokens - turn.reused_tokens
        counts = f"{turn.prompt_tokens:,}", f"{computed:,}"
        return [backend, *counts, f"{slow:.2f}", f"{quick:.2f}", f"{slow / quick:.0f}×"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backends", default="torch,onnxruntime,llamacpp")
    parser.add_argument("--machine", default="")
    arguments = parser.parse_args()
    before = round(noise(), 2)
    rows = [measure(arguments.model, backend) for backend in arguments.backends.split(",")]
    columns = ["backend", "tokens of the tenth prompt", "computed", "first token without the cache, s", "with, s", ""]
    print(f"| {' | '.join(columns)} |", *(f"| {' | '.join(row)} |" for row in rows), sep="\n")
    if arguments.machine:
        import os

        found = {
            "command": "python -m benchmarks.chat SmolLM2-135M-Instruct",
            "machine": arguments.machine,
            "date": datetime.now(UTC).date().isoformat(),
            "conditions": {"load": round(os.getloadavg()[0], 1), "noise": before},
            "columns": columns,
            "rows": rows,
        }
        RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
