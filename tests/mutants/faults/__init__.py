"""The planted faults, as data: what each does to which forms, and where the bisection must point."""

from __future__ import annotations

from collections.abc import Mapping

from tests.mutants.faults import decoders, detection, encoders, multimodal, others, pictures, places, sequences, tables
from tests.mutants.faults.planted import Fault as Fault

FAULTS: tuple[Fault, ...] = (
    *sequences.FAULTS,
    *tables.FAULTS,
    *decoders.FAULTS,
    *encoders.FAULTS,
    *detection.FAULTS,
    *places.FAULTS,
    *pictures.FAULTS,
    *multimodal.FAULTS,
    *others.FAULTS,
)

WAITING: Mapping[str, str] = {
    "stale cache in GGUF": "llama.cpp keeps the cache; no file can change it",
    "padding ignored in GGUF": "llama.cpp gets rows without their padding; no file can change it",
}
"""Faults that cannot be planted yet, or not by a file."""
