"""GGUF files: the same tensors as llama.cpp's own converter writes, and the same results as the reference."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from isoform.errors import CheckpointError, InputError, UnsupportedExport
from isoform.exporters.gguf import FORMAT, path_of, write
from isoform.exporters.gguf.mixes import CONVERTED
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import Model, open_model
from isoform.reference.text.qwen2 import FAMILY, Qwen2Config
from isoform.reference.weights import hub_names
from isoform.runtimes.backends.llamacpp.session import LlamaCppSession
from isoform.validators.truth.deviations import deviation
from tests.exports import for_llamacpp
from tests.oracle.convert_gguf import oracle_convert

Tiny = Callable[[str], Path]

SILU = (
    *("llama", "llama_b", "llama3_instruct", "llama3_instruct_b", "mistral_full"),
    *("qwen2", "qwen2_b", "qwen2_yarn", "qwen3_b", "qwen3_moe", "qwen3_sharded"),
    *("granite", "granite_b", "mixtral", "mixtral_b", "olmo2", "olmo2_b", "phi4", "phi4_mini", "smollm3"),
)
GELU = (
    *("gemma", "gemma_b", "gemma2", "gemma2_b", "gemma3_b", "gemma3_new", "bert_embed", "bert_seqcls_b"),
    *("distilbert_base", "distilbert_seqcls", "embedding_gemma", "gpt2", "roberta_seqcls"),
    *("modernbert_seqcls", "xlm_roberta_b"),
)
MODELS = (*SILU, *GELU)

PRE = {
    "bert": "jina-v2-en",
    "gpt2": "gpt-2",
    "granite": "refact",
    "llama": "llama-bpe",
    "modern-bert": "modern-bert",
    "olmo2": "gpt-2",
    "phi3": "gpt-2",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "qwen3moe": "qwen2",
    "smollm3": "llama-bpe",
}
# What the converter leaves out of the file although the checkpoint has it, so that llama.cpp would compute otherwise.
FORGOTTEN = {
    "bert_seqcls_b": {"bert.hidden_activation"},
    "gemma2_b": {"gemma2.rope.freq_base"},
    "gemma_b": {"gemma.rope.freq_base"},
    "roberta_seqcls": {"bert.hidden_activation"},
}

RESPELLED = ("mixtral_b",)
"""In memory's spelling, which the converter does not read."""

STRICT = 4.0  # times torch's own float32 error against float64: another order of the same float32 sums


