"""The metadata of a GGUF file: what it is, llama.cpp's settings under the architecture's name, and the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import UnsupportedExport
from isoform.exporters.gguf.tokenizer import SENTENCEPIECE_FILES, tokenizer_files, tokenizer_metadata
from isoform.exporters.gguf.writer import Signed
from isoform.reference.checkpoints.checkpoint import Checkpoint
from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint
from isoform.sentence_modules import Dense, LayerNorm, Pooling, modules_root, read_sentence_modules

if TYPE_CHECKING:
    from isoform.exporters.gguf.tensors import GgufTensor
    from isoform.reference.card import Gguf
    from isoform.reference.model import Model

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION of ggml.h

# sentence-transformers' modes and llama.h's LLAMA_POOLING_TYPE.
POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}


def metadata(model: Model, gguf: Gguf, tensors: Sequence[GgufTensor], pre: str | None) -> dict[str, Any]:
    """Keys and values in the order of the file, whose type `general.file_type` is still to be said.

    The writer finds the type of a value by its Python type.
    """
    found: dict[str, Any] = {"general.architecture": gguf.arch, "general.type": "model"}
    found |= _general(model, gguf.arch, tensors)
    for key, value in gguf.fields(model.config).items():
        found[key if key.startswith("tokenizer.") else f"{gguf.arch}.{key}"] = value
    if (pooling := _pooling(model)) is not None:
        found[f"{gguf.arch}.pooling_type"] = pooling
    found["general.file_type"] = 0
    found["general.quantization_version"] = QUANTIZATION_VERSION
    checkpoint = model.checkpoint
    if isinstance(checkpoint, GgufCheckpoint):  # its tokenizer as it stands, with what llama.cpp alone knows
        return found | {key: value for key, value in checkpoint.metadata.items() if key.startswith("tokenizer.")}
    rows = model.weights["embed.weight"].shape[0]
    return found | tokenizer_metadata(_tokenizer_files(checkpoint), rows, pre)


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """The files of the tokenizer. A SentencePiece model alone says more than the tokenizer.json rebuilt from it, and
    is what llama.cpp's converter reads."""
    opened = checkpoint.opened
    alone = opened is not None and any((opened / name).is_file() for name in SENTENCEPIECE_FILES)
    return tokenizer_files(opened if opened is not None and alone else checkpoint.folder)


def _general(model: Model, arch: str, tensors: Sequence[GgufTensor]) -> dict[str, Any]:
    """Name, size, licence and recommended sampling, found by gguf's own reading of the folder and its model card."""
    checkpoint = model.checkpoint
    if isinstance(checkpoint, GgufCheckpoint):
        own = ("architecture", "type", "file_type", "quantization_version", "alignment")
        return {
            key: Signed(value) if type(value) is int and value < 2**31 and ".sampling." in key else value
            for key, value in checkpoint.metadata.items()
            if key.startswith("general.") and key.removeprefix("general.") not in own
        }
    folder = checkpoint.opened or checkpoint.folder
    named = folder.resolve() if Path(checkpoint.name).expanduser().is_dir() else Path(checkpoint.name)
    stacks = [entry.shape for entry in tensors if "_exps." in entry.name]
    return facts_of(folder, named, sum(prod(entry.shape) for entry in tensors), arch, stacks)


def facts_of(
    folder: Path, named: Path, total: int, arch: str, stacks: Sequence[tuple[int, ...]] = ()
) -> dict[str, Any]:
    """`general.*` from the model card, config.json and generation_config.json in `folder`.

    `named` is what the model goes by, `total` its parameters, negative when they are those that an adapter touches.
    `stacks`: the shapes of the tensors among them that hold all experts of a layer.
    """
    import gguf

    card, config = gguf.Metadata.load_model_card(folder), gguf.Metadata.load_hf_parameters(folder)
    facts = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, config, named, total)
    sampling = gguf.Metadata.load_generation_config(folder) or {}
    for ours, theirs in (("temp", "temperature"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p")):
        setattr(facts, f"sampling_{ours}", sampling.get(theirs))
    facts.sampling_penalty_repeat = sampling.get("penalty_repeat")
    facts.name = facts.name or named.name
    if total > 0:
        shared, one = total - sum(map(prod, stacks)), sum(prod(shape[1:]) for shape in stacks)
        experts = sum(shape[0] for shape in stacks) // max(1, len(stacks))
        facts.size_label = facts.size_label or gguf.size_label(total, shared, one, experts)
    collected = gguf.GGUFWriter(None, arch)
    facts.set_gguf_meta_model(collected)
    signed = gguf.GGUFValueType.INT32
    return {
        key: Signed(entry.value) if entry.type == signed else entry.value
        for key, entry in collected.kv_data[0].items()
        if key != "general.architecture"
    }


def _pooling(model: Model) -> int | None:
    """llama.cpp's number for the pooling that sentence-transformers does, or None without one.

    None as well where modules with weights follow, which the file does not hold: what is pooled is no text's vector
    yet, and a reader of the file must not take it for one.
    """
    if isinstance(model.checkpoint, GgufCheckpoint):
        for key, value in model.checkpoint.metadata.items():
            if key.endswith(".pooling_type"):
                return int(value)
        return None
    if modules_root(model.checkpoint.folder) is None:
        return None
    steps = read_sentence_modules(model.checkpoint.folder).steps
    modes = next((step.modes for step in steps if isinstance(step, Pooling)), ())
    if not modes or any(isinstance(step, Dense | LayerNorm) for step in steps):
        return None
    if len(modes) > 1 or modes[0] not in POOLING:
        raise UnsupportedExport(
            f"{model.name}: llama.cpp pools by mean, first or last token, and modules.json asks for "
            f"{' and '.join(modes)}; export to ONNX instead"
        )
    return POOLING[modes[0]]
