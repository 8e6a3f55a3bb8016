"""One sub-package per format, and the folder they write: a model in, files and a manifest out."""

from __future__ import annotations

from isoform.exporters.bundle import FORMATS, export

__all__ = ["FORMATS", "export"]
