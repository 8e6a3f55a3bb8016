"""The graph level of a quantized ONNX graph: with its own weights, and activations left in float, it is exact.

ONNX Runtime can be told not to quantize what goes into a layer. Then nothing but the weights differs from the source,
and the reference with these weights must give the same, to float tolerances: a wrong constant that a budget for 4 bits
would forgive is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.exporters.onnx.types import onnx_type
from isoform.validators.bisection.search import departures
from isoform.validators.cases.case import Case
from isoform.validators.levels.graph import check_graph
from isoform.validators.levels.packed import TURNED, held_weights
from isoform.validators.report.records import Report
from isoform.validators.truth.reference import Truth

if TYPE_CHECKING:
    import torch
    from torch import nn

    from isoform.reference.model import Model
    from isoform.runtimes.session import Session


def dequantized(model: Model, path: Path) -> Model:
    """`model` with the weights of the quantized graph at `path`."""
    import torch

    def module(dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> nn.Module:
        kind = torch.float32 if dtype is None else dtype
        built, held = model.module(kind, device), held_weights(path)
        for name, parameter in built.named_parameters():
            if name in held:
                values = torch.from_numpy(held[name].rows(0, len(parameter) if parameter.dim() else 1).copy())
                parameter.data = values.view(parameter.shape).to(device=device, dtype=kind)
        return built

    found = copy(model)
    object.__setattr__(found, "module", module)  # the dataclass is frozen
    return found


def weights_only(path: Path) -> bool:
    """Whether a strict session leaves all activations in float: it replaces most operators that want integers."""
    import onnx

    from isoform.runtimes.backends.onnxruntime.graph_file import nodes

    graph = onnx.load(str(path), load_external_data=False).graph
    outer = {node.output[0] for node in graph.node}
    return not any(
        node.op_type == "MatMulInteger" or (node.op_type in TURNED and node.output[0] not in outer)
        for node in nodes(graph)
    )


def few(cases: Sequence[Case]) -> list[Case]:
    """The padded batch and the padded decoding that say most, or else the first case."""
    padded = [case for case in cases if case.side == "left" and len(case.rows) > 1 and not case.optional]
    chosen = [next((case for case in padded if bool(case.chunks) == decoding), None) for decoding in (False, True)]
    return [case for case in chosen if case is not None] or list(cases[:1])


def check_dequantized(
    model: Model, session: Session, path: Path, dtype: str, cases: Sequence[Case], threads: int | None = None
) -> Report:
    """Run a few cases on a strict session over the graph at `path`, and look into it when it differs."""
    kind = onnx_type(dtype).activations
    own, asked = dequantized(model, path), few(cases)
    report = check_graph(own, session, kind, truth=Truth(own, asked))
    found = departures(own, path, session.backend, kind, report, asked, threads=threads)

    report.add(found)
    return report.labelled(dtype=dtype)
