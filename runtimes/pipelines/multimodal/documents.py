"""Pipelines over pages: words with boxes, and the picture where the model sees one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, InputPiece, OneGraph
from isoform.runtimes.pipelines.batching import TOKENS, neighbours
from isoform.runtimes.preprocess.document.page import Page, SpecialBoxes, Window, given_words
from isoform.runtimes.preprocess.document.tesseract import Words, read_words
from isoform.runtimes.preprocess.image.document import DocumentProcessor
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.pictures import is_image, load_image
from isoform.runtimes.preprocess.image.processor import ImageProcessor
from isoform.signature import DOCUMENT, LENGTH

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from isoform.runtimes.session import Session

WORDS = ("boxes", "word_boxes", "words")
"""The keys of an input that bring its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """The parameters of a call that say how pages are read."""

    lang: str | None = None  # tesseract's code of the language
    tesseract_config: str | None = None  # more arguments for tesseract
    timeout: float | None = None  # seconds for a picture from the network


class Documents(OneGraph):
    """A pipeline whose inputs are pages, and whose pieces are windows of their tokens.

    A page is {"image", "word_boxes": [[word, [left, top, right, bottom]], …]}, its boxes in thousandths of the page's
    width and height. Without `word_boxes` tesseract reads the picture; without `image` the model sees none.
    """

    reads_pages: ClassVar[bool] = True
    sees: ClassVar[bool] = True
    takes_objects: ClassVar[bool] = True
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "image")
    asks: ClassVar[tuple[str, ...]] = ()  # the keys of an input besides its page

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.sees_pages = session.signature.takes("pixels")
        described = ImageProcessor.is_in(self.folder)
        self.pictures: Any = open_processor(self.folder, self.facts) if described or self.sees_pages else None
        self.special_boxes = SpecialBoxes.read(self.facts)

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`: a picture that is given with its words becomes an object."""
        own = {name: parameters.pop(name) for name in WORDS if name in parameters}
        if inputs is None and own and not any(name in parameters for name in self.keywords):
            return own
        inputs = super()._inputs(inputs, parameters)
        if is_image(inputs):
            return {"image": inputs, **own}
        if own and isinstance(inputs, Mapping):
            return {**inputs, **own}
        if own:
            raise InputError(f"{next(iter(own))}= goes with one picture; give a list of objects that hold their own")
        return inputs

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _takes(self) -> str:
        return 'a picture, {"image": picture, "word_boxes": [[word, box], …]} with either or both, or a list of those'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if is_image(item):
            return
        if not isinstance(item, Mapping) or not any(item.get(name) is not None for name in ("image", *WORDS)):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
        unknown = sorted(set(item) - {"image", *WORDS, *self.asks})
        if unknown:
            raise InputError(f"{self.task} takes {self._takes()}; it does not know {unknown[0]!r}")
        given_words(item)

    # ------------------------------------------------------------------ pages
    def pages(self, items: Sequence[Any], call: PageOptions, *, seen: bool = True) -> Iterator[Page]:
        """The page of each item; with `seen` the model gets its picture, if there is one."""
        for item in items:
            item = item if isinstance(item, Mapping) else {"image": item}
            words = given_words(item)
            picture = None
            if item.get("image") is not None and (words is None or (seen and self.sees_pages)):
                picture = load_image(item["image"], call.timeout)
            if words is None and picture is not None:
                words = self.read(picture, {"lang": call.lang, "tesseract_config": call.tesseract_config})
            sees = seen and self.sees_pages and picture is not None
            yield Page(words or [], self.pictures([picture])[0] if sees else None)

    def read(self, picture: Image, parameters: Mapping[str, Any]) -> Words:
        """The words that tesseract finds, as `lang` and `tesseract_config` say, or else the model's processor."""
        stated = self.pictures
        language, options = (stated.language, stated.options) if isinstance(stated, DocumentProcessor) else (None, "")
        return read_words(picture, parameters.get("lang") or language, parameters.get("tesseract_config") or options)

    def windows(
        self,
        pages: Sequence[Page],
        questions: Sequence[list[str]] | None = None,
        *,
        length: int | None = None,
        stride: int | None = None,
    ) -> list[list[Window]]:
        """Each page's tokens, cut to `length`; with a `stride` in windows that share so many tokens.

        `questions`: words that go before the page's.
        """
        texts: list[Any] = [[word for word, _ in page.words] for page in pages]
        if questions is None:
            rows = self.encode(texts, truncation=True, max_length=length, stride=stride or 0, words=True)
        else:
            pairs: list[Any] = texts
            options: dict[str, Any] = {"truncation": "only_second", "max_length": length, "stride": stride or 0}
            rows = self.encode(questions, pairs, words=True, **options)
        ids = {name: self.text_tokenizer.token_id(f"{name}_token") for name in ("cls", "sep", "pad")}
        place = 0 if questions is None else 1
        return [
            [
                Window(part, self.special_boxes.of(part, page.words, ids, place), page)
                for part in (row, *(row.overflowing if stride is not None else ()))
            ]
            for page, row in zip(pages, rows, strict=True)
        ]

    # ------------------------------------------------------------------ one graph
    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`; pages with and without a picture run apart."""
        groups = neighbours(
            pieces,
            size,
            length=lambda piece: len(piece.value),
            budget=TOKENS,
            kind=lambda piece: piece.value.page.pixels is None,
        )
        return Batches(count, groups)

    def feed(self, batch: list[Window], call: Any) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`: padded on the right; no pictures at all where the batch has none."""
        padded = self.text_tokenizer.pad([window.row for window in batch], "right")
        boxes = np.empty((*padded.input_ids.shape, 4), np.int64)
        boxes[:] = self.special_boxes.pad
        for line, window in zip(boxes, batch, strict=True):
            line[: len(window)] = window.boxes
        roles: dict[str | None, NDArray[Any]] = {
            "tokens": padded.input_ids,
            "mask": padded.attention_mask,
            "token_types": padded.token_type_ids if self.text_tokenizer.segments else np.zeros_like(padded.input_ids),
            "boxes": boxes,
        }
        port = self.session.signature.port("pixels")
        if port is not None:
            pixels = [window.page.pixels for window in batch if window.page.pixels is not None]
            roles["pixels"] = np.stack(pixels) if pixels else np.zeros((0, *map(int, port.axes[1:])), np.float32)
        return {port.name: roles[port.role] for port in self.session.signature.inputs}

    def split(self, batch: list[Window], outputs: dict[str, NDArray[np.float32]]) -> Sequence[Any]:
        """See `OneGraph.split`: tokens without padding, and the patches behind them."""
        longest = max(len(window) for window in batch)
        found: list[dict[str, NDArray[np.float32]]] = []
        for n, window in enumerate(batch):
            mine = {}
            for port in self.session.signature.results:
                values, axis = outputs[port.name][n], port.axes[1]
                if axis in (LENGTH, DOCUMENT):
                    values = np.concatenate((values[: len(window)], values[longest:]))
                mine[port.name] = values
            found.append(mine)
        return found
