"""config.json and generation_config.json as people have them: keys that nobody reads, -1 for none, rotary scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isoform as package
from tests.field.making import copied, isoform, keys, refused
from tests.oracle import tiny

IDS = torch.arange(5, 45).view(1, -1)


def logits_of_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32")(IDS).logits


def logits(folder: Path) -> Any:
    with torch.no_grad():
        return package.load(str(folder))(IDS)[0]


def is_transformers(folder: Path, *, changed: Path | None = None) -> None:
    """The logits are those of transformers, and others than those of `changed`."""
    ours = logits(folder)
    torch.testing.assert_close(ours, logits_of_transformers(folder).view_as(ours), atol=2e-4, rtol=1e-4)
    assert changed is None or (ours - logits(changed)).abs().max() > 1e-2


# ------------------------------------------------------------------ a key that changes the numbers and is not read
@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("qwen2", "is_causal", False, "is_causal is false"),
        ("qwen3_b", "is_causal", False, "is_causal is false"),
        ("llama", "is_causal", False, "is_causal is false"),
        ("llava", "text_config__is_causal", False, "text_config.is_causal is false"),
        ("clip", "text_config__is_causal", False, "text_config.is_causal = false"),
        ("gemma2", "use_bidirectional_attention", True, "use_bidirectional_attention is true"),
        ("llama", "attn_logit_softcapping", 50.0, "attn_logit_softcapping = 50.0"),
        ("llama", "rope_interleaved", True, "rope_interleaved is true"),
        ("bert_seqcls", "hidden_activation", "relu", 'hidden_activation = "relu"'),
        ("gemma_b", "hidden_activation", "relu", 'hidden_activation is "relu"'),
        ("qwen2", "layer_types", ["full_attention"] * 2 + ["linear_attention"], "'linear_attention'"),
        ("qwen2", "layer_types", ["full_attention"] * 2, "layer_types has 2 entries for 3 layers"),
        ("qwen2", "layer_types", ["sliding_attention"] * 3, "no sliding window is switched on"),
    ],
)
def test_a_key_that_changes_the_numbers_is_refused_by_name(
    name: str, key: str, value: Any, said: str, tmp_path: Path
) -> None:
    folder = copied(name, tmp_path, keys("config.json", **{key: value}))
    assert said in refused("export", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "values", "moves"),
    [
        ("llama", {"is_causal": True}, False),
        ("llama", {"sliding_window": 4}, False),  # of this class transformers reads none
        ("gemma2", {"hidden_act": "relu"}, False),
        ("gemma2", {"hidden_activation": "relu"}, True),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4, "use_sliding_window": True}, True),
    ],
)
def test_a_key_that_is_read_or_harmless_gives_transformers_numbers(
    name: str, values: dict[str, Any], moves: bool, tmp_path: Path
) -> None:
    is_transformers(copied(name, tmp_path, keys("config.json", **values)), changed=tiny(name) if moves else None)


# ------------------------------------------------------------------ a value that means "none"
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "values",
    [
        {"pad_token_id": -1},
        {"pad_token_id": None},
        {"eos_token_id": -1},
        {"eos_token_id": [-1]},
        {"eos_token_id": [2, -1]},
        {"bos_token_id": -1},
    ],
)
def test_minus_one_is_no_token(file: str, values: dict[str, Any], tmp_path: Path) -> None:
    none = {key: 2 if isinstance(value, list) and 2 in value else None for key, value in values.items()}
    answers = []
    for n, each in enumerate((values, none)):
        folder = copied("llama_b", tmp_path / str(n), keys(file, **each))
        with package.pipeline("text-generation", str(folder)) as pipe:
            answers.append(pipe(["Hello the", "x"], max_new_tokens=4, do_sample=False))
    assert answers[0] == answers[1]


def test_minus_one_is_no_padding_token_of_a_classifier(tmp_path: Path) -> None:
    folder = copied("qwen2_seqcls", tmp_path, keys("config.json", pad_token_id=-1))
    with (
        package.pipeline("text-classification", str(folder)) as pipe,
        package.pipeline("text-classification", str(tiny("qwen2_seqcls"))) as before,
    ):
        assert pipe(["a b c", "x"]) == before(["a b c", "x"])


def test_a_token_that_must_be_there_is_named_with_its_file(tmp_path: Path) -> None:
    folder = copied("whisper", tmp_path, keys("generation_config.json", decoder_start_token_id=-1))
    sound = tmp_path / "a.wav"
    _write_sound(sound)
    said = refused("run", "automatic-speech-recognition", folder, sound)
    assert "generation_config.json: decoder_start_token_id is -1" in said
    folder = copied("moonshine", tmp_path, keys("generation_config.json", decoder_start_token_id=2**31))
    assert "decoder_start_token_id is 2147483648" in refused("run", "automatic-speech-recognition", folder, sound)


def _write_sound(path: Path) -> None:
    import soundfile

    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)


# ------------------------------------------------------------------ rotary scaling, beyond the original length
YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LONG = {
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + n for n in range(8)],
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
SCALING: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", **YARN},
    "yarn, its own attention factor": {"rope_type": "yarn", **YARN, "attention_factor": 1.7},
    "yarn, betas and mscale": {
        "rope_type": "yarn",
        **YARN,
        "beta_fast": 20,
        "beta_slow": 2,
        "mscale": 0.9,
        "mscale_all_dim": 0.4,
    },
    "yarn, not truncated": {"rope_type": "yarn", **YARN, "truncate": False},
    "yarn, the old name of the kind": {"type": "yarn", **YARN},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "longrope": {"rope_type": "longrope", **LONG},
    "longrope with a factor": {"rope_type": "longrope", **LONG, "factor": 4.0},
    "a part of each head": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", SCALING)
def test_rotary_scaling_is_transformers_beyond_the_original_length(kind: str, spelling: str, tmp_path: Path) -> None:
    name = "phi4_mini" if "part" in kind else "llama"
    scaling = dict(SCALING[kind])
    head = json.loads((tiny(name) / "config.json").read_text())
    size = head.get("head_dim") or head["hidden_size"] // head["num_attention_heads"]
    for factor in ("short_factor", "long_factor"):
        if factor in scaling:
            scaling[factor] = (scaling[factor] * size)[: size // 2]
    values: dict[str, Any] = {"rope_parameters": None, "rope_scaling": None, "max_position_embeddings": 64}
    if spelling == "rope_scaling":
        values["rope_theta"] = scaling.pop("rope_theta")
        if "partial_rotary_factor" in scaling:
            values["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    if scaling.get("rope_type") == "dynamic":
        values["max_position_embeddings"] = 16
    folder = copied(name, tmp_path, keys("config.json", **values | {spelling: scaling}))
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    is_transformers(folder)


def test_a_rotary_setting_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path, keys("config.json", rope_parameters={"rope_type": "default", "swirl": 3}))
    assert "rope_parameters.swirl is 3" in refused("export", folder, "--out", tmp_path / "out")
    folder = copied("qwen2", tmp_path, keys("config.json", rope_scaling={"type": "su", "factor": 2.0}))
    assert "rotary scaling 'su'" in refused("run", "text-generation", folder, "x")


def test_rotary_scaling_reaches_the_gguf_file_and_the_cache(tmp_path: Path) -> None:
    import gguf

    folder, out = copied("llama", tmp_path, keys("config.json", rope_parameters=SCALING["yarn"])), tmp_path / "out"
    assert isoform("export", folder, "--to", "gguf", "--to", "onnx", "--out", out).code == 0
    fields = gguf.GGUFReader(next(out.glob("gguf/*.gguf"))).fields
    scaling = {name: fields[f"llama.rope.scaling.{name}"].contents() for name in ("type", "factor")}
    assert scaling == {"type": "yarn", "factor": 4.0}
    assert fields["llama.rope.scaling.original_context_length"].contents() == 16
    answers = []
    for source, backend in ((folder, "torch"), (out, "onnxruntime"), (out, "llamacpp")):
        with package.pipeline("text-generation", str(source), backend=backend) as pipe:
            answers.append(pipe("Hello the cat", max_new_tokens=24, do_sample=False))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] == answer_of_transformers(folder, "Hello the cat", 24)


def answer_of_transformers(folder: Path, text: str, count: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]
    return [{"generated_text": text + tokenizer.decode(made, skip_special_tokens=True)}]
