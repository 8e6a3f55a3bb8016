"""The graph level: a float artifact in strict settings gives every row what the reference gives it alone.

Compared are all outputs at real tokens, in one pass and through the cache. A limit is torch's own error on the same
rows times a factor (`tolerance`); where a backend has a known deviation, its imitation in torch counts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError, ParityError
from isoform.formats import DIGITS
from isoform.quality import plain_dtype
from isoform.validators.cases.case import Case, real
from isoform.validators.cases.encoder_states import reads_states
from isoform.validators.cases.registry import cases_of
from isoform.validators.report.evidence import Sampler
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject
from isoform.validators.truth import tolerances as tolerance
from isoform.validators.truth.deviations import REASONS
from isoform.validators.truth.distances import choices, difference
from isoform.validators.truth.reference import Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.runtimes.session import Decoder, Session
    from isoform.signature import Signature
    from isoform.validators.truth.reference import Noise

LEVEL = "graph"
ENOUGH = 32  # values: the mean over fewer is as uncertain as their maximum, and says no more


def check_graph(
    model: Model, session: Session, dtype: str = "f32", *, truth: Truth | None = None, cases: list[Case] | None = None
) -> Report:
    """Run every case on the session; `dtype` is the artifact's: f32, f16 or bf16, or one of a portable form.

    `truth` holds the reference's answers; give the same one for several sessions of a model. A case that the session
    refuses although it may is skipped with the session's reason; any other error of the session is a failed result.
    """
    truth = truth or Truth(model, cases_of(model))
    report = Report()
    for case in truth.cases if cases is None else cases:
        _Check(truth, session, dtype, case, report).run()
    return report


@dataclass
class _Found:
    """The worst of a metric over the ports and rows of a case."""

    value: float
    limit: float
    notes: list[str]
    deviates: bool

    @property
    def share(self) -> float:
        return self.value / self.limit if self.limit else (float("inf") if self.value else 0.0)


@dataclass(frozen=True)
class Bounds:
    """The limits of an output. `deviates`: the backend's known deviation sets them."""

    max_abs: float
    rms: float
    deviates: bool


def bounds(own: Noise, known: Noise | None, dtype: str, scale: float, rms: float) -> Bounds:
    """What an output may be off whose largest value is `scale` and whose root mean square is `rms`.

    `own` is torch's error in the dtype, `known` its error with the backend's deviation.
    """
    ulp = 2.0 ** (1 - DIGITS[dtype])
    max_abs = tolerance.GRAPH_MAX.value * max(own.max_abs, tolerance.FLOOR_MAX.value * ulp * scale)
    mean = tolerance.GRAPH_RMS.value * max(own.rms, tolerance.FLOOR_RMS.value * ulp * rms)
    if known is None:
        return Bounds(max_abs, mean, False)
    wide_max, wide_mean = tolerance.DEVIATION.value * known.max_abs, tolerance.DEVIATION.value * known.rms
    return Bounds(max(max_abs, wide_max), max(mean, wide_mean), wide_max > max_abs or wide_mean > mean)


Step = Callable[[dict[str, "NDArray[Any]"], bool], "NDArray[Any]"]


def decoding(session: Any, signature: Signature, case: Case) -> tuple[Step, Callable[[NDArray[Any]], None]]:
    """How to take a step of a case (inputs, whether all logits are asked for), and how to choose rows."""
    import numpy as np

    names = {port.role: port.name for port in signature.given}
    tokens = names["tokens"] if "tokens" in names else names["embeddings"]
    decoder: Decoder
    if hasattr(session, "decoder_of"):  # parts wired together
        decoder = session.decoder_of(case.inputs(signature))
        return lambda feed, every: decoder.step(feed[tokens], last=None if every else 1), decoder.select
    if reads_states(signature):
        decoder = session.decoder(case.encoder_inputs(signature))
        return lambda feed, every: decoder.step(feed[tokens], last=None if every else 1), decoder.select
    decoder = session.decoder(len(case.rows))
    token = np.zeros((len(case.rows), 1), np.int64)

    def step(feed: dict[str, NDArray[Any]], every: bool) -> NDArray[Any]:
        ids, mask, positions = (feed[name] for name in (tokens, names["mask"], names["positions"]))
        new = mask[:, -ids.shape[1] :]
        if every or ids.shape != token.shape or ids.shape == mask.shape or not new.all():
            return decoder.step(ids, mask=new, positions=positions, last=None if every else 1)
        token[:] = ids
        return decoder.step(token)  # as generation does it: a token alone, in the array of the one before

    return step, lambda rows: decoder.select(rows)


