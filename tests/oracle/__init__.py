"""Tiny random checkpoints in the Hub's layout, written by transformers, with its outputs in the same folder.

`tests/oracle/checkpoints/` writes them, by modality. `tiny(name)` gives the folder of any of them: config.json,
weights, tokenizer, and golden.safetensors (inputs "in.*", outputs "out.*", greedy ids "gen.out"). The folders are
shared: copy one before changing it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WRITERS = min(2, os.cpu_count() or 1)  # processes; each imports transformers, which takes longer than ten checkpoints

FIRST = ("bert", "bert_ner", "bert_qa", "bert_seqcls", "gemma2", "llama", "llama3_instruct", "qwen2")
SECOND = (
    *("bert_b", "bert_ner_b", "bert_qa_b", "bert_seqcls_b", "gemma2_b", "gemma3_b", "llama3_instruct_b", "llama_b"),
    *("mistral_b", "qwen2_b", "qwen3_b"),
)
# One switch each: a base model with its pooling, unusual scales, windows and biases, the newer config spelling, shards.
MORE = (*("bert_embed", "gemma2_scalar", "gemma3_new", "mistral_full", "qwen2_window", "qwen3_bias", "qwen3_sharded"),)
SPEECH = ("moonshine", "moonshine_b", "whisper", "whisper_b")
"""Encoder-decoders that transcribe."""
AUDIO = (
    *("wav2vec2", "wav2vec2_ctc", "wav2vec2_large", "wav2vec2_b", "wav2vec2_base_b", "wav2vec2_ctc_b"),
    *(*SPEECH, "whisper_labels"),
)
PICTURES = (
    *("dinov2", "dinov2_cls", "dinov2_giant", "dinov2_b", "dinov2_giant_b", "dinov2_registers", "dinov2_registers_cls"),
    *("vit_cls", "vit_b", "clip", "clip_b", "siglip", "siglip_b"),
    *("blip_vqa", "blip_caption", "blip_vqa_b", "blip_caption_b"),
)
# Of these only the tokenizer serves, or their family does not exist yet.
TOKENIZERS = ("bart", "mixtral", "modernbert", "t5")
PENDING = (
    *("distilbert", "distilbert_b", "distilbert_base", "distilbert_ner", "distilbert_qa", "distilbert_seqcls"),
    *("llava", "sam"),
)
BATCH = (*FIRST, *SECOND, *MORE, *AUDIO, *PICTURES, *TOKENIZERS)
"""What the first call of `tiny` writes."""
ENCODERS = tuple(name for name in (*FIRST, *SECOND, *MORE) if name.startswith("bert"))
DECODERS = tuple(name for name in (*FIRST, *SECOND, *MORE) if not name.startswith("bert"))


@cache
def folder() -> Path:
    """The cache for these generators and libraries; a change in any of them makes a new one."""
    key = hashlib.sha256()
    for script in sorted((HERE / "checkpoints").glob("*.py")):
        key.update(script.name.encode() + b"\n" + script.read_bytes())
    for package in ("transformers", "tokenizers", "torch", "safetensors"):
        key.update(f"{package}=={importlib.metadata.version(package)}\n".encode())
    return ROOT / ".pytest_cache" / "tiny" / key.hexdigest()[:16]


def tiny(name: str) -> Path:
    """The folder of the tiny checkpoint `name`; the first call of all writes the whole batch (about ten seconds)."""
    checkpoint = folder() / name
    if not checkpoint.exists():
        write_missing(next((batch for batch in (BATCH, PENDING) if name in batch), (name,)))
    return checkpoint


def write_missing(names: tuple[str, ...]) -> None:
    """Write those of the tiny checkpoints that no process wrote yet, with one import of transformers per processor."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:  # parallel test workers wait for the first one
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in names if not (folder() / name).exists()]
        staging = folder() / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        shares = [share for i in range(WRITERS) if (share := missing[i::WRITERS])]
        for writer in [_start(staging, share) for share in shares]:
            said, _ = writer.communicate()
            if writer.returncode:
                raise RuntimeError(f"tiny checkpoints could not be written:\n{said}")
        for name in missing:
            (staging / name).replace(folder() / name)
        shutil.rmtree(staging, ignore_errors=True)


def _start(out: Path, names: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.oracle.checkpoints", str(out), *names],
        cwd=ROOT,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
