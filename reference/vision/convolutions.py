"""Convolutions whose weights come from a checkpoint."""

from __future__ import annotations

from torch import nn


class Conv(nn.Conv2d):
    """nn.Conv2d without its random initialisation."""

    def reset_parameters(self) -> None:
        pass
