"""Tiny text models: two configurations of each architecture, unlike in every size and switch."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers as T

from tests.oracle.checkpoints.case import Case, case, labels, named, write_json
from tests.oracle.checkpoints.tokenizers import (
    bert_tok,
    gemma_tok,
    llama3_tok,
    llama_tok,
    qwen_tok,
)

TEXT = (
    "The small cat reads a large red book in the old house, and every teacher knows this: naïve students answer "
    "3 questions before 12:45."
)
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def rope(kind: str, theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **scaling}


def old_spelling(case: Case) -> None:
    """Rewrite config.json as transformers 4 wrote it: rope_theta, rope_scaling, torch_dtype, sliding_window_pattern."""
    path = case.folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    parameters = config.pop("rope_parameters")
    full = dict(parameters.get("full_attention", parameters))
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_scaling"] = full if full["rope_type"] != "default" else None
    if "sliding_attention" in parameters:
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("layer_types").index("full_attention") + 1
    config.pop("layer_types", None)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    write_json(case.folder, "config.json", config)


def text_golden(case: Case, tokenizer: Any, text: Any = TEXT, generate: bool = True, **options: Any) -> None:
    case.golden(dict(tokenizer(text, return_tensors="pt", **options)), GREEDY if generate else None)


# ------------------------------------------------------------------ llama
@case
def llama(c: Case) -> None:
    """meta-llama/Llama-3.2-1B: GQA 4:1, tied, rope_type llama3."""
    t = c.tok(llama3_tok())
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
            },
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
        ),
    )
    e = t("Hello, world! It's 2024.", return_tensors="pt")
    c.golden(dict(e), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": t.eos_token_id})


@case
def llama3_instruct(c: Case) -> None:
    """meta-llama/Meta-Llama-3-8B-Instruct: untied, plain rope 5e5, two eos."""
    t = c.tok(llama3_tok())
    eos = [t.eos_token_id, t.convert_tokens_to_ids("<|eot_id|>")]
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            bos_token_id=t.bos_token_id,
            eos_token_id=eos[0],
            head_dim=16,
        ),
        eos_token_id=eos,
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
    )
    x = t.apply_chat_template(
        [{"role": "user", "content": "Hello, world!"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    c.golden(dict(x), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": t.eos_token_id})


@case
def llama_b(c: Case) -> None:
    """Llama 2 with every bias, head_dim 10 where hidden/heads is 8, linear rope, untied."""
    t = c.tok(llama_tok())
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(
            vocab_size=len(t) + 7,
            hidden_size=48,
            intermediate_size=112,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=10,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            rope_parameters=rope("linear", 10000.0, factor=4.0),
        ),
    )
    old_spelling(c)
    text_golden(c, t)


@case
def llama3_instruct_b(c: Case) -> None:
    """llama3 rope scaling, one key head per query head, tied, chat template."""
    t = c.tok(llama3_tok())
    end = [t.eos_token_id, t.convert_tokens_to_ids("<|eot_id|>")]
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(
            vocab_size=len(t) + 2,
            hidden_size=40,
            intermediate_size=72,
            num_hidden_layers=5,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=12,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters=rope(
                "llama3",
                300000.0,
                factor=8.0,
                high_freq_factor=4.0,
                low_freq_factor=1.0,
                original_max_position_embeddings=32,
            ),
            bos_token_id=t.bos_token_id,
            eos_token_id=end,
        ),
        eos_token_id=end,
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
    )
    old_spelling(c)
    chat = [{"role": "user", "content": "Hello, world! Who reads the red book in the old house?"}]
    ids = t.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    c.golden(dict(ids), {**GREEDY, "pad_token_id": t.eos_token_id})


# ------------------------------------------------------------------ mistral
@case
def mistral_b(c: Case) -> None:
    """Mistral 7B v0.1: sliding window on every layer, here 5 tokens."""
    t = c.tok(llama_tok())
    c.model(
        "MistralForCausalLM",
        T.MistralConfig(
            vocab_size=len(t) + 1,
            hidden_size=60,
            intermediate_size=88,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            sliding_window=5,
            rope_parameters=rope("default", 10000.0),
        ),
    )
    old_spelling(c)
    text_golden(c, t)


@case
def mistral_full(c: Case) -> None:
    """Mistral 7B v0.3: no window, theta 1e6, instruction template."""
    t = llama_tok(("[INST]", "[/INST]"))
    t.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    c.tok(t)
    c.model(
        "MistralForCausalLM",
        T.MistralConfig(
            vocab_size=len(t),
            hidden_size=36,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=1024,
            sliding_window=None,
            rope_parameters=rope("default", 1e6),
        ),
    )
    text_golden(c, t)


# ------------------------------------------------------------------ qwen2
@case
def qwen2(c: Case) -> None:
    """Qwen/Qwen2.5-0.5B: GQA 7:1, qkv bias, tied, theta 1e6."""
    t = c.tok(qwen_tok())
    eot = t.convert_tokens_to_ids("<|endoftext|>")
    c.model(
        "Qwen2ForCausalLM",
        T.Qwen2Config(
            vocab_size=len(t) + 5,
            hidden_size=56,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=32768,
            max_window_layers=3,
            bos_token_id=eot,
            eos_token_id=eot,
        ),
        max_new_tokens=2048,
    )
    c.golden(dict(t("The secret model is", return_tensors="pt")), {"max_new_tokens": 6, "do_sample": False})


@case
def qwen2_seqcls(c: Case) -> None:
    """Qwen2ForSequenceClassification ("text classification with Qwen2.5")."""
    t = c.tok(qwen_tok())
    eot = t.convert_tokens_to_ids("<|endoftext|>")
    c.model(
        "Qwen2ForSequenceClassification",
        T.Qwen2Config(
            vocab_size=len(t),
            hidden_size=56,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=14,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            pad_token_id=eot,
            eos_token_id=eot,
            **labels(3),
        ),
    )
    c.golden(dict(t(["The cat sees a dog.", "Hello"], padding=True, return_tensors="pt")))


@case
def qwen2_b(c: Case) -> None:
    """Qwen2-7B: untied, three query heads per key head."""
    t = c.tok(qwen_tok())
    end = t.convert_tokens_to_ids("<|im_end|>")
    pad = t.convert_tokens_to_ids("<|endoftext|>")
    c.model(
        "Qwen2ForCausalLM",
        T.Qwen2Config(
            vocab_size=len(t) + 4,
            hidden_size=96,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=640,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            use_sliding_window=False,
            sliding_window=64,
            max_window_layers=1,
            rope_parameters=rope("default", 50000.0),
            bos_token_id=pad,
            eos_token_id=end,
        ),
        eos_token_id=[end, pad],
        pad_token_id=pad,
    )
    old_spelling(c)
    text_golden(c, t)


@case
def qwen2_window(c: Case) -> None:
    """use_sliding_window: layers from max_window_layers on see 6 tokens."""
    t = c.tok(qwen_tok())
    end = t.convert_tokens_to_ids("<|im_end|>")
    c.model(
        "Qwen2ForCausalLM",
        T.Qwen2Config(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=6,
            max_window_layers=2,
            rope_parameters=rope("default", 1e6),
            eos_token_id=end,
        ),
    )
    text_golden(c, t)


# ------------------------------------------------------------------ qwen3
def _qwen3(c: Case, tied: bool, bias: bool, old: bool = False) -> Any:
    t = c.tok(qwen_tok(("<think>", "</think>")))
    end = t.convert_tokens_to_ids("<|im_end|>")
    c.model(
        "Qwen3ForCausalLM",
        T.Qwen3Config(
            vocab_size=len(t) + 3,
            hidden_size=40,
            intermediate_size=104,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=14,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            attention_bias=bias,
            use_sliding_window=False,
            rope_parameters=rope("default", 1e6),
            eos_token_id=end,
        ),
    )
    if old:
        old_spelling(c)
    return t


@case
def qwen3_b(c: Case) -> None:
    """Qwen3-0.6B: q and k norms per head, head_dim 14 where hidden/heads is 10, tied."""
    text_golden(c, _qwen3(c, tied=True, bias=False, old=True))


@case
def qwen3_bias(c: Case) -> None:
    """attention_bias on all four projections, untied."""
    text_golden(c, _qwen3(c, tied=False, bias=True))


@case
def qwen3_sharded(c: Case) -> None:
    """Stored as bfloat16 in shards with an index; the golden output is float32."""
    t = _qwen3(c, tied=False, bias=False)
    (c.folder / "model.safetensors").unlink()
    for parameter in c.m.parameters():  # not the module: that would round the rotary frequencies as well
        parameter.data = parameter.data.to(torch.bfloat16)
    c.m.save_pretrained(c.folder, max_shard_size="60KB")
    c.m.float()
    text_golden(c, t)


# ------------------------------------------------------------------ gemma2
def _gemma2(c: Case, scalar: int) -> None:
    t = c.tok(gemma_tok())
    c.model(
        "Gemma2ForCausalLM",
        T.Gemma2Config(
            vocab_size=len(t) + 5,
            hidden_size=72,
            intermediate_size=104,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=20,
            query_pre_attn_scalar=scalar,
            sliding_window=5,
            rms_norm_eps=1e-5,
            max_position_embeddings=300,
            final_logit_softcapping=4.0,
            attn_logit_softcapping=1.5,
            rope_parameters=rope("default", 20000.0),
        ),
    )
    old_spelling(c)
    text_golden(c, t)


@case
def gemma2(c: Case) -> None:
    """google/gemma-2-2b: 5 norms, soft-caps, alternating sliding window, query_pre_attn_scalar, sqrt(d) embed scale."""
    t = c.tok(gemma_tok())
    c.model(
        "Gemma2ForCausalLM",
        T.Gemma2Config(
            vocab_size=len(t),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,
            max_position_embeddings=8192,
            final_logit_softcapping=3.0,
            attn_logit_softcapping=2.0,
        ),
    )
    c.golden(
        dict(t("The small cat reads a large red book in the old house.", return_tensors="pt")),
        {"max_new_tokens": 6, "do_sample": False},
    )


@case
def gemma2_tokcls(c: Case) -> None:
    """Gemma2ForTokenClassification ("named entity recognition with Gemma")."""
    t = c.tok(gemma_tok())
    c.model(
        "Gemma2ForTokenClassification",
        T.Gemma2Config(
            vocab_size=len(t),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,
            **named("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
        ),
    )
    c.golden(dict(t("The small cat reads a book in the old house.", return_tensors="pt")))


@case
def gemma2_b(c: Case) -> None:
    """An odd number of layers, window 5, other soft-caps."""
    _gemma2(c, scalar=20)


@case
def gemma2_scalar(c: Case) -> None:
    """query_pre_attn_scalar that is not head_dim, as in the 27B."""
    _gemma2(c, scalar=12)


# ------------------------------------------------------------------ gemma3
@case
def gemma3_b(c: Case) -> None:
    """Gemma 3 text: 5 local layers per global one, two bases, linear scaling on the global ones."""
    t = gemma_tok(640)
    t.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim + "
        "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    )
    c.tok(t)
    c.model(
        "Gemma3ForCausalLM",
        T.Gemma3TextConfig(
            vocab_size=len(t) + 1,
            hidden_size=44,
            intermediate_size=76,
            num_hidden_layers=7,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,
            max_position_embeddings=512,
            rope_parameters={
                "full_attention": rope("linear", 1e6, factor=8.0),
                "sliding_attention": rope("default", 1e4),
            },
        ),
    )
    old_spelling(c)
    text_golden(c, t)


@case
def gemma3_new(c: Case) -> None:
    """The newer spelling: layer_types and nested rope_parameters, nothing scaled."""
    t = c.tok(gemma_tok())
    c.model(
        "Gemma3ForCausalLM",
        T.Gemma3TextConfig(
            vocab_size=len(t),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=24,
            query_pre_attn_scalar=24,
            sliding_window=4,
            max_position_embeddings=512,
            rope_parameters={"full_attention": rope("default", 5e5), "sliding_attention": rope("default", 2e4)},
        ),
    )
    text_golden(c, t)


# ------------------------------------------------------------------ bert
def _bert(**options: Any) -> T.BertConfig:
    sizes = {"hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 5, "intermediate_size": 72}
    return T.BertConfig(**{**sizes, "max_position_embeddings": 130, "layer_norm_eps": 1e-5, **options})


@case
def bert(c: Case) -> None:
    """bert-base-uncased MLM."""
    t = c.tok(bert_tok())
    c.model(
        "BertForMaskedLM",
        T.BertConfig(
            vocab_size=len(t),
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=512,
        ),
    )
    c.golden(dict(t(["The [MASK] sees a dog.", "Hello"], padding=True, return_tensors="pt")))


@case
def bert_ner(c: Case) -> None:
    """dbmdz/bert-large-cased-finetuned-conll03-english."""
    t = c.tok(bert_tok(do_lower_case=False))
    c.model(
        "BertForTokenClassification",
        T.BertConfig(
            vocab_size=len(t),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            **named("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
        ),
    )
    c.golden(dict(t("Hello, world! The teacher opens a window.", return_tensors="pt")))


@case
def bert_seqcls(c: Case) -> None:
    t = c.tok(bert_tok())
    c.model(
        "BertForSequenceClassification",
        T.BertConfig(
            vocab_size=len(t),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            **labels(2),
        ),
    )
    c.golden(dict(t("The cat", "a dog reads", return_tensors="pt")))


@case
def bert_qa(c: Case) -> None:
    t = c.tok(bert_tok())
    c.model(
        "BertForQuestionAnswering",
        T.BertConfig(
            vocab_size=len(t), hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        ),
    )
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))


@case
def bert_b(c: Case) -> None:
    """Masked LM, cased, relu, newer LayerNorm.weight spelling, three token types."""
    t = c.tok(bert_tok(do_lower_case=False))
    c.model("BertForMaskedLM", _bert(vocab_size=len(t) + 3, hidden_act="relu", type_vocab_size=3))
    text_golden(c, t, ["The [MASK] sees a dog.", "Hello"], generate=False, padding=True)


@case
def bert_ner_b(c: Case) -> None:
    t = c.tok(bert_tok(do_lower_case=False))
    names = named("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    c.model("BertForTokenClassification", _bert(vocab_size=len(t), hidden_size=60, num_hidden_layers=3, **names))
    text_golden(c, t, ["Hello, world! The teacher opens a window.", "Où est la gare?"], generate=False, padding=True)


@case
def bert_seqcls_b(c: Case) -> None:
    """Three labels, gelu_new."""
    t = c.tok(bert_tok())
    c.model("BertForSequenceClassification", _bert(vocab_size=len(t) + 1, hidden_act="gelu_new", **labels(3)))
    text_golden(c, t, ["The cat sees a dog.", "Hello"], generate=False, padding=True)


@case
def bert_qa_b(c: Case) -> None:
    t = c.tok(bert_tok())
    c.model("BertForQuestionAnswering", _bert(vocab_size=len(t), num_attention_heads=2, num_hidden_layers=3))
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))


@case
def bert_embed(c: Case) -> None:
    """Base model with pooler, as sentence-transformers stores it: mean pooling, normalized."""
    t = c.tok(bert_tok())
    c.model("BertModel", _bert(vocab_size=len(t), intermediate_size=64))
    library = "sentence_transformers.models."
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        c.folder,
        "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": library + kind} for i, (path, kind) in enumerate(parts)],
    )
    write_json(c.folder, "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    (c.folder / "1_Pooling").mkdir()
    (c.folder / "2_Normalize").mkdir()
    write_json(
        c.folder / "1_Pooling",
        "config.json",
        {
            "word_embedding_dimension": 40,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    text_golden(c, t, ["The cat sees a dog.", "Hello"], generate=False, padding=True)


# ------------------------------------------------------------------ distilbert
def _distilbert(**options: Any) -> Any:
    return T.DistilBertConfig(**{"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, **options})


@case
def distilbert(c: Case) -> None:
    """distilbert/distilbert-base-uncased."""
    t = c.tok(bert_tok(), "DistilBertTokenizer")
    c.model("DistilBertForMaskedLM", _distilbert(vocab_size=len(t)))
    text_golden(c, t, ["The [MASK] sees a dog.", "Hello"], generate=False, padding=True, return_token_type_ids=False)


@case
def distilbert_b(c: Case) -> None:
    """Sinusoids as positions, cased, relu, other sizes, a stored projection of the vocabulary."""
    t = c.tok(bert_tok(do_lower_case=False), "DistilBertTokenizer")
    sizes = {"dim": 40, "n_layers": 4, "n_heads": 5, "hidden_dim": 72, "max_position_embeddings": 130}
    config = _distilbert(vocab_size=len(t) + 3, sinusoidal_pos_embds=True, activation="relu", **sizes)
    config.tie_word_embeddings = False
    c.model("DistilBertForMaskedLM", config)
    text_golden(c, t, ["The [MASK] sees a dog.", "Hello"], generate=False, padding=True, return_token_type_ids=False)


@case
def distilbert_seqcls(c: Case) -> None:
    """distilbert/distilbert-base-uncased-finetuned-sst-2-english."""
    t = c.tok(bert_tok(), "DistilBertTokenizer")
    c.model(
        "DistilBertForSequenceClassification",
        _distilbert(vocab_size=len(t), n_layers=2, **named("NEGATIVE", "POSITIVE")),
    )
    text_golden(c, t, ["The cat sees a dog.", "Hello"], generate=False, padding=True, return_token_type_ids=False)


@case
def distilbert_qa(c: Case) -> None:
    """distilbert/distilbert-base-cased-distilled-squad."""
    t = c.tok(bert_tok(do_lower_case=False), "DistilBertTokenizer")
    c.model("DistilBertForQuestionAnswering", _distilbert(vocab_size=len(t), n_layers=2))
    c.golden(
        dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt", return_token_type_ids=False)),
    )


@case
def distilbert_ner(c: Case) -> None:
    """Another number of heads and of labels than the base model."""
    t = c.tok(bert_tok(do_lower_case=False), "DistilBertTokenizer")
    names = named("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    c.model("DistilBertForTokenClassification", _distilbert(vocab_size=len(t), dim=60, n_heads=3, n_layers=2, **names))
    text_golden(
        c, t, ["The teacher opens a window.", "Hello"], generate=False, padding=True, return_token_type_ids=False
    )


@case
def distilbert_base(c: Case) -> None:
    """The model without a head."""
    t = c.tok(bert_tok(), "DistilBertTokenizer")
    c.model("DistilBertModel", _distilbert(vocab_size=len(t) + 1, n_layers=2, hidden_dim=80))
    text_golden(c, t, ["The cat sees a dog.", "Hello"], generate=False, padding=True, return_token_type_ids=False)
