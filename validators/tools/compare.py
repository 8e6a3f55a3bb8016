"""Compares two artifacts or backends on the same inputs: how far apart they are, how fast and how large.

Neither is the truth. Where a checkpoint is at hand (one of the two, or a bundle's source), each may be off by what a
check would allow it, so the two together by the sum. Quantized ones are held to their budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError
from isoform.formats import DIGITS
from isoform.progress import Progress
from isoform.quality import plain_dtype
from isoform.signature import LENGTH
from isoform.validators.cases.case import LONG, SHORT, Case, Row
from isoform.validators.cases.registry import cases_of
from isoform.validators.tools.sides import Side, find_side
from isoform.validators.truth import tolerances as tolerance
from isoform.validators.truth.budgets import budget_of
from isoform.validators.truth.deviations import REASONS
from isoform.validators.truth.distances import choices, difference
from isoform.validators.truth.losses import Loss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.runtimes.session import Session
    from isoform.signature import Signature

PROMPT, NEW, PROMPTS = 12, 16, 4  # tokens of a prompt, tokens that continue it, and how many are continued
TIMED = 64  # tokens of the row whose time is taken


@dataclass(frozen=True, slots=True)
class Metric:
    """A number, and its limit where one is held to it."""

    name: str
    value: float
    limit: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.limit is None or self.value <= self.limit


@dataclass(slots=True)
class Half:
    """One of the two: what it is, its bytes, and tokens per second in one pass and one by one."""

    text: str
    backend: str
    dtype: str
    bytes: int
    pass_speed: float = 0.0
    step_speed: float | None = None


@dataclass
class Comparison:
    """`rows` were given to both, alone and padded on both sides."""

    a: Half
    b: Half
    rows: int
    metrics: list[Metric] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return all(metric.passed for metric in self.metrics)

    def to_json(self) -> dict[str, Any]:
        def half(side: Half) -> dict[str, Any]:
            return {
                "what": side.text,
                "backend": side.backend,
                "dtype": side.dtype,
                "bytes": side.bytes,
                "tokens_per_second": round(side.pass_speed, 1),
                "decoded_per_second": None if side.step_speed is None else round(side.step_speed, 1),
            }

        return {
            "a": half(self.a),
            "b": half(self.b),
            "same": self.same,
            "rows": self.rows,
            "metrics": [
                {"metric": m.name, "value": _finite(m.value), "limit": m.limit, "pass": m.passed, "note": m.note}
                for m in self.metrics
            ],
            "notes": self.notes,
        }


def compare(a: str, b: str, *, threads: int | None = None, progress: Progress | None = None) -> Comparison:
    """Run both over the same rows; each is what `sides.find_side` takes. Raises InputError for two unlike models.

    Float artifacts run in strict settings, as in a check; the speeds are those of the settings that they ship with.
    """
    show = progress or (lambda text, done, total: None)
    sides = (find_side(a), find_side(b))
    models = [_model(side) for side in sides]
    for side, model in zip(sides, models, strict=True):
        if model is not None and len(model.parts) > 1:
            raise InputError(f"{side.text} is a model of several parts; `isoform check` compares each of them")
    reference = next((model for model in models if model is not None), None)
    with ExitStack() as stack:
        show("comparing", 0, 4)
        sessions = [
            stack.enter_context(_session(side, model, threads, strict=plain_dtype(side.dtype) in DIGITS))
            for side, model in zip(sides, models, strict=True)
        ]
        signature = _common(sides, sessions)
        cases = cases_of(reference) if reference is not None else _bare_cases(sides, signature)
        cases = [case for case in cases if not case.chunks]
        halves = [Half(s.text, s.backend, s.dtype, _bytes(s, m)) for s, m in zip(sides, models, strict=True)]
        found = Comparison(halves[0], halves[1], len({row for case in cases for row in case.rows}))
        show("comparing", 1, 4)
        ran = [_run(sessions, signature, case, found) for case in cases]
        pairs = [pair for entry in ran if entry is not None for pair in entry]
        if not pairs:
            raise InputError(f"{a} and {b} have no case in common: {'; '.join(found.notes)}")
        show("comparing", 2, 4)
        alike = _quantized_alike(sides, reference, cases)
        _judge(found, sides, signature, pairs, _limits(found, sides, reference, cases), alike)
    continued = []
    for n, (half, side, model) in enumerate(zip((found.a, found.b), sides, models, strict=True)):
        show("comparing", 3, 4)
        sessions[n].close()
        with _session(side, model, threads) as session:
            continued.append(_speeds(half, session, cases))
    _continue(found, continued)
    show("comparing", 4, 4)
    return found


def _model(side: Side) -> Model | None:
    """The reference behind a side: itself, its bundle's source, or a GGUF file as a checkpoint."""
    from isoform.manifest import Manifest
    from isoform.reference.model import open_model

    if not side.format:
        return open_model(side.source)
    if side.folder is not None:
        manifest = Manifest.read(side.folder)
        path = manifest.source.get("path") or ""
        return open_model(path, manifest.task) if Path(path).exists() and path else None
    return open_model(side.path) if side.format == "gguf" else None


