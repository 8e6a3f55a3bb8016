"""The deployment level: a quantized artifact in the settings it ships with, against a budget for what it may cost.

Its graph cannot be held to float tolerances: llama.cpp quantizes the activations too, so even a reference with the
dequantized weights differs. What counts is what a user sees: the distribution over the next token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoform.errors import IsoformError
from isoform.validators.cases import Case
from isoform.validators.compare import kl_divergence, log_softmax
from isoform.validators.report import Report, Result, Skip
from isoform.validators.tolerance import BUDGETS, QUANTIZED, Tolerance
from isoform.validators.truth import Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

LEVEL = "deployment"
CLEAR = 0.1  # by this much in probability the reference must prefer its token, for another choice to count
NO_GRAPH = "activations are quantized too, so no float tolerance fits; see the deployment level"


@dataclass
class _Loss:
    """Sums over rows: KL divergence and clear changes of choice over positions, squared error over squared size."""

    logits: bool
    positions: int = 0
    kl: float = 0.0
    clear: int = 0
    error: float = 0.0
    size: float = 0.0

    def add(self, got: NDArray[Any], want: NDArray[Any]) -> None:
        import numpy as np

        self.error += float(np.square(got - want).sum())
        self.size += float(np.square(want).sum())
        if not self.logits:
            return
        self.positions += want.size // want.shape[-1]
        self.kl += float(kl_divergence(got, want).sum())
        chance = np.exp(log_softmax(want))
        taken = np.take_along_axis(chance, got.argmax(-1)[..., None], -1)[..., 0]
        self.clear += int(np.count_nonzero(chance.max(-1) - taken >= CLEAR))

    def metrics(self) -> dict[str, float]:
        if self.logits:
            return {"kl": self.kl / self.positions, "top1": self.clear / self.positions}
        return {"nmse": self.error / self.size if self.size else float(self.error > 0)}


def check_deployment(session: Session, dtype: str, truth: Truth) -> Report:
    """Every row of the truth alone, in one pass: KL divergence and clear changes of the first choice, or for hidden
    states the normalised squared error. A quantization without a budget gives one failed result."""
    import numpy as np

    report = Report(skipped=[Skip(session.backend, "graph", dtype, NO_GRAPH)])
    rows = list(dict.fromkeys(row for case in truth.cases if not case.optional for row in case.rows))
    name = f"{dtype} rows alone, {len(rows)} rows, {sum(map(len, rows))} positions"

    def result(metric: str, value: float, limit: float, note: str = "") -> None:
        report.results.append(Result(session.backend, LEVEL, name, metric, value, limit, value <= limit, note))

    if dtype not in BUDGETS:
        result("error", 1, 0, f"no budget is known for {dtype}; there is one for {', '.join(BUDGETS)}")
        return report
    signature = truth.model.signature
    port = signature.outputs[0]
    loss, allowed = _Loss(port.name == "logits"), _Loss(port.name == "logits")
    for row in rows:
        try:
            got = session.run(Case("", (row,)).inputs(signature))[port.name][0]
        except IsoformError as error:
            result("error", 1, 0, str(error))
            return report
        want = truth.outputs(row)[0]
        if got.shape != want.shape:
            result("mismatch", 1, 0, f"{port.name}: shape {got.shape}, not {want.shape}")
            return report
        if wrong := int(np.count_nonzero(~np.isfinite(got))):
            result("nonfinite", wrong, 0, f"{port.name}: NaN or infinity in {wrong} of {got.size} values")
            return report
        loss.add(got, want)
    for row, outputs in truth.quantized(dtype):
        if row in rows:
            allowed.add(outputs[0], truth.outputs(row)[0])
    losses = allowed.metrics()
    for metric, value in loss.metrics().items():
        budget: Tolerance = getattr(BUDGETS[dtype], metric)
        own = QUANTIZED.value * losses[metric]
        note = f"{budget.unit}; torch quantized alike: {losses[metric]:.2g}"
        result(metric, value, max(budget.value, own), note)
    return report
