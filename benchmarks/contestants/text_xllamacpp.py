"""llama.cpp's server in this process (xllamacpp): WORK FILE (.gguf)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rounds import begin

answers = begin()

import xllamacpp  # noqa: E402
from texts import CONTEXT, run, threads, work  # noqa: E402

slots = 8 if work() == "batch" else 1
settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[2]
settings.n_ctx = CONTEXT * slots
settings.n_parallel = slots
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads()
settings.warmup = False
server = xllamacpp.Server(settings)


def ask(prompt: Any, new: int, first: Callable[[], None]) -> tuple[int, str]:
    """How many tokens were made, and their text."""
    request = {
        "prompt": prompt,
        "n_predict": new,
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
    }
    seen: list[dict[str, Any]] = []

    def take(part: dict[str, Any]) -> None:
        if not seen:
            first()
        seen.append(part)

    server.handle_completions(request, take)
    if "usage" not in seen[-1]:
        sys.exit(f"llama.cpp's server: {seen[-1]}")
    return seen[-1]["usage"]["completion_tokens"], "".join(part["choices"][0]["text"] for part in seen)


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    made = [0] * len(prompts)

    def one(n: int) -> None:
        made[n], _ = ask(prompts[n], new, first if len(prompts) == 1 else lambda: None)

    running = [threading.Thread(target=one, args=(n,)) for n in range(len(prompts))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return made


def write(text: str) -> str:
    return ask(text, 1, lambda: None)[1]


run(generate, write, answers)
