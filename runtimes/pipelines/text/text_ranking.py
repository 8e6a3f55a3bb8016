"""text-ranking: how well documents answer a query, by a cross-encoder, with the scores of sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.json_files import read_object
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.pipelines.text.pooling import ACTIVATIONS
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder
from isoform.sentence_modules import read_sentence_modules

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

FUNCTIONS = {"none": "Identity", "sigmoid": "Sigmoid", "softmax": "Softmax"}
"""What a call may ask for -> the class of torch.nn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRankingOptions:
    """The parameters of a call."""

    top_k: int | None = None  # of each query the best so many documents; all without it
    return_documents: bool = False  # adds "text" to each
    function_to_apply: Literal["none", "sigmoid", "softmax"] | None = None  # to the logits; None: the model's own
    truncation: bool | str = True
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.function_to_apply is not None and self.function_to_apply not in FUNCTIONS:
            raise InputError(f"function_to_apply {self.function_to_apply!r} is none of {', '.join(FUNCTIONS)}")
        if self.top_k is not None:
            whole("top_k", self.top_k)


class TextRanking(TextEncoder):
    """`pipe(query="…", documents=["…", "…"])` -> [{"index": 1, "score": 0.98}, {"index": 0, "score": 0.02}].

    The best document comes first; "index" is its place in `documents`. {"query", "documents"} is the same as an object,
    and a list of them gives a list of such lists. A pair of texts gives its score, and a list of pairs the list of
    scores, each a list of numbers where the model has several labels.
    Scores are those of sentence-transformers' CrossEncoder: of one label a sigmoid, unless the model states another
    function; of several labels the logits.
    """

    task: ClassVar[str] = "text-ranking"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[TextRankingOptions]] = TextRankingOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        port = next(port for port in session.signature.outputs if port.name == "logits")
        if len(port.axes) != 2:
            raise UnsupportedModel("text-ranking needs a model with one row of logits for each pair of texts")
        self.label_count = int(port.axes[1]) if isinstance(port.axes[1], int) else None
        self.limit = read_sentence_modules(self.folder).max_length

    def __call__(
        self,
        inputs: Any = None,
        *,
        query: str | None = None,
        documents: Sequence[str] | None = None,
        batch_size: int | None = None,
        **parameters: Any,
    ) -> Any:
        """`inputs`, or a query with its documents -> ranked documents, or scores."""
        if query is not None or documents is not None:
            if inputs is not None:
                raise InputError("text-ranking takes inputs or query= with documents=, not both")
            inputs = {"query": query, "documents": documents}
        return super().__call__(inputs, batch_size=batch_size, **parameters)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping | str) or _is_pair(inputs)  # `check` refuses a text alone

    def _takes(self) -> str:
        return 'query= and documents=, {"query", "documents"}, a pair of texts, or a list of either'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if _is_pair(item):
            return
        found = item if isinstance(item, Mapping) else {}
        texts = found.get("documents")
        good = isinstance(found.get("query"), str) and isinstance(texts, list | tuple)
        if not good or set(found) != {"query", "documents"} or not all(isinstance(text, str) for text in texts or ()):
            raise InputError(f"text-ranking takes {self._takes()}, not {item!r:.80}")
        if self.label_count not in (1, None):
            raise UnsupportedModel(
                f"the model has {self.label_count} labels, by which documents have no order; give pairs of texts "
                "for their scores"
            )

    def prepare(self, items: Sequence[Any], call: TextRankingOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        groups = [
            [(item["query"], text) for text in item["documents"]] if isinstance(item, Mapping) else [tuple(item)]
            for item in items
        ]
        pairs = [pair for group in groups for pair in group]
        length = call.max_length if call.max_length is not None else self.limit
        options: dict[str, Any] = {"truncation": call.truncation, "max_length": length}
        rows = iter(self.encode([a for a, _ in pairs], [b for _, b in pairs], **options) if pairs else ())
        return [[next(rows) for _ in group] for group in groups]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: TextRankingOptions) -> Any:
        """See `BatchPipeline.finish`."""
        scores = [self._score(piece.output["logits"], call) for piece in pieces]
        if not isinstance(item, Mapping):
            values = [float(value) for value in scores[0]]
            return values[0] if len(values) == 1 else values
        found = [{"index": n, "score": float(score[0])} for n, score in enumerate(scores)]
        found.sort(key=lambda one: -one["score"])
        if call.return_documents:
            found = [{**one, "text": item["documents"][one["index"]]} for one in found]
        return found[: call.top_k]

    def _score(self, logits: NDArray[np.float32], call: TextRankingOptions) -> NDArray[np.float32]:
        name = FUNCTIONS[call.function_to_apply] if call.function_to_apply else self._trained(len(logits))
        if name == "Softmax":
            powers = np.exp(logits - logits.max())
            softened: NDArray[np.float32] = powers / powers.sum()
            return softened
        return np.asarray(ACTIVATIONS[name](logits), np.float32)

    def _trained(self, labels: int) -> str:
        """The class of torch.nn that the model's files name, or sentence-transformers' default."""
        own = read_object(self.folder / "config_sentence_transformers.json").get("activation_fn")
        section = self.config.get("sentence_transformers")
        stated = own or (section.get("activation_fn") if isinstance(section, Mapping) else None)
        stated = stated or self.config.get("sbert_ce_default_activation_function")
        if stated is None:
            return "Sigmoid" if labels == 1 else "Identity"
        name = str(stated).rsplit(".", 1)[-1]
        if not str(stated).startswith("torch.nn.") or name not in (*ACTIVATIONS, "Softmax"):
            raise UnsupportedModel(
                f"the model's activation function {stated!r:.80} is not computed; choose one with function_to_apply="
                f"{' or '.join(map(repr, FUNCTIONS))}"
            )
        return name


def _is_pair(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)
