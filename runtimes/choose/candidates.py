"""The candidates for a model: what can run it here, at a quality. The order is that in which they are measured.

The first one is today's choice, which everything else must beat; after it, what is most likely to pay comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from isoform.formats import BACKENDS, FORMAT_OF
from isoform.quality import PORTABLE, QUALITIES, admits, quality_of
from isoform.runtimes.choose.records import Candidate

DECODES, GGUF = "decodes", "gguf"
"""What a model must do for a candidate: keep states of the tokens before; be of an architecture that llama.cpp has."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a checkpoint: the form that the backend needs, and what the model must do for it."""

    backend: str
    dtype: str
    precision: str = ""
    needs: str = ""


WAYS = (
    Way("torch", "f32"),
    Way("torch", "bf16"),
    Way("torch", "int8"),
    Way("torch", "int8w", needs=DECODES),
    Way("torch", "int4w", needs=DECODES),
    Way("onnxruntime", "q4w", needs=DECODES),
    Way("onnxruntime", "int8"),
    Way("onnxruntime", "f32"),
    Way("onnxruntime", "q8_0", needs=DECODES),
    Way("openvino", "f32" + PORTABLE, "bf16"),
    Way("openvino", "f32" + PORTABLE, "f32"),
    Way("llamacpp", "q4_0", needs=GGUF),
    Way("llamacpp", "q8_0", needs=GGUF),
    Way("llamacpp", "q4_k_m", needs=GGUF),
)
"""Of a checkpoint, whose forms are exported when they are measured. The first is today's choice."""

HANDS_OVER = ("onnxruntime", "torch")
"""The backends between which a prompt's states can be handed over: their caches have one layout."""

PRECISIONS = {"openvino": ("f32", "bf16")}
"""Backend -> the dtypes that it computes the same float form in."""


def quality_with(candidate: Candidate) -> str:
    """The quality of what a candidate answers: the lowest of its form, its precision and its prefill form."""
    kinds = filter(None, (candidate.dtype, candidate.precision, candidate.prefill.rpartition(" ")[2]))
    return max(map(quality_of, kinds), key=QUALITIES.index)


def admitted(quality: str, candidate: Candidate) -> bool:
    """Whether a candidate is good enough for a quality."""
    return QUALITIES.index(quality_with(candidate)) <= QUALITIES.index(quality)


def of_checkpoint(quality: str, threads: int, ready: Collection[str], does: Collection[str]) -> list[Candidate]:
    """Those of a checkpoint. `ready`: the backends that run here; `does`: what the model does (`DECODES`, `GGUF`)."""
    found = [
        Candidate(backend=way.backend, dtype=way.dtype, threads=threads, precision=way.precision)
        for way in WAYS
        if way.backend in ready and (not way.needs or way.needs in does)
    ]
    return [one for one in found if admitted(quality, one)]


def of_bundle(
    quality: str,
    threads: int,
    ready: Collection[str],
    forms: Sequence[tuple[str, str]],
    today: tuple[str, str],
    does: Collection[str],
    *,
    checkpoint: bool,
) -> list[Candidate]:
    """Those of a bundle: its own forms (format, dtype), and torch where its checkpoint is there.

    `today` is the backend and dtype that are opened without a measurement; it comes first whatever its quality is.
    """
    first = Candidate(backend=today[0], dtype=today[1], threads=threads, precision=_precisions(*today)[0])
    found = [first]
    for form, dtype in forms:
        for backend in BACKENDS[form]:
            if backend in ready:
                found += [
                    Candidate(backend=backend, dtype=dtype, threads=threads, precision=precision)
                    for precision in _precisions(backend, dtype)
                ]
    if checkpoint:
        found += [one for one in of_checkpoint(quality, threads, ready, does) if one.backend not in FORMAT_OF]
    return list(dict.fromkeys(one for one in found if one is first or admitted(quality, one)))


def _precisions(backend: str, dtype: str) -> tuple[str, ...]:
    return PRECISIONS.get(backend, ("",)) if admits("exact", dtype) else PRECISIONS.get(backend, ("",))[:1]


def in_fewer_threads(candidate: Candidate) -> list[Candidate]:
    """The same one in half the threads and in one: small models and batches may be faster so."""
    from dataclasses import replace

    counts = {candidate.threads // 2, 1} - {0, candidate.threads}
    return [replace(candidate, threads=count) for count in sorted(counts, reverse=True)]
