"""One small request for each pipeline task, to see whether a bundle serves it: an input, and a call's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from isoform.errors import UnsupportedModel

TEXT = "A small cat sleeps in the old house."


def _picture() -> Any:
    from PIL import Image

    rows, columns = np.mgrid[0:64, 0:96]
    return Image.fromarray(np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8))


def page() -> dict[str, Any]:
    """A picture, and two words on it."""
    return {"image": _picture(), "word_boxes": [["Total:", [100, 200, 300, 250]], ["42.50", [350, 200, 480, 250]]]}


def _frames() -> Any:
    """Enough of them for the models there are: a video of 64 frames, at the rate of 1."""
    picture = np.asarray(_picture())
    return np.stack([np.roll(picture, n, 1) for n in range(64)])


def _sound() -> dict[str, Any]:
    seconds = np.arange(16000, dtype=np.float32) / 16000
    return {"raw": 0.1 * np.sin(2 * np.pi * 440 * seconds), "sampling_rate": 16000}


SHORT = {"max_new_tokens": 2, "do_sample": False}
LABELS = {"candidate_labels": ["a cat", "a house"]}

REQUESTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "audio-classification": (_sound, {}),
    "automatic-speech-recognition": (_sound, {}),
    "depth-estimation": (_picture, {}),
    "document-question-answering": (lambda: {**page(), "question": "How much is it?"}, {}),
    "feature-extraction": (lambda: TEXT, {}),
    "image-classification": (_picture, {}),
    "image-feature-extraction": (_picture, {}),
    "image-segmentation": (_picture, {}),
    "image-to-text": (_picture, {"max_new_tokens": 2}),
    "keypoint-detection": (_picture, {}),
    "keypoint-matching": (lambda: [_picture(), _picture()], {}),
    "mask-generation": (_picture, {"points_per_crop": 2}),
    "object-detection": (_picture, {"threshold": 0.0}),
    "pose-estimation": (_picture, {"boxes": [[20, 10, 30, 50]]}),
    "question-answering": (lambda: {"question": "Where does it sleep?", "context": TEXT}, {}),
    "sentence-similarity": (lambda: {"source_sentence": TEXT, "sentences": [TEXT, "An old house."]}, {}),
    "summarization": (lambda: TEXT, SHORT),
    "table-question-answering": (
        lambda: {"table": {"Animal": ["cat", "dog"], "Legs": ["4", "4"]}, "query": "How many legs has a cat?"},
        {},
    ),
    "text-classification": (lambda: TEXT, {}),
    "text-generation": (lambda: TEXT, SHORT),
    "text-ranking": (lambda: {"query": "Where does it sleep?", "documents": [TEXT, "An old house."]}, {}),
    "text2text-generation": (lambda: TEXT, SHORT),
    "token-classification": (lambda: TEXT, {}),
    "translation": (lambda: TEXT, SHORT),
    "video-classification": (_frames, {}),
    "visual-question-answering": (lambda: {"image": _picture(), "question": "What is it?"}, {"max_new_tokens": 2}),
    "zero-shot-classification": (lambda: TEXT, LABELS),
    "zero-shot-image-classification": (_picture, LABELS),
}
"""Task -> what makes its input, and the parameters. A task whose input depends on the tokenizer is in `OF_PIPELINE`."""

OF_PIPELINE: dict[str, Callable[[Any], Any]] = {
    "fill-mask": lambda pipe: f"A small {pipe.tokenizer.mask_token or ''} sleeps in the old house.",
}
"""Task -> its input, from the opened pipeline."""


BESIDES = frozenset(("text-ranking", "zero-shot-classification"))
"""Tasks that only some models of their task are made for: where one is not served, nothing is missing."""


def request_of(pipe: Any, task: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """What makes the input of a task of `REQUESTS`, and the parameters; a model of pages gets a page for a text."""
    make, parameters = REQUESTS[task]
    return (page if pipe.reads_pages and "question" not in pipe.asks else make), parameters


def answer(pipe: Any, task: str) -> Any:
    """The answer of an opened pipeline to the request of its task."""
    if task in OF_PIPELINE:
        return pipe(OF_PIPELINE[task](pipe))
    if task == "zero-shot-classification" and pipe.entailment < 0:
        raise UnsupportedModel("no label of the model begins with 'entail'")
    make, parameters = request_of(pipe, task)
    return pipe(make(), **parameters)
