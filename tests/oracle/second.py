"""A second, differently shaped configuration of each text family, in the manner of make_tiny.py.

    python second.py OUT_DIR [NAME ...]        NAME: a case of this file (default: all of them) or of make_tiny.py

Every width, depth and vocabulary differs from the first set, and so do the switches: head_dim is not hidden/heads,
biases, tied and untied heads, linear and llama3 rope scaling, short windows, stored dtype and shards. About half of
them are written in the older spelling of config.json (rope_theta, rope_scaling, torch_dtype), as most checkpoints on
the Hub are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import make_tiny as M
import second_audio  # noqa: F401  its cases register themselves
import second_blip  # noqa: F401
import second_vision  # noqa: F401
import torch
import transformers as T

TEXT = (
    "The small cat reads a large red book in the old house, and every teacher knows this: naïve students answer "
    "3 questions before 12:45."
)
GREEDY = {"max_new_tokens": 8, "do_sample": False}
RELOADED = 1e-6  # of outputs of order 1: a mapped file's weights may be aligned otherwise, and take another kernel
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")


def rope(kind: str, theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **scaling}


def old_spelling(case: Any) -> None:
    """Rewrite config.json as transformers 4 wrote it: rope_theta, rope_scaling, torch_dtype, sliding_window_pattern."""
    path = Path(case.dir) / "config.json"
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
    M.jdump(case.dir, "config.json", config)


def golden(case: Any, tokenizer: Any, text: Any = TEXT, generate: bool = True, **options: Any) -> None:
    case.golden(dict(tokenizer(text, return_tensors="pt", **options)), GREEDY if generate else None)


# ------------------------------------------------------------------ llama and mistral
@M.case
def llama_b(c: Any) -> None:  # Llama 2 with every bias, head_dim 10 where hidden/heads is 8, linear rope, untied
    t = c.tok(M.llama_tok())
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
    golden(c, t)


@M.case
def llama3_instruct_b(c: Any) -> None:  # llama3 rope scaling, one key head per query head, tied, chat template
    t = c.tok(M.llama3_tok())
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


@M.case
def mistral_b(c: Any) -> None:  # Mistral 7B v0.1: sliding window on every layer, here 5 tokens
    t = c.tok(M.llama_tok())
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
    golden(c, t)


@M.case
def mistral_full(c: Any) -> None:  # Mistral 7B v0.3: no window, theta 1e6, instruction template
    t = M.llama_tok(("[INST]", "[/INST]"))
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
    golden(c, t)


# ------------------------------------------------------------------ qwen2 and qwen3
@M.case
def qwen2_b(c: Any) -> None:  # Qwen2-7B: untied, three query heads per key head
    t = c.tok(M.qwen_tok())
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
    golden(c, t)


@M.case
def qwen2_window(c: Any) -> None:  # use_sliding_window: layers from max_window_layers on see 6 tokens
    t = c.tok(M.qwen_tok())
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
    golden(c, t)


def _qwen3(c: Any, tied: bool, bias: bool, old: bool = False) -> Any:
    t = c.tok(M.qwen_tok(("<think>", "</think>")))
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


@M.case
def qwen3_b(c: Any) -> None:  # Qwen3-0.6B: q and k norms per head, head_dim 14 where hidden/heads is 10, tied
    golden(c, _qwen3(c, tied=True, bias=False, old=True))


@M.case
def qwen3_bias(c: Any) -> None:  # attention_bias on all four projections, untied
    golden(c, _qwen3(c, tied=False, bias=True))


@M.case
def qwen3_sharded(c: Any) -> None:  # stored as bfloat16 in shards with an index; the golden output is float32
    t = _qwen3(c, tied=False, bias=False)
    (Path(c.dir) / "model.safetensors").unlink()
    for parameter in c.m.parameters():  # not the module: that would round the rotary frequencies as well
        parameter.data = parameter.data.to(torch.bfloat16)
    c.m.save_pretrained(c.dir, max_shard_size="60KB")
    c.m.float()
    golden(c, t)


# ------------------------------------------------------------------ gemma2 and gemma3
def _gemma2(c: Any, scalar: int) -> None:
    vocab, merges = M.bpe_spm(620, GEMMA)
    t = c.tok(T.GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True))
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
    golden(c, t)


@M.case
def gemma2_b(c: Any) -> None:  # an odd number of layers, window 5, other soft-caps
    _gemma2(c, scalar=20)


@M.case
def gemma2_scalar(c: Any) -> None:  # query_pre_attn_scalar that is not head_dim, as in the 27B
    _gemma2(c, scalar=12)


@M.case
def gemma3_b(
    c: Any,
) -> None:  # Gemma 3 text: 5 local layers per global one, two bases, linear scaling on the global ones
    vocab, merges = M.bpe_spm(640, GEMMA)
    t = M.T.GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
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
    golden(c, t)


@M.case
def gemma3_new(c: Any) -> None:  # the newer spelling: layer_types and nested rope_parameters, nothing scaled
    vocab, merges = M.bpe_spm(620, GEMMA)
    t = c.tok(M.T.GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True))
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
    golden(c, t)


# ------------------------------------------------------------------ bert
def _bert(**options: Any) -> T.BertConfig:
    sizes = {"hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 5, "intermediate_size": 72}
    return T.BertConfig(**{**sizes, "max_position_embeddings": 130, "layer_norm_eps": 1e-5, **options})


@M.case
def bert_b(c: Any) -> None:  # masked LM, cased, relu, newer LayerNorm.weight spelling, three token types
    t = c.tok(M.bert_tok(do_lower_case=False))
    c.model("BertForMaskedLM", _bert(vocab_size=len(t) + 3, hidden_act="relu", type_vocab_size=3))
    golden(c, t, ["The [MASK] sees a dog.", "Hello"], generate=False, padding=True)


@M.case
def bert_ner_b(c: Any) -> None:
    t = c.tok(M.bert_tok(do_lower_case=False))
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    c.model("BertForTokenClassification", _bert(vocab_size=len(t), hidden_size=60, num_hidden_layers=3, **labels))
    golden(c, t, ["Hello, world! The teacher opens a window.", "Où est la gare?"], generate=False, padding=True)


@M.case
def bert_seqcls_b(c: Any) -> None:  # three labels, gelu_new
    t = c.tok(M.bert_tok())
    c.model("BertForSequenceClassification", _bert(vocab_size=len(t) + 1, hidden_act="gelu_new", **M.labels(3)))
    golden(c, t, ["The cat sees a dog.", "Hello"], generate=False, padding=True)


@M.case
def bert_qa_b(c: Any) -> None:
    t = c.tok(M.bert_tok())
    c.model("BertForQuestionAnswering", _bert(vocab_size=len(t), num_attention_heads=2, num_hidden_layers=3))
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))


@M.case
def bert_embed(c: Any) -> None:  # base model with pooler, as sentence-transformers stores it: mean pooling, normalized
    t = c.tok(M.bert_tok())
    c.model("BertModel", _bert(vocab_size=len(t), intermediate_size=64))
    library = "sentence_transformers.models."
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    M.jdump(
        c.dir,
        "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": library + kind} for i, (path, kind) in enumerate(parts)],
    )
    M.jdump(c.dir, "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    (Path(c.dir) / "1_Pooling").mkdir()
    (Path(c.dir) / "2_Normalize").mkdir()
    M.jdump(
        c.dir + "/1_Pooling",
        "config.json",
        {
            "word_embedding_dimension": 40,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    golden(c, t, ["The cat sees a dog.", "Hello"], generate=False, padding=True)


def main(out: str, *names: str) -> None:
    """Write the named cases (all of this file's by default); stop at the first that does not survive a reload."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name in names or [n for n, make in M.CASES.items() if make.__module__ == __name__]:
        case = M.Case(name, out)
        M.CASES[name](case)
        info = case.info
        if info["reload_maxdiff"] > RELOADED or "load_issues" in info or "nan" in info:
            raise SystemExit(f"{name} is not a sound checkpoint: {info}")
        print(f"{name:18s} {info['arch']:32s} {info['params']:>8d} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
