"""The formats of a bundle, and which backends read each: the one table that exports, runtimes and checks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from isoform.quality import PORTABLE, plain_dtype

FORMATS = ("onnx", "torchscript", "gguf")
"""In the order in which a bundle is written, and in which messages list them."""

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "gguf": ("llamacpp",),
    "onnx": ("onnxruntime", "openvino"),
    "torchscript": ("torchscript",),
}
"""Format -> the backends that read it. The first is the one that every form of the format is checked on."""

CHECKED_ON: Mapping[str, str] = {name: backends[0] for name, backends in BACKENDS.items()}

FORMAT_OF: Mapping[str, str] = {backend: name for name, backends in BACKENDS.items() for backend in backends}
"""Backend -> the format that it reads. The torch backend is not here: it runs the checkpoint itself."""

STANDARD = frozenset({"openvino"})
"""The backends that are made for a format's standard operators, and so for its portable forms."""


def checked_on(form: str, dtype: str) -> tuple[str, ...]:
    """The backends that a form is checked on: its format's first, and those made for it if it is portable."""
    first, *others = BACKENDS[form]
    return first, *(name for name in others if dtype.endswith(PORTABLE) and name in STANDARD)


FLOATS: Mapping[str, str] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The dtypes of float forms, by torch's names."""

DIGITS: Mapping[str, int] = {"f32": 24, "f16": 11, "bf16": 8}
"""Bits of the significand."""


def form_for(backend: str, dtype: str) -> tuple[str, str]:
    """The format and the dtype to export, so that a backend computes in `dtype`.

    A backend of standard operators computes in a narrower float than its form is in, so that one form serves all.
    """
    if backend not in STANDARD or dtype.endswith(PORTABLE):
        return FORMAT_OF[backend], dtype
    return FORMAT_OF[backend], ("f32" if dtype in FLOATS else dtype) + PORTABLE


def options_for(backend: str, dtype: str) -> dict[str, str]:
    """The options of a session in which a backend computes in `dtype` from the form that `form_for` says."""
    return {"precision": dtype} if backend in STANDARD and dtype in FLOATS else {}


def readable(backend: str, dtypes: Iterable[str], wanted: str | None = None) -> list[str]:
    """The dtypes of a bundle's forms that a backend may open for one request, the best first.

    `wanted` is a dtype, with or without the suffix of portable forms; without it, the first form decides. A backend of
    standard operators prefers portable forms.
    """
    standard, found = backend in STANDARD, list(dict.fromkeys(dtypes))
    if standard:
        found.sort(key=lambda name: not name.endswith(PORTABLE))
    wanted = wanted or next(map(plain_dtype, found), None)
    found = [name for name in found if wanted in (name, plain_dtype(name))]
    return found if standard else sorted(found, key=lambda name: name.endswith(PORTABLE))
