"""Writes search_goldens.json: what the last transformers with every search in its core gives on tiny checkpoints.

Diverse beams, constrained beams and contrastive search left transformers' core with 4.56; the tests compare ours with
these ids and scores. To renew them:

    .venv/bin/pip install --no-deps --target .older transformers==4.55.4 tokenizers==0.21.4 huggingface_hub==0.36.0
    folder=$(.venv/bin/python -c "from tests import oracle; oracle.tiny('llama_b'); print(oracle.folder())")
    PYTHONPATH=.older .venv/bin/python -m tests.oracle.search_goldens $folder
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("search_goldens.json")
PROMPTS = ([5, 17, 33, 80, 17, 9], [61, 2, 9])
"""Of decoders; encoders read them."""
_SOME, _MANY, _MOST = ([*range(3, 300, step)] for step in (29, 11, 5))  # tokens that end a text

GROUPS: tuple[dict[str, Any], ...] = (
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {
        "num_beams": 6,
        "num_beam_groups": 3,
        "diversity_penalty": 1.5,
        "num_return_sequences": 6,
        "eos_token_id": _MANY,
    },
    {
        "num_beams": 4,
        "num_beam_groups": 4,
        "diversity_penalty": 5.0,
        "early_stopping": True,
        "num_return_sequences": 3,
        "eos_token_id": _MOST,
        "pad_token_id": 4,
    },
    {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 1.0,
        "early_stopping": "never",
        "length_penalty": 2.0,
        "eos_token_id": _MANY,
        "num_return_sequences": 4,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
    },
)
WORDS: tuple[dict[str, Any], ...] = (
    {"num_beams": 3, "force_words_ids": [[71]]},
    {
        "num_beams": 4,
        "force_words_ids": [[71, 72, 73], [100, 101]],
        "num_return_sequences": 4,
        "eos_token_id": _SOME,
    },
    {
        "num_beams": 5,
        "force_words_ids": [[[71, 72], [71, 73, 74], [90]], [88]],
        "num_return_sequences": 5,
        "eos_token_id": _MANY,
        "length_penalty": 0.5,
    },
    {
        "num_beams": 4,
        "force_words_ids": [[[71, 72, 73], [71, 73, 73], [71, 74]]],
        "early_stopping": True,
        "num_return_sequences": 2,
        "eos_token_id": _MOST,
        "repetition_penalty": 1.3,
    },
    {"num_beams": 2, "force_words_ids": [[71, 72, 73, 74, 75, 76, 77, 78]], "num_return_sequences": 2},
    {"num_beams": 3, "force_words_ids": [[17, 33], [17, 9, 71]], "early_stopping": "never", "eos_token_id": _SOME},
)
CONTRAST: tuple[dict[str, Any], ...] = (
    {"num_beams": 1, "penalty_alpha": 0.6, "top_k": 4},
    {"num_beams": 1, "penalty_alpha": 0.3, "top_k": 8, "eos_token_id": _SOME},
    {"num_beams": 1, "penalty_alpha": 0.9, "top_k": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
)
CASES = {"diverse beams": GROUPS, "constrained beams": WORDS, "contrastive": CONTRAST}
DECODERS = ("llama_b", "gpt2", "gemma3_b", "qwen2_b", "mixtral")
ENCODER_DECODERS = ("t5", "bart")
COMMON: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10}


def fingerprint(folder: Path) -> str:
    """Of the weights that the goldens are of."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def generated(model: Any, prompt: list[int], options: dict[str, Any]) -> dict[str, Any]:
    """transformers' texts of one prompt: new ids, scores, and log-probabilities of the new tokens."""
    import torch

    asked = {**COMMON, **options}
    contrastive = "penalty_alpha" in options
    asked |= {"return_dict_in_generate": True, "output_scores": True}
    try:
        out = model.generate(torch.tensor([prompt]), **asked)
    except RuntimeError:  # it has no scores of texts that do not hold their words
        out = model.generate(torch.tensor([prompt]), **{**asked, "output_scores": False})
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    found: dict[str, Any] = {"ids": [row[start:] for row in out.sequences.tolist()]}
    if not contrastive and out.sequences_scores is not None:
        found["scores"] = [round(score, 6) for score in out.sequences_scores.tolist()]
    if contrastive:  # of groups and constraints, transformers kept the numbers of other beams or other sums
        terms = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        found["terms"] = [[round(term, 5) for term in row] for row in terms.tolist()]
    return found


def main(folder: Path) -> None:
    """Write the goldens of the tiny checkpoints in this folder."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    if not hasattr(transformers.GenerationMixin, "_contrastive_search"):
        sys.exit(f"transformers {transformers.__version__} has not every search in its core; 4.55.4 has")
    goldens: dict[str, Any] = {"transformers": transformers.__version__, "models": {}}
    for name in (*DECODERS, *ENCODER_DECODERS):
        kind: Any = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
        model = kind.from_pretrained(folder / name, attn_implementation="eager").eval()
        goldens["models"][name] = {
            "weights": fingerprint(folder / name),
            **{
                mode: [[generated(model, prompt, options) for prompt in PROMPTS] for options in cases]
                for mode, cases in CASES.items()
            },
        }
    lines = json.dumps(goldens).replace('"models": {', '"models": {\n').replace('}]]}, "', '}]]},\n"')
    FILE.write_text(lines.replace("[[{", "\n[[{").replace("}], [{", "}],\n[{") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
