"""The pictures and words that an answer is about, opened to be drawn over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoform.drawing.marks import Subject
from isoform.errors import InputError

if TYPE_CHECKING:
    from isoform.runtimes.pipelines.base import Pipeline

PAIRED = "keypoint-matching"
OF_PAGES = "document-question-answering"


def subject_of(
    task: str, given: Any, pipe: Pipeline | None = None, parameters: Mapping[str, Any] | None = None
) -> Subject:
    """What a pipeline was called with (a picture, a pair of pictures, a page with its words) as pictures of Pillow.

    `pipe` and the call's `parameters` say how the words of a page are read that brings none.
    """
    from isoform.runtimes.preprocess.image.pictures import load_image

    if task == PAIRED:
        pair = given.get("images") if isinstance(given, Mapping) else given
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"{task} is drawn over a pair of pictures, not {given!r:.80}")
        return Subject(tuple(load_image(picture) for picture in pair))
    source = given.get("image") if isinstance(given, Mapping) else given
    if source is None:
        raise InputError(f"{task} is drawn over a picture; {given!r:.80} holds none as image")
    picture = load_image(source)
    return Subject((picture,), _words(given, picture, pipe, parameters or {}) if task == OF_PAGES else ())


def _words(
    given: Any, picture: Any, pipe: Any, parameters: Mapping[str, Any]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    from isoform.runtimes.preprocess.document.page import given_words
    from isoform.runtimes.preprocess.document.tesseract import read_words

    own = {name: parameters[name] for name in ("boxes", "word_boxes", "words") if name in parameters}
    words = given_words({**(given if isinstance(given, Mapping) else {}), **own})
    if words is None and pipe is not None:
        words = pipe.read(picture, parameters)
    return tuple(read_words(picture) if words is None else words)
