"""Reports of schema version 1, whose `case` held the dtype, the part, the group and the case in one text.

Stored baselines have it. It is taken apart here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

SCHEMA_VERSION = 1
DTYPE = re.compile(r"b?f\d+|int\d+|i?q\d\S*|tq\d_\d|mxfp4\S*")
FORM_OF = {"llamacpp": "gguf", "onnxruntime": "onnx", "torchscript": "torchscript"}
"""Backend -> the format that version 1 checked on it."""
ABOUT_BUNDLES = ("inputs", "baseline")  # levels whose cases began with no dtype
GROUPS = ("file", "files", "metadata", "noise", "speech", "text", "weights")
"""Groups of one word. Another single word before a comma was a part."""
RENAMED = (
    (re.compile(r"\bparts (?=\d)"), "chunks "),
    (re.compile(r"\bmemor(?:y|ies) of (?=\d)"), "encoder states of "),
    (re.compile(r"\bpast the window of (?=\d)"), "past the window, of "),
)
"""What has another name in the cases of version 2."""


def converted(data: Mapping[str, Any]) -> dict[str, Any]:
    """A report of version 1 as one of version 2. Raises KeyError or TypeError for what is none."""
    made: dict[str, Any] = {**data, "schema_version": 2}
    entries: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "results": _entry,
        "skipped": _entry,
        "evidence": _entry,
        "layers": _profile,
        "departures": _departure,
    }
    for key, convert in entries.items():
        if key in data:
            made[key] = [convert(entry) for entry in data[key]]
    return made


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, **fields(entry["backend"], entry["level"], entry["case"])}


def _profile(entry: dict[str, Any]) -> dict[str, Any]:
    own = fields(entry["backend"], "layers", entry["case"])
    return {**entry, **own, "places": [_share(place, share) for place, share in entry["places"]]}


def _departure(entry: dict[str, Any]) -> dict[str, Any]:
    level = "graph" if entry["side"] in ("in", "out") else "weights"
    own = fields(entry["backend"], level, entry["case"])
    return {**entry, **own, "profile": [_share(place, share) for place, share in entry.get("profile", ())]}


def _share(place: str, share: float | None) -> list[Any]:
    module = place.removeprefix("what goes into ")
    side = "in" if module != place else "state" if place.startswith("present.") else "out"
    return [module, side, share]


def fields(backend: str, level: str, text: str) -> dict[str, str]:
    """What version 2 says in fields: "f32 decoder, one row, length 7" is a dtype, a part, a group and a case."""
    dtype = part = ""
    if level not in ABOUT_BUNDLES:
        first, comma, rest = text.partition(", ")
        if comma and DTYPE.fullmatch(rest.partition(" ")[0].rstrip(",")):  # a skip of a part began with the part
            part, text = first, rest
        word, _, rest = text.partition(" ")
        if DTYPE.fullmatch(word):
            dtype, text = word, rest
            first, comma, rest = text.partition(", ")
            if comma and " " not in first and first not in GROUPS:
                part, text = first, rest
    for pattern, name in RENAMED:
        text = pattern.sub(name, text)
    return {
        "backend": backend,
        "form": FORM_OF.get(backend, ""),
        "dtype": dtype,
        "part": part,
        "level": level,
        "group": text.partition(",")[0],
        "case": text,
    }
