"""Pipelines: a task in, answers out, with the keys and values of transformers' pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError

if TYPE_CHECKING:
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.runtimes.session import Session

# task -> its module and class here, and the task of the model that serves it
TASKS: dict[str, tuple[str, str, str]] = {
    "audio-classification": ("audio.audio_classification", "AudioClassification", "audio-classification"),
    "automatic-speech-recognition": (
        "audio.automatic_speech_recognition",
        "AutomaticSpeechRecognition",
        "automatic-speech-recognition",
    ),
    "feature-extraction": ("text.feature_extraction", "FeatureExtraction", "feature-extraction"),
    "fill-mask": ("text.fill_mask", "FillMask", "fill-mask"),
    "image-classification": ("vision.image_classification", "ImageClassification", "image-classification"),
    "image-feature-extraction": (
        "vision.image_feature_extraction",
        "ImageFeatureExtraction",
        "image-feature-extraction",
    ),
    "image-to-text": ("multimodal.image_to_text", "ImageToText", "image-to-text"),
    "question-answering": ("text.question_answering", "QuestionAnswering", "question-answering"),
    "sentence-similarity": ("text.sentence_similarity", "SentenceSimilarity", "feature-extraction"),
    "text-classification": ("text.text_classification", "TextClassification", "text-classification"),
    "text-generation": ("text.text_generation", "TextGeneration", "text-generation"),
    "text-ranking": ("text.text_ranking", "TextRanking", "text-classification"),
    "token-classification": ("text.token_classification", "TokenClassification", "token-classification"),
    "visual-question-answering": (
        "multimodal.visual_question_answering",
        "VisualQuestionAnswering",
        "visual-question-answering",
    ),
    "zero-shot-image-classification": (
        "multimodal.zero_shot_image_classification",
        "ZeroShotImageClassification",
        "zero-shot-image-classification",
    ),
}
ALIASES = {
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "vqa": "visual-question-answering",
}


def model_task(task: str) -> str:
    """The task that a model must be opened or exported for, to serve this pipeline. InputError when there is none."""
    return TASKS[_known(task)][2]


def hears(task: str) -> bool:
    """Whether the pipeline of a task takes sound."""
    return TASKS[_known(task)][0].startswith("audio.")


def build_pipeline(
    task: str, session: Session, folder: str | Path, *, facts: Mapping[str, Any], **parameters: Any
) -> Pipeline:
    """The pipeline of a task over an open session and the folder with the model's config and tokenizer files.

    The pipeline owns the session and closes it. `facts` are those of the model (`reference.facts`). `parameters` hold
    for every call; `batch_size`, `keep` (an object to hold on to, and to close with it) and `origin` are the
    pipeline's own.
    """
    module, name, _ = TASKS[_known(task)]
    kind: type[Pipeline] = getattr(import_module(f"{__name__}.{module}"), name)
    try:
        pipe = kind(session, Path(folder), facts=facts, **parameters)
    except BaseException:
        session.close()
        raise
    pipe.__dict__["task"] = task  # an alias stays one, as in transformers
    return pipe


def _known(task: str) -> str:
    name = ALIASES.get(task, task)
    if name not in TASKS:
        hint = "give a model as model=; the tasks are" if "/" in task or "." in task else "there are"
        raise InputError(f"there is no pipeline for {task!r}; {hint} {', '.join(TASKS)}")
    return name