def _session(side: Side, model: Model | None, threads: int | None, *, strict: bool = False) -> Session:
    from isoform.runtimes.open import open_session

    if not side.format:
        if model is None:
            raise InputError(f"{side.text} has no checkpoint to run")
        return open_session(model, "torch", dtype=side.dtype, strict=strict, threads=threads)
    signature = side.artifact.signature if side.artifact else model.trunk.signature if model else None
    return open_session(side.path, side.backend, signature=signature, strict=strict, threads=threads)


def _common(sides: Sequence[Side], sessions: Sequence[Session]) -> Signature:
    """The first one's signature, when the second takes and gives the same."""
    first, second = (session.signature for session in sessions)

    def shape(signature: Signature) -> tuple[Any, ...]:
        out = signature.outputs[0]
        return sorted(port.name for port in signature.given), out.name, [a for a in out.axes if isinstance(a, int)]

    if not first.outputs or shape(first) != shape(second):
        names = [f"{side.text}: {_ports(session.signature)}" for side, session in zip(sides, sessions, strict=True)]
        raise InputError(f"the two are other models or serve other tasks; {'; '.join(names)}")
    return first


def _ports(signature: Signature) -> str:
    out = signature.outputs[0]
    return f"{', '.join(port.name for port in signature.given)} to {out.name} {list(out.axes)}"


def _bare_cases(sides: Sequence[Side], signature: Signature) -> list[Case]:
    """Rows for two graphs without a checkpoint: random tokens of the vocabulary that config.json names."""
    import numpy as np

    from isoform.reference.checkpoints.checkpoint import read_json

    folders = [folder for side in sides for folder in (side.path.parent, side.path.parent.parent)]
    config: dict[str, Any] = next((found for folder in folders if (found := read_json(folder / "config.json"))), {})
    size = config.get("vocab_size")
    if not isinstance(size, int) or any(port.dtype == "float" for port in signature.given):
        raise InputError(
            "what to feed them is not known: put config.json beside the files, or compare with a checkpoint"
        )
    random = np.random.default_rng(0)
    tokens = [random.integers(0, size, length) for length in (SHORT, 1, LONG)]
    rows = tuple(Row(ids, np.zeros_like(ids)) for ids in tokens)
    return [Case("one row", rows[:1]), Case("left padding", rows, "left"), Case("right padding", rows)]


def _run(
    sessions: Sequence[Session], signature: Signature, case: Case, found: Comparison
) -> list[tuple[NDArray[Any], NDArray[Any]]] | None:
    """The first outputs (a, b) for each row of a case, at its real tokens; None when one of them refuses the case."""
    from isoform.validators.cases.case import real

    port, outputs = signature.outputs[0], []
    for session, half in zip(sessions, (found.a, found.b), strict=True):
        try:
            outputs.append(session.run(case.inputs(session.signature))[port.name])
        except InputError as error:
            if not case.optional:
                raise
            found.notes.append(f"{case.name}: {half.text} refuses it ({error})")
            return None
    one, other = outputs
    if one.shape != other.shape:
        raise InputError(f"the two are other models: {port.name} has shape {one.shape} and {other.shape}")
    shape = one.shape[1:]
    return [(real(port, one[r], case, r, shape), real(port, other[r], case, r, shape)) for r in range(len(one))]


