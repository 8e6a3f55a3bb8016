"""Optimum's ORTModelForSeq2SeqLM. Standard input: {"folder", "batch", "mask", "options"}; the tokens of generate."""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM


def main() -> None:
    request = json.load(sys.stdin)
    model = ORTModelForSeq2SeqLM.from_pretrained(request["folder"])
    inputs = {"input_ids": torch.tensor(request["batch"]), "attention_mask": torch.tensor(request["mask"])}
    print(json.dumps({"made": model.generate(**inputs, **request["options"]).tolist()}))


main()
