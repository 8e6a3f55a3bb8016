"""onnxruntime-genai's generator: FOLDER PROMPT-LENGTH NEW-TOKENS."""

from __future__ import annotations

import sys

from rounds import Clock, Costs, begin, serve

answers = begin()

import onnxruntime_genai as og  # noqa: E402

folder, length, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = og.Config(folder)
config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1, "inter_op_num_threads": 1}}}}')
model = og.Model(config)
prompt = [(7 * n) % 30000 + 100 for n in range(length)]


def run() -> Costs:
    clock = Clock()
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length + new, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens([prompt])
    generator.generate_next_token()
    costs: Costs = {"prefill": (length, clock.read())}
    count = 0
    while not generator.is_done() and count < new - 1:
        generator.generate_next_token()
        count += 1
    costs["decode"] = (count, clock.read())
    return costs


serve(run, answers)
