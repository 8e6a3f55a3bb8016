"""text-classification: the label of a text or of a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import Labels, asked_function, best_first, scored, trained_function
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder
from isoform.runtimes.preprocess.text.tables.reader import TableTokens, open_reader
from isoform.runtimes.preprocess.text.tables.table import read_table

if TYPE_CHECKING:
    from isoform.runtimes.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class TextClassificationOptions:
    """The parameters of a call."""

    top_k: int | Literal[""] | None = ""
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None  # what the model was trained for
    truncation: bool | str = False
    max_length: int | None = None
    padding: Any = None  # changes nothing

    def __post_init__(self) -> None:
        asked_function(self.function_to_apply)


class TextClassification(TextEncoder):
    """`pipe("Good!")` -> [{"label": "POSITIVE", "score": 0.99}]; a list gives one such object per text.

    {"text": …, "text_pair": …} classifies a pair, and {"text": …, "table": …} what a text says of a table, whose last
    rows are left out where they have no place. With `top_k` (None: all) an answer is a list of labels.
    """

    task: ClassVar[str] = "text-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[TextClassificationOptions]] = TextClassificationOptions
    takes_objects: ClassVar[bool] = True

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """One text alone gives a list, unless the call says how many labels."""
        return [answer] if isinstance(inputs, str) and "top_k" not in parameters else answer

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _takes(self) -> str:
        return 'a text, {"text", "text_pair"}, {"text", "table"}, or a list of those'

    def prepare(self, items: Sequence[Any], call: TextClassificationOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        items = [_nested_pair(item) for item in items]
        tables = [n for n, item in enumerate(items) if isinstance(item, Mapping) and item.get("table") is not None]
        singles = [n for n, item in enumerate(items) if not _pair(item) and n not in tables]
        pairs = [n for n, item in enumerate(items) if _pair(item) and n not in tables]
        rows: list[Any] = [None] * len(items)
        options: dict[str, Any] = {"truncation": call.truncation, "max_length": call.max_length}
        texts = [items[n]["text"] if isinstance(items[n], Mapping) else items[n] for n in singles]
        for n, row in zip(singles, self.encode(texts, **options), strict=True):
            rows[n] = row
        first, second = [items[n]["text"] for n in pairs], [items[n]["text_pair"] for n in pairs]
        for n, row in zip(pairs, self.encode(first, second, **options) if pairs else [], strict=True):
            rows[n] = row
        for n in tables:
            rows[n] = self._of_table(items[n])
        return ([row] for row in rows)

    def _of_table(self, item: Mapping[str, Any]) -> TableTokens:
        if item.get("text_pair") is not None:
            raise InputError(f"a text comes with a second text or with a table, not with both: {item!r:.80}")
        reader = open_reader(self.text_tokenizer, self.folder, self.facts)
        (row,) = reader.read(read_table(item["table"]), [item["text"]], drops_rows=True)
        self._check_ids(row.ids.tolist())
        if self.context is not None and len(row) > self.context:
            raise InputError(f"a text of {len(row)} tokens is too long for the model's {self.context} positions")
        return row

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: TextClassificationOptions) -> Any:
        """See `BatchPipeline.finish`."""
        logits = pieces[0].output["logits"]
        function = asked_function(call.function_to_apply) or trained_function(self.config, len(logits))
        scores = scored(logits, function)
        if call.top_k == "":
            best = int(scores.argmax())
            return {"label": self.labels[best], "score": float(scores[best])}
        return [{"label": self.labels[n], "score": float(scores[n])} for n in best_first(scores, call.top_k)]


def _nested_pair(item: Any) -> Any:
    """The older form of a pair, [[text, second text]], in the newer one; anything else as it is."""
    if isinstance(item, list) and len(item) == 1 and isinstance(item[0], list) and len(item[0]) == 2:
        return {"text": item[0][0], "text_pair": item[0][1]}
    return item


def _pair(item: Any) -> bool:
    """Whether an item is a pair; InputError when it is neither that nor a text."""
    if isinstance(item, str):
        return False
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        raise InputError(f'text-classification takes a text or {{"text": …, "text_pair": …}}, not {item!r:.80}')
    return item.get("text_pair") is not None