def data(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a file: type, shape, bytes."""
    raw = path.read_bytes()
    return {
        name: (info.dtype, info.shape, raw[info.offset : info.offset + info.nbytes])
        for name, info in read_gguf(path).tensors.items()
    }


# ------------------------------------------------------------------ against llama.cpp's converter
@pytest.mark.parametrize("kind", CONVERTED)
@pytest.mark.parametrize("name", MODELS)
def test_tensors_and_metadata_are_the_converters(tiny: Tiny, tmp_path: Path, name: str, kind: str) -> None:
    model = for_llamacpp(tiny(name))
    [artifact] = write(model, tmp_path, [kind])
    assert artifact.files[0].path == path_of(kind)
    path = tmp_path / path_of(kind)
    assert artifact.files[0].size == path.stat().st_size
    assert model.family.gguf is not None
    source = tiny(name)
    if name in RESPELLED:
        open_model(source).save(source := tmp_path / "hub" / name)
    theirs = oracle_convert(source, tmp_path / "theirs.gguf", kind, PRE.get(model.family.gguf.arch), True)
    expected = data(theirs)
    found = data(path)
    dropped = {n for n in expected if n.startswith("cls.")}  # the classifier: another task
    assert found == {n: tensor for n, tensor in expected.items() if n not in dropped}
    ours, others = read_gguf(path).metadata, read_gguf(theirs).metadata
    free = {"general.size_label"} if dropped else set()
    for key in (ours.keys() | others.keys()) - FORGOTTEN.get(name, set()) - free:
        if not key.startswith("tokenizer.") and not key.endswith("classifier.output_labels"):
            assert ours.get(key) == others.get(key), key


@pytest.mark.parametrize("name", ["llama", "bert_embed", "gemma2"])
def test_ggufs_own_reader_opens_the_file(tiny: Tiny, tmp_path: Path, name: str) -> None:
    model = for_llamacpp(tiny(name))
    write(model, tmp_path, ["q8_0"])
    reader = gguf.GGUFReader(tmp_path / path_of("q8_0"))
    assert {t.name for t in reader.tensors} == set(read_gguf(tmp_path / path_of("q8_0")).tensors)
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)


# ------------------------------------------------------------------ against the reference, in llama.cpp
def cases(model: Model) -> list[dict[str, NDArray[np.int64]]]:
    """Batch 1 and 3, one token and more than any window, padded on either side."""
    draw = np.random.default_rng(0)
    result = []
    for lengths, width, left in (([1], 1, False), ([7], 7, False), ([24, 13, 5], 24, True), ([24, 13, 5], 24, False)):
        slots = np.arange(width)
        rows = [slots >= width - n if left else slots < n for n in lengths]
        mask = np.array(rows, np.int64)
        ids = draw.integers(0, model.config.vocab_size, mask.shape)  # type: ignore[attr-defined]
        case = {"input_ids": ids, "attention_mask": mask}
        case |= {"position_ids": (mask.cumsum(1) - 1).clip(0), "token_type_ids": np.zeros_like(ids)}
        result.append({port.name: case[port.name] for port in model.signature.inputs if port.role != "state"})
    return result


def differences(model: Model, path: Path) -> tuple[float, float, float]:
    """The largest of: llama.cpp - reference, torch float32 - float64, and what the backend's known deviation makes."""
    module, double = model.module(), model.module(torch.float64)
    worst = noise = known = 0.0
    with LlamaCppSession(path, model.trunk.signature, strict=True, threads=1) as session, torch.no_grad():
        for case in cases(model):
            inputs = [torch.from_numpy(array) for array in case.values()]
            real = case["attention_mask"] != 0
            want, wide = module(*inputs)[0].numpy()[real], double(*inputs)[0].numpy()[real]
            imitation = deviation("llamacpp")
            assert imitation is not None
            with imitation:
                imitated = module(*inputs)[0].numpy()[real]
            got = next(iter(session.run(case).values()))[real]
            worst = max(worst, float(np.abs(got - want).max()))
            noise = max(noise, float(np.abs(want - wide).max()))
            known = max(known, float(np.abs(imitated - want).max()))
    return worst, noise, known


@pytest.mark.parametrize("name", SILU)
def test_llama_cpp_computes_the_reference(tiny: Tiny, tmp_path: Path, name: str) -> None:
    model = for_llamacpp(tiny(name))
    write(model, tmp_path, ["f32"])
    worst, noise, _ = differences(model, tmp_path / path_of("f32"))
    assert worst <= STRICT * noise


@pytest.mark.parametrize("name", GELU)
def test_llama_cpp_computes_the_reference_but_for_its_gelu(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """Its GELU is a table of half precision. With the MLP silenced all the rest must be exact."""
    model = for_llamacpp(tiny(name))
    write(model, tmp_path / "whole", ["f32"])
    worst, _, known = differences(model, tmp_path / "whole" / path_of("f32"))
    assert worst <= STRICT * known
    silent = shutil.copytree(tiny(name), tmp_path / "silent")
    weights = load_file(silent / "model.safetensors")
    for key in weights:
        down = ("mlp.down_proj.weight", ".output.dense.weight", ".lin2.weight", "mlp.c_proj.weight", "mlp.Wo.weight")
        if key.endswith(down) and "attention" not in key:
            weights[key].zero_()
    save_file(weights, silent / "model.safetensors")
    model = for_llamacpp(silent)
    write(model, tmp_path, ["f32"])
    worst, noise, known = differences(model, tmp_path / path_of("f32"))
    assert known == 0
    assert worst <= STRICT * noise


def test_another_pattern_of_windows_is_written_down(tiny: Tiny, tmp_path: Path) -> None:
    folder = altered(
        tiny("gemma3_new"),
        tmp_path,
        layer_types=["sliding_attention", "full_attention"] * 3,
        final_logit_softcapping=5.0,
    )
    model = open_model(folder)
    write(model, tmp_path, ["f32"])
    assert read_gguf(tmp_path / path_of("f32")).metadata["gemma3.attention.sliding_window_pattern"] == 2
    worst, _, known = differences(model, tmp_path / path_of("f32"))
    assert worst <= STRICT * known
    again = open_model(tmp_path / path_of("f32"))
    ids = torch.arange(12).view(1, -1)
    assert torch.equal(again.module()(ids)[0], model.module()(ids)[0])


def test_windows_and_activation_of_an_encoder_are_written_down(tiny: Tiny, tmp_path: Path) -> None:
    """Here the Hub's newer spelling of the layers, which the converter leaves out, as it does the epsilon."""
    kinds = ["full_attention", "sliding_attention"] * 2
    folder = altered(tiny("modernbert_ner"), tmp_path, layer_types=kinds, hidden_activation="silu", local_attention=5)
    model = open_model(folder, "feature-extraction")
    write(model, tmp_path, ["f32"])
    path = tmp_path / path_of("f32")
    worst, noise, _ = differences(model, path)
    assert worst <= STRICT * noise
    ids = torch.arange(12).view(1, -1)
    assert torch.equal(open_model(path).module()(ids)[0], model.module()(ids)[0])


def altered(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of a checkpoint with other settings."""
    copy = shutil.copytree(source, folder / "altered")
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return copy


def test_an_attention_factor_of_yarn_is_what_llama_cpp_multiplies_by(tiny: Tiny, tmp_path: Path) -> None:
    """The converter writes yarn_attn_factor, which llama.cpp passes over."""
    model = open_model(altered(tiny("qwen2_yarn"), tmp_path, rope_parameters={**YARN, "attention_factor": 1.5}))
    write(model, tmp_path, ["f32"])
    path = tmp_path / path_of("f32")
    worst, noise, _ = differences(model, path)
    assert worst <= STRICT * noise
    assert open_model(path).config.rope.attention_factor == pytest.approx(1.5)  # type: ignore[attr-defined]


# ------------------------------------------------------------------ what llama.cpp cannot do
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

REFUSED: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "mistral_b": (None, {}, "sliding window"),
    "qwen2_window": (None, {}, "sliding window"),
    "qwen3_bias": (None, {}, "bias on the attention's output"),
    "qwen3_moe": (None, {"norm_topk_prob": False}, "norm_topk_prob = false"),
    "qwen3_moe_window": (None, {}, "layer 0 has none"),
    "gemma2_scalar": (None, {}, "query_pre_attn_scalar = 12"),
    "gemma2": (None, {"attn_logit_softcapping": None}, "leaves a cap out"),
    "gemma2_b": (None, {"layer_types": ["full_attention"] * 3}, "every other layer"),
    "embedding_gemma": ("feature-extraction", {"query_pre_attn_scalar": 12}, "query_pre_attn_scalar = 12"),
    "embedding_gemma_b": ("feature-extraction", {}, "every sixth layer"),
    "gemma3_new": (None, {"layer_types": ["full_attention", *["sliding_attention"] * 5]}, "regular pattern"),
    "gemma3_b": (None, {"attn_logit_softcapping": 3.0}, "does not cap the scores"),
    "gemma": (None, {"tie_word_embeddings": False}, "no separate head"),
    "gemma_b": (None, {"hidden_act": "relu"}, "only the activation gelu_pytorch_tanh"),
    "granite": (None, {"head_dim": 16}, "hidden_size = heads x head_dim"),
    "granite_b": (None, {"hidden_act": "gelu"}, "only the activation silu"),
    "gpt2": (None, {"scale_attn_by_inverse_layer_idx": True}, "does not scale scores by the layer"),
    "gpt2_b": (None, {}, "only the activation gelu_new"),
    "gpt2_unscaled": (None, {}, "scale_attn_weights = false"),
    "llama": (None, {"hidden_act": "gelu"}, "only the activation silu"),
    "mixtral": (None, {"sliding_window": 5}, "sliding window"),
    "olmo2": (None, {"tie_word_embeddings": True}, "wants a separate head"),
    "olmo2_b": (None, {"attention_bias": True}, "no bias in the attention"),
    "phi4": (None, {"hidden_act": "gelu"}, "only the activation silu"),
    "phi3_b": (None, {}, "sliding window"),
    "smollm3": (None, {"no_rope_layers": [0, 1, 1, 1, 1]}, "all but every fourth layer"),
    "smollm3_b": (None, {"no_rope_layers": [1, 1, 1]}, "attention_bias or mlp_bias"),
    "qwen2": (None, {"rope_parameters": LLAMA3}, "no llama3 rotary scaling"),
    "llama_dynamic": (None, {}, "no dynamic rotary scaling"),
    "llama_longrope": (None, {}, "LongRoPE's factors by the size of its context"),
    "llama_yarn": (None, {}, "YaRN's beta_fast at 32 for this architecture"),
    "qwen2_yarn": (None, {"rope_parameters": {**YARN, "truncate": False}}, "truncate is false"),
    "bert_b": ("feature-extraction", {}, "not relu"),
    "camembert_ner": ("feature-extraction", {}, "not relu"),
    "distilbert_b": ("feature-extraction", {}, "not relu"),
    "electra": ("feature-extraction", {}, "projection behind BERT's embeddings"),
    "albert_b": (None, {}, "layers share their weights"),
    "distilbert": (None, {}, "no fill-mask"),
    "modernbert": (None, {}, "no fill-mask"),
    "modernbert_b": (None, {}, "no biases in this architecture"),
    "modernbert_mask": ("feature-extraction", {}, "no biases in this architecture"),
    "modernbert_cls": ("feature-extraction", {"layer_types": ["sliding_attention"] * 4}, "regular pattern"),
    "modernbert_ner": ("feature-extraction", {"hidden_activation": "relu"}, "gelu and silu for this architecture"),
    "modernbert_qa": (
        "feature-extraction",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "rotary positions",
    ),
    "bert_ner": (None, {}, "no token-classification"),
    "bert": (None, {}, "no fill-mask"),
    "llama_b": ("feature-extraction", {}, "no feature-extraction"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(tiny: Tiny, tmp_path: Path, name: str) -> None:
    task, config, reason = REFUSED[name]
    model = open_model(altered(tiny(name), tmp_path, **config) if config else tiny(name), task)
    assert reason in FORMAT.refusal(model.family, model.task, config=model.config)
    with pytest.raises(UnsupportedExport, match=r"export to ONNX or TorchScript instead$") as error:
        write(model, tmp_path, ["f32"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize("name", ["mistral_b", "qwen2_window", "gemma2_scalar", "gpt2_unscaled"])
def test_the_refused_would_be_wrong(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """The refusals are needed: llama.cpp loads these files and computes something else."""
    model = open_model(tiny(name))
    assert model.family.gguf is not None
    willing = replace(model.family, gguf=replace(model.family.gguf, refuse=lambda config: ""))
    write(replace(model, family=willing), tmp_path, ["f32"])
    worst, _, known = differences(model, tmp_path / path_of("f32"))
    assert worst > max(1.0, 10 * known)


def test_a_window_as_wide_as_the_context_is_no_window(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(altered(tiny("mistral_b"), tmp_path, sliding_window=256))
    assert FORMAT.refusal(model.family, model.task, config=model.config) == ""


def test_a_family_without_gguf_gives_its_reason(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("llama"))
    without = replace(model, family=replace(model.family, gguf=None, no_gguf="llama.cpp has no such decoder"))
    with pytest.raises(UnsupportedExport, match=r"llama\.cpp has no such decoder; export to ONNX"):
        write(without, tmp_path, ["f32"])


def test_an_unknown_type_is_an_input_error(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'q9_9' is not written; choose from f32"):
        write(open_model(tiny("llama")), tmp_path, ["f32", "q9_9"])


@pytest.mark.parametrize(
    ("kind", "value", "error", "words"),
    [
        ("f16", 1e5, UnsupportedExport, "holds 100000, which float16 cannot"),
        ("q8_0", float("nan"), CheckpointError, "not finite"),
        ("f32", float("nan"), CheckpointError, "not finite"),
        ("bf16", float("inf"), CheckpointError, "not finite"),
    ],
)
def test_values_that_the_type_cannot_hold_are_refused(
    tiny: Tiny, tmp_path: Path, kind: str, value: float, error: type[Exception], words: str
) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(error, match=words):
        write(open_model(folder), tmp_path, [kind])


def test_a_pooling_that_llama_cpp_lacks_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert_embed"), tmp_path / "copy")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UnsupportedExport, match="pools by mean, first or last token"):
        write(open_model(folder), tmp_path, ["f32"])


def test_a_file_that_lacks_modules_with_weights_names_no_pooling(tiny: Tiny, tmp_path: Path) -> None:
    """Read again it gives the states of tokens, and no vector that skipped the Dense module."""
    folder = shutil.copytree(tiny("bert_embed"), tmp_path / "copy")
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 9, "name": "9", "path": "9_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    (folder / "9_Dense").mkdir()
    settings = {"in_features": 40, "out_features": 3, "activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "9_Dense" / "config.json").write_text(json.dumps({**settings, "bias": False}))
    save_file({"linear.weight": torch.ones(3, 40)}, folder / "9_Dense" / "model.safetensors")
    model = open_model(folder)
    assert [port.name for port in model.signature.outputs] == ["last_hidden_state", "sentence_embedding"]
    write(model, tmp_path, ["f32"])
    assert "bert.pooling_type" not in read_gguf(tmp_path / path_of("f32")).metadata
    again = open_model(tmp_path / path_of("f32"))
    assert [port.name for port in again.signature.outputs] == ["last_hidden_state"]


# ------------------------------------------------------------------ how it is written
def test_progress_goes_up_to_the_total(tiny: Tiny, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write(open_model(tiny("qwen2")), tmp_path, ["f32", "q8_0"], lambda *step: seen.append(step))
    for kind in ("f32", "q8_0"):
        steps = [(done, total) for text, done, total in seen if kind in text]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("kind", CONVERTED)
def test_pieces_are_as_good_as_the_whole(
    tiny: Tiny, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tiny("llama_b"))
    write(model, tmp_path / "whole", [kind])
    monkeypatch.setattr("isoform.exporters.gguf.tensors.PIECE", 100)
    write(model, tmp_path / "pieces", [kind])
    assert (tmp_path / "whole" / path_of(kind)).read_bytes() == (tmp_path / "pieces" / path_of(kind)).read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_exported_again_is_the_same_file(tiny: Tiny, tmp_path: Path, name: str) -> None:
    write(for_llamacpp(tiny(name)), tmp_path / "first", ["f32"])
    write(open_model(tmp_path / "first" / path_of("f32")), tmp_path / "second", ["f32"])
    first, second = (tmp_path / n / path_of("f32") for n in ("first", "second"))
    assert data(first) == data(second)
    assert read_gguf(first).metadata == read_gguf(second).metadata


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tiny: Tiny, tmp_path: Path) -> None:
    """600 MB of weights, a third of them one tensor: the peak stays a fixed base."""
    source = tmp_path / "source"
    program = """
import sys, resource
from pathlib import Path
from isoform.reference.model import open_model
from isoform.exporters.gguf import write
model = open_model(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(model, Path(sys.argv[2]), ["q8_0"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    shutil.copytree(tiny("qwen2"), source)
    path = source / "config.json"
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 100_000}
    config = json.loads(path.read_text()) | sizes | {"intermediate_size": 4096, "num_hidden_layers": 8}
    config |= {"layer_types": None, "head_dim": None, "tie_word_embeddings": True}
    path.write_text(json.dumps(config))
    (source / "model.safetensors").unlink()
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in FAMILY.tasks[0].built(Qwen2Config.from_dict(config)).named_parameters()}
    del shapes["head.weight"]
    names = hub_names(shapes, FAMILY.rules)
    save_file(
        {names[n][0]: torch.randn(shape).to(torch.bfloat16) for n, shape in shapes.items()},
        source / "model.safetensors",
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150 * 1024  # KiB
