"""Pages of documents: a small picture of each, and how its words are read where nobody gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoform.json_files import JsonObject
from isoform.runtimes.preprocess.image.processor import FILES, ImageProcessor, ImageSettings, described

OTHERS = ("apply_ocr", "ocr_lang", "rescale_value", "tesseract_config")
"""The settings of documents; `rescale_value` is an old name that no version of transformers reads."""


class DocumentProcessor(ImageProcessor):
    """`ImageProcessor` for pages. `language` and `options` are what tesseract is given unless a call says otherwise."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        folder = Path(folder)
        self.settings = ImageSettings.read(folder, facts, OTHERS)
        stated = JsonObject(folder / FILES[1], described(folder))
        stated.flag("apply_ocr")  # words that are given count, whatever it says
        self.language = stated.text("ocr_lang")
        self.options = stated.text("tesseract_config") or ""
