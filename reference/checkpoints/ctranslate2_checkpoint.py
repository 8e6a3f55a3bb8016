"""A Whisper folder of CTranslate2 (faster-whisper) as a checkpoint: its model.bin under the Hub's keys.

Queries, keys and values are one matrix there. int8 weights have a scale for each row, by which they are divided.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.json_files import JsonObject, read_object
from isoform.reference.checkpoints.checkpoint import Checkpoint, TensorInfo
from isoform.reference.checkpoints.ctranslate2_file import Array, read_arrays, read_values

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.bin"
KIND = "WhisperSpec"
_SETTINGS = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
"""What every Whisper has; 3 is GELU."""
_UNUSED = ("alignment_heads", "alignment_layer", "num_heads", "num_source_embeddings", "scale_outputs", "layernorm")
_MULTILINGUAL = 51865  # rows from which OpenAI's code takes a vocabulary for one of many languages


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor of the Hub: rows `start` to `stop` of an array."""

    array: str
    start: int
    stop: int


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder holds a model of CTranslate2: its config.json names no model_type."""
    return (folder / FILE).is_file() and "model_type" not in read_object(folder / "config.json")


class CTranslate2Checkpoint(Checkpoint):
    """Keys are the Hub's; int8 weights come out as float32, the others as they are stored.

    `folder` is a temporary one with the files that a Whisper of the Hub has, removed with the checkpoint.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Raises CheckpointError for a damaged file, UnsupportedModel for another model than Whisper."""
        self.path, self.name, self._source = folder / FILE, name, folder
        self._arrays = read_arrays(self.path, KIND)
        for key, value in _SETTINGS.items():
            if (found := self._number(f"decoder/{key}", value)) != value:
                raise UnsupportedModel(f"{self.path}: decoder/{key} is {found}, not {value} as in every Whisper")
        self._places = dict(self._tensors())
        used = {place.array for place in self._places.values()}
        for array in self._arrays:
            last = array.rpartition("/")[2]
            if array not in used and last not in _SETTINGS and last not in _UNUSED and not array.endswith("_scale"):
                raise CheckpointError(f"{self.path} holds {array}, for which isoform's Whisper has no place")
        self.config = self._config()

    # ------------------------------------------------------------------ tensors
    def _tensors(self) -> Iterator[tuple[str, _Place]]:
        """The Hub's key of everything, and where it is."""

        def whole(key: str, array: str) -> tuple[str, _Place]:
            return key, _Place(array, 0, self._array(array).shape[0])

        def norm(key: str, name: str) -> Iterator[tuple[str, _Place]]:
            yield whole(f"{key}.weight", f"{name}/gamma")
            yield whole(f"{key}.bias", f"{name}/beta")

        def linear(key: str, name: str) -> Iterator[tuple[str, _Place]]:
            yield whole(f"{key}.weight", f"{name}/weight")
            yield whole(f"{key}.bias", f"{name}/bias")

        def split(key: str, name: str, parts: str) -> Iterator[tuple[str, _Place]]:
            rows = self._array(f"{name}/weight").shape[0]
            size = rows // len(parts)
            if rows % len(parts):
                raise CheckpointError(f"{self.path}: {name}/weight has {rows} rows for {' and '.join(parts)}")
            for n, part in enumerate(parts):
                yield f"{key}.{part}_proj.weight", _Place(f"{name}/weight", n * size, (n + 1) * size)
                bias = _Place(f"{name}/bias", n * size, (n + 1) * size)
                if part != "k":
                    yield f"{key}.{part}_proj.bias", bias
                elif self._read(bias).any():  # Whisper's keys have none
                    raise CheckpointError(f"{self.path}: {name}/bias holds a bias of the keys, which no Whisper has")

        for side in ("encoder", "decoder"):
            for n in range(self._layers(side)):
                name, key = f"{side}/layer_{n}", f"model.{side}.layers.{n}"
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
            yield from norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
            yield whole(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
        yield from linear("model.encoder.conv1", "encoder/conv1")
        yield from linear("model.encoder.conv2", "encoder/conv2")
        yield whole("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")

    def _array(self, name: str) -> Array:
        if (found := self._arrays.get(name)) is None:
            raise CheckpointError(f"{self.path} lacks {name}; fetch it again")
        return found

    def _layers(self, side: str) -> int:
        return sum(
            name.startswith(f"{side}/layer_") and name.endswith("/ffn/layer_norm/gamma") for name in self._arrays
        )

    def _number(self, name: str, default: int) -> int:
        """A setting that is stored as an array without axes."""
        if (found := self._arrays.get(name)) is None:
            return default
        return int(read_values(self.path, found, 0, found.nbytes).item())

    def _read(self, place: _Place) -> Tensor:
        import torch

        array = self._arrays[place.array]
        row = array.nbytes // max(array.shape[0], 1)
        values = read_values(self.path, array, place.start * row, (place.stop - place.start) * row)
        tensor = values.reshape(place.stop - place.start, *array.shape[1:])
        if array.dtype != "I8":
            return tensor
        scales = self._array(f"{place.array}_scale")
        scale = read_values(self.path, scales, 0, scales.nbytes).float()
        scale = scale[place.start : place.stop] if scales.shape else scale
        return tensor.to(torch.float32) / scale.reshape(-1, *[1] * (tensor.dim() - 1))

    def __getitem__(self, key: str) -> Tensor:
        return self._read(self._places[key])

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        place = self._places[key]
        last = min(place.start + stop, place.stop)
        return self._read(_Place(place.array, min(place.start + start, last), last))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def info(self, key: str) -> TensorInfo:
        place = self._places[key]
        array = self._arrays[place.array]
        shape = (place.stop - place.start, *array.shape[1:])
        quantized = array.dtype == "I8"
        nbytes = 4 * prod(shape) if quantized else array.nbytes // max(array.shape[0], 1) * shape[0]
        return TensorInfo("F32" if quantized else array.dtype, shape, self.path, -1, nbytes)

    def files(self) -> list[Path]:
        return [self.path]

    # ------------------------------------------------------------------ the files of the Hub
    @cached_property
    def folder(self) -> Path:  # type: ignore[override]
        end = "<|endoftext|>"
        names = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end}
        files = {
            "config.json": self.config,
            "generation_config.json": self._generation(),
            "preprocessor_config.json": self._features(),
            "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizerFast", "model_max_length": 1024, **names},
        }
        folder = Path(tempfile.mkdtemp(prefix="isoform-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        shutil.copyfile(self._source / "tokenizer.json", folder / "tokenizer.json")
        return folder

    @cached_property
    def _settings(self) -> JsonObject:
        return JsonObject.read(self._source / "config.json")

    @cached_property
    def _tokens(self) -> Mapping[str, int]:
        """The ids of the tokens that steer Whisper, by their texts."""
        path = self._source / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self._source} has no tokenizer.json; put that of the same Whisper on the Hub there"
            )
        try:
            return {token["content"]: token["id"] for token in JsonObject.read(path).items_of("added_tokens")}
        except (TypeError, KeyError):
            raise CheckpointError(f"{path}: added_tokens is no list of tokens; fetch it again") from None

    def _token(self, text: str) -> int:
        if not isinstance(found := self._tokens.get(text), int):
            raise CheckpointError(f"{self._source / 'tokenizer.json'} has no token {text}; fetch it again")
        return found

    def _ids(self, name: str) -> list[int]:
        return list(self._settings.integers(name, least=0))

    @property
    def _ends(self) -> dict[str, Any]:
        end = self._token("<|endoftext|>")
        return {
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end),
            "decoder_start_token_id": self._token("<|startoftranscript|>"),
            "begin_suppress_tokens": self._ids("suppress_ids_begin"),
            "suppress_tokens": self._ids("suppress_ids"),
        }

    def _config(self) -> dict[str, Any]:
        vocabulary, width = self._array("decoder/embeddings/weight").shape
        config = {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "d_model": width,
            "vocab_size": vocabulary,
            "num_mel_bins": self._array("encoder/conv1/weight").shape[1],
            "max_source_positions": self._array("encoder/position_encodings/encodings").shape[0],
            "max_target_positions": self._array("decoder/position_encodings/encodings").shape[0],
            "is_encoder_decoder": True,
            "torch_dtype": "float16",
            **self._ends,
        }
        for side in ("encoder", "decoder"):
            config |= {
                f"{side}_layers": self._layers(side),
                f"{side}_attention_heads": self._number(f"{side}/num_heads", width // 64),
                f"{side}_ffn_dim": self._array(f"{side}/layer_0/ffn/linear_0/bias").shape[0],
            }
        return config

    def _generation(self) -> dict[str, Any]:
        multilingual = self.config["vocab_size"] >= _MULTILINGUAL
        silent = self._token("<|notimestamps|>")
        found = {
            "alignment_heads": self._settings.get("alignment_heads"),
            "is_multilingual": multilingual,
            "max_initial_timestamp_index": 50,
            "max_length": self.config["max_target_positions"],
            "no_timestamps_token_id": silent,
            "prev_sot_token_id": self._token("<|startofprev|>"),
            "return_timestamps": False,
            **self._ends,
        }
        if not multilingual:
            return found | {"forced_decoder_ids": [[1, silent]]}
        names = {index: text for text, index in self._tokens.items()}
        languages = {names[index]: index for index in self._ids("lang_ids") if index in names}
        tasks = {task: self._token(f"<|{task}|>") for task in ("transcribe", "translate")}
        return found | {"lang_to_id": languages, "task_to_id": tasks}

    def _features(self) -> dict[str, Any]:
        """preprocessor_config.json, which newer folders hold."""
        usual = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": self.config["num_mel_bins"],
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
        return usual | read_object(self._source / "preprocessor_config.json")