@dataclass
class _Check:
    truth: Truth
    session: Session
    dtype: str
    case: Case
    report: Report

    def run(self) -> None:
        start = perf_counter()
        try:
            outputs = self._one_pass() if not self.case.chunks else self._cached()
            parts = list(outputs)
        except Exception as error:  # noqa: BLE001  whatever a backend raises on a fair case is a finding
            if self.case.optional and isinstance(error, InputError):
                self.report.skipped.append(Skip.of(self._subject, str(error)))
            else:
                text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
                self._result("error", 1, 0, " ".join(text.split()))
            return
        seconds = perf_counter() - start
        self._judge(parts)
        self._show(parts, seconds)

    def _show(self, parts: list[tuple[int, int, NDArray[Any], NDArray[Any]]], seconds: float) -> None:
        """Keep what the charts of a report show of the first output."""
        import numpy as np

        port, sampler = self.truth.model.signature.outputs[0], Sampler()
        first = [(r, got, want) for n, r, got, want in parts if n == 0 and got.shape == want.shape]
        for _, got, want in first:
            sampler.add(got, want)
        if port.role == "logits" and (rows := [(got, want) for r, got, want in first if r == 0 and got.ndim == 2]):
            sampler.add_kl(np.concatenate([got for got, _ in rows]), np.concatenate([want for _, want in rows]))
        self.report.evidence.append(sampler.evidence(self._subject, port.name, seconds))

    def _one_pass(self) -> Iterator[tuple[int, int, NDArray[Any], NDArray[Any]]]:
        """(port, row, got, want) of every output that the session gives; it may leave out those of the cache."""
        signature = self.truth.model.signature
        outputs = self.session.run(self.case.inputs(signature))
        for n, port in enumerate(signature.outputs):
            if port.name not in outputs and port.role == "state":
                continue
            got = outputs[port.name]
            if len(got) != len(self.case.rows):
                raise ParityError(f"{port.name} has {len(got)} rows for {len(self.case.rows)}")
            for r, row in enumerate(self.case.rows):
                want = self.truth.outputs(row)[n]
                yield n, r, real(port, got[r], self.case, r, want.shape), want

    def _cached(self) -> Iterator[tuple[int, int, NDArray[Any], NDArray[Any]]]:
        """The same for the first output, step by step."""
        import numpy as np

        case, order = self.case, np.arange(len(self.case.rows))
        step, select = decoding(self.session, self.truth.model.signature, case)
        before = case.mask.cumsum(1) - case.mask  # real tokens left of each slot
        for slots, whole in case.steps(self.truth.model.signature):
            if slots.start and case.order and len(order) != len(case.order):
                order = np.array(case.order)
                select(order)
            feed = {name: array[order] for name, array in whole.items()}
            got = step(feed, not case.last_only)
            shown = range(slots.stop - 1, slots.stop) if case.last_only else range(slots.start, slots.stop)
            got = got[:, None] if case.last_only else got
            for r, row in enumerate(order):
                kept = [slot for slot in shown if case.mask[row, slot]]
                known = self.truth.outputs(case.rows[row])[0]
                unasked = len(case.rows[row]) - len(known)
                want = known[[before[row, slot] - unasked for slot in kept]]
                if got.shape[1] != len(shown):
                    raise ParityError(f"a step over {len(shown)} slots gives {got.shape[1]}")
                yield 0, r, got[r][[slot - shown.start for slot in kept]], want

    def _judge(self, parts: list[tuple[int, int, NDArray[Any], NDArray[Any]]]) -> None:
        """One result per metric: the output nearest to its limit; the cache's ports have metrics of their own."""
        import numpy as np

        ports = self.truth.model.signature.outputs
        found: dict[str, _Found] = {}
        clear = near = 0
        for n in sorted({n for n, *_ in parts}):
            port, metric = ports[n], "cache_" if ports[n].role == "state" else ""
            mine = [(r, got, want) for p, r, got, want in parts if p == n]
            gaps = [difference(got, want, np.float32) for _, got, want in mine]
            problem = next((gap.problem for gap in gaps if gap.problem), "")
            size = sum(gap.size for gap in gaps)
            if problem or not size:
                self._result("mismatch", 1, 0, f"{port.name}: {problem or 'nothing to compare'}")
                return
            if wrong := sum(gap.nonfinite for gap in gaps):
                self._result("nonfinite", wrong, 0, f"{port.name}: NaN or infinity in {wrong} of {size} values")
                return
            scale = max(gap.scale for gap in gaps)
            rms = float(np.sqrt(sum(gap.rms**2 * gap.size for gap in gaps) / size))
            size_rms = float(np.sqrt(sum(gap.size_rms**2 * gap.size for gap in gaps) / size))
            limits = self._limits(n, scale, size_rms)
            if not np.isfinite([limits.max_abs, limits.rms]).all():
                self._result("nonfinite", 1, 0, f"{port.name}: torch itself overflows in {self.dtype}; export to f32")
                return
            measured = [("max_abs", max(gap.max_abs for gap in gaps), limits.max_abs), ("rms", rms, limits.rms)]
            for name, value, limit in measured if size >= ENOUGH else measured[:1]:
                entry = _Found(value, limit, [f"in {port.name}"] if metric else [], limits.deviates)
                if metric + name not in found or entry.share > found[metric + name].share:
                    found[metric + name] = entry
            if port.role == "logits":
                for _, got, want in mine:
                    if got.ndim == 3:  # classes of each cell of a map, (classes, rows, columns)
                        got, want = np.moveaxis(got, 0, -1), np.moveaxis(want, 0, -1)
                    other = choices(got, want, 2 * limits.max_abs)
                    clear, near = clear + other[0], near + other[1]
                notes = [f"{near} near ties turned, not counted"] if near else []
                found["argmax"] = _Found(clear, 0, notes, False)
        for name, entry in found.items():
            known = [REASONS[self.session.backend]] if entry.deviates else []
            self._result(name, entry.value, entry.limit, "; ".join(known + entry.notes))

    def _limits(self, n: int, scale: float, rms: float) -> Bounds:
        """The limits of an output whose largest value is `scale` and whose root mean square is `rms`."""
        dtype = plain_dtype(self.dtype)
        own = self.truth.noise(n, self.case.rows, dtype)
        known = self.truth.deviation(n, self.session.backend) if self.session.backend in REASONS else None
        return bounds(own, known, dtype, scale, rms)

    @property
    def _subject(self) -> Subject:
        return Subject(self.session.backend, LEVEL, self.dtype, self.case.group, self.case.name)

    def _result(self, metric: str, value: float, limit: float, note: str = "") -> None:
        self.report.results.append(Result.of(self._subject, metric, value, limit, note))
