"""`isoform.toml`: what a project checks, how strictly, and at what cost. Read with an error that names the mistake.

[check]                              # each may be left out
bundles = ["out/small"]              # exported already
budget = "10m"                       # of time, for each bundle or cell
memory = "8G"                        # for all cells that run at once
jobs = 2
baseline = "parity.json"

[tolerances]                         # names as in a report's notes, and validators/truth/{tolerances,budgets}.py
"graph.rms" = 3.0
"q8_0.kl" = 0.002

[[matrix]]                           # every combination is exported and checked in a process of its own
models = ["checkpoints/small", "organisation/name"]
formats = ["onnx", "gguf"]           # all of them when left out
quantizations = ["f32", "q8_0"]      # f32 when left out
backends = ["onnxruntime"]           # all when left out
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from isoform.errors import InputError
from isoform.formats import BACKENDS, FORMAT_OF

NAME = "isoform.toml"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One [[matrix]]: every model in every format and quantization, on every backend that reads the format."""

    models: tuple[str, ...]
    formats: tuple[str, ...] = tuple(BACKENDS)
    quantizations: tuple[str, ...] = ("f32",)
    backends: tuple[str, ...] = tuple(FORMAT_OF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`seconds` and `bytes` are the budget and the memory; paths are relative to `folder`."""

    folder: Path = Path()
    bundles: tuple[str, ...] = ()
    seconds: float | None = None
    bytes: int | None = None
    jobs: int | None = None
    baseline: Path | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    matrix: tuple[Block, ...] = ()


def read_settings(path: Path) -> Settings:
    """Raises InputError, which names the file and the key, for anything that is not as it must be."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there; name a bundle, or give --config the path of an {NAME}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    reader = _SettingsReader(path)
    reader.keys(data, ("check", "matrix", "tolerances"), "")
    check = reader.table(data, "check", "")
    reader.keys(check, ("baseline", "budget", "bundles", "jobs", "memory"), "check")
    baseline = reader.text(check, "baseline", "check")
    budget, memory = reader.text(check, "budget", "check"), reader.text(check, "memory", "check")
    return Settings(
        folder=path.parent,
        bundles=reader.texts(check, "bundles", "check"),
        seconds=None if budget is None else reader.read(duration, budget, "check.budget"),
        bytes=None if memory is None else reader.read(size, memory, "check.memory"),
        jobs=reader.count(check, "jobs", "check"),
        baseline=None if baseline is None else path.parent / baseline,
        tolerances=reader.tolerances(reader.table(data, "tolerances", "")),
        matrix=tuple(reader.block(entry, n) for n, entry in enumerate(reader.tables(data, "matrix"))),
    )


def duration(text: str) -> float:
    """Seconds of "90", "90s", "10m" or "1h30m"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        raise InputError(f"{text!r} is no time; write it as 90s, 10m or 1h30m")
    if seconds <= 0:
        raise InputError(f"a budget of {text} leaves no time for anything; give more")
    return seconds


def size(text: str) -> int:
    """Bytes of "500M", "4G" or "1.5T"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])B?", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise InputError(f"{text!r} is no size; write it as 500M or 4G")
    return int(float(found[1]) * _BYTES[found[2].upper()])


def nearest(name: str, known: Collection[str]) -> str:
    """How to go on from a name that is not known."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known)[:12])}"


class _SettingsReader:
    """Takes values out of tables, and says where they are wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, where: str, what: str) -> InputError:
        return InputError(f"{self.path}: {where} {what}")

    def read(self, parse: Any, text: str, where: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise self.wrong(where, f"= {text!r}: {error}") from None

    def keys(self, table: Mapping[str, Any], known: Collection[str], where: str) -> None:
        for key in table:
            if key not in known:
                raise self.wrong(f"[{where}]" if where else "the file", f"has no key {key!r}; {nearest(key, known)}")

    def table(self, data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
        found = data.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong(key, f"is a table, [{key}], not {found!r}")
        return found

    def tables(self, data: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
        found = data.get(key, [])
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise self.wrong(key, f"is a list of tables; begin each with [[{key}]]")
        return found

    def text(self, table: Mapping[str, Any], key: str, where: str) -> str | None:
        found = table.get(key)
        if found is not None and (not isinstance(found, str) or not found):
            raise self.wrong(f"{where}.{key}", f"is a text in quotes, not {found!r}")
        return found

    def texts(self, table: Mapping[str, Any], key: str, where: str, known: Collection[str] = ()) -> tuple[str, ...]:
        found = table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(entry, str) and entry for entry in found):
            raise self.wrong(f"{where}.{key}", f"is a list of texts, not {found!r}")
        if key in table and not found:
            raise self.wrong(f"{where}.{key}", "is empty; leave it out for the default")
        for entry in found:
            if known and entry not in known:
                raise self.wrong(f"{where}.{key}", f"holds {entry!r}; {nearest(entry, known)}")
        return tuple(dict.fromkeys(found))

    def count(self, table: Mapping[str, Any], key: str, where: str) -> int | None:
        found = table.get(key)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 1):
            raise self.wrong(f"{where}.{key}", f"is a whole number of 1 or more, not {found!r}")
        return found

    def tolerances(self, table: Mapping[str, Any]) -> dict[str, float]:
        from isoform.validators.truth.budgets import known

        names = known()
        for name, value in table.items():
            if isinstance(value, dict):
                raise self.wrong(f"[tolerances] {name}", f'is a table; write the name in quotes: "{name}.…" = 1.0')
            if name not in names:
                raise self.wrong("[tolerances]", f"has no key {name!r}; {nearest(name, names)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise self.wrong(
                    f"[tolerances] {name}", f"is a number of 0 or more ({names[name].unit}), not {value!r}"
                )
        return {name: float(value) for name, value in table.items()}

    def block(self, table: Mapping[str, Any], number: int) -> Block:
        where = f"matrix[{number}]"
        self.keys(table, tuple(entry.name for entry in fields(Block)), where)
        if "models" not in table:
            raise self.wrong(where, 'names no models; give models = ["path or Hub id"]')
        given = {
            "models": self.texts(table, "models", where),
            "formats": self.texts(table, "formats", where, BACKENDS),
            "quantizations": self.texts(table, "quantizations", where),
            "backends": self.texts(table, "backends", where, FORMAT_OF),
        }
        return Block(**{key: value for key, value in given.items() if value})
