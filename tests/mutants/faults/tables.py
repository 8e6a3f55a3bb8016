"""Faults in models of tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.mutants.faults.planted import (
    GRAPHS,
    Fault,
    forward,
    on,
    part,
    swap,
)
from tests.mutants.planting import Checkpoint, Definition


def positions_go_on(found: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda types, mask: (mask.cumsum(1) - 1).clamp(min=0, max=found.last)


def rows_and_columns_exchanged(found: Any, _: nn.Module) -> Callable[..., Any]:
    honest = found.forward

    def run(x: Tensor, types: Tensor, mask: Tensor) -> Any:
        column, row = types[..., 1:2], types[..., 2:3]
        return honest(x, torch.cat((types[..., :1], row, column, types[..., 3:]), -1), mask)

    return run


def cells_of_padding(found: Any, _: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda x, types, mask: honest(x, types, torch.ones_like(mask))


def other_settings(path: str, **values: Any) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for name, value in values.items():
            assert getattr(part(module, path), name) != value
            setattr(part(module, path), name, value)

    return change


FAULTS: tuple[Fault, ...] = (
    # tables
    Fault(
        "positions go on from cell to cell, TAPAS",
        "tiny tapas_qa",
        Definition(forward("positions", positions_go_on)),
        (r"^positions$", r"^position_embed$"),
        GRAPHS,
    ),
    Fault(
        "ranks exchanged in the file, TAPAS",
        "tiny tapas",
        Checkpoint(swap("tapas.embeddings.token_type_embeddings_4", "tapas.embeddings.token_type_embeddings_5")),
        (r"^type_embeds\.[45]",),
        GRAPHS,
    ),
    Fault(
        "a type of tokens forgotten, TAPAS",
        "tiny tapas_seqcls_b",
        Definition(forward("type_embeds.6", lambda found, _: lambda types: 0 * F.embedding(types, found.weight))),
        (r"^type_embeds\.6$",),
        GRAPHS,
    ),
    Fault(
        "rows and columns exchanged in the means, TAPAS",
        "tiny tapas_qa",
        Definition(forward("cells", rows_and_columns_exchanged)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "padding in the means of cells, TAPAS",
        "tiny tapas_qa",
        Definition(forward("cells", cells_of_padding)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "the column outside the table may be chosen, TAPAS",
        "tiny tapas_qa",
        Definition(other_settings("cells", empty=True)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "one row less has cells of its own, TAPAS",
        "tiny tapas_sqa_b",
        Definition(other_settings("cells", rows=3)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "temperature forgotten, TAPAS",
        "tiny tapas_qa",
        Definition(other_settings("cells", temperature=1.0)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "aggregations in another order in the file, TAPAS",
        "tiny tapas_qa",
        Checkpoint(on("aggregation_classifier.weight", lambda weight: weight.roll(1, 0))),
        (r"^aggregation(\.weight)?$",),
        GRAPHS,
    ),
)
