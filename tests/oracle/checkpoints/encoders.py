"""Tiny RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and ALBERT: one head each, unlike in sizes and switches."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import Case, case, labels, named
from tests.oracle.checkpoints.text import text_golden
from tests.oracle.checkpoints.tokenizers import bert_tok, roberta_tok, unigram

PAIR = ["The <mask> sees a dog.", "Hello"]
NAMES = named("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def _sizes(t: Any, more: int = 0, **options: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return {"vocab_size": len(t) + more, "max_position_embeddings": 130, **sizes, **options}


def _golden(c: Case, t: Any, texts: list[str] | None = None) -> None:
    text_golden(c, t, texts or ["The teacher opens a window.", "Hello"], generate=False, padding=True)


# ------------------------------------------------------------------ roberta
def _roberta(t: Any, more: int = 0, **options: Any) -> dict[str, Any]:
    ids = {"bos_token_id": t.bos_token_id, "pad_token_id": t.pad_token_id, "eos_token_id": t.eos_token_id}
    return _sizes(t, more, **{"type_vocab_size": 1, "layer_norm_eps": 1e-5, **ids, **options})


def _xlm_tok() -> Any:
    pieces = [*unigram(420, ("<s>", "<pad>", "</s>", "<unk>")), ("<mask>", 0.0)]
    return T.XLMRobertaTokenizer(vocab=pieces, model_max_length=512)


def _camembert_tok() -> Any:
    specials = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
    return T.CamembertTokenizer(vocab=[*unigram(380, specials), ("<mask>", 0.0)], model_max_length=512)


@case
def roberta(c: Case) -> None:
    """FacebookAI/roberta-base."""
    t = c.tok(roberta_tok())
    c.model("RobertaForMaskedLM", T.RobertaConfig(**_roberta(t)))
    _golden(c, t, PAIR)


@case
def roberta_seqcls(c: Case) -> None:
    """FacebookAI/roberta-large-mnli, with two segments and a GELU by tanh."""
    t = c.tok(roberta_tok())
    sizes = _roberta(t, 2, num_attention_heads=2, intermediate_size=64, type_vocab_size=2, hidden_act="gelu_new")
    c.model("RobertaForSequenceClassification", T.RobertaConfig(**sizes, **labels(3)))
    _golden(c, t)


@case
def xlm_roberta_b(c: Case) -> None:
    """FacebookAI/xlm-roberta-base without a head, in another shape."""
    t = c.tok(_xlm_tok())
    sizes = _roberta(t, 3, hidden_size=40, num_attention_heads=5, num_hidden_layers=3, intermediate_size=64)
    c.model("XLMRobertaModel", T.XLMRobertaConfig(**sizes))
    _golden(c, t)


@case
def xlm_roberta_qa(c: Case) -> None:
    """deepset/xlm-roberta-base-squad2."""
    t = c.tok(_xlm_tok())
    c.model("XLMRobertaForQuestionAnswering", T.XLMRobertaConfig(**_roberta(t)))
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))


@case
def camembert_ner(c: Case) -> None:
    """Jean-Baptiste/camembert-ner: relu, positions of another number."""
    t = c.tok(_camembert_tok())
    sizes = _roberta(t, hidden_act="relu", max_position_embeddings=90)
    c.model("CamembertForTokenClassification", T.CamembertConfig(**sizes, **NAMES))
    _golden(c, t)


# ------------------------------------------------------------------ electra
@case
def electra(c: Case) -> None:
    """google/electra-small-generator."""
    t = c.tok(bert_tok(), "ElectraTokenizer")
    c.model("ElectraForMaskedLM", T.ElectraConfig(**_sizes(t, embedding_size=20, hidden_act="relu")))
    _golden(c, t, ["The [MASK] sees a dog.", "Hello"])


@case
def electra_b(c: Case) -> None:
    """The trunk of google/electra-base-discriminator: embeddings as wide as the layers."""
    t = c.tok(bert_tok(do_lower_case=False), "ElectraTokenizer")
    sizes = _sizes(t, 2, embedding_size=40, hidden_size=40, num_attention_heads=5, num_hidden_layers=3)
    c.model("ElectraModel", T.ElectraConfig(**sizes, type_vocab_size=3, layer_norm_eps=1e-6))
    _golden(c, t)


@case
def electra_seqcls(c: Case) -> None:
    t = c.tok(bert_tok(), "ElectraTokenizer")
    c.model("ElectraForSequenceClassification", T.ElectraConfig(**_sizes(t, embedding_size=20), **labels(2)))
    _golden(c, t)


@case
def electra_ner(c: Case) -> None:
    t = c.tok(bert_tok(do_lower_case=False), "ElectraTokenizer")
    c.model("ElectraForTokenClassification", T.ElectraConfig(**_sizes(t, embedding_size=20), **NAMES))
    _golden(c, t)


@case
def electra_qa(c: Case) -> None:
    t = c.tok(bert_tok(), "ElectraTokenizer")
    c.model("ElectraForQuestionAnswering", T.ElectraConfig(**_sizes(t, embedding_size=20)))
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))


# ------------------------------------------------------------------ albert
def _albert_tok(**options: Any) -> Any:
    pieces = unigram(400, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))
    return T.AlbertTokenizer(vocab=pieces, model_max_length=512, **options)


def _albert(t: Any, more: int = 0, **options: Any) -> dict[str, Any]:
    return _sizes(t, more, **{"embedding_size": 20, "num_hidden_layers": 4, **options})


@case
def albert(c: Case) -> None:
    """albert/albert-base-v2: one layer that runs four times."""
    t = c.tok(_albert_tok())
    c.model("AlbertForMaskedLM", T.AlbertConfig(**_albert(t)))
    _golden(c, t, ["The [MASK] sees a dog.", "Hello"])


@case
def albert_b(c: Case) -> None:
    """Three groups of two layers over seven runs, embeddings as wide as the layers, the trunk with its pooler."""
    t = c.tok(_albert_tok(do_lower_case=False, keep_accents=True))
    sizes = {"embedding_size": 40, "hidden_size": 40, "num_attention_heads": 5, "hidden_act": "gelu"}
    groups = {"num_hidden_layers": 7, "num_hidden_groups": 3, "inner_group_num": 2}
    c.model("AlbertModel", T.AlbertConfig(**_albert(t, 3, **sizes, **groups, type_vocab_size=3)))
    _golden(c, t)


@case
def albert_seqcls(c: Case) -> None:
    t = c.tok(_albert_tok())
    c.model("AlbertForSequenceClassification", T.AlbertConfig(**_albert(t), **labels(2)))
    _golden(c, t)


@case
def albert_ner(c: Case) -> None:
    t = c.tok(_albert_tok())
    c.model("AlbertForTokenClassification", T.AlbertConfig(**_albert(t, num_hidden_groups=2), **NAMES))
    _golden(c, t)


@case
def albert_qa(c: Case) -> None:
    t = c.tok(_albert_tok())
    c.model("AlbertForQuestionAnswering", T.AlbertConfig(**_albert(t, hidden_size=24, num_attention_heads=2)))
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))
