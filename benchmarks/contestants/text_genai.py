"""onnxruntime-genai's generator: WORK FOLDER."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from rounds import begin

answers = begin()

import onnxruntime_genai as og  # noqa: E402
from texts import CONTEXT, run, threads  # noqa: E402

config = og.Config(sys.argv[2])
session = {"intra_op_num_threads": threads(), "inter_op_num_threads": 1}
config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
model = og.Model(config)


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    (prompt,) = prompts
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=min(len(prompt) + new, CONTEXT), do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens([prompt])
    generator.generate_next_token()
    first()
    made = 1
    while not generator.is_done() and made < new:
        generator.generate_next_token()
        made += 1
    return [made]


def write(text: str) -> str:
    tokenizer = og.Tokenizer(model)
    prompt = [int(token) for token in tokenizer.encode(text)]
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + 1, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens([prompt])
    generator.generate_next_token()
    return str(tokenizer.decode(generator.get_next_tokens()))


run(generate, write, answers)