def _judge(
    found: Comparison,
    sides: Sequence[Side],
    signature: Signature,
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    limits: Callable[[float, float], tuple[float, float]],
    alike: dict[str, float],
) -> None:
    """`alike`: what torch loses, quantized as the two are."""
    import numpy as np

    gaps = [difference(other, one) for one, other in pairs]
    size = sum(gap.size for gap in gaps)
    rms = float(np.sqrt(sum(gap.rms**2 * gap.size for gap in gaps) / size))
    size_rms = float(np.sqrt(sum(gap.size_rms**2 * gap.size for gap in gaps) / size))
    largest = max(gap.max_abs for gap in gaps)
    quantized = [side.dtype for side in sides if plain_dtype(side.dtype) not in DIGITS]
    budgets = [budget for dtype in quantized if (budget := budget_of(dtype)) is not None]
    if len(budgets) < len(quantized):
        raise InputError(f"no budget is known for {' and '.join(quantized)}; compare what has one")
    highest, mean = (None, None) if quantized else limits(max(gap.scale for gap in gaps), size_rms)
    found.metrics += [Metric("max_abs", largest, highest), Metric("rms", rms, mean, f"of values of {size_rms:.3g}")]
    tokens = signature.outputs[0].role == "logits" and all(one.ndim == 2 for one, _ in pairs)
    loss = Loss("text" if tokens else "values")

    def allowed(name: str) -> float:
        budget = sum(getattr(budget, name).value for budget in budgets)
        return max(budget, tolerance.QUANTIZED.value * alike.get(name, 0.0))

    for one, other in pairs:
        loss.add(other, one)
    if loss.kl:
        turned = sum(choices(other, one, 0.0)[0] for one, other in pairs)
        note = f"{loss.text.positions - turned} of {loss.text.positions} positions"
        limit = allowed("kl") if quantized else None
        found.metrics.append(Metric("kl", loss.mean_kl, limit, "nats, mean over positions"))
        found.metrics.append(Metric("other_choice", loss.text.other / loss.text.positions, None, note))
        if quantized:
            share = loss.text.clear_share
            found.metrics.append(Metric("clear_other_choice", share, allowed("top1"), "preferred by 0.1 or more"))
    elif quantized:
        found.metrics.append(Metric("nmse", loss.nmse, allowed("nmse")))


def _quantized_alike(sides: Sequence[Side], reference: Model | None, cases: Sequence[Case]) -> dict[str, float]:
    """The sum of what torch loses on the rows with the weights and rounded activations of each quantized side."""
    from isoform.validators.levels.packed import imitate
    from isoform.validators.truth.answers import by_position, imitation, run_alone

    lost: dict[str, float] = {}
    for side in sides:
        if reference is None or plain_dtype(side.dtype) in DIGITS or side.format not in ("gguf", "onnx"):
            continue
        module = reference.module()
        run, rounding = (imitate if side.format == "onnx" else imitation)(reference, side.path)
        port = reference.signature.outputs[0]
        loss = Loss("text" if port.role == "logits" and LENGTH in port.axes else "values")
        for row in dict.fromkeys(row for case in cases if not case.optional for row in case.rows):
            want = run_alone(reference, module, row)
            with rounding:
                got = by_position(reference, run(row)[port.name])
            loss.add(got, want)
        for name, value in loss.metrics().items():
            lost[name] = lost.get(name, 0.0) + value
    return lost


