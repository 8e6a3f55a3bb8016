"""One example for each task of texts, as docs/text.md shows them.

`python -m benchmarks.text_tasks SMOLLM2 MINILM TINIES` prints each call and its answer: of SmolLM2-135M-Instruct,
of all-MiniLM-L6-v2, and of the tiny random checkpoints that `python -m tests.oracle.checkpoints TINIES` writes, whose
answers mean nothing but have the form of any model's.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from pprint import pformat
from tempfile import TemporaryDirectory
from typing import Any

import isoform

CONTEXT = (
    "SmolLM2 is a family of compact language models by Hugging Face. It comes in three sizes: 135 million, 360 million "
    "and 1.7 billion parameters."
)
REAL = (
    'pipeline("text-generation", "smollm2")("The capital of France is", max_new_tokens=6, do_sample=False)',
    'pipeline("question-answering", "smollm2")(question="Who made SmolLM2?", context=CONTEXT)',
    'pipeline("feature-extraction", "minilm")("A cat sleeps.", pooling="mean", return_tensors="np")[:3]',
    'pipeline("sentence-similarity", "minilm")({"source_sentence": "It rains.", "sentences": ["Rain falls.", "Tea."]})',
)
"""Calls of real models."""
TINY = (
    'pipeline("summarization", "pegasus")("The small cat reads a large red book.", max_length=9, min_length=2)',
    'pipeline("translation_en_to_de", "t5")("The small cat reads.", max_new_tokens=5)',
    'pipeline("translation", "nllb", src_lang="eng_Latn", tgt_lang="fra_Latn")("The cat reads.", max_new_tokens=5)',
    'pipeline("text2text-generation", "t5")(["a cat", "a dog"], max_new_tokens=4, num_beams=2)',
    'pipeline("zero-shot-classification", "bert_nli")("The cat reads.", candidate_labels=["animals", "weather"])',
    'pipeline("text-classification", "qwen2_seqcls")("The cat reads.", top_k=2)',
    'pipeline("token-classification", "gemma2_tokcls", aggregation_strategy="first")("The cat reads.")[:1]',
    'pipeline("question-answering", "bert_qa")(question="What reads?", context="The small cat reads a book.")',
    'pipeline("fill-mask", "bert")("The [MASK] reads.", top_k=1)',
    'pipeline("text-ranking", "deberta_seqcls")([("a cat", "The cat reads."), ("a cat", "It rains.")])',
)
"""Calls of tiny random checkpoints."""


def shown(answer: Any) -> Any:
    """An answer with four digits of its numbers."""
    if isinstance(answer, dict):
        return {name: shown(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [shown(value) for value in answer]
    if hasattr(answer, "tolist"):
        return shown(answer.tolist())
    return round(answer, 4) if isinstance(answer, float) else answer


def labelled(folder: Path, target: Path) -> Path:
    """A copy of a classifier whose labels say what follows from what."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    names = ("contradiction", "entailment")
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def main(smollm2: str, minilm: str, tinies: str) -> None:
    """Print the calls and their answers."""
    warnings.simplefilter("ignore")
    folders = {"smollm2": Path(smollm2), "minilm": Path(minilm)}
    with TemporaryDirectory() as space:
        folders["bert_nli"] = labelled(Path(tinies) / "bert_seqcls", Path(space) / "bert_nli")

        def pipeline(task: str, model: str, **options: Any) -> Any:
            return isoform.pipeline(task, folders.get(model, Path(tinies) / model), backend="torch", **options)

        print(f">>> CONTEXT = {CONTEXT!r}")
        for call in (*REAL, *TINY):
            print(f">>> {call}")
            answer = eval(call, {"pipeline": pipeline, "CONTEXT": CONTEXT})  # noqa: S307  (ours)
            print(pformat(shown(answer), width=118, sort_dicts=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
