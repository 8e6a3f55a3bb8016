"""Angles of rotary positions, with the scalings that stretch them to longer texts.

Axis letters: B batch, T new positions, R rotary pairs of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.rope import RopeConfig


class Rope(nn.Module):
    """Cosines and sines of the rotary angles. Frequencies stay float32 whatever the module's dtype.

    Su et al. 2021, https://arxiv.org/abs/2104.09864; Llama 3's scaling as in https://github.com/meta-llama/llama-models;
    YaRN, https://arxiv.org/abs/2309.00071; LongRoPE, https://arxiv.org/abs/2402.13753.

    "dynamic" and "longrope" depend on the length of the text, which is the highest position of the call plus one, over
    all of its rows, as in transformers: a row may be computed otherwise beside a longer one, and keys that are cached
    keep the frequencies of the step that made them. transformers' "dynamic" also remembers the longest text of the
    calls before, until a call is shorter than the original length; here a call depends on nothing but its inputs,
    which is the same within one text.
    """

    frequencies: Tensor
    longer: Tensor

    def __init__(self, rotated: int, rope: RopeConfig) -> None:
        """`rotated`: the channels of a head that are rotated."""
        super().__init__()
        if rotated % 2 or not rotated:
            raise CheckpointError(f"config.json: heads of {rotated} channels cannot be rotated in pairs")
        self.rotated, self.settings = rotated, rope
        for name, tensor in self._tables().items():
            self.register_buffer(name, tensor, persistent=False)

    def _tables(self) -> dict[str, Tensor]:
        """Constants (R,): the frequencies, and what makes other ones of them in a text beyond the original length."""
        tables = {"frequencies": inverse_frequencies(self.rotated, self.settings)}
        if self.settings.kind == "longrope":
            tables["longer"] = inverse_frequencies(self.rotated, self.settings, longer=True)
        if self.settings.kind == "dynamic":
            if self.rotated == 2:
                raise CheckpointError("config.json: rotary scaling 'dynamic' needs heads of more than 2 channels")
            tables["longer"] = -torch.arange(0, self.rotated, 2, dtype=torch.float64, device="cpu") / (self.rotated - 2)
        return tables

    def _apply(self, fn: Any, recurse: bool = True) -> Rope:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in self._tables().items():
            held = self._buffers[name]
            if held is not None and held.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(held.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions (B, T) -> cos and sin (B, T, R) in `dtype`; the angles are float32, or float64 for float64."""
        wide = torch.promote_types(dtype, torch.float32)
        angles = positions.unsqueeze(-1).to(wide) * self._frequencies(positions).to(wide)
        cos, sin = angles.cos(), angles.sin()
        if self.settings.attention_factor != 1:
            cos, sin = cos * self.settings.attention_factor, sin * self.settings.attention_factor
        return cos.to(dtype), sin.to(dtype)

    def _frequencies(self, positions: Tensor) -> Tensor:
        """Radians per position (R,), float32, for a call with these positions (B, T)."""
        if not self.settings.depends_on_length:
            return self.frequencies
        original, factor = self.settings.original_max_position_embeddings, self.settings.factor
        length = positions.amax((0, 1)) + 1
        if self.settings.kind == "longrope":
            return torch.where(length > original, self.longer, self.frequencies)
        # The base times scale ** (D / (D - 2)); float64, so that every backend rounds to the same float32.
        scale = factor * length.clamp(min=original).to(torch.float64) / original - (factor - 1)
        return (self.frequencies.to(torch.float64) * scale**self.longer).to(torch.float32)


def inverse_frequencies(rotated: int, rope: RopeConfig, longer: bool = False) -> Tensor:
    """Radians per position for each rotary pair: float32 (rotated / 2,), on the CPU.

    `longer`: of LongRoPE's in a text beyond the original length.
    """
    exponents = torch.arange(0, rotated, 2, dtype=torch.int64, device="cpu").float() / rotated
    waves = rope.theta**exponents
    frequencies = 1.0 / waves
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return frequencies / llama3_factors(frequencies, rope)
    if rope.kind == "yarn":
        kept = 1 - yarn_shares(rotated, rope)
        return 1.0 / (rope.factor * waves) * (1 - kept) + frequencies * kept
    if rope.kind == "longrope":
        name, factors = ("long_factor", rope.long_factor) if longer else ("short_factor", rope.short_factor)
        if len(factors) != rotated // 2:
            raise CheckpointError(
                f"config.json: {name} of the rotary settings has {len(factors)} entries for {rotated // 2} rotary pairs"
            )
        return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * waves)
    return frequencies


def llama3_factors(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """By how much Llama 3.1 slows each frequency: 1 for short waves, `factor` for long ones, smooth in between."""
    waves = 2 * math.pi / frequencies
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (rope.original_max_position_embeddings / waves - low) / (high - low)
    factors = 1 / ((1 - smooth) / rope.factor + smooth)
    factors = torch.where(waves > rope.original_max_position_embeddings / low, rope.factor, factors)
    return torch.where(waves < rope.original_max_position_embeddings / high, 1.0, factors)


def yarn_shares(rotated: int, rope: RopeConfig) -> Tensor:
    """How much of each frequency YaRN divides by the factor: 0 of fast waves, 1 of slow ones, a ramp in between."""

    def pair(turns: float) -> float:
        """The rotary pair that turns so often within the original length."""
        length = rope.original_max_position_embeddings
        return (rotated * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    steps = torch.arange(rotated // 2, dtype=torch.float32, device="cpu")
    return ((steps - low) / (high - low if high != low else 0.001)).clamp(0, 1)
