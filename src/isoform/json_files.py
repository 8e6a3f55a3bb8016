"""The JSON and text files of a model's folder, read with checks: whatever is wrong is a CheckpointError in one line.

`JsonObject` is the typed reader: each getter gives a value of one type, or names the file, the key and the value that
is of another. A key that is missing or null gives the default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from isoform.errors import CheckpointError

_NO_DEPTH = "it is nested too deeply"


@dataclass(frozen=True, slots=True, eq=False)
class JsonObject(Mapping[str, Any]):
    """An object of a JSON file. `inside` names it within the file ("image_processor."), "" for the whole file."""

    path: Path
    data: Mapping[str, Any]
    inside: str = ""

    @classmethod
    def read(cls, path: Path) -> JsonObject:
        """The object that a file holds; empty when the file is missing."""
        return cls(path, read_object(path))

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error that says what `key` is and what was expected: "a whole number"."""
        shown = repr(self.data.get(key))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(f"{self.path}: {self.inside}{key} is {shown}, not {expected}; correct the file")

    @overload
    def text(self, key: str, default: str) -> str: ...
    @overload
    def text(self, key: str, default: None = None) -> str | None: ...
    def text(self, key: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    @overload
    def choice(self, key: str, allowed: Sequence[str], default: str) -> str: ...
    @overload
    def choice(self, key: str, allowed: Sequence[str], default: None = None) -> str | None: ...
    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str | None:
        """A string out of `allowed`."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, f"one of {', '.join(map(repr, allowed))}")
        return value

    @overload
    def flag(self, key: str, default: bool) -> bool: ...
    @overload
    def flag(self, key: str, default: None = None) -> bool | None: ...
    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """True or false; 1 and 0 mean the same."""
        value = self.data.get(key)
        if value is None:
            return default
        if value not in (True, False) or isinstance(value, float):
            raise self.wrong(key, "true or false")
        return bool(value)

    @overload
    def integer(self, key: str, default: int, *, least: int | None = None, most: int | None = None) -> int: ...
    @overload
    def integer(
        self, key: str, default: None = None, *, least: int | None = None, most: int | None = None
    ) -> int | None: ...
    def integer(
        self, key: str, default: int | None = None, *, least: int | None = None, most: int | None = None
    ) -> int | None:
        """A whole number from `least` to `most`; 16.0 is 16."""
        value = self.data.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, f"a whole number{_bounds(least, most)}")
        whole = value == value // 1  # neither infinite nor NaN is
        if not whole or (least is not None and value < least) or (most is not None and value > most):
            raise self.wrong(key, f"a whole number{_bounds(least, most)}")
        return int(value)

    @overload
    def number(self, key: str, default: float, *, least: float | None = None, most: float | None = None) -> float: ...
    @overload
    def number(
        self, key: str, default: None = None, *, least: float | None = None, most: float | None = None
    ) -> float | None: ...
    def number(
        self, key: str, default: float | None = None, *, least: float | None = None, most: float | None = None
    ) -> float | None:
        """A finite number from `least` to `most`."""
        value = self.data.get(key)
        if value is None:
            return default
        expected = f"a number{_bounds(least, most)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, expected)
        try:
            found = float(value)
        except OverflowError:
            raise self.wrong(key, expected) from None
        if not math.isfinite(found) or (least is not None and found < least) or (most is not None and found > most):
            raise self.wrong(key, expected)
        return found

    def object(self, key: str) -> JsonObject:
        """An object within this one; empty when missing."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return JsonObject(self.path, value or {}, f"{self.inside}{key}.")

    def items_of(self, key: str) -> Sequence[Any]:
        """A list; empty when missing."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value or ()

    def integers(self, key: str, *, least: int | None = None, most: int | None = None) -> tuple[int, ...]:
        """Whole numbers from `least` to `most`: a list of them, or one alone; empty when missing."""
        value = self.data.get(key)
        found = value if isinstance(value, list) else [] if value is None else [value]
        for one in found:
            inside = isinstance(one, int) and not isinstance(one, bool)
            inside = inside and (least is None or one >= least) and (most is None or one <= most)
            if not inside:
                raise self.wrong(key, f"a whole number{_bounds(least, most)}, or a list of them")
        return tuple(found)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when missing."""
        found = self.items_of(key)
        if not all(isinstance(one, str) for one in found):
            raise self.wrong(key, "a list of texts")
        return tuple(found)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""


def is_there(path: Path) -> bool:
    """Whether there is such a file. CheckpointError for a folder of that name, or a link to nothing.

    Links to nothing are left where the files of the Hub's cache were cleared away; to pass over one changes the model.
    """
    if path.is_file():
        return True
    if path.is_symlink() or path.exists():
        raise CheckpointError(f"{path} is a folder or a broken link, not a file; fetch it again")
    return False


def read_text(path: Path) -> str:
    """A UTF-8 text file, or CheckpointError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); fetch it again") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error}); fetch it again") from None


def read_value(path: Path) -> Any:
    """The value that a JSON file holds; CheckpointError when it is not JSON, or holds what no UTF-8 text can say."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch it again") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not readable JSON ({_NO_DEPTH}); fetch it again") from None
    if "\\ud" in text or "\\uD" in text:  # only an escape can spell half a surrogate pair
        _check_surrogates(path, data)
    return data


def _check_surrogates(path: Path, data: Any) -> None:
    left = [data]
    while left:
        one = left.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                raise CheckpointError(
                    f"{path} holds {one[:40]!r}, half a surrogate pair, which is not text; fetch it again"
                ) from None
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is missing; CheckpointError when it is anything else."""
    if not is_there(path):
        return {}
    data = read_value(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object; fetch it again")
    return data


def read_list(path: Path) -> Sequence[Mapping[str, Any]]:
    """A JSON list of objects, or CheckpointError."""
    data = read_value(path)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise CheckpointError(f"{path} is not a list of objects; fetch it again")
    return data
