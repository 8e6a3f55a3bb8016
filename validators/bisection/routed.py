"""A pass of the reference over experts that are given, in the place of those that its own scores choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Routes = Sequence["NDArray[Any]"]
"""The experts that each slot of a row takes, (S, used), by routed layer."""


def forced(routes: Routes) -> Mapping[str, Any]:
    """`ops.routed_experts` over given experts: the n-th call takes those of the n-th layer, for a row alone."""
    import torch

    from isoform.reference.modules import ops

    body, left = ops.OPS["routed_experts"], iter(routes)

    def routed(*arguments: Any) -> torch.Tensor:
        a = ops.ExpertArguments[torch.Tensor](*arguments)
        wide = torch.promote_types(a.scores.dtype, torch.float32)
        chosen = torch.from_numpy(next(left)).unsqueeze(0)
        weights = torch.softmax(a.scores, -1, dtype=wide).gather(-1, chosen)
        if a.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        table = torch.zeros(a.scores.shape, dtype=wide).scatter(-1, chosen, weights).to(a.x.dtype)
        y, alone = torch.zeros_like(a.x), torch.zeros_like(a.scores[..., :1])
        for n in range(a.scores.shape[-1]):
            one = [None if w is None else w[n : n + 1] for w in arguments[2:8]]
            y += table[..., n : n + 1] * body(a.x, alone, *one, 1, 0, a.alpha, a.shift, a.limit)
        return y

    return {"routed_experts": routed}
