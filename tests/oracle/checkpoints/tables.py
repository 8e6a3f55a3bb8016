"""Tiny models that read tables."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T
from torch import Tensor

from tests.oracle.checkpoints.case import Case, case, integers, named, write_json
from tests.oracle.checkpoints.tokenizers import wordpiece

SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
LENGTH, QUESTION, COLUMNS = 26, 6, 3


def _types(rank: int) -> Tensor:
    """The types of two rows of tokens: a question and a table of three columns, whose cells have one or two tokens."""
    found = torch.zeros(2, LENGTH, 7, dtype=torch.long)
    for line in range(2):
        for place in range(QUESTION + line, LENGTH):
            cell = (place - QUESTION - line) // (2 - line)
            row, column = divmod(cell, COLUMNS)
            ranked = row > 0 and column == 1
            facts = [1, column + 1, row, int(row == 1), min(row, rank) * ranked, min(5 - row, rank) * ranked, row % 8]
            found[line, place] = torch.tensor(facts)
    return found


def _tapas(c: Case, head: str, lower: bool = True, **options: Any) -> None:
    words = wordpiece(specials=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]"), lower=lower)
    (c.folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    plain: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "reset_position_index_per_cell": True,
    }
    c.model(head, T.TapasConfig(vocab_size=len(words), **plain | options))
    tokens = {f"{name}_token": token for name, token in SPECIAL.items()}
    settings = {
        "tokenizer_class": "TapasTokenizer",
        "do_lower_case": lower,
        "model_max_length": 512 if lower else 60,
        "cell_trim_length": -1,
        "drop_rows_to_fit": False,
        "empty_token": "[EMPTY]",
    }
    write_json(c.folder, "tokenizer_config.json", settings | tokens)
    write_json(c.folder, "special_tokens_map.json", tokens)
    c.info["tokenizer"] = "TapasTokenizer"
    c.golden(
        {
            "input_ids": integers(len(words), 2, LENGTH),
            "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
            "token_type_ids": _types(rank=5),
        }
    )


SECOND: dict[str, Any] = {
    "lower": False,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_act": "relu",
    "max_position_embeddings": 64,
    "type_vocab_sizes": [2, 20, 40, 2, 20, 20, 8],
    "reset_position_index_per_cell": False,
    "layer_norm_eps": 1e-6,
}
"""The shape of the second configuration; its vocabulary has capital letters."""


@case
def tapas(c: Case) -> None:
    """google/tapas-base."""
    _tapas(c, "TapasForMaskedLM")


@case
def tapas_qa(c: Case) -> None:
    """google/tapas-base-finetuned-wtq."""
    _tapas(
        c,
        "TapasForQuestionAnswering",
        num_aggregation_labels=4,
        use_answer_as_supervision=True,
        answer_loss_cutoff=0.664694,
        cell_selection_preference=0.207951,
        huber_loss_delta=0.121194,
        init_cell_selection_weights_to_zero=True,
        select_one_column=True,
        allow_empty_column_selection=False,
        temperature=0.0352513,
        aggregation_labels={0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"},
        no_aggregation_label_index=0,
    )


@case
def tapas_sqa_b(c: Case) -> None:
    """google/tapas-base-finetuned-sqa, of the older models whose positions go on from cell to cell."""
    _tapas(
        c,
        "TapasForQuestionAnswering",
        allow_empty_column_selection=True,
        max_num_rows=4,
        max_num_columns=4,
        temperature=1.5,
        **SECOND,
    )


@case
def tapas_seqcls_b(c: Case) -> None:
    """google/tapas-base-finetuned-tabfact."""
    _tapas(c, "TapasForSequenceClassification", **named("REFUTED", "ENTAILED"), **SECOND)


@case
def tapas_base_b(c: Case) -> None:
    """The trunk alone."""
    _tapas(c, "TapasModel", **SECOND)
