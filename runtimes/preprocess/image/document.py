"""Pages of documents: a small picture of each, and how its words are read where nobody gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from isoform.json_files import JsonObject
from isoform.runtimes.preprocess.image.processor import FILES, ImageProcessor, described


class DocumentProcessor(ImageProcessor):
    """`ImageProcessor` for pages. `language` and `options` are what tesseract is given unless a call says otherwise."""

    also: ClassVar[tuple[str, ...]] = (
        *("apply_ocr", "ocr_lang", "tesseract_config"),
        "rescale_value",  # an old name that no version of transformers reads
    )

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        folder = Path(folder)
        super().__init__(folder, facts)
        stated = JsonObject(folder / FILES[1], described(folder))
        stated.flag("apply_ocr")  # words that are given count, whatever it says
        self.language = stated.text("ocr_lang")
        self.options = stated.text("tesseract_config") or ""
