"""Sentence embeddings with onnxruntime and tokenizers alone. Arguments: the bundle, then texts."""

import json
import sys

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

folder, *texts = sys.argv[1:]

tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
session = ort.InferenceSession(f"{folder}/onnx/model.onnx")
rows = tokenizer.encode_batch(texts)
ids, mask, types = (np.array([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask", "type_ids"))
feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
(vectors,) = session.run(["sentence_embedding"], feeds)

print(json.dumps(vectors.tolist()))
