"""image-classification: what is in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import Labels, asked_function, best_first, scored, trained_function, whole
from isoform.runtimes.pipelines.vision.picture_encoder import PictureEncoder

if TYPE_CHECKING:
    from isoform.runtimes.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageClassificationOptions:
    """The parameters of a call."""

    top_k: int | None = None  # 5 unless set, as in transformers
    function_to_apply: str | None = None  # "softmax", "sigmoid", "none"; what the model was trained for
    timeout: float | None = None

    def __post_init__(self) -> None:
        asked_function(self.function_to_apply)
        whole("top_k", self.top_k, none="5")


class ImageClassification(PictureEncoder):
    """`pipe("cat.jpg")` -> [{"label": "tabby", "score": 0.9}, …], the five likeliest; a list gives a list of those."""

    task: ClassVar[str] = "image-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[ImageClassificationOptions]] = ImageClassificationOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: ImageClassificationOptions) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        logits = pieces[0].output["logits"]
        scores = scored(logits, asked_function(call.function_to_apply) or trained_function(self.config, len(logits)))
        return [
            {"label": self.labels[n], "score": float(scores[n])}
            for n in best_first(scores, 5 if call.top_k is None else call.top_k)
        ]
