"""Optimum's ORTModel classes. Standard input: {"folder", "texts", "count"}; with a count, greedy tokens."""

import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForFeatureExtraction
from transformers import AutoTokenizer


def main() -> None:
    request = json.load(sys.stdin)
    folder, count = request["folder"], request.get("count")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left" if count else "right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(request["texts"], padding=True, return_tensors="pt")
    masks = inputs["attention_mask"].bool()
    if count:
        model = ORTModelForCausalLM.from_pretrained(folder)
        made = model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        answer = made[:, inputs["input_ids"].shape[1] :].tolist()
    else:
        model = ORTModelForFeatureExtraction.from_pretrained(folder)
        states = model(**inputs).last_hidden_state
        answer = [row[mask].tolist() for row, mask in zip(states, masks, strict=True)]
    prompts = [row[mask].tolist() for row, mask in zip(inputs["input_ids"], masks, strict=True)]
    print(json.dumps({"prompts": prompts, "answer": answer}))


main()
