"""Programs that people use open our GGUF files unchanged: llama.cpp's server, transformers, gguf-py's reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isoform.exporters.gguf import write
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import open_model
from tests.exports import for_llamacpp
from tests.oracle import tiny

Written = Callable[..., Path]

PROMPTS = ("The secret model is", "Hello world, this is")
CHAT = [{"role": "user", "content": "Hello world"}]
TEXTS = ("How do I boil an egg?", "Paris", "Cooking eggs takes seven minutes.")
NEW = 8  # tokens

# What transformers' reader of GGUF files keeps all of; of the others it drops soft-caps, scales or rotary scaling.
READ_WHOLE = ("llama3_instruct", "mistral_full", "qwen2", "qwen2_b")
READ_WEIGHTS = (*READ_WHOLE, "llama", "gemma2", "gemma3_b", "gemma3_new")

SERVER = """
import json, sys, xllamacpp
path, kind, requests = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup = path, 512, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.embedding = kind == "embeddings"
server = xllamacpp.Server(params)
handle = {
    "completion": server.handle_completions,
    "chat": server.handle_chat_completions,
    "embeddings": server.handle_embeddings,
}[kind]
print("answers:" + json.dumps([handle(request) for request in requests]))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """`written("llama", "q8_0")` is the folder that holds model-q8_0.gguf of that tiny checkpoint."""

    @cache
    def make(name: str, kind: str = "f32") -> Path:
        folder = tmp_path_factory.mktemp(name)
        write(for_llamacpp(tiny(name)), folder, [kind])
        return folder / "gguf"

    return make


def ask(path: Path, kind: str, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of llama.cpp's own server, in a process of its own: a failed assertion of its ends the process."""
    arguments = [sys.executable, "-c", SERVER, str(path), kind, json.dumps(requests)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("answers:"))
    answers: list[dict[str, Any]] = json.loads(line.removeprefix("answers:"))
    return answers


def continued(folder: Path, prompt: Any) -> str:
    """What transformers makes of the original checkpoint: the new text, greedily."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if isinstance(prompt, str):
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


# ------------------------------------------------------------------ llama.cpp's server
@pytest.mark.parametrize("name", ["llama", "llama3_instruct", "qwen2", "gemma3_b", "mistral_full"])
def test_llamacpps_server_completes_as_transformers_does(written: Written, name: str) -> None:
    requests = [{"prompt": prompt, "n_predict": NEW, "temperature": 0} for prompt in PROMPTS]
    answers = ask(written(name) / "model-f32.gguf", "completion", requests)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer["choices"][0]["text"] == continued(tiny(name), prompt)


@pytest.mark.parametrize("name", ["llama3_instruct", "qwen2"])
def test_llamacpps_server_chats_as_transformers_does(written: Written, name: str) -> None:
    (answer,) = ask(written(name) / "model-f32.gguf", "chat", [{"messages": CHAT, "max_tokens": NEW, "temperature": 0}])
    assert answer["choices"][0]["message"]["content"] == continued(tiny(name), CHAT)


def test_llamacpps_server_embeds_as_sentence_transformers_does(written: Written) -> None:
    from sentence_transformers import SentenceTransformer

    (answer,) = ask(written("bert_embed") / "model-f32.gguf", "embeddings", [{"input": list(TEXTS)}])
    found = np.array([entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])])
    wanted = SentenceTransformer(str(tiny("bert_embed")), device="cpu").encode(list(TEXTS))
    assert np.allclose(found, wanted, rtol=0, atol=2e-3)  # unit vectors; llama.cpp's GELU is a half-precision table


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m", "iq4_nl", "mxfp4"])
def test_llamacpps_server_opens_quantized_files(written: Written, kind: str) -> None:
    request = {"prompt": PROMPTS[0], "n_predict": NEW, "temperature": 0}
    (answer,) = ask(written("llama3_instruct", kind) / f"model-{kind}.gguf", "completion", [request])
    assert answer["usage"]["completion_tokens"] > 0


# ------------------------------------------------------------------ transformers
@pytest.mark.parametrize("name", READ_WEIGHTS)
def test_transformers_reads_the_weights_of_the_file(written: Written, name: str) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        written(name), gguf_file="model-f32.gguf", dtype=torch.float32
    )
    original = transformers.AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32)
    found = model.state_dict()
    for key, value in original.state_dict().items():
        norm = name.startswith("gemma") and "norm" in key  # 1 + weight was rounded on the way
        assert torch.allclose(found[key], value, rtol=0, atol=2.0**-23 if norm else 0), key
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(written(name), gguf_file="model-f32.gguf"),
        transformers.AutoTokenizer.from_pretrained(tiny(name)),
    ]
    for text in (*PROMPTS, "naïve 12 and 345  über"):
        one, two = (tokenizer(text).input_ids for tokenizer in tokenizers)
        assert one == two
    if name in READ_WHOLE:
        golden = load_file(tiny(name) / "golden.safetensors")
        inputs = {key[3:]: value for key, value in golden.items() if key.startswith("in.")}
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs).logits[real], golden["out.logits"][real])


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_transformers_dequantizes_the_file(written: Written, kind: str) -> None:
    import transformers

    file = f"model-{kind}.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(written("qwen2", kind), gguf_file=file)
    ours = open_model(written("qwen2", kind) / file)
    expected = ours.weights["layers.1.mlp.down.weight"].load()
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight.float(), expected)


# ------------------------------------------------------------------ gguf-py
@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0", "q4_k_m", "q2_k", "iq4_xs", "tq2_0"])
@pytest.mark.parametrize("name", ["llama3_instruct", "gemma3_b", "bert_embed"])
def test_gguf_pys_reader_agrees_with_ours(written: Written, name: str, kind: str) -> None:
    path = written(name, kind) / f"model-{kind}.gguf"
    reader, ours = gguf.GGUFReader(path), read_gguf(path)
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        key: info.dtype for key, info in ours.tensors.items()
    }
    for tensor in reader.tensors:
        info = ours.tensors[tensor.name]
        assert (int(tensor.data_offset), int(tensor.n_bytes)) == (info.offset, info.nbytes)
        assert np.isfinite(gguf.dequantize(np.array(tensor.data), tensor.tensor_type)).all()
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            value = ours.metadata[key]
            stored = field.contents()
            assert np.allclose(value, stored) if isinstance(value, float) else list(_many(value)) == list(_many(stored))


def _many(value: Any) -> Any:
    return value if isinstance(value, list | bytes) else [value]
