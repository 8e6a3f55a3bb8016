"""Several threads and one pipeline over llama.cpp."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import isoform
from tests.exports import exported

TEXTS = ("The quick", "a small cat reads", "in", "over the lazy dog jumps")


def test_four_threads_that_call_one_pipeline_each_get_their_own_answer() -> None:
    with isoform.pipeline("text-generation", exported("llama"), backend="llamacpp") as pipe:

        def answer(text: str) -> str:
            return str(pipe(text, max_new_tokens=24, do_sample=False)[0]["generated_text"])

        want = [answer(text) for text in TEXTS]
        assert len(set(want)) == len(TEXTS)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                assert list(pool.map(answer, TEXTS)) == want
