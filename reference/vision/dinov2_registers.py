"""DINOv2 with registers: tokens of their own, where the model keeps what belongs to no patch.

Darcet et al. 2023, https://arxiv.org/abs/2309.16588.
"""

from __future__ import annotations

from dataclasses import dataclass

from isoform.reference.card import Family
from isoform.reference.rules import Rename, below
from isoform.reference.vision.dinov2 import Dinov2Config, levels, rules, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistersConfig(Dinov2Config):
    harmless = frozenset(
        ("interpolate_antialias", "interpolate_offset")
    )  # of the authors' code; the Hub's reads neither

    num_register_tokens: int = 4

    @property
    def registers(self) -> int:
        return self.num_register_tokens


REGISTERS = (Rename("embeddings.register_tokens", "register_tokens"),)

FAMILY = Family(
    name="dinov2_with_registers",
    title="DINOv2 with registers",
    model_types=("dinov2_with_registers",),
    config=RegistersConfig,
    rules=(*rules("dinov2_with_registers"), *below(REGISTERS, "dinov2_with_registers", "")),
    tasks=tasks("Dinov2WithRegisters"),
    levels=levels(REGISTERS),
    prefix="dinov2_with_registers",
    heads=("classifier", "mask"),
    no_gguf="llama.cpp has no DINOv2",
)