def _limits(
    found: Comparison, sides: Sequence[Side], reference: Model | None, cases: Sequence[Case]
) -> Callable[[float, float], tuple[float, float]]:
    """From the largest output and the outputs' root mean square to the limits of max_abs and rms."""
    floats = [side for side in sides if plain_dtype(side.dtype) in DIGITS]
    if reference is None or len(floats) < 2:
        ulp = max(2.0 ** (1 - DIGITS.get(plain_dtype(side.dtype), 24)) for side in sides)
        if len(floats) == 2:
            found.notes.append("no checkpoint is at hand, so the limit is a number of units in the last place")
        share = tolerance.COMPARE.value * ulp
        return lambda scale, size: (share * scale, share * size)
    from isoform.validators.truth.reference import Truth

    truth = Truth(reference, cases)

    def limits(scale: float, size: float) -> tuple[float, float]:
        highest = mean = 0.0
        for side in sides:
            ulp = 2.0 ** (1 - DIGITS[plain_dtype(side.dtype)])
            own = truth.noise(0, truth.rows, plain_dtype(side.dtype))
            top = tolerance.GRAPH_MAX.value * max(own.max_abs, tolerance.FLOOR_MAX.value * ulp * scale)
            rms = tolerance.GRAPH_RMS.value * max(own.rms, tolerance.FLOOR_RMS.value * ulp * size)
            if side.backend in REASONS:
                known = truth.deviation(0, side.backend)
                top = max(top, tolerance.DEVIATION.value * known.max_abs)
                rms = max(rms, tolerance.DEVIATION.value * known.rms)
            highest, mean = highest + top, mean + rms
        return highest, mean

    return limits


def _speeds(half: Half, session: Session, cases: Sequence[Case]) -> NDArray[np.int64] | None:
    """Take the time of one longer row, and of going on alone; returns the tokens of a decoder (B, NEW)."""
    import numpy as np

    longest = max((row for case in cases for row in case.rows), key=len)
    if len(longest.tokens) and not longest.media:
        ids = np.resize(longest.tokens, min(TIMED, max(len(longest), LONG)))
        longest = Row(ids, np.zeros_like(ids))
    inputs = Case("", (longest,)).inputs(session.signature)
    half.pass_speed = len(longest) / min(_time(lambda: session.run(inputs)) for _ in range(3))
    if not session.signature.states or session.signature.outputs[0].role != "logits":
        return None
    prompts = _prompts(cases)
    start = perf_counter()
    tokens = _greedy(session, prompts)
    half.step_speed = tokens.size / (perf_counter() - start)
    return tokens


def _continue(found: Comparison, continued: Sequence[NDArray[np.int64] | None]) -> None:
    """How long the two go on alike."""
    one, other = continued
    if one is None or other is None:
        return
    until = [NEW if row.all() else int(row.argmin()) for row in one == other]
    note = f"of {NEW} tokens after each prompt, alike: {' '.join(map(str, until))}"
    found.metrics.append(Metric("greedy_other", 1 - sum(until) / (NEW * len(until)), None, note))


def _time(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return max(perf_counter() - start, 1e-9)


def _prompts(cases: Sequence[Case]) -> NDArray[np.int64]:
    """(B, PROMPT) from rows that are long enough, text first; short ones are repeated."""
    import numpy as np

    ranked = sorted(cases, key=lambda case: not case.natural)
    rows = list(dict.fromkeys(row for case in ranked for row in case.rows if len(row) > 1))[:PROMPTS]
    return np.stack([np.resize(row.tokens, PROMPT) for row in rows])


def _greedy(session: Session, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The NEW tokens that follow each prompt: (B, PROMPT) -> (B, NEW)."""
    import numpy as np

    decoder, ids = session.decoder(len(prompts)), prompts
    tokens: list[NDArray[np.int64]] = []
    for _ in range(NEW):
        logits = decoder.step(ids)
        ids = logits.argmax(-1)[:, None].astype(np.int64)
        tokens.append(ids)
    return np.concatenate(tokens, 1)


def _bytes(side: Side, model: Model | None) -> int:
    if side.artifact is not None:
        return sum(file.size for file in side.artifact.files)
    try:
        if side.format or model is None:
            data = side.path.with_name(side.path.name + "_data")
            return side.path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
        return sum(path.stat().st_size for path in model.checkpoint.files())
    except (OSError, IsoformError):
        return 0


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
