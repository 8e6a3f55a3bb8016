"""What scripts read of a pipeline's feature extractor or image processor: its settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, Self

from isoform.errors import InputError
from isoform.json_files import read_object

FILES = ("processor_config.json", "preprocessor_config.json")


class ProcessorView:
    """The settings of a processor as attributes (`sampling_rate`, `size`, `image_mean`, …), to read."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, dict(settings)

    @classmethod
    def read(cls, folder: Path, kind: str, defaults: Mapping[str, Any] | None = None) -> Self:
        """`kind` is "feature_extractor" or "image_processor"; `defaults` are those of its class."""
        inside = read_object(folder / FILES[0]).get(kind)
        found = inside if isinstance(inside, Mapping) else read_object(folder / FILES[1])
        stated = {name: value for name, value in found.items() if value is not None}
        scale = {"rescale_factor": 1 / 255} if kind == "image_processor" else {}
        return cls(folder, {**scale, **found, **(defaults or {}), **stated})

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("_settings", {})
        if name not in settings:
            raise AttributeError(f"this processor has no setting {name!r}; it has {', '.join(settings)}")
        return settings[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise InputError(f"{name} is read-only here; change preprocessor_config.json and make the pipeline again")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"ProcessorView({self._settings!r})"

    def to_dict(self) -> dict[str, Any]:
        """A copy of the settings."""
        return deepcopy(self._settings)

    def to_json_string(self) -> str:
        return json.dumps(self._settings, indent=2) + "\n"

    def save_pretrained(self, save_directory: str | PathLike[str], **ignored: Any) -> list[str]:
        """Write the processor's file; returns its path."""
        folder = Path(save_directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, folder / name)
        return [str(folder / name) for name in FILES if (folder / name).is_file()]
