"""The answers of transformers 4.57.1 to questions, which `answering_4_57.json` stores: version 5 has no such pipeline.

    pip install --no-deps --target OLD transformers==4.57.1 "huggingface_hub<1"
    PYTHONPATH=OLD python tests/oracle/answering_4_57.py TINIES > tests/oracle/answering_4_57.json

TINIES is a folder that `python -m tests.oracle.checkpoints TINIES NAME…` wrote. The pinned version of tokenizers in
OLD's dependency_versions_table.py has to be relaxed.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CONTEXT = "The small cat reads a large red book in the old house, naïve."
QUESTION = "what reads the book?"
NAMES = (
    *(
        "bart_qa",
        "bert_qa",
        "bert_qa_b",
        "deberta_qa",
        "distilbert_qa",
        "electra_qa",
        "gpt2_qa",
        "modernbert_qa",
        "mt5_qa",
    ),
    *("modernbert_qa", "mt5_qa", "xlm_roberta_qa"),
)
CALLS: list[tuple[str, dict[str, Any]]] = [
    (CONTEXT, {}),
    (CONTEXT, {"top_k": 4}),
    (CONTEXT, {"top_k": 3, "align_to_words": False, "max_answer_len": 6}),
    (CONTEXT, {"top_k": 12, "handle_impossible_answer": True}),
    (CONTEXT + " every teacher knows" * 60, {"max_seq_len": 40, "doc_stride": 10, "top_k": 2}),
]


def main(tinies: Path) -> None:
    """Print the answers of every checkpoint to every call."""
    from transformers import pipeline

    found = {}
    with TemporaryDirectory() as space:
        for name in NAMES:
            folder = Path(shutil.copytree(tinies / name, Path(space) / name))
            settings = json.loads((folder / "tokenizer_config.json").read_text())
            if isinstance(settings.get("extra_special_tokens"), list):  # version 5's word for it
                settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
                (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            pipe = pipeline("question-answering", str(folder), device="cpu")
            found[name] = [pipe(question=QUESTION, context=context, **options) for context, options in CALLS]
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
