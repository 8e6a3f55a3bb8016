"""What can be chosen, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model.

    `dtype` is the form's, as in a manifest. `precision`: the dtype that a backend computes in where the form does not
    say it (OpenVINO: f32, bf16 or f16). `prefill`: the backend and the dtype ("onnxruntime int8") of a second form of
    the model, which reads prompts of at least `prefill_from` tokens for this one.
    """

    backend: str
    dtype: str
    threads: int
    precision: str = ""
    prefill: str = ""
    prefill_from: int = 0

    @property
    def alone(self) -> Candidate:
        """The same without a second form for prompts: what was measured."""
        return replace(self, prefill="", prefill_from=0)

    def __str__(self) -> str:
        computed = f" in {self.precision}" if self.precision else ""
        handed = f", prompts from {self.prefill_from} tokens on {self.prefill}" if self.prefill else ""
        return f"{self.backend} {self.dtype}{computed}{handed}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", 0)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Raises TypeError for what is no candidate."""
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast a workload ran: `rate` items of `unit` per wall second, the median of rounds; `spread` is the fastest
    round's rate over the slowest one's; `bytes` and `operations` are what one item needs at least."""

    rate: float
    unit: str
    spread: float
    bytes: float = 0.0
    operations: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A candidate that was measured in a process of its own.

    `timings` by workload ("prefill 128", "prefill 1024", "decode", "batch 8", "batch 32"). `proof`: by metric its
    value and limit, empty where the candidate is exact by definition. `error` says why there is nothing else.
    """

    candidate: Candidate
    timings: Mapping[str, Timing] = field(default_factory=dict)
    load_seconds: float = 0.0
    first_seconds: float = 0.0
    peak_bytes: int = 0
    proof: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    error: str = ""

    @property
    def proven(self) -> bool:
        """Whether every metric is within its limit."""
        return not self.error and all(value <= limit for value, limit in self.proof.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate.to_json(),
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
            "load_seconds": self.load_seconds,
            "first_seconds": self.first_seconds,
            "peak_bytes": self.peak_bytes,
            "proof": {name: list(pair) for name, pair in self.proof.items()},
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Raises KeyError, TypeError or ValueError for what is no measurement."""
        return cls(
            candidate=Candidate.from_json(data["candidate"]),
            timings={name: Timing(**timing) for name, timing in data["timings"].items()},
            load_seconds=float(data["load_seconds"]),
            first_seconds=float(data["first_seconds"]),
            peak_bytes=int(data["peak_bytes"]),
            proof={name: (float(value), float(limit)) for name, (value, limit) in data["proof"].items()},
            error=str(data["error"]),
        )
