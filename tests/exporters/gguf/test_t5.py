"""GGUF files of T5: the tensors of llama.cpp's own converter, but for a head that its graph would leave unscaled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from isoform.api import imatrix, import_gguf
from isoform.errors import InputError, UnsupportedExport
from isoform.exporters.gguf import FORMAT, Options, path_of, write
from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import open_model
from tests.oracle import tiny
from tests.oracle.convert_gguf import oracle_convert

SCALED = {"t5": 48**-0.5, "umt5_wide": 32**-0.5}
"""Whose head reads scaled states."""


def source(name: str, folder: Path) -> Path:
    """A tiny checkpoint, with the settings that llama.cpp has where it has others."""
    changes: dict[str, Any] = {
        "umt5_wide": {"relative_attention_max_distance": 128, "dense_act_fn": "gelu_new"},
        "encoder": {"architectures": ["T5EncoderModel"], "model_type": "t5"},  # the converter knows no other encoder
    }
    if name not in changes:
        return tiny(name)
    made = Path(shutil.copytree(tiny({"umt5_wide": "umt5_b", "encoder": "mt5_encoder"}[name]), folder / name))
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | changes[name]))
    return made


def data(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a file: type, shape, bytes."""
    raw = path.read_bytes()
    return {
        name: (info.dtype, info.shape, raw[info.offset : info.offset + info.nbytes])
        for name, info in read_gguf(path).tensors.items()
    }


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["t5", "t5_v1_1", "umt5_wide", "encoder"])
def test_tensors_and_metadata_are_the_converters_but_for_the_scaled_head(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint = source(name, tmp_path)
    write(open_model(checkpoint), tmp_path, [kind])
    theirs = oracle_convert(checkpoint, tmp_path / "theirs.gguf", kind, None, sentencepiece=True)
    found, expected = data(tmp_path / path_of(kind)), data(theirs)
    if name in SCALED:
        assert "output.weight" not in expected
        dtype, shape, content = found.pop("output.weight")
        assert shape == expected["token_embd.weight"][1]
        if kind == "f32":
            table = np.frombuffer(expected["token_embd.weight"][2], np.float32)
            assert dtype == "F32"
            assert np.array_equal(np.frombuffer(content, np.float32), table * np.float32(SCALED[name]))
    assert found == expected
    ours, others = read_gguf(tmp_path / path_of(kind)).metadata, read_gguf(theirs).metadata
    for key in (ours.keys() | others.keys()) - {"general.size_label"}:
        if not key.startswith("tokenizer."):
            assert ours.get(key) == others.get(key), key


def test_the_vocabulary_is_the_converters_with_the_sentinels_as_tokens(tmp_path: Path) -> None:
    write(open_model(tiny("t5")), tmp_path, ["f32"])
    theirs = read_gguf(oracle_convert(tiny("t5"), tmp_path / "theirs.gguf", "f32", None, sentencepiece=True)).metadata
    ours = read_gguf(tmp_path / path_of("f32")).metadata
    tokens, known = ours["tokenizer.ggml.tokens"], theirs["tokenizer.ggml.tokens"]
    pieces = next(n for n, token in enumerate(known) if token.startswith("[PAD"))
    assert ours["tokenizer.ggml.model"] == theirs["tokenizer.ggml.model"] == "t5"
    assert tokens[:pieces] == known[:pieces]
    assert tokens[pieces] == "<extra_id_99>" and len(tokens) == len(known)
    for key in ("scores", "token_type"):
        assert ours[f"tokenizer.ggml.{key}"][:pieces] == theirs[f"tokenizer.ggml.{key}"][:pieces], key
    assert ours["tokenizer.ggml.eos_token_id"] == 1 and ours["tokenizer.ggml.add_eos_token"]


@pytest.mark.parametrize("name", ["t5", "t5_v1_1", "umt5_wide", "encoder"])
def test_a_file_opens_as_the_checkpoint_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    opened = open_model(source(name, tmp_path))
    write(opened, tmp_path, ["f32"])
    again = open_model(GgufCheckpoint(tmp_path / path_of("f32")))
    assert again.task.name == opened.task.name
    ids = torch.tensor([[5, 6, 7, 1]])
    inputs = [ids, torch.ones_like(ids), *([torch.tensor([[0, 9, 8]])] if opened.task.parts else [])]
    with torch.inference_mode():
        found, expected = (one.module()(*inputs)[0] for one in (again, opened))
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())  # the scale moves into a matrix


