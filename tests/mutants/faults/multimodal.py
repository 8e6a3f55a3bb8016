"""Faults in models of pictures with texts."""

from __future__ import annotations

from tests.mutants.faults.planted import (
    SINGLE,
    Fault,
    swap,
)
from tests.mutants.planting import Checkpoint

FAULTS: tuple[Fault, ...] = (
    Fault(
        "x and y of boxes exchanged, LayoutLMv3's file",
        "tiny layoutlmv3_seqcls",
        Checkpoint(swap("layoutlmv3.embeddings.x_position_embeddings", "layoutlmv3.embeddings.y_position_embeddings")),
        (r"layout\.[xy]",),
        SINGLE,
        "its rows are no whole blocks",
    ),
)
