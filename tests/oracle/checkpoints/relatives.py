"""Tiny MPNet, DeBERTa-v2 and DeBERTa-v3: one head each, unlike in sizes and switches."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import Case, case, labels, named
from tests.oracle.checkpoints.text import text_golden
from tests.oracle.checkpoints.tokenizers import unigram, wordpiece

NAMES = named("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LONG = "The teacher opens a window and the small cat sees a river in the old house. " * 2


def _sizes(t: Any, more: int = 0, **options: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return {"vocab_size": len(t) + more, "max_position_embeddings": 130, **sizes, **options}


def _golden(c: Case, t: Any, *texts: str) -> None:
    text_golden(c, t, list(texts) or [LONG, "Hello"], generate=False, padding=True)


def _pair(c: Case, t: Any) -> None:
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))


# ------------------------------------------------------------------ mpnet
def _mpnet_tok(**options: Any) -> Any:
    words = wordpiece(420, ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), options.get("do_lower_case", True))
    return T.MPNetTokenizer(vocab=dict(words), model_max_length=128, **options)


@case
def mpnet(c: Case) -> None:
    """microsoft/mpnet-base."""
    t = c.tok(_mpnet_tok())
    c.model("MPNetForMaskedLM", T.MPNetConfig(**_sizes(t), layer_norm_eps=1e-5))
    _golden(c, t, "The <mask> sees a dog.", LONG)


@case
def mpnet_b(c: Case) -> None:
    """The trunk of sentence-transformers/all-mpnet-base-v2 in another shape."""
    t = c.tok(_mpnet_tok(do_lower_case=False))
    sizes = _sizes(t, 3, hidden_size=40, num_attention_heads=5, num_hidden_layers=3, hidden_act="relu")
    c.model("MPNetModel", T.MPNetConfig(**sizes))
    _golden(c, t)


@case
def mpnet_seqcls(c: Case) -> None:
    t = c.tok(_mpnet_tok())
    c.model("MPNetForSequenceClassification", T.MPNetConfig(**_sizes(t), **labels(3)))
    _golden(c, t)


@case
def mpnet_ner(c: Case) -> None:
    t = c.tok(_mpnet_tok(do_lower_case=False))
    c.model("MPNetForTokenClassification", T.MPNetConfig(**_sizes(t), **NAMES))
    _golden(c, t)


@case
def mpnet_qa(c: Case) -> None:
    t = c.tok(_mpnet_tok())
    c.model("MPNetForQuestionAnswering", T.MPNetConfig(**_sizes(t)))
    _pair(c, t)


# ------------------------------------------------------------------ deberta
def _deberta_tok(**options: Any) -> Any:
    pieces = [*unigram(380, ("[PAD]", "[CLS]", "[SEP]", "[UNK]")), ("[MASK]", 0.0)]
    return T.DebertaV2Tokenizer(vocab=pieces, unk_id=3, model_max_length=128, **options)


V3 = {
    "relative_attention": True,
    "position_buckets": 8,  # so that a short text has distances of every kind
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "pooler_hidden_act": "gelu",
}


@case
def deberta(c: Case) -> None:
    """microsoft/deberta-v3-base, with the masked head of transformers."""
    t = c.tok(_deberta_tok())
    c.model("DebertaV2ForMaskedLM", T.DebertaV2Config(**_sizes(t), **V3))
    _golden(c, t, "The [MASK] sees a dog.", LONG)


@case
def deberta_b(c: Case) -> None:
    """The trunk of microsoft/deberta-v2-xlarge: a convolution, and here also positions, segments and a projection."""
    t = c.tok(_deberta_tok(do_lower_case=True))
    options = {**V3, "position_biased_input": True, "type_vocab_size": 2, "conv_kernel_size": 3, "conv_act": "gelu"}
    sizes = _sizes(t, 3, hidden_size=40, num_attention_heads=5, num_hidden_layers=3, embedding_size=24)
    c.model("DebertaV2Model", T.DebertaV2Config(**sizes, **{**options, "position_buckets": 16}))
    _golden(c, t)


@case
def deberta_seqcls(c: Case) -> None:
    """cross-encoder/nli-deberta-v3-base, with matrices for distances of its own and a distance a row."""
    t = c.tok(_deberta_tok())
    options = {**V3, "share_att_key": False, "position_buckets": -1, "max_relative_positions": 20}
    c.model("DebertaV2ForSequenceClassification", T.DebertaV2Config(**_sizes(t), **options, **labels(3)))
    _golden(c, t)


@case
def deberta_ner(c: Case) -> None:
    """Scores of the contents with the distances of keys alone, without a norm over the table."""
    t = c.tok(_deberta_tok())
    options = {**V3, "pos_att_type": ["c2p"], "norm_rel_ebd": "none", "share_att_key": False}
    c.model("DebertaV2ForTokenClassification", T.DebertaV2Config(**_sizes(t, hidden_act="relu"), **options, **NAMES))
    _golden(c, t)


@case
def deberta_qa(c: Case) -> None:
    """The other scores alone, under the new masked head's config; beside the trunk lie heads of the pretraining."""
    t = c.tok(_deberta_tok())
    options = {**V3, "pos_att_type": ["p2c"]}
    c.model("DebertaV2ForQuestionAnswering", T.DebertaV2Config(**_sizes(t), **options))
    _pair(c, t)


@case
def deberta_mask(c: Case) -> None:
    """The paper's masked head, without distances."""
    t = c.tok(_deberta_tok())
    c.model("DebertaV2ForMaskedLM", T.DebertaV2Config(**_sizes(t), legacy=False, pos_att_type=["c2p"]))
    _golden(c, t, "The [MASK] sees a dog.", LONG)
