"""LoRA adapters as GGUF: llama.cpp with the adapter computes what the reference does with the adapter merged in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from isoform.errors import CheckpointError, InputError, IsoformError, UnsupportedExport
from isoform.exporters.gguf import Options, path_of, write
from isoform.exporters.gguf.lora import write_adapter
from isoform.reference.model import Model, open_model
from isoform.reference.weights import hub_names

Tiny = Callable[[str], Path]

STRICT = 2e-5  # of the logits' spread: float32 on both sides, summed in another order

PROGRAM = """
import json, sys
import numpy as np
from isoform.runtimes.backends.llamacpp.api import Api
api = Api()
ffi, lib = api.ffi, api.lib
ffi.cdef('''
void * llama_adapter_lora_init(void * model, const char * path);
int32_t llama_set_adapters_lora(void * context, void ** adapters, size_t count, float * scales);
llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
''')
lib = ffi.dlopen(str(__import__('isoform.runtimes.backends.llamacpp.api', fromlist=['x']).library_path()))
base, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = lib.llama_model_load_from_file(base.encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.type_k = params.type_v = 0
params.flash_attn_type = 0
params.n_ctx = 64
context = lib.llama_init_from_model(model, params)
if adapter:
    lora = lib.llama_adapter_lora_init(model, adapter.encode())
    if lora == ffi.NULL:
        sys.exit(api.reason())
    assert lib.llama_set_adapters_lora(context, ffi.new('void *[1]', [lora]), 1, ffi.new('float[1]', [1.0])) == 0
batch = lib.llama_batch_init(len(ids), 0, 1)
batch.n_tokens = len(ids)
for i, token in enumerate(ids):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
    batch.seq_id[i][0] = 0
assert lib.llama_decode(context, batch) == 0
vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
raw = ffi.buffer(lib.llama_get_logits(context), 4 * vocab * len(ids))
np.save(sys.argv[4], np.frombuffer(raw, np.float32).reshape(len(ids), vocab))
"""

IDS = [1, 9, 44, 120, 7, 66, 81, 30]
TARGETS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down")


def adapter_for(
    model: Model, folder: Path, targets: tuple[str, ...] = TARGETS, rank: int = 4, **config: Any
) -> tuple[Path, dict[str, torch.Tensor]]:
    """A random PEFT adapter, and what it adds to each canonical weight, unscaled."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    names = [name for name in model.weights if name.endswith(tuple(f"{target}.weight" for target in targets))]
    tensors: dict[str, torch.Tensor] = {}
    added: dict[str, torch.Tensor] = {}
    for name, (key, _) in hub_names(names, model.family.rules).items():
        rows, columns = model.weights[name].shape
        size = config.get("rank_pattern", {}).get(key.split(".")[-2], rank)
        a, b = torch.randn(size, columns, generator=draw) * 0.1, torch.randn(rows, size, generator=draw) * 0.1
        added[name] = b @ a
        module = f"base_model.model.{key.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "base_model_name_or_path": "base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, added


def in_llama_cpp(base: Path, adapter: Path | None, out: Path) -> Any:
    arguments = [str(base), str(adapter or ""), json.dumps(IDS), str(out)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def merged(model: Model, added: dict[str, torch.Tensor], scale: dict[str, float] | float) -> Any:
    module = model.module()
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, product in added.items():
            factor = scale if isinstance(scale, float) else next(v for k, v in scale.items() if k in name)
            parameters[name].copy_(parameters[name] + factor * product)
        return module(torch.tensor([IDS]))[0][0].numpy()


# ------------------------------------------------------------------ in llama.cpp
CASES: dict[str, tuple[dict[str, Any], dict[str, float] | float]] = {
    "plain": ({}, 6 / 4),
    "rank-stabilised": ({"use_rslora": True}, 6 / 2),
    "patterns": (
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3, "mlp.down_proj": 12}},
        {"attn.q.": 6 / 2, "attn.v.": 3 / 4, "mlp.down": 12 / 4, "": 6 / 4},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_llama_cpp_computes_the_merged_model(tiny: Tiny, tmp_path: Path, name: str, case: str) -> None:
    config, scale = CASES[case]
    model = open_model(tiny(name))
    adapter, added = adapter_for(model, tmp_path / "adapter", **config)
    assert write_adapter(model, adapter, tmp_path / "adapter.gguf") == len(added)
    pre = {"llama": "llama-bpe", "qwen2": "qwen2"}[name]
    write(model, tmp_path, ["f32"], options=Options(pre=pre))
    got = in_llama_cpp(tmp_path / path_of("f32"), tmp_path / "adapter.gguf", tmp_path / "logits.npy")
    want = merged(model, added, scale)
    plain = in_llama_cpp(tmp_path / path_of("f32"), None, tmp_path / "plain.npy")
    assert np.abs(got - want).max() <= STRICT * want.std()
    assert np.abs(plain - want).max() > 1e3 * STRICT * want.std()


def test_the_file_is_the_converters(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("qwen2"))
    adapter, added = adapter_for(model, tmp_path / "adapter", ("attn.q", "mlp.down"))
    write_adapter(model, adapter, tmp_path / "adapter.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "qwen2",
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": "Adapter",
        "adapter.lora.alpha": 6.0,
        "general.file_type": 1,
        "general.quantization_version": 2,
    }
    names = [
        f"blk.{n}.{t}.weight.lora_{s}" for n in range(len(added) // 2) for t in ("attn_q", "ffn_down") for s in "ab"
    ]
    assert sorted(t.name for t in reader.tensors) == sorted(names)
    assert {t.tensor_type.name for t in reader.tensors} == {"F16"}


# ------------------------------------------------------------------ what llama.cpp does not do
@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"peft_type": "LOHA"}, UnsupportedExport, "is a LOHA adapter, and llama.cpp knows LORA only; merge"),
        ({"use_dora": True}, UnsupportedExport, "use_dora"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    tiny: Tiny, tmp_path: Path, config: dict[str, Any], error: type[IsoformError], words: str
) -> None:
    model = open_model(tiny("qwen2"))
    adapter, _ = adapter_for(model, tmp_path / "adapter", ("attn.q",), **config)
    with pytest.raises(error, match=words):
        write_adapter(model, adapter, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": (8,)}, UnsupportedExport, "which is no LoRA matrix"),
        ({"model.layers.99.self_attn.q_proj.lora_A.weight": (4, 8)}, CheckpointError, "it is for another model"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": (4, 8)}, CheckpointError, "one of the two matrices"),
        (
            {
                "model.layers.0.self_attn.q_proj.lora_A.weight": (4, 8),
                "model.layers.0.self_attn.q_proj.lora_B.weight": (8, 4),
            },
            CheckpointError,
            r"\[8, 4\] @ \[4, 8\] on model\.layers\.0\.self_attn\.q_proj do not make",
        ),
        ({}, CheckpointError, "holds no LoRA matrices"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    tiny: Tiny, tmp_path: Path, tensors: dict[str, tuple[int, ...]], error: type[IsoformError], words: str
) -> None:
    model = open_model(tiny("qwen2"))
    adapter, _ = adapter_for(model, tmp_path / "adapter", ("attn.q",))
    made = {f"base_model.model.{key}": torch.zeros(shape) for key, shape in tensors.items()}
    save_file(made, adapter / "adapter_model.safetensors")
    with pytest.raises(error, match=words):
        write_adapter(model, adapter, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_folder_without_an_adapter_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        write_adapter(open_model(tiny("qwen2")), tmp_path, tmp_path / "adapter.gguf")
    with pytest.raises(InputError, match="'q4_k_m'; choose from f32"):
        write_adapter(open_model(tiny("qwen2")), tmp_path, tmp_path / "adapter.gguf", "q4_k_m")


def test_a_shared_output_is_not_adapted(tiny: Tiny, tmp_path: Path) -> None:
    model = next(m for m in (open_model(tiny(n)) for n in ("llama", "qwen2", "gemma3_b", "qwen2_b")) if m.tied)
    adapter, _ = adapter_for(model, tmp_path / "adapter", ("attn.q",))
    pair = {"lm_head.lora_A.weight": torch.zeros(2, 8), "lm_head.lora_B.weight": torch.zeros(8, 2)}
    save_file(
        {f"base_model.model.{key}": tensor for key, tensor in pair.items()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(UnsupportedExport, match=r"changes lm_head, whose weight .* uses twice; merge"):
        write_adapter(model, adapter, tmp_path / "adapter.gguf")
