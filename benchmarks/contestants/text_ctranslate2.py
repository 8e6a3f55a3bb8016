"""CTranslate2's generator: WORK FOLDER TYPE ("int8", "float32")."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rounds import begin

answers = begin()

import ctranslate2  # noqa: E402
from texts import run, threads  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

folder = Path(sys.argv[2])
model = ctranslate2.Generator(str(folder), device="cpu", compute_type=sys.argv[3], intra_threads=threads())
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    seen: list[int] = []

    def take(step: ctranslate2.GenerationStepResult) -> bool:
        if not seen:
            first()
        seen.append(step.token_id)
        return False

    words = [[tokenizer.id_to_token(token) for token in prompt] for prompt in prompts]
    made = model.generate_batch(
        words,
        max_length=new,
        min_length=new,
        beam_size=1,
        include_prompt_in_result=False,
        callback=take if len(prompts) == 1 else None,
    )
    return [len(result.sequences_ids[0]) for result in made]


def write(text: str) -> str:
    words = tokenizer.encode(text).tokens
    made = model.generate_batch([words], max_length=1, beam_size=1, include_prompt_in_result=False)
    return str(tokenizer.decode(made[0].sequences_ids[0]))


run(generate, write, answers)
