"""transformers' generate on torch: WORK CHECKPOINT DTYPE, as torch names it; or Optimum's on ONNX Runtime: "onnx"."""

from __future__ import annotations

import sys
from typing import Any

from rounds import begin

answers = begin()

import torch  # noqa: E402
from sequences import BEAMS, NEW, TEXTS, THREADS, run  # noqa: E402

torch.set_num_threads(THREADS)
model: Any
if sys.argv[3] == "onnx":
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = ORTModelForSeq2SeqLM.from_pretrained(sys.argv[2], session_options=options)
else:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[2], dtype=getattr(torch, sys.argv[3])).eval()
longest = max(map(len, TEXTS))
ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in TEXTS])
mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS])
settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "num_beams": BEAMS, "do_sample": False}
settings |= {"no_repeat_ngram_size": 0, "forced_eos_token_id": None, "forced_bos_token_id": None, "length_penalty": 1.0}


def write() -> int:
    made = model.generate(input_ids=ids, attention_mask=mask, **settings)
    return int(made.shape[1]) - 1


run(write, answers)