@pytest.mark.parametrize("name", ["t5", "t5_v1_1", "encoder"])
def test_an_imported_file_is_a_checkpoint_that_transformers_computes(name: str, tmp_path: Path) -> None:
    folder = source(name, tmp_path)
    opened = open_model(folder)
    write(opened, tmp_path, ["f32"])
    import_gguf(str(tmp_path / path_of("f32")), tmp_path / "imported")
    kind = transformers.T5ForConditionalGeneration if opened.task.parts else transformers.T5EncoderModel
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]])}
    inputs |= {"decoder_input_ids": torch.tensor([[0, 9, 8]])} if opened.task.parts else {}
    with torch.no_grad():
        found, expected = (
            kind.from_pretrained(path, dtype=torch.float32).eval()(**inputs)[0]
            for path in (tmp_path / "imported", folder)
        )
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    texts = ["translate English to German: The  house <extra_id_0> is wonderful.", "naïve"]
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(path)(texts) for path in (tmp_path / "imported", folder))
    assert ours["input_ids"] == theirs["input_ids"]


def test_llamacpps_own_file_of_a_tied_model_is_scaled_as_the_model_is(tmp_path: Path) -> None:
    theirs = oracle_convert(tiny("t5"), tmp_path / "theirs.gguf", "f32", None, sentencepiece=True)
    again = open_model(GgufCheckpoint(theirs))
    ids = torch.tensor([[5, 6, 7, 1]])
    inputs = ids, torch.ones_like(ids), torch.tensor([[0, 9, 8]])
    with torch.inference_mode():
        assert torch.equal(again.module()(*inputs)[0], open_model(tiny("t5")).module()(*inputs)[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance 64"),
        ({"dense_act_fn": "silu"}, "a plain MLP is relu in this architecture, not silu"),
        ({"decoder_start_token_id": None}, "no decoder_start_token_id"),
    ],
)
def test_what_llamacpp_decides_otherwise_is_refused_by_name(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny("t5"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedExport, match=words):
        write(open_model(folder), tmp_path, ["f32"])
    model = open_model(tiny("umt5_b"))
    assert "gated" in FORMAT.refusal(
        model.family,
        model.task,
        config=type(model.config).from_dict({**model.checkpoint.config, "relative_attention_max_distance": 128}),
    )


def test_heads_that_llamacpp_lacks_are_refused() -> None:
    for name in ("t5_seqcls", "mt5_qa", "umt5_ner"):
        model = open_model(tiny(name))
        assert model.task.name in FORMAT.refusal(model.family, model.task, config=model.config)


def test_every_tensor_of_the_checkpoint_is_in_the_file(tmp_path: Path) -> None:
    write(open_model(tiny("t5_v1_1")), tmp_path, ["f32"])
    stored = load_file(tiny("t5_v1_1") / "model.safetensors")
    copies = {key for key in stored if key.endswith("embed_tokens.weight")}
    assert len(read_gguf(tmp_path / path_of("f32")).tensors) == len(stored) - len(copies)


def test_an_importance_matrix_covers_an_encoder_and_is_refused_for_two_parts(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The small cat reads. " * 60)
    made = imatrix(tiny("mt5_encoder"), tmp_path / "text", tmp_path / "matrix.gguf", context=32, chunks=2)
    assert made["tensors"] == 3 * 7  # four of the attention, three of the MLP in each layer
    options = Options(types=("q8_0",), imatrix=tmp_path / "matrix.gguf")
    write(open_model(tiny("mt5_encoder")), tmp_path, ["q8_0"], options=options)
    with pytest.raises(InputError, match="has the parts encoder, decoder"):
        imatrix(tiny("t5"), tmp_path / "text", tmp_path / "other.gguf", context=32)
