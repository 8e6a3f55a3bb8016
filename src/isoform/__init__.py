"""One model, every form, proven the same: the public API. Importing it loads neither torch nor NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoform.api import bench, check, draw, export, import_gguf, load, pipeline

__all__ = ["__version__", "bench", "check", "draw", "export", "import_gguf", "load", "pipeline"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("isoform")
    if name in __all__:
        from isoform import api

        return getattr(api, name)
    raise AttributeError(f"module 'isoform' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
