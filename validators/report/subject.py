"""What a finding is about: the record that every other record of a report begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OPTIONAL = ("model", "part")  # keys of the JSON that are left out where they are empty
ORDER = ("model", "backend", "form", "dtype", "part", "level", "group", "case")


@dataclass(frozen=True, slots=True)
class Subject:
    """A form of a model, the level that it was checked at, and the case.

    `dtype` is f32, f16, bf16 or a quantization (q8_0). `case` names one input of the level, `group` what cases of its
    kind have in common; where both are empty, all of them are meant. `form` is the format of the artifact (onnx, gguf,
    torchscript), or "" for what is about no artifact; `part` is set for a graph of a model that is several, and `model`
    where one report is about several models.
    """

    backend: str
    level: str
    dtype: str
    group: str
    case: str
    form: str = field(default="", kw_only=True)
    part: str = field(default="", kw_only=True)
    model: str = field(default="", kw_only=True)

    @property
    def where(self) -> str:
        """The dtype, the part and the case, as a reader is told."""
        return self._text(self.case or self.group)

    @property
    def kind(self) -> str:
        """The dtype, the part and the group."""
        return self._text(self.group)

    @property
    def title(self) -> str:
        """The part and the case, without the dtype."""
        return ", ".join(filter(None, (self.part, self.case or self.group)))

    @property
    def who(self) -> str:
        """The model, where there are several, and the backend."""
        return f"{self.model} {self.backend}".strip()

    @property
    def column(self) -> str:
        """The artifact in a few words: model, backend, dtype and part."""
        return " ".join(filter(None, (self.model, self.backend, self.dtype, self.part)))

    def _text(self, name: str) -> str:
        return f"{self.dtype} {', '.join(filter(None, (self.part, name)))}".strip() or "all"

    def covers(self, other: Subject) -> bool:
        """Whether `other` is about nothing that this is not about; an empty field stands for every value."""
        if (self.model, self.level) != (other.model, other.level):
            return False
        names = ("backend", "form", "dtype", "part", "group", "case")
        return all(getattr(self, name) in ("", getattr(other, name)) for name in names)

    def fields(self) -> dict[str, Any]:
        """The fields by name, in the order of the JSON."""
        return {name: getattr(self, name) for name in ORDER}

    def subject_json(self) -> dict[str, Any]:
        """The published keys."""
        return {name: value for name, value in self.fields().items() if value or name not in OPTIONAL}

    @classmethod
    def read_subject(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields in an entry of the JSON. Raises KeyError for one that is missing."""
        return {name: data.get(name, "") if name in OPTIONAL else data[name] for name in ORDER}
