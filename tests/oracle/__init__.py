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

SCALE = int(os.environ.get("ISOFORM_TEST_SCALE", "1"))
"""How many times the table is listed, under other names ("bert@2"): what the tests cost with more families."""


def _listed(families: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    copies = {
        f"{family}@{n}": tuple(f"{name}@{n}" for name in names)
        for n in range(2, SCALE + 1)
        for family, names in families.items()
    }
    return families | copies


# The table of what the tests know: family -> its tiny checkpoints, at least two of unlike shape. A name that ends in
# "_b" is the second configuration; the others have one switch each: a head, a pooling, a window, a bias, a spelling of
# config.json, shards. Everything that is parametrised over a modality picks up what is listed here.
TEXT_ENCODERS = _listed(
    {
        "albert": ("albert", "albert_ner", "albert_qa", "albert_seqcls", "albert_b"),
        "bert": (
            *("bert", "bert_ner", "bert_qa", "bert_seqcls"),
            *("bert_b", "bert_ner_b", "bert_qa_b", "bert_seqcls_b", "bert_embed"),
        ),
        "deberta": ("deberta", "deberta_b", "deberta_seqcls", "deberta_ner", "deberta_qa", "deberta_mask"),
        "distilbert": (
            *("distilbert", "distilbert_ner", "distilbert_qa", "distilbert_seqcls"),
            *("distilbert_b", "distilbert_base"),
        ),
        "embedding_gemma": ("embedding_gemma", "embedding_gemma_b"),
        "electra": ("electra", "electra_ner", "electra_qa", "electra_seqcls", "electra_b"),
        "modernbert": (
            *("modernbert", "modernbert_b", "modernbert_cls", "modernbert_mask"),
            *("modernbert_ner", "modernbert_qa", "modernbert_seqcls"),
        ),
        "roberta": ("roberta", "roberta_seqcls", "camembert_ner", "xlm_roberta_qa", "xlm_roberta_b"),
        "mpnet": ("mpnet", "mpnet_b", "mpnet_seqcls", "mpnet_ner", "mpnet_qa"),
    }
)
TEXT_DECODERS = _listed(
    {
        "gemma": ("gemma", "gemma_b"),
        "gemma2": ("gemma2", "gemma2_b", "gemma2_scalar"),
        "gemma3": ("gemma3_b", "gemma3_new"),
        "granite": ("granite", "granite_b"),
        "gpt2": ("gpt2", "gpt2_b", "gpt2_unscaled"),
        "llama": (
            *("llama", "llama3_instruct", "llama3_instruct_b", "llama_b"),
            *("mistral_b", "mistral_full"),
            "llama_yarn",
        ),
        "mixtral": ("mixtral", "mixtral_b"),
        "olmo2": ("olmo2", "olmo2_b"),
        "phi3": ("phi4", "phi3_b", "phi4_mini"),
        "qwen2": ("qwen2", "qwen2_b", "qwen2_window", "qwen2_yarn"),
        "qwen3": ("qwen3_b", "qwen3_bias", "qwen3_sharded"),
        "qwen3_moe": ("qwen3_moe", "qwen3_moe_b", "qwen3_moe_window"),
        "smollm3": ("smollm3", "smollm3_b"),
    }
)
# Decoders with a head that classifies: they run in one pass, without a cache.
DECODER_HEADS = _listed(
    {
        "gemma2": ("gemma2_tokcls",),
        "gpt2": ("gpt2_ner", "gpt2_qa", "gpt2_seqcls"),
        "llama": ("llama_qa",),
        "mixtral": ("mixtral_seqcls",),
        "qwen2": ("qwen2_seqcls",),
    }
)
# Encoder-decoders, of two graphs, and with other heads or none: those run in one pass, as one graph.
SEQUENCE_TO_SEQUENCE = _listed(
    {
        "bart": ("bart", "bart_b", "bart_mnli", "bart_qa", "bart_base"),
        "m2m_100": ("m2m_100", "nllb"),
        "marian": ("marian", "marian_b"),
        "mbart": ("mbart", "mbart_50", "mbart_seqcls"),
        "pegasus": ("pegasus", "pegasus_b"),
        "t5": ("t5", "t5_v1_1", "umt5_b"),
    }
)
SEQUENCE_HEADS = _listed({"t5": ("t5_seqcls", "mt5_encoder", "mt5_qa", "umt5_ner")})


def _with(heads: dict[str, tuple[str, ...]], families: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {family: (*names, *heads.get(family, ())) for family, names in families.items()}


# They read tables as well as texts.
TABLES = _listed({"tapas": ("tapas", "tapas_qa", "tapas_sqa_b", "tapas_seqcls_b", "tapas_base_b")})

TEXT = TEXT_ENCODERS | _with(DECODER_HEADS, TEXT_DECODERS) | _with(SEQUENCE_HEADS, SEQUENCE_TO_SEQUENCE)
AUDIO = _listed(
    {
        "moonshine": ("moonshine", "moonshine_b"),
        "wav2vec2": (
            *("wav2vec2", "wav2vec2_ctc", "wav2vec2_large"),
            *("wav2vec2_b", "wav2vec2_base_b", "wav2vec2_ctc_b"),
        ),
        "whisper": ("whisper", "whisper_b", "whisper_labels"),
    }
)
VISION = _listed(
    {
        "beit": ("beit_cls", "beit_b"),
        "clip_vision": ("clip_vision", "clip_vision_b"),
        "depth_anything": ("depth_anything", "depth_anything_b"),
        "convnext": ("convnext_cls", "convnext_b"),
        "depth_pro": ("depth_pro", "depth_pro_b"),
        "deformable_detr": ("deformable_detr", "deformable_detr_b"),
        "detr": ("detr", "detr_b"),
        "dinov2": ("dinov2", "dinov2_cls", "dinov2_giant", "dinov2_b", "dinov2_giant_b"),
        "dinov2_registers": ("dinov2_registers", "dinov2_registers_cls"),
        "resnet": ("resnet_cls", "resnet_b"),
        "rt_detr": ("rt_detr_v2", "rt_detr_v2_b", "rt_detr_b"),
        "rt_detr_resnet": ("rt_detr_resnet", "rt_detr_resnet_b"),
        "mask2former": ("mask2former", "mask2former_b"),
        "oneformer": ("oneformer", "oneformer_b"),
        "sam": ("sam", "sam_b"),
        "segformer": ("segformer", "segformer_b", "segformer_cls", "segformer_base"),
        "superglue": ("superglue", "superglue_b"),
        "superpoint": ("superpoint", "superpoint_b"),
        "videomae": ("videomae", "videomae_cls", "videomae_b", "videomae_cls_b"),
        "swin": ("swin_cls", "swin_b", "swin_absolute"),
        "vit": ("vit_cls", "vit_b"),
        "yolos": ("yolos", "yolos_b"),
        "vitpose": ("vitpose", "vitpose_plus", "vitpose_b"),
    }
)
MULTIMODAL = _listed(
    {
        "blip": ("blip_vqa", "blip_caption", "blip_vqa_b", "blip_caption_b"),
        "clip": ("clip", "clip_b"),
        "layoutlmv3": (
            *("layoutlmv3", "layoutlmv3_qa", "layoutlmv3_tokcls"),
            *("layoutlmv3_qa_b", "layoutlmv3_seqcls", "layoutlmv3_tokcls_b"),
        ),
        "llava": ("llava", "llava_b"),
        "siglip": ("siglip", "siglip_b"),
    }
)
TINIES = TEXT | TABLES | AUDIO | VISION | MULTIMODAL
# Their angles depend on the longest row of a batch, so what holds of rows alone does not hold of them.
LONGER = ("llama_dynamic", "llama_longrope", "phi3_longrope")


def listed(*tables: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Every name of these parts of the table."""
    return tuple(name for table in tables for found in table.values() for name in found)


def original(name: str) -> str:
    """The name without the number of a copy."""
    return name.partition("@")[0]


BATCH = (*listed(TINIES), *LONGER)
"""What the first call of `tiny` writes."""
ENCODERS, DECODERS = listed(TEXT_ENCODERS, DECODER_HEADS, SEQUENCE_HEADS), listed(TEXT_DECODERS)
"""Texts in one pass, and with a cache."""
SPEECH = tuple(name for name in listed(AUDIO) if original(name) in ("moonshine", "moonshine_b", "whisper", "whisper_b"))
"""Encoder-decoders that transcribe."""


@cache
def folder() -> Path:
    """The cache for these generators and libraries; a change in any of them makes a new one."""
    key = hashlib.sha256()
    for script in sorted((HERE / "checkpoints").glob("*.py")):
        key.update(script.name.encode() + b"\n" + script.read_bytes())
    for package in ("transformers", "tokenizers", "torch", "safetensors"):
        key.update(f"{package}=={importlib.metadata.version(package)}\n".encode())
    return (ROOT / ".pytest_cache").resolve() / "tiny" / key.hexdigest()[:16]


def tiny(name: str) -> Path:
    """The folder of the tiny checkpoint `name`; the first call of all writes the whole batch (about ten seconds)."""
    checkpoint = folder() / name
    if not checkpoint.exists():
        write_missing(BATCH if name in BATCH else (name,))
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
