"""Tiny ModernBERT: one head each, unlike in sizes, windows, biases and spelling."""

from __future__ import annotations

import json
from typing import Any

import transformers as T
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.oracle.checkpoints.case import Case, case, labels, named, write_json
from tests.oracle.checkpoints.text import rope, text_golden
from tests.oracle.checkpoints.tokenizers import byte_level

NAMES = named("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LONG = "The teacher opens a window and the small cat sees a river in the old house."
KINDS = ("full_attention", "sliding_attention")


def _tok() -> Any:
    sp = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    v, m = byte_level(450)
    tok = Tokenizer(models.BPE(vocab=v, merges=m))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(x, special=True, normalized=False, lstrip=(x == "[MASK]")) for x in sp])
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(x, tok.token_to_id(x)) for x in ("[CLS]", "[SEP]")],
    )
    return T.PreTrainedTokenizerFast(
        tokenizer_object=tok,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=8192,
        model_input_names=["input_ids", "attention_mask"],
    )


def _ropes(full: Any, windowed: Any) -> dict[str, Any]:
    return dict(zip(KINDS, (full, windowed), strict=True))


def _config(t: Any, more: int = 0, every: int = 3, **options: Any) -> Any:
    i = t.convert_tokens_to_ids
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}
    settings = {**sizes, "local_attention": 8, **options}
    ropes = settings.pop("rope_parameters", _ropes(rope("default", 160000.0), rope("default", 10000.0)))
    return T.ModernBertConfig(
        vocab_size=len(t) + more,
        pad_token_id=i("[PAD]"),
        bos_token_id=i("[CLS]"),
        cls_token_id=i("[CLS]"),
        eos_token_id=i("[SEP]"),
        sep_token_id=i("[SEP]"),
        layer_types=[KINDS[k % every != 0] for k in range(settings["num_hidden_layers"])],
        rope_parameters=ropes,
        **settings,
    )


def _first_release(c: Case) -> None:
    """config.json as transformers 4.48 wrote it: thetas and the layers' period as keys of their own."""
    path = c.folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kinds, parameters = config.pop("layer_types"), config.pop("rope_parameters")
    full, windowed = (parameters[kind] for kind in KINDS)
    assert full["rope_type"] == windowed["rope_type"]
    config |= {
        "global_attn_every_n_layers": kinds.index("full_attention", 1),
        "global_rope_theta": full["rope_theta"],
        "local_rope_theta": windowed["rope_theta"],
        "layer_norm_eps": 1e-05,
        "position_embedding_type": "absolute",
        "reference_compile": None,
        "torch_dtype": config.pop("dtype"),
        "transformers_version": "4.48.0",
    }
    if full["rope_type"] != "default":
        config["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"}
    write_json(c.folder, "config.json", config)


def _golden(c: Case, t: Any, *texts: str) -> None:
    text_golden(c, t, list(texts) or [LONG, "Hello"], generate=False, padding=True)


@case
def modernbert(c: Case) -> None:
    """answerdotai/ModernBERT-base: every third layer global, two rope thetas, GeGLU, no biases, no first norm."""
    t = c.tok(_tok())
    c.model("ModernBertForMaskedLM", _config(t))
    _golden(c, t, "The [MASK] sees a beautiful dog in the old garden.", "Hello")


@case
def modernbert_b(c: Case) -> None:
    """The trunk of nomic-ai/modernbert-embed-base in another shape: biases, scaled positions, the first spelling."""
    t = c.tok(_tok())
    ropes = _ropes(rope("linear", 3000.0, factor=2.0), rope("linear", 500.0, factor=2.0))
    biases = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-6}
    sizes = {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 4, "intermediate_size": 56}
    settings = {**sizes, **biases, "local_attention": 6, "hidden_activation": "gelu_pytorch_tanh"}
    c.model("ModernBertModel", _config(t, 3, 2, **settings, rope_parameters=ropes))
    _first_release(c)
    _golden(c, t)


@case
def modernbert_mask(c: Case) -> None:
    """A masked head of its own, without a bias on the vocabulary and with one before it."""
    t = c.tok(_tok())
    settings = {"decoder_bias": False, "classifier_bias": True, "tie_word_embeddings": False, "norm_bias": True}
    c.model("ModernBertForMaskedLM", _config(t, 2, num_hidden_layers=3, classifier_activation="silu", **settings))
    _golden(c, t, "The [MASK] sees a dog.", LONG)


@case
def modernbert_seqcls(c: Case) -> None:
    """A reranker or classifier over the mean of the states, as answerdotai/ModernBERT-base pools; first spelling."""
    t = c.tok(_tok())
    c.model("ModernBertForSequenceClassification", _config(t, classifier_pooling="mean", **labels(3)))
    _first_release(c)
    _golden(c, t)


@case
def modernbert_cls(c: Case) -> None:
    """A classifier over the first token, in windows of an odd size."""
    t = c.tok(_tok())
    settings = {"local_attention": 5, "num_hidden_layers": 4, "hidden_size": 32, "classifier_bias": True}
    c.model("ModernBertForSequenceClassification", _config(t, 1, **settings, **labels(2)))
    _golden(c, t)


@case
def modernbert_ner(c: Case) -> None:
    t = c.tok(_tok())
    c.model("ModernBertForTokenClassification", _config(t, num_hidden_layers=4, **NAMES))
    _golden(c, t)


@case
def modernbert_qa(c: Case) -> None:
    t = c.tok(_tok())
    c.model("ModernBertForQuestionAnswering", _config(t, num_hidden_layers=4, num_attention_heads=3))
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))
