"""vLLM on the CPU: WORK CHECKPOINT DTYPE ("bfloat16", "float32")."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rounds import begin

answers = begin()

from texts import CONTEXT, run  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

model = LLM(
    sys.argv[2],
    dtype=sys.argv[3],
    max_model_len=CONTEXT,
    max_num_seqs=32,
    enable_prefix_caching=False,
    disable_log_stats=True,
)


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    engine, settings = model.llm_engine, SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
    for n, prompt in enumerate(prompts):
        engine.add_request(str(n), {"prompt_token_ids": prompt}, settings)
    made: dict[str, int] = {}
    while engine.has_unfinished_requests():
        for result in engine.step():
            if not made:
                first()
            made[result.request_id] = len(result.outputs[0].token_ids)
    return [made[str(n)] for n in range(len(prompts))]


def write(text: str) -> str:
    settings = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    return str(model.generate(text, settings, use_tqdm=False)[0].outputs[0].text)


run(generate, write, answers)
