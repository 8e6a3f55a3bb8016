"""Windows of a map of any size, shifted or not: which position each slot of a window holds, and which windows mix.

Liu et al. 2021, https://arxiv.org/abs/2103.14030. The map is filled up with zeros to whole windows at its lower and
right edge, and rolled by the shift; a window at an edge then holds positions that are no neighbours, which a mask keeps
apart. All of it is one lookup by an index that is computed from the sizes, and one back, so that a graph reads maps of
every size.

Axis letters: B batch, H rows, W columns, N slots of a window, C channels.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

APART = -100.0
"""What is added to the scores of two positions that are no neighbours: as much as the models were trained with."""


class Windows:
    """The windows of a map of `side` times `side` positions, for maps of the size of `like` (B, H, W, C).

    `small`: a map that is no larger than a window on one side is not shifted.
    """

    def __init__(self, like: Tensor, side: int, shift: int, small: bool) -> None:
        rows, columns = like.shape[1], like.shape[2]
        down, across = (rows + side - 1) // side, (columns + side - 1) // side
        self.side, self.shifted, self.batch = side, shift > 0, like.shape[0]
        row, column = (torch.arange(count, device=like.device) for count in (rows, columns))
        places = [torch.arange(count * side, device=like.device) for count in (down, across)]
        sources, targets, parts = places, [row, column], [torch.zeros_like(place) for place in places]
        if shift:
            steps: Tensor | int = shift
            if small:
                steps = shift * ((row.amax(0) >= side) & (column.amax(0) >= side)).to(torch.int64)
            filled = [down * side, across * side]
            sources = [_wrapped(place + steps, n) for place, n in zip(places, filled, strict=True)]
            targets = [_raised(place - steps, n) for place, n in zip(targets, filled, strict=True)]
            # Three parts of an axis: whole windows, the rest of it, and what came round from the other end.
            parts = [
                (place >= n - side).to(torch.int64) + (place >= n - steps).to(torch.int64)
                for place, n in zip(places, filled, strict=True)
            ]
        index = sources[0].unsqueeze(1) * columns + sources[1].unsqueeze(0)
        inside = (sources[0] < rows).unsqueeze(1) & (sources[1] < columns).unsqueeze(0)
        zero = torch.ones_like(index) * (rows * columns)
        self.into = self._cut(torch.where(inside, index, zero)).reshape(-1)
        order = torch.arange(down * across * side * side, device=like.device)
        order = order.view(down, across, side, side).permute(0, 2, 1, 3).reshape(down * side, across * side)
        self.back = order.index_select(0, targets[0]).index_select(1, targets[1]).reshape(-1)
        self.parts = self._cut(parts[0].unsqueeze(1) * 3 + parts[1].unsqueeze(0)).reshape(-1, side * side)

    def _cut(self, grid: Tensor) -> Tensor:
        """Values of all positions, by window: (rows, columns) -> (windows down, across, side, side)."""
        return grid.unflatten(0, (-1, self.side)).unflatten(2, (-1, self.side)).permute(0, 2, 1, 3)

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B * windows, N, C)."""
        zero = x.new_zeros(x.shape[0], 1, x.shape[-1])
        x = torch.cat((x.flatten(1, 2), zero), 1)
        return x.index_select(1, self.into).reshape(-1, self.side * self.side, x.shape[-1])

    def join(self, windows: Tensor, like: Tensor) -> Tensor:
        """Back from `split`: (B * windows, N, C) -> (B, H, W, C), the shape of `like`."""
        x = windows.reshape(like.shape[0], -1, windows.shape[-1])
        return x.index_select(1, self.back).reshape(like.shape)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What keeps positions apart that are no neighbours: (B * windows, 1, N, N), or None without a shift."""
        if not self.shifted:
            return None
        apart = (self.parts.unsqueeze(1) != self.parts.unsqueeze(2)).to(dtype) * APART
        return apart.unsqueeze(0).expand(self.batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)


def _wrapped(places: Tensor, count: int) -> Tensor:
    return torch.where(places >= count, places - count, places)


def _raised(places: Tensor, count: int) -> Tensor:
    return torch.where(places < 0, places + count, places)


def offsets(side: int) -> Tensor:
    """Which row of a table of (2 * side - 1) ** 2 relative positions belongs to two slots of a window: (N, N)."""
    places = torch.arange(side, device="cpu")
    apart = places[:, None] - places[None, :] + side - 1
    rows, columns = apart[:, None, :, None], apart[None, :, None, :]
    return (rows * (2 * side - 1) + columns).reshape(side * side, side * side)


def telling_sizes(stages: int, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two numbers of rows and two of columns by which every size that follows from them is told from every other.

    The sizes are those of the maps of all stages, of the same with one more or filled up to whole windows, and the
    numbers of windows.
    """
    found: list[tuple[int, int]] = []
    known: set[tuple[int, int]] = set()
    behind = 2 ** (stages - 1)
    # Sizes that are equal whatever the map is are one: the windows of two rows, and the rows of the next stage.
    same = list(zip(*(_sizes(size, stages, side) for size in range(1, 2 * behind * side + 2)), strict=True))
    apart = [n for n, sizes in enumerate(same) if sizes not in same[:n]]
    for first in ((side + 1) * behind, (2 * side + 1) * behind + 1):
        for second in count(first + 1):
            one, other = (_sizes(size, stages, side) for size in (first, second))
            pairs = {(one[n], other[n]) for n in apart}
            if all(a != b for a, b in pairs) and len(pairs) == len(apart) and not pairs & known:
                found.append((first, second))
                known |= pairs
                break
    return found[0], found[1]


def _sizes(size: int, stages: int, side: int) -> list[int]:
    """What follows from the rows, or the columns, of the first map."""
    sizes = []
    for _ in range(stages):
        windows = -(-size // side)
        sizes += [size, size + 1, windows * side, windows]
        size = (size + 1) // 2
    return sizes
