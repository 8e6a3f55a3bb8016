"""The agreement table: which families, modes and backends give transformers' texts, as `test_agreement` proves.

    PYTHONPATH=src .venv/bin/python -m tests.runtimes.generation.agreement docs/generation.md

writes the table into the page anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tests.oracle.search_goldens import CASES

FAMILIES = {
    "Llama": "llama_b",
    "GPT-2": "gpt2",
    "Gemma 3": "gemma3_b",
    "Mixtral": "mixtral",
    "T5": "t5",
    "BART": "bart",
}
"""The tiny checkpoint of each."""
READERS = ("t5", "bart")
"""Those with an encoder."""

BACKENDS = {
    "torch": ("T", "torch"),
    "torchscript": ("S", "TorchScript"),
    "onnxruntime": ("O", "ONNX Runtime"),
    "openvino": ("V", "OpenVINO"),
    "llamacpp": ("L", "llama.cpp"),
}

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1, "repetition_penalty": 1.2},
    "sampling": {
        "do_sample": True,
        "num_beams": 1,
        "seed": 5,
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
    },
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {
        "do_sample": True,
        "num_beams": 3,
        "num_return_sequences": 2,
        "seed": 5,
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.9,
        "renormalize_logits": True,
    },
    "diverse beams": CASES["diverse beams"][0],
    "constrained beams": CASES["constrained beams"][1],
    "contrastive": CASES["contrastive"][0],
    "guidance": {"num_beams": 1, "guidance_scale": 1.5},
    "prompt lookup": {"num_beams": 1, "prompt_lookup_num_tokens": 4},
    "assistant": {"num_beams": 1, "num_assistant_tokens": 3},
    "grammar": {"num_beams": 1, "repetition_penalty": 1.2, "min_length": 0},
}
LANGUAGE = ("aest", "aest", "aest", "0123456789", "0123456789")
"""The texts of the grammar: one of these letters at each place."""
GATE = (
    *(("gpt2", mode, "torch") for mode in MODES),
    *(("llama_b", mode, "onnxruntime") for mode in ("sampling", "diverse beams", "contrastive", "prompt lookup")),
    *(("t5", mode, "onnxruntime") for mode in ("greedy", "sampling", "constrained beams", "contrastive")),
    *(("bart", mode, "torchscript") for mode in ("beams", "diverse beams")),
    *(("llama_b", mode, "openvino") for mode in ("beams", "constrained beams")),
    *(("llama_b", mode, "llamacpp") for mode in ("sampling", "diverse beams", "constrained beams")),
    *(("bart", "grammar", "onnxruntime"), ("t5", "grammar", "torchscript"), ("gemma3_b", "grammar", "openvino")),
    *(("mixtral", "grammar", "llamacpp"), ("t5", "prompt lookup", "llamacpp")),
)
"""What runs outside the nightly tests: every mode, and every backend."""

_SHALLOW = "compares hidden states"
_REFUSED = {
    ("contrastive", "torchscript"): _SHALLOW,
    ("contrastive", "llamacpp"): _SHALLOW,
}
_GUIDANCE = "this one reads an encoder's states"


def refusal(name: str, mode: str, backend: str) -> str | None:
    """A part of the error of what is refused; None where texts are those of transformers."""
    return _GUIDANCE if mode == "guidance" and name in READERS else _REFUSED.get((mode, backend))


def runs(name: str, backend: str) -> bool:
    """Whether the backend runs this family at all."""
    return backend != "llamacpp" or name != "bart"


def table() -> str:
    """A row for each family, a column for each mode; a cell has the letters of the backends."""
    lines = [f"| | {' | '.join(MODES)} |", "|---" * (len(MODES) + 1) + "|"]
    for title, name in FAMILIES.items():
        cells = []
        for mode in MODES:
            letters = [
                letter
                for backend, (letter, _) in BACKENDS.items()
                if runs(name, backend) and refusal(name, mode, backend) is None
            ]
            cells.append(" ".join(letters) or "refused")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    legend = ", ".join(f"{letter} {title}" for letter, title in BACKENDS.values())
    return "\n".join([*lines, "", f"{legend}."])


_PLACE = re.compile(r"(?<=<!-- agreement -->\n).*?(?=\n<!-- end of agreement -->)", re.DOTALL)


def renewed(page: str) -> str:
    """The page with its table made anew."""
    made, count = _PLACE.subn(lambda _: table(), page)
    if count != 1:
        raise ValueError("the page has no place for the table, or several")
    return made


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
