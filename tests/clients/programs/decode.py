"""Greedy text with onnxruntime and tokenizers alone. Arguments: the bundle, a text, how many tokens."""

import json
import sys

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

folder, prompt, count = sys.argv[1:]

tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
session = ort.InferenceSession(f"{folder}/onnx/model.onnx")
text = new = np.array([tokenizer.encode(prompt).ids])
cache = {p.name: np.zeros((1, p.shape[1], 0, p.shape[3]), np.float32) for p in session.get_inputs()[3:]}
for _ in range(int(count)):
    mask = np.ones_like(text)
    places = np.arange(text.shape[1])[None, -new.shape[1] :]
    logits, *present = session.run(None, {"input_ids": new, "attention_mask": mask, "position_ids": places, **cache})
    new, cache = logits[:, -1:].argmax(-1), dict(zip(cache, present, strict=True))
    text = np.concatenate([text, new], 1)
answer = tokenizer.decode(text[0])

print(json.dumps({"ids": text[0].tolist(), "text": answer}))
