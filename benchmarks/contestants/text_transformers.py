"""transformers' generate on torch: WORK CHECKPOINT DTYPE, as torch names it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rounds import begin

answers = begin()

import torch  # noqa: E402
from texts import run, threads  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(threads())
folder = sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, sys.argv[3])).eval()


class FirstToken:
    """A streamer: it gets the prompt, then each token as it comes."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first, self._seen = first, 0

    def put(self, value: Any) -> None:
        self._seen += 1
        if self._seen == 2:
            self._first()

    def end(self) -> None: ...


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    streamer: Any = FirstToken(first) if len(prompts) == 1 else None
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=streamer,
    )
    return [made.shape[1] - longest] * len(prompts)


def write(text: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(text, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=1, do_sample=False)
    return str(tokenizer.decode(made[0, -1:]))


run(generate, write, answers)
