"""Stacked experts and encoder-decoders, which no family has yet: types and bytes are llama-quantize's all the same.

The float32 files are made by hand: llama-quantize looks at names, shapes and the architecture's numbers only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.exporters.gguf.mixes import MIXES, Depths, tensor_types
from isoform.exporters.gguf.tensors import Files, GgufTensor, Piece, pieces_of
from isoform.exporters.gguf.writer import Target, write_arrays, write_files
from isoform.reference.checkpoints.gguf_file import read_gguf
from tests.exporters.gguf.test_mixes import differing
from tests.oracle.quantize_gguf import oracle_quantize

Shapes = dict[str, tuple[int, ...]]
DIM, HIDDEN, VOCABULARY, EXPERTS, LAYERS = 256, 256, 320, 8, 4


def experts() -> tuple[dict[str, Any], Shapes]:
    """Mixtral as llama.cpp holds it: eight experts of a layer stacked in one tensor, and a router."""
    fields = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 64,
        "llama.embedding_length": DIM,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 64,
        "llama.vocab_size": VOCABULARY,
        "llama.expert_count": EXPERTS,
        "llama.expert_used_count": 2,
    }
    layer: Shapes = {
        "attn_norm.weight": (DIM,),
        "attn_q.weight": (DIM, DIM),
        "attn_k.weight": (DIM // 2, DIM),
        "attn_v.weight": (DIM // 2, DIM),
        "attn_output.weight": (DIM, DIM),
        "ffn_norm.weight": (DIM,),
        "ffn_gate_inp.weight": (EXPERTS, DIM),
        "ffn_gate_exps.weight": (EXPERTS, HIDDEN, DIM),
        "ffn_up_exps.weight": (EXPERTS, HIDDEN, DIM),
        "ffn_down_exps.weight": (EXPERTS, DIM, HIDDEN),
    }
    ends: Shapes = {"token_embd.weight": (VOCABULARY, DIM), "output_norm.weight": (DIM,)}
    ends["output.weight"] = (VOCABULARY, DIM)
    return fields, ends | {f"blk.{n}.{name}": shape for n in range(LAYERS) for name, shape in layer.items()}


def encoder_decoder() -> tuple[dict[str, Any], Shapes]:
    """T5 as llama.cpp holds it."""
    fields = {
        "general.architecture": "t5",
        "t5.block_count": LAYERS,
        "t5.decoder_block_count": LAYERS,
        "t5.context_length": 64,
        "t5.embedding_length": DIM,
        "t5.feed_forward_length": HIDDEN,
        "t5.attention.head_count": 4,
        "t5.attention.key_length": 64,
        "t5.attention.value_length": 64,
        "t5.attention.layer_norm_epsilon": 1e-6,
        "t5.attention.layer_norm_rms_epsilon": 1e-6,
        "t5.attention.relative_buckets_count": 32,
        "t5.decoder_start_token_id": 0,
        "t5.vocab_size": VOCABULARY,
    }
    attention: Shapes = {f"attn_{name}.weight": (DIM, DIM) for name in ("q", "k", "v", "o")}
    common: Shapes = {**attention, "attn_norm.weight": (DIM,), "ffn_norm.weight": (DIM,)}
    common |= {"ffn_up.weight": (HIDDEN, DIM), "ffn_down.weight": (DIM, HIDDEN)}
    cross = {f"cross_{name}": shape for name, shape in common.items() if name.startswith("attn")}
    shapes: Shapes = {"token_embd.weight": (VOCABULARY, DIM), "output.weight": (VOCABULARY, DIM)}
    shapes |= {"enc.output_norm.weight": (DIM,), "dec.output_norm.weight": (DIM,)}
    for n in range(LAYERS):
        shapes |= {f"enc.blk.{n}.{name}": shape for name, shape in common.items()}
        shapes |= {f"dec.blk.{n}.{name}": shape for name, shape in (common | cross).items()}
    shapes |= {f"{side}.blk.0.attn_rel_b.weight": (32, 4) for side in ("enc", "dec")}
    return fields, shapes


def plain(folder: Path, fields: dict[str, Any], shapes: Shapes) -> Path:
    draw = np.random.default_rng(0)
    tensors = {name: ("F32", shape, draw.standard_normal(shape, np.float32) * 0.05) for name, shape in shapes.items()}
    write_arrays(folder / "plain.gguf", fields | {"general.file_type": 0, "general.quantization_version": 2}, tensors)
    return folder / "plain.gguf"


def ours(source: Path, out: Path, mix: str, model: Depths, importance: Any = None) -> Path:
    header, files = read_gguf(source), Files()
    shapes = {name: info.shape for name, info in header.tensors.items()}
    types = tensor_types(mix, shapes, model, importance=importance)
    entries = [
        GgufTensor(name, name, info.shape, partial(pieces_of, info.shape, 4, partial(files.rows, info)))
        for name, info in header.tensors.items()
    ]
    write_files([Target(out, header.metadata, types)], entries, lambda *_: None, importance=importance)
    return out


SLOW = ("q2_k", "q3_k_l", "q4_k_s", "q5_k_s", "q6_k", "iq4_xs", "iq3_s", "q4_0", "q5_1")


@pytest.mark.parametrize("kinds", [("q3_k_m", "q4_k_m", "mxfp4_moe"), pytest.param(SLOW, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [experts, encoder_decoder])
def test_types_and_bytes_are_llama_quantizes(tmp_path: Path, shape: Any, kinds: tuple[str, ...]) -> None:
    fields, shapes = shape()
    source = plain(tmp_path, fields, shapes)
    model = Depths(layers=LAYERS, sharing=2 if shape is experts else 1, experts=EXPERTS if shape is experts else 0)
    for mix in kinds:
        theirs = oracle_quantize(source, tmp_path / "theirs.gguf", MIXES[mix].file_type)
        assert differing(ours(source, tmp_path / "ours.gguf", mix, model), theirs) == [], mix


def test_each_expert_has_importances_of_its_own(tmp_path: Path) -> None:
    fields, shapes = experts()
    source = plain(tmp_path, fields, shapes)
    draw = np.random.default_rng(1)
    weights = {
        name: draw.gamma(1.0, 1.0, (shape[0] if len(shape) > 2 else 1) * shape[-1]).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith("blk.") and len(shape) > 1 and "inp" not in name
    }
    model = Depths(layers=LAYERS, sharing=2, experts=EXPERTS)
    for mix in ("q4_k_m",):
        theirs = oracle_quantize(source, tmp_path / "theirs.gguf", MIXES[mix].file_type, importance=weights)
        assert differing(ours(source, tmp_path / "ours.gguf", mix, model, weights), theirs) == [], mix


def test_a_stack_is_cut_into_pieces_of_single_experts() -> None:
    stack = np.arange(3 * 4 * 32, dtype=np.float32).reshape(3, 4, 32)
    found: list[Piece] = list(pieces_of((3, 4, 32), 4, lambda expert, start, stop: stack[expert, start:stop]))
    assert [piece.expert for piece in found] == [0, 1, 2]
    assert np.array_equal(np.concatenate([piece.load() for piece in found]).reshape(stack.shape), stack)
    assert sum(piece.nbytes for piece in found) == stack.nbytes
