"""The proof of one session: seconds long, against what the reference says about inputs of our own.

`isoform check` takes a bundle apart and allows a quantized file what its weights cost. Here is only a session, opened
as a pipeline opens it, and the question whether it may stand in for the model: float32 within the graph tolerances,
every other dtype within its budget, and no exception from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoform.errors import IsoformError
from isoform.quality import quality_of
from isoform.validators.cases.case import real
from isoform.validators.check.known_answers import Answers, Known, outputs_of, reference_answers, whole
from isoform.validators.check.transcripts import continued, word_errors
from isoform.validators.levels.deployment import Wrong, task_result
from isoform.validators.levels.graph import bounds, decoding
from isoform.validators.report.records import Report, Result, use
from isoform.validators.report.subject import Subject
from isoform.validators.truth import tolerances as tolerance
from isoform.validators.truth.budgets import proof_budget_of
from isoform.validators.truth.deviations import REASONS, deviation
from isoform.validators.truth.distances import Difference, difference
from isoform.validators.truth.losses import Kind, Loss, kind_of
from isoform.validators.truth.reference import Noise
from isoform.validators.truth.task_losses import task_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.runtimes.session import Session
    from isoform.signature import Port

__all__ = ["Answers", "prove", "reference_answers", "worst_by_metric"]

LEVEL = "proof"
FEW = 32  # tokens: of at least so many one may be another, however small the share that a budget allows
Pair = tuple["Port", "NDArray[Any]", "NDArray[Any]"]
"""An output port, and of one row what the session gives there and what the reference gives."""


def prove(session: Session, model: Model, dtype: str, answers: Answers | None = None, quality: str = "") -> Report:
    """Whether a session may stand in for a model (`Report.same`); `dtype` is its form's ("bf16", "f32-portable").

    `answers` are the reference's (`reference_answers`), shared by all sessions of a model. `quality`: it must be as
    good as this; without it, as its dtype is meant to be. Whatever the session does wrong (an exception, another shape,
    no number) is a failed result.
    """
    quality = quality or quality_of(dtype)
    proof = _Proof(session, model, dtype, answers or reference_answers(model), quality)
    try:
        proof.run()
    except Wrong as error:
        proof.result(error.metric, error.value, 0, str(error))
    except Exception as error:  # noqa: BLE001  whatever a backend raises on a fair input is a finding
        text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
        proof.result("error", 1, 0, " ".join(text.split()))
    return proof.report


def worst_by_metric(report: Report) -> dict[str, tuple[float, float]]:
    """Of each metric the result nearest to or furthest past its limit: (value, limit)."""
    found: dict[str, Result] = {}
    for result in report.results:
        if result.metric not in found or use(result) > use(found[result.metric]):
            found[result.metric] = result
    return {metric: (result.value, result.limit) for metric, result in found.items()}


@dataclass
class _Proof:
    session: Any
    model: Model
    dtype: str
    answers: Answers
    quality: str

    def __post_init__(self) -> None:
        self.report = Report()
        self.target = whole(self.model, self.session.signature)
        self.subject = Subject(self.session.backend, LEVEL, self.dtype, LEVEL, "")

    def result(self, metric: str, value: float, limit: float, note: str = "") -> None:
        self.report.results.append(Result.of(self.subject, metric, value, limit, note))

    def run(self) -> None:
        self.session = wired(self.session, self.target)
        if self.quality == "exact":
            self._exact()
            return
        budget = proof_budget_of(self.dtype, self.quality)
        if budget is None:
            self.result("error", 1, 0, f"no budget is known for {self.dtype}")
            return
        losses: dict[tuple[str, Kind], Loss] = {}
        words, spoken = 0, 0
        task, lost, among = task_loss(self.target), 0.0, 0
        for known in self.answers.known:
            case = known.case
            self.subject = Subject(self.session.backend, LEVEL, self.dtype, case.group, case.name)
            answers: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
            for port, got, want in self._pairs(known):
                kind = kind_of(self.target, port)
                answers.setdefault(port.name, []).append((got, want))
                # Labels may all be clear, or all alike: then only their logits show what is lost.
                kinds: tuple[Kind, ...] = (kind, "values") if kind == "labels" else (kind,)
                for one in kinds:
                    losses.setdefault((port.name, one), Loss(one)).add(got, want)
                if case.chunks:
                    losses[port.name, kind].add(got, want, greedy=True)
            for n, row in enumerate(case.rows):
                if task is None or case.chunks:
                    break
                mine, theirs = ({name: pairs[n][side] for name, pairs in answers.items()} for side in (0, 1))
                found, count = task.lost(row, mine, theirs)
                lost, among = lost + found, among + count
            for name, got, want in self._encoded(known):
                losses.setdefault((name, "vectors"), Loss("vectors")).add(got, want)
            if known.spoken:
                wrong, count = word_errors(continued(self.session, self.target, case), known, self.target)
                words, spoken = words + wrong, spoken + count
        count = sum(len(known.case.rows) for known in self.answers.known)
        self.subject = Subject(self.session.backend, LEVEL, self.dtype, LEVEL, f"{count} rows")
        for (name, kind), loss in losses.items():
            for metric, value in loss.metrics().items():
                if metric == "nmse" and kind in ("labels", "values"):
                    metric = "outputs"
                elif metric == "kl" and spoken:
                    metric = "heard"
                limit: tolerance.Tolerance = getattr(budget, metric)
                note = "; ".join(filter(None, (f"{name}: {limit.unit}", loss.note(metric))))
                few = {"top1": loss.text.positions, "greedy": loss.greedy.positions}.get(metric, 0)
                least = 1 / few if few >= FEW and not limit.is_chosen else 0.0
                self.result(metric, value, max(limit.value, least), note)
        if task is not None and among:
            self.report.results.append(task_result(self.subject, task, (lost, among), getattr(budget, task.metric)))
        if spoken:
            self.result("words", words / spoken, budget.words.value, f"{words} of {spoken}: {budget.words.unit}")

    def _exact(self) -> None:
        """Every case within a multiple of torch's own error."""
        import numpy as np

        for known in self.answers.known:
            case = known.case
            self.subject = Subject(self.session.backend, LEVEL, self.dtype, case.group, case.name)
            gaps: dict[str, list[Difference]] = {}
            for port, got, want in self._pairs(known):
                gaps.setdefault(port.name, []).append(difference(got, want))
            known_deviation = self._deviation(known)
            for name, mine in gaps.items():
                size = sum(gap.size for gap in mine)
                scale = max(gap.scale for gap in mine)
                rms, size_rms = (
                    float(np.sqrt(sum(getattr(gap, key) ** 2 * gap.size for gap in mine) / size))
                    for key in ("rms", "size_rms")
                )
                if known.noise:
                    limits = bounds(known.noise[name], known_deviation.get(name), "f32", scale, size_rms)
                    top, mean = limits.max_abs, limits.rms
                else:  # too large to be run in float64
                    share = tolerance.COMPARE.value * 2.0**-23
                    top, mean = share * scale, share * size_rms
                self.result("max_abs", max(gap.max_abs for gap in mine), top, f"in {name}")
                self.result("rms", rms, mean, f"in {name}")

    def _deviation(self, known: Known) -> dict[str, Noise]:
        """Torch's error by port when it computes as the backend is known to."""
        if self.session.backend not in REASONS:
            return {}
        with deviation(self.session.backend) or nullcontext():
            found = outputs_of(self.target, self.target.module(), known.case)
        gaps = {name: difference(array, known.outputs[name]) for name, array in found.items()}
        return {name: Noise(gap.max_abs, gap.rms) for name, gap in gaps.items()}

    def _pairs(self, known: Known) -> Iterator[Pair]:
        """Row by row what the session gives and what the reference gives, checked to be comparable."""
        for port, got, want, cut in self._steps(known) if known.case.chunks else self._pass(known):
            if got.shape != want.shape:
                raise Wrong("mismatch", 1, f"{port.name}: shape {got.shape}, not {want.shape}")
            for row in range(len(want)):
                mine, theirs = cut(got, row), cut(want, row)
                finite(port.name, mine)
                yield port, mine, theirs

    def _encoded(self, known: Known) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        """By name and row, what the parts before the one that decodes gave for the case that has just run."""
        for name, want in known.encoded.items():
            got = self.session.encoded.values[name]
            if got.shape != want.shape:
                raise Wrong("mismatch", 1, f"{name}: shape {got.shape}, not {want.shape}")
            finite(name, got)
            yield from ((name, mine, theirs) for mine, theirs in zip(got, want, strict=True))

    def _pass(self, known: Known) -> Iterator[tuple[Port, NDArray[Any], NDArray[Any], Cut]]:
        case, signature = known.case, self.session.signature
        outputs = self.session.run(case.inputs(signature))
        for port in signature.results:
            if port.name not in outputs:
                raise Wrong("error", 1, f"the session does not give {port.name}")

            def cut(output: NDArray[Any], row: int, port: Port = port) -> NDArray[Any]:
                every = port.role == "similarity"  # with those of all rows of the batch
                kept = output[row] if every else real(port, output[row], case, row, output.shape[1:])
                return kept if kept.ndim > 1 else kept[None]

            yield port, outputs[port.name], known.outputs[port.name], cut

    def _steps(self, known: Known) -> Iterator[tuple[Port, NDArray[Any], NDArray[Any], Cut]]:
        """The logits of the last slot of each step."""
        import numpy as np

        port = self.session.signature.results[0]
        step, _ = decoding(self.session, self.session.signature, known.case)
        got = [step(feed, False) for _, feed in known.case.steps(self.session.signature)]
        yield port, np.stack(got, 1), known.outputs[port.name], lambda output, row: output[row]


Cut = Callable[["NDArray[Any]", int], "NDArray[Any]"]
"""An output of a batch and the number of a row -> that row's values at real slots."""


def wired(session: Any, target: Model) -> Any:
    """The session itself, or, of a model of several parts, its parts wired together."""
    from isoform.validators.cases.wired import WiredModel
    from isoform.validators.levels.wired import WiredSession

    return WiredSession(session, target) if isinstance(target, WiredModel) else session


def finite(name: str, got: NDArray[Any]) -> None:
    """Raises Wrong for what is no number."""
    import numpy as np

    if wrong := int(np.count_nonzero(~np.isfinite(got))):
        raise Wrong("nonfinite", wrong, f"{name}: NaN or infinity in {wrong} of {got.size} values")
