"""The deployment level: a quantized artifact in the settings it ships with, against a budget for what it may cost.

Its graph cannot be held to float tolerances: llama.cpp quantizes the activations too, so even a reference with the
dequantized weights differs. What counts is what a user sees: the distribution over the next token of a real text, the
token that is chosen, and how the reference's own continuation would have gone on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from isoform.errors import IsoformError, ParityError
from isoform.signature import LENGTH
from isoform.validators.cases.case import Case, Row
from isoform.validators.levels.packed import imitate
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject
from isoform.validators.truth.answers import PassageAnswers, Run, by_position, imitation
from isoform.validators.truth.budgets import BUDGETS, budget_of
from isoform.validators.truth.distances import matched
from isoform.validators.truth.losses import Loss
from isoform.validators.truth.task_losses import TaskLoss, task_loss
from isoform.validators.truth.tolerances import QUANTIZED, QUANTIZED_ANSWERS, Tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session
    from isoform.validators.truth.reference import Truth

LEVEL = "deployment"
NO_GRAPH = "activations are quantized too, so no float tolerance fits; see the deployment level"
Imitation = tuple[Run, AbstractContextManager[Any]]
"""Torch with the weights of quantized files, and the context in which it rounds activations as the backend does."""
SHOWN = 64  # positions whose divergence the report shows


class Wrong(ParityError):
    """An output that cannot be measured; `metric` says why, `value` how much of it."""

    def __init__(self, metric: str, value: float, note: str) -> None:
        super().__init__(note)
        self.metric, self.value = metric, value


def measure(run: Run, answers: PassageAnswers, around: AbstractContextManager[Any] | None = None) -> Loss:
    """Run every passage alone, in one pass. Raises Wrong for an output of another shape or not finite."""
    import numpy as np

    loss = Loss(answers.kind)
    with around or nullcontext():
        for passage, want in answers:
            got = by_position(answers.model, run(passage.row)[answers.port])
            by_token = LENGTH in answers.model.signature.outputs[0].axes
            length = len(passage.row.tokens) if by_token and not passage.row.media else len(want)
            if len(got) != length or got.shape[1:] != want.shape[1:]:
                note = f"{answers.port}: shape {got.shape} for {len(passage.row)} slots, not {want.shape[1:]}"
                raise Wrong("mismatch", 1, note)
            got = got[passage.asked]
            if (
                answers.model.signature.output("boxes") is not None
            ):  # rounding changes which come first, not what they are
                got = matched(got, want)
            if wrong := int(np.count_nonzero(~np.isfinite(got))):
                raise Wrong("nonfinite", wrong, f"{answers.port}: NaN or infinity in {wrong} of {got.size} values")
            if answers.model.signature.output("boxes") is not None:  # a set, whose order rounding changes
                got = matched(got, want)
            loss.sample.add(got, want)
            known = len(loss.kl)
            loss.add(got, want, greedy=passage.greedy)
            if known == 0:  # the first passage
                loss.sample.kl = [(n, max(0.0, float(f"{nats:.6g}"))) for n, nats in enumerate(loss.kl[:SHOWN])]
    return loss


def session_run(session: Session, answers: PassageAnswers) -> Run:
    """A row alone through a session."""

    def run(row: Row) -> Mapping[str, NDArray[Any]]:
        outputs = session.run(Case("", (row,)).inputs(answers.model.signature))
        return {name: array[0] for name, array in outputs.items() if len(array)}

    return run


def measure_task(
    run: Run, task: TaskLoss, truth: Truth, around: AbstractContextManager[Any] | None = None
) -> tuple[float, int]:
    """What is lost of the answers about every row alone, and of how many. Raises Wrong like `measure`."""
    import numpy as np

    rows = dict.fromkeys(row for case in truth.cases if not case.optional for row in case.rows)
    names = [port.name for port in truth.model.signature.outputs]
    lost, count = 0.0, 0
    with around or nullcontext():
        for row in rows:
            got, want = run(row), dict(zip(names, truth.outputs(row), strict=True))
            for port in truth.model.signature.results:
                mine = got[port.name]
                if mine.shape != want[port.name].shape:
                    raise Wrong("mismatch", 1, f"{port.name}: shape {mine.shape}, not {want[port.name].shape}")
                if wrong := int(np.count_nonzero(~np.isfinite(mine))):
                    raise Wrong("nonfinite", wrong, f"{port.name}: NaN or infinity in {wrong} of {mine.size} values")
            found, among = task.lost(row, got, want)
            lost, count = lost + found, count + among
    return lost, count


def check_deployment(
    session: Session, path: Path, dtype: str, truth: Truth, imitated: Imitation | None = None
) -> Report:
    """Measure a session over the quantized file `path` on the text of `truth`, and torch quantized in the same way.

    `imitated` is that torch, where the file alone does not say it.

    A quantization without a budget gives one failed result.
    """
    report = Report(skipped=[Skip(session.backend, "graph", dtype, "", "", NO_GRAPH)])
    subject = Subject(session.backend, LEVEL, dtype, "", "")

    def result(metric: str, value: float, limit: float, note: str = "") -> None:
        report.results.append(Result.of(subject, metric, value, limit, note))

    budgets = budget_of(dtype)
    if budgets is None:
        result("error", 1, 0, f"no budget is known for {dtype}; there is one for {', '.join(BUDGETS)}")
        return report
    answers = truth.answers
    plain = [passage for passage in answers.passages if not passage.greedy]
    kind = "text" if truth.reads_text else "rows alone"
    name = f"{kind}, {len(plain)} rows, {sum(len(passage.row) for passage in plain)} positions"
    subject = replace(subject, group=kind, case=name)
    start = perf_counter()
    try:
        loss = measure(session_run(session, answers), answers)
    except Wrong as error:
        result(error.metric, error.value, 0, str(error))
        return report
    except IsoformError as error:
        result("error", 1, 0, str(error))
        return report
    task = task_loss(truth.model)
    seconds = perf_counter() - start
    report.evidence.append(loss.sample.evidence(subject, answers.port, seconds))
    allowed = None
    if imitated is None and path.suffix in (".gguf", ".onnx"):
        imitated = (imitate if path.suffix == ".onnx" else imitation)(truth.model, path)
    if imitated is not None:
        try:
            allowed = measure(imitated[0], answers, imitated[1])
        except Wrong as error:  # a kernel for integers may hide what is no number
            result(error.metric, error.value, 0, f"torch with the weights of the file: {error}")
            return report
    for metric, value in loss.metrics().items():
        budget: Tolerance = getattr(budgets, metric)
        limit, notes = budget.value, [budget.unit, loss.note(metric)]
        if allowed is not None:
            own = allowed.metrics()[metric]
            limit = limit if budget.is_chosen else max(limit, QUANTIZED.value * own)
            over = f", over {dtype}'s budget of {budget.value:.2g}" if limit > budget.value else ""
            notes.append(f"torch quantized alike: {own:.2g}{over}")
        result(metric, value, limit, "; ".join(note for note in notes if note))
    if task is not None:
        try:
            mine = measure_task(session_run(session, answers), task, truth)
            alike = None if imitated is None else measure_task(imitated[0], task, truth, imitated[1])
        except Wrong as error:
            result(error.metric, error.value, 0, str(error))
            return report
        if mine[1]:
            report.results.append(task_result(subject, task, mine, getattr(budgets, task.metric), dtype, alike))
    return report


def task_result(
    subject: Subject,
    task: TaskLoss,
    found: tuple[float, int],
    budget: Tolerance,
    dtype: str = "",
    alike: tuple[float, int] | None = None,
) -> Result:
    """Of what is `found` lost, and of how many: at least one may be, however few there are.

    `alike`: the same of torch quantized in the same way, which may lose more than the budget of `dtype`.
    """
    lost, count = found
    subject = replace(subject, group=task.counted, case=f"{count} {task.counted}")
    least = 1 / count if task.whole and not budget.is_chosen else 0.0
    limit, notes = max(budget.value, least), [budget.unit]
    if alike is not None and alike[1]:
        own = alike[0] / alike[1]
        spread = QUANTIZED_ANSWERS.value * (own / count) ** 0.5
        limit = limit if budget.is_chosen else max(limit, QUANTIZED.value * own, own + spread)
        over = f", over {dtype}'s budget of {budget.value:.2g}" if limit > max(budget.value, least) else ""
        notes.append(f"torch quantized alike: {own:.2g}{over}")
    return Result.of(subject, task.metric, lost / count, limit, "; ".join(notes))
