"""openvino-genai's pipeline: WORK FOLDER PRECISION ("f32", "bf16"); batches by its continuous batching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rounds import begin

answers = begin()

import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402
from texts import run, threads, work  # noqa: E402

folder = sys.argv[2]
options = {"INFERENCE_PRECISION_HINT": sys.argv[3], "INFERENCE_NUM_THREADS": threads()}
schedule = genai.SchedulerConfig()
schedule.enable_prefix_caching = False
if work() == "batch":
    schedule.cache_size = 2  # GB
    engine = genai.ContinuousBatchingPipeline(folder, schedule, "CPU", options)
else:
    engine = genai.LLMPipeline(folder, "CPU", scheduler_config=schedule, **options)


def settings(new: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos = new, False, True
    return config


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    if work() == "batch":
        every = [ov.Tensor(np.array([prompt])) for prompt in prompts]
        results = engine.generate(every, [settings(new)] * len(prompts))
        return [len(result.m_generation_ids[0]) for result in results]
    seen: list[int] = []

    class FirstToken(genai.StreamerBase):
        def write(self, token: int | list[int]) -> genai.StreamingStatus:
            if not seen:
                first()
            seen.extend(token if isinstance(token, list) else [token])
            return genai.StreamingStatus.RUNNING

        def end(self) -> None: ...

    (prompt,) = prompts
    given = genai.TokenizedInputs(ov.Tensor(np.array([prompt])), ov.Tensor(np.ones((1, len(prompt)), np.int64)))
    made = engine.generate(given, settings(new), FirstToken())
    return [len(made.tokens[0])]


def write(text: str) -> str:
    return str(engine.generate(text, settings(1)))


run(generate, write, answers)
