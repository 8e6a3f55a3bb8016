"""What a form loses against the reference, by what an output is for: a text, labels, vectors or other values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from isoform.validators.report.evidence import Sampler
from isoform.validators.truth.distances import cosine_distance, kl_divergence, log_probabilities, log_softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.signature import Port

CLEAR = 0.1  # by this much in probability the reference must prefer its token, for another choice to count
_PIECE = 2**21  # logits compared at a time

Kind = Literal["text", "labels", "vectors", "values"]
"""What an output is for. text: logits over a vocabulary. labels: logits over labels, or how well texts and pictures go
together. vectors: what stands for a row, hidden states (the mean over their slots) or a pooled vector."""


def kind_of(model: Model, port: Port) -> Kind:
    """What an output of a model is for: by the role of its port, and by what its last axis counts."""
    match port.role:
        case "logits" if len(port.axes) <= 3:
            decodes = bool(model.signature.states) or port.axes[-1] == model.config.vocabulary
            return "text" if decodes else "labels"
        case "similarity":
            return "labels"
        case "pooled" | "states":
            return "vectors"
    return "values"


@dataclass
class Choices:
    """How often another token is chosen at so many positions, and how often the reference clearly prefers its own."""

    positions: int = 0
    other: int = 0
    clear: int = 0

    @property
    def clear_share(self) -> float:
        return self.clear / self.positions if self.positions else 0.0

    @property
    def alike_share(self) -> float:
        return 1 - self.other / self.positions if self.positions else 1.0


@dataclass
class Loss:
    """What an artifact loses in an output: over a text or labels (`kl` in nats per position, `text`, `score`), along
    the reference's own continuations (`greedy`), and elsewhere the squared error over the squared size and the
    `cosine` distance of each row."""

    kind: Kind = "text"
    kl: list[float] = field(default_factory=list)
    text: Choices = field(default_factory=Choices)
    greedy: Choices = field(default_factory=Choices)
    score: float = 0.0
    cosine: list[float] = field(default_factory=list)
    error: float = 0.0
    size: float = 0.0
    lone: bool = False
    sample: Sampler = field(default_factory=Sampler)

    @property
    def mean_kl(self) -> float:
        return sum(self.kl) / len(self.kl) if self.kl else 0.0

    @property
    def nmse(self) -> float:
        return self.error / self.size if self.size else float(self.error > 0)

    def metrics(self) -> dict[str, float]:
        """What the budget of a dtype has a limit for."""
        match self.kind:
            case "text":
                found = {"kl": self.mean_kl, "top1": self.text.clear_share}
                return found | ({"greedy": self.greedy.clear_share} if self.greedy.positions else {})
            case "labels" if self.lone:  # a single label is always the likeliest
                return {"scores": self.score, "nmse": self.nmse}
            case "labels":
                return {"kl": self.mean_kl, "labels": self.text.clear_share, "scores": self.score}
            case "vectors":
                return {"nmse": self.nmse, "cosine": sum(self.cosine) / max(1, len(self.cosine))}
        return {"nmse": self.nmse}

    def note(self, metric: str) -> str:
        """The plain numbers behind a metric."""
        if metric not in ("top1", "greedy", "labels"):
            return ""
        choices = self.greedy if metric == "greedy" else self.text
        return f"{choices.positions - choices.other} of {choices.positions} {_COUNTED[metric]} alike"

    def add(self, got: NDArray[Any], want: NDArray[Any], *, greedy: bool = False) -> None:
        """One row: (positions, …). Of continuations (`greedy`) only the choices count."""
        match self.kind:
            case "text":
                self._add_logits(got, want, greedy)
            case "labels":
                self._add_labels(got, want)
            case "vectors":
                self._add_values(got, want)
                width = want.shape[-1] if want.ndim else 1
                means = (x.reshape(-1, width).mean(0) for x in (got, want))
                self.cosine.append(cosine_distance(*means))
            case "values":
                self._add_values(got, want)

    def _add_logits(self, got: NDArray[Any], want: NDArray[Any], greedy: bool) -> None:
        """Logits (positions, V)."""
        import numpy as np

        step = max(1, _PIECE // want.shape[-1])
        choices = self.greedy if greedy else self.text
        for start in range(0, len(want), step):
            mine, theirs = np.asarray(got[start : start + step]), np.asarray(want[start : start + step])
            if not greedy:
                self.kl += kl_divergence(mine, theirs).tolist()
            chance = np.exp(log_softmax(theirs))
            taken = np.take_along_axis(chance, mine.argmax(-1)[:, None], -1)[:, 0]
            choices.positions += len(theirs)
            choices.other += int(np.count_nonzero(mine.argmax(-1) != theirs.argmax(-1)))
            choices.clear += int(np.count_nonzero(chance.max(-1) - taken >= CLEAR))

    def _add_labels(self, got: NDArray[Any], want: NDArray[Any]) -> None:
        """Logits (positions, labels)."""
        import numpy as np

        mine, theirs = (np.exp(log_probabilities(np.atleast_2d(x))) for x in (got, want))
        self.score = max(self.score, float(np.abs(mine - theirs).max(initial=0.0)))
        self.lone = want.shape[-1] == 1
        if self.lone:
            self._add_values(got, want)
        else:
            self._add_logits(np.atleast_2d(got), np.atleast_2d(want), False)

    def _add_values(self, got: NDArray[Any], want: NDArray[Any]) -> None:
        import numpy as np

        self.error += float(np.square(got.astype(np.float64) - want).sum())
        self.size += float(np.square(want.astype(np.float64)).sum())


_COUNTED = {"top1": "tokens", "greedy": "tokens", "labels": "labels"}
"""Metric -> what the choices behind it are."""
