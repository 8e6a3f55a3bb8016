"""faster-whisper's folders open as the Whisper that they were made of."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.checkpoints.ctranslate2_checkpoint import CTranslate2Checkpoint
from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.model import open_model

Tiny = Callable[[str], Path]
Arrays = dict[str, NDArray[Any]]
CODES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}


def arrays_of(folder: Path) -> Arrays:
    """The arrays that CTranslate2's converter makes of a Whisper: q, k and v as one, zeros for the bias of k."""
    held = {key.removeprefix("model."): value for key, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    made: Arrays = {"decoder/embeddings/weight": held["decoder.embed_tokens.weight"]}

    def linear(name: str, key: str) -> None:
        made[f"{name}/weight"], made[f"{name}/bias"] = held[f"{key}.weight"], held[f"{key}.bias"]

    def norm(name: str, key: str) -> None:
        made[f"{name}/gamma"], made[f"{name}/beta"] = held[f"{key}.weight"], held[f"{key}.bias"]

    def merged(name: str, key: str, parts: str) -> None:
        weights = [held[f"{key}.{part}_proj.weight"] for part in parts]
        none = np.zeros(len(weights[0]), weights[0].dtype)
        made[f"{name}/weight"] = np.concatenate(weights)
        made[f"{name}/bias"] = np.concatenate([held.get(f"{key}.{part}_proj.bias", none) for part in parts])

    for side in ("encoder", "decoder"):
        for n in range(config[f"{side}_layers"]):
            name, key = f"{side}/layer_{n}", f"{side}.layers.{n}"
            merged(f"{name}/self_attention/linear_0", f"{key}.self_attn", "qkv")
            linear(f"{name}/self_attention/linear_1", f"{key}.self_attn.out_proj")
            norm(f"{name}/self_attention/layer_norm", f"{key}.self_attn_layer_norm")
            if side == "decoder":
                linear(f"{name}/attention/linear_0", f"{key}.encoder_attn.q_proj")
                merged(f"{name}/attention/linear_1", f"{key}.encoder_attn", "kv")
                linear(f"{name}/attention/linear_2", f"{key}.encoder_attn.out_proj")
                norm(f"{name}/attention/layer_norm", f"{key}.encoder_attn_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{key}.fc1")
            linear(f"{name}/ffn/linear_1", f"{key}.fc2")
            norm(f"{name}/ffn/layer_norm", f"{key}.final_layer_norm")
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        made[f"{side}/position_encodings/encodings"] = held[f"{side}.embed_positions.weight"]
        made[f"{side}/num_heads"] = np.array(config[f"{side}_attention_heads"], np.int16)
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"encoder.{conv}")
    return made | {"decoder/activation": np.array(3, np.int8), "decoder/pre_norm": np.array(1, np.int8)}


def write_model(path: Path, arrays: Arrays, kind: str = "WhisperSpec") -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    with path.open("wb") as stream:
        stream.write(struct.pack("<I", 6) + text(kind) + struct.pack("<II", 3, len(arrays)))
        for name, array in arrays.items():
            axes = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
            stream.write(text(name) + axes + struct.pack("<BI", CODES[array.dtype.name], array.nbytes))
            stream.write(array.tobytes())
        stream.write(struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight"))


@pytest.fixture
def source(tiny: Tiny) -> Path:
    return tiny("whisper")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """The folder that faster-whisper has of the tiny multilingual Whisper."""
    made = tmp_path / "faster"
    made.mkdir()
    shutil.copyfile(source / "tokenizer.json", made / "tokenizer.json")
    shutil.copyfile(source / "preprocessor_config.json", made / "preprocessor_config.json")
    generation = json.loads((source / "generation_config.json").read_text())
    config = {
        "alignment_heads": generation.get("alignment_heads"),
        "lang_ids": sorted(generation["lang_to_id"].values()),
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
    }
    (made / "config.json").write_text(json.dumps(config))
    write_model(made / "model.bin", arrays_of(source))
    return made


def test_every_tensor_is_the_hub_s(source: Path, folder: Path) -> None:
    theirs, ours = open_model(source), open_model(folder)
    assert isinstance(ours.checkpoint, CTranslate2Checkpoint)
    mine, wanted = ours.module(torch.float32).state_dict(), theirs.module(torch.float32).state_dict()
    assert mine.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(mine[name], tensor), name
    for name in ("encoder_attention_heads", "decoder_attention_heads", "num_mel_bins", "max_target_positions"):
        assert getattr(ours.config, name) == getattr(theirs.config, name)


def test_rows_of_a_split_matrix_are_read_alone(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for part in "qkv":
        key = f"model.encoder.layers.0.self_attn.{part}_proj.weight"
        assert torch.equal(checkpoint.rows(key, 2, 5), checkpoint[key][2:5])
        assert checkpoint.info(key).shape == checkpoint[key].shape


def test_bytes_are_divided_by_the_scale_of_their_row(source: Path, folder: Path) -> None:
    arrays = arrays_of(source)
    name = "decoder/layer_0/ffn/linear_0/weight"
    scale = 127 / np.abs(arrays[name]).max(1)
    arrays[f"{name}_scale"] = scale.astype(np.float32)
    plain = arrays[name]
    arrays[name] = np.rint(plain * scale[:, None]).astype(np.int8)
    write_model(folder / "model.bin", arrays)
    read = open_checkpoint(folder)["model.decoder.layers.0.fc1.weight"]
    assert read.dtype == torch.float32
    assert np.abs(read.numpy() - plain).max() <= 0.5001 / scale.min()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a: a.pop("encoder/conv1/bias"), CheckpointError, "lacks encoder/conv1/bias"),
        (lambda a: a.update({"decoder/other": np.zeros(3, np.float32)}), CheckpointError, "holds decoder/other"),
        (lambda a: a.update({"decoder/activation": np.array(0, np.int8)}), UnsupportedModel, "activation is 0, not 3"),
        (
            lambda a: a["encoder/layer_0/self_attention/linear_0/bias"].__setitem__(slice(None), 1),
            CheckpointError,
            "a bias of the keys",
        ),
    ],
)
def test_what_is_no_whisper_is_named(
    change: Callable[[Arrays], object], error: type[Exception], words: str, source: Path, folder: Path
) -> None:
    arrays = {name: array.copy() for name, array in arrays_of(source).items()}
    change(arrays)
    write_model(folder / "model.bin", arrays)
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


def test_another_kind_of_model_is_refused(source: Path, folder: Path) -> None:
    write_model(folder / "model.bin", arrays_of(source), "TransformerSpec")
    with pytest.raises(UnsupportedModel, match="holds TransformerSpec; isoform reads WhisperSpec"):
        open_checkpoint(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, folder: Path) -> None:
    path = folder / "model.bin"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises((CheckpointError, UnsupportedModel), match=r"model\.bin"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", {"added_tokens": [{"id": 3}]}, "added_tokens"),
        ("tokenizer.json", {"added_tokens": []}, "no token <|endoftext|>"),
        ("config.json", {"suppress_ids": "all"}, "suppress_ids"),
    ],
)
def test_damaged_files_beside_it_are_named(file: str, content: Any, words: str, folder: Path) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder).folder  # noqa: B018  its files are written when asked for
    assert words in str(raised.value)
