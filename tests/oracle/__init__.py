"""Tiny random checkpoints in the Hub's layout, written by transformers, with its outputs beside them.

`make_tiny.py` holds the first configuration of each architecture, `second.py` a differently shaped one. `tiny(name)`
gives the folder of any of them: config.json, weights, tokenizer, and golden.safetensors (inputs "in.*", outputs
"out.*", greedy ids "gen.out"). Treat the folders as read-only: they are shared; copy one before changing it.
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
ENCODERS = tuple(name for name in (*FIRST, *SECOND, *MORE) if name.startswith("bert"))
DECODERS = tuple(name for name in (*FIRST, *SECOND, *MORE) if not name.startswith("bert"))


@cache
def _folder() -> Path:
    """The cache for these generators and libraries; a change in any of them makes a new one."""
    key = hashlib.sha256()
    for script in ("make_tiny.py", "second.py", "second_audio.py", "second_blip.py", "second_vision.py"):
        key.update((HERE / script).read_bytes())
    for package in ("transformers", "tokenizers", "torch", "safetensors"):
        key.update(f"{package}=={importlib.metadata.version(package)}\n".encode())
    return ROOT / ".pytest_cache" / "tiny" / key.hexdigest()[:16]


def tiny(name: str) -> Path:
    """The folder of the tiny checkpoint `name`; the first call of all writes the whole set (about ten seconds)."""
    folder = _folder()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:  # parallel test workers wait for the first one
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                _write(part, *FIRST, *SECOND, *MORE, *AUDIO)
                part.replace(folder)
    checkpoint = folder / name
    if not checkpoint.exists():  # any other case of make_tiny.py, on demand
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not checkpoint.exists():
                _write(folder / "part", name)
                (folder / "part" / name).replace(checkpoint)
    return checkpoint


def _write(out: Path, *names: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(HERE / "second.py"), str(out), *names], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"tiny checkpoints {names} could not be written:\n{done.stdout}{done.stderr}")
