"""transformers' generate on torch, float32: FOLDER PROMPT-LENGTH NEW-TOKENS."""

from __future__ import annotations

import sys
from typing import Any

from rounds import Clock, Costs, begin, serve

answers = begin()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

folder, length, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
prompt = torch.tensor([[(7 * n) % 30000 + 100 for n in range(length)]])


class Times:
    """A streamer: it gets the prompt, then each token as it comes."""

    def __init__(self) -> None:
        self.clock, self.seen = Clock(), list[float]()

    def put(self, value: Any) -> None:
        self.seen.append(self.clock.read())

    def end(self) -> None: ...


def run() -> Costs:
    times = Times()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=times,
    )
    first, *others = times.seen[1:]
    return {"prefill": (length, times.seen[0] + first), "decode": (len(others), sum(others))}


serve(run, answers)
