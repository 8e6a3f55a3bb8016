"""onnxruntime-genai: greedy tokens of a bundle.

Standard input: {"folder", "pieces": [[[id]]] (a prompt in pieces), "batch": [[id]] (padded on the right), "text",
"count", "options": {search option: value}}.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime_genai as og


def generate(model: Any, pieces: list[list[list[int]]], count: int, options: dict[str, Any]) -> list[list[int]]:
    """The tokens after the prompts; every piece holds as many rows."""
    length = sum(len(piece[0]) for piece in pieces)
    params = og.GeneratorParams(model)
    size = len(pieces[0])
    params.set_search_options(batch_size=size, min_length=length + count, max_length=length + count, **options)
    generator = og.Generator(model, params)
    for piece in pieces:
        generator.append_tokens(np.array(piece, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[length:].tolist() for row in range(size)]


def main() -> None:
    request = json.load(sys.stdin)
    model = og.Model(request["folder"])
    count, options = request["count"], request["options"]
    whole = [token for piece in request["pieces"] for token in piece]
    tokenizer = og.Tokenizer(model)
    answer = {
        "whole": generate(model, [[whole]], count, options)[0],
        "pieces": generate(model, [[piece] for piece in request["pieces"]], count, options)[0],
        "batch": generate(model, [request["batch"]], count, options),
        "ids": tokenizer.encode(request["text"]).tolist(),
    }
    print(json.dumps(answer))


main()
