"""Pipelines: a task in, answers out, with the keys and values of transformers' pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, UnsupportedModel

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
    "depth-estimation": ("vision.depth_estimation", "DepthEstimation", "depth-estimation"),
    "document-question-answering": (
        "multimodal.document_question_answering",
        "DocumentQuestionAnswering",
        "document-question-answering",
    ),
    "feature-extraction": ("text.feature_extraction", "FeatureExtraction", "feature-extraction"),
    "fill-mask": ("text.fill_mask", "FillMask", "fill-mask"),
    "image-classification": ("vision.image_classification", "ImageClassification", "image-classification"),
    "image-feature-extraction": (
        "vision.image_feature_extraction",
        "ImageFeatureExtraction",
        "image-feature-extraction",
    ),
    "image-segmentation": ("vision.image_segmentation", "ImageSegmentation", "image-segmentation"),
    "image-to-text": ("multimodal.image_to_text", "ImageToText", "image-to-text"),
    "keypoint-detection": ("vision.keypoint_detection", "KeypointDetection", "keypoint-detection"),
    "keypoint-matching": ("vision.keypoint_matching", "KeypointMatching", "keypoint-matching"),
    "mask-generation": ("vision.mask_generation", "MaskGeneration", "mask-generation"),
    "object-detection": ("vision.object_detection", "ObjectDetection", "object-detection"),
    "pose-estimation": ("vision.pose_estimation", "PoseEstimation", "pose-estimation"),
    "question-answering": ("text.question_answering", "QuestionAnswering", "question-answering"),
    "sentence-similarity": ("text.sentence_similarity", "SentenceSimilarity", "feature-extraction"),
    "summarization": ("text.text_to_text", "Summarization", "text2text-generation"),
    "table-question-answering": (
        "text.table_question_answering",
        "TableQuestionAnswering",
        "table-question-answering",
    ),
    "text2text-generation": ("text.text_to_text", "TextToText", "text2text-generation"),
    "text-classification": ("text.text_classification", "TextClassification", "text-classification"),
    "text-generation": ("text.text_generation", "TextGeneration", "text-generation"),
    "text-ranking": ("text.text_ranking", "TextRanking", "text-classification"),
    "token-classification": ("text.token_classification", "TokenClassification", "token-classification"),
    "translation": ("text.translation", "Translation", "text2text-generation"),
    "video-classification": ("vision.video_classification", "VideoClassification", "video-classification"),
    "visual-question-answering": (
        "multimodal.visual_question_answering",
        "VisualQuestionAnswering",
        "visual-question-answering",
    ),
    "zero-shot-classification": ("text.zero_shot_classification", "ZeroShotClassification", "text-classification"),
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
OTHERWISE: dict[str, tuple[str, str, str]] = {
    "question-answering": ("text.prompted_answering", "PromptedAnswering", "text-generation"),
}
"""Task -> what answers where the model is for another task than the one of `TASKS`, in the same form."""
OF_PAGES: dict[str, tuple[str, str]] = {
    "document-question-answering": TASKS["document-question-answering"][:2],
    "feature-extraction": ("multimodal.document_encoders", "DocumentFeatures"),
    "text-classification": ("multimodal.document_encoders", "DocumentClassification"),
    "token-classification": ("multimodal.document_encoders", "DocumentTokenClassification"),
}
"""Task -> what answers where the model reads tokens with boxes: its inputs are pages."""
WRITING = ("summarization", "text-generation", "text2text-generation", "translation")
"""The tasks whose answers are texts, written token by token."""


def model_task(task: str, own: Callable[[], str | None] = lambda: None) -> str:
    """The task that a model must be opened or exported for, to serve this pipeline. InputError when there is none.

    `own` says what the model itself is for; it is asked where that may decide.
    """
    name = known(task)
    other = OTHERWISE.get(name)
    return other[2] if other is not None and own() == other[2] else TASKS[name][2]


def hears(task: str) -> bool:
    """Whether the pipeline of a task takes sound."""
    return TASKS[known(task)][0].startswith("audio.")


def build_pipeline(
    task: str,
    session: Session,
    folder: str | Path,
    *,
    facts: Mapping[str, Any],
    served: str | None = None,
    **parameters: Any,
) -> Pipeline:
    """The pipeline of a task over an open session and the folder with the model's config and tokenizer files.

    The pipeline owns the session and closes it. `facts` are those of the model (`reference.facts`), and `served` is the
    task that it was opened for, by default the first that serves the pipeline. `parameters` hold for every call;
    `batch_size`, `keep` (an object to hold on to, and to close with it) and `origin` are the pipeline's own.
    """
    name = known(task)
    other = OTHERWISE.get(name)
    module, kind_name, _ = other if other is not None and served == other[2] else TASKS[name]
    if session.signature.takes("tokens", "boxes"):
        if name not in OF_PAGES:
            session.close()
            raise UnsupportedModel(
                f"{task} is about texts, and this model reads pages of words with boxes; such models serve "
                f"{', '.join(OF_PAGES)}"
            )
        module, kind_name = OF_PAGES[name]
    kind: type[Pipeline] = getattr(import_module(f"{__name__}.{module}"), kind_name)
    try:
        return kind(session, Path(folder), facts=facts, called=task, **parameters)
    except BaseException:
        session.close()
        raise


def known(task: str) -> str:
    """The key of `TASKS` for a task, an alias or a pair of languages ("translation_en_to_de"). Raises InputError."""
    name = ALIASES.get(task, task)
    if name.startswith("translation_"):
        if languages_of(name) is None:
            raise InputError(f"{task!r} does not name two languages; write translation_en_to_de")
        return "translation"
    if name not in TASKS:
        hint = "give a model as model=; the tasks are" if "/" in task or "." in task else "there are"
        raise InputError(f"there is no pipeline for {task!r}; {hint} {', '.join(TASKS)}")
    return name


def languages_of(task: str) -> tuple[str, str] | None:
    """The languages that a task names, from and to: ("en", "de") of "translation_en_to_de"."""
    kind, _, pair = task.partition("_")
    first, _, second = pair.partition("_to_")
    return (first, second) if kind == "translation" and first and second else None
