"""token-classification: a label for every token, or for every word or entity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import Labels
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from isoform.runtimes.session import Session

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClassificationOptions:
    """The parameters of a call.

    `aggregation_strategy`: "simple" joins tokens; "first", "average" and "max" first give each word the label of its
    first token, of the mean of its tokens, or of its surest token.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] | None = None  # these are left out; ["O"] unless set
    stride: int | None = None  # tokens that the overlapping parts of a long text share
    is_split_into_words: bool = False  # an input is a list of words
    delimiter: str | None = None  # what joins the words in the text that `start` and `end` count in; a space

    def __post_init__(self) -> None:
        strategy = str(self.aggregation_strategy).lower()
        if strategy not in STRATEGIES:
            raise InputError(
                f"aggregation_strategy={self.aggregation_strategy!r} is not one of {', '.join(STRATEGIES)}"
            )
        if self.stride is not None and strategy == "none":
            raise InputError("stride= runs a text in overlapping parts, which needs an aggregation_strategy")


class TokenClassification(TextEncoder):
    """`pipe("Ada lives in Paris")` -> [{"entity", "score", "index", "word", "start", "end"}, …].

    With `aggregation_strategy` neighbours of one kind are joined: {"entity_group", "score", "word", "start", "end"}.
    A text that is too long is cut, unless `stride` makes it run in overlapping parts.
    """

    task: ClassVar[str] = "token-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[TokenClassificationOptions]] = TokenClassificationOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`; the words of one text are a list of one input, as in transformers."""
        inputs = super()._inputs(inputs, parameters)
        words = parameters.get("is_split_into_words", self._parameters.get("is_split_into_words"))
        return [inputs] if words and _words_of(inputs) else inputs

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not isinstance(item, str) and not _words_of(item):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")

    def prepare(self, items: Sequence[Any], call: TokenClassificationOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        words = call.is_split_into_words
        if any(isinstance(item, str) is words for item in items):
            raise InputError("is_split_into_words=True is for lists of words, and only for those")
        rows = self.encode(items, truncation=True, stride=call.stride or 0, words=words)
        return ([row, *(row.overflowing if call.stride is not None else ())] for row in rows)

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: TokenClassificationOptions) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        text, starts = item, None
        if call.is_split_into_words:
            between = " " if call.delimiter is None else call.delimiter
            text = between.join(item)
            starts = [0, *accumulate(len(word) + len(between) for word in item)]
        ignored = ["O"] if call.ignore_labels is None else list(call.ignore_labels)
        found: list[dict[str, Any]] = []
        for piece in pieces:
            scores = softmax(piece.output["logits"])
            entities = self._entities(text, piece.value, scores, str(call.aggregation_strategy).lower(), starts)
            found += [e for e in entities if e.get("entity") not in ignored and e.get("entity_group") not in ignored]
        return _without_overlaps(found) if len(pieces) > 1 else found

    def _entities(
        self, text: str, row: Encoding, scores: NDArray[np.float32], strategy: str, starts: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """Shapes: scores (T, labels). `starts`: where each word begins in the text, if it was given as words."""
        tokens = self._tokens(text, row, scores, starts)
        if strategy in ("none", "simple"):
            entities = []
            for token in tokens:
                best = int(token["scores"].argmax())
                entity = {"entity": self.labels[best], "score": token["scores"][best], "index": token["index"]}
                entities.append(entity | {name: token[name] for name in ("word", "start", "end")})
        else:
            entities = [self._word(word, strategy) for word in _words(tokens)]
        if strategy != "none":
            entities = [self._group(group) for group in _groups(entities)]
        return [entity | {"score": float(entity["score"])} for entity in entities]

    def _tokens(
        self, text: str, row: Encoding, scores: NDArray[np.float32], starts: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """The real tokens with their scores, and whether each continues the word before it."""
        unknown, marked = self.text_tokenizer.token_id("unk_token"), self.text_tokenizer.marks_subwords
        tokens = []
        for index, special in enumerate(row.special_tokens_mask):
            if special:
                continue
            word, (start, end) = row.tokens[index], row.offsets[index]
            if starts is not None and (number := row.word_ids[index]) is not None:
                start, end = start + starts[number], end + starts[number]
            part = text[start:end]
            inner = len(word) != len(part) if marked else start > 0 and " " not in text[start - 1 : start + 1]
            if row.ids[index] == unknown:
                word, inner = part, False
            tokens.append(
                {"word": word, "scores": scores[index], "start": start, "end": end, "index": index, "inner": inner}
            )
        return tokens

    def _word(self, tokens: Sequence[dict[str, Any]], strategy: str) -> dict[str, Any]:
        """One entity for the tokens of a word."""
        if strategy == "first":
            scores = tokens[0]["scores"]
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token["scores"].max())["scores"]
        else:
            scores = np.nanmean(np.stack([token["scores"] for token in tokens]), axis=0)
        best = int(scores.argmax())
        return {
            "entity": self.labels[best],
            "score": scores[best],
            "word": self.text_tokenizer.joined([token["word"] for token in tokens]),
            "start": tokens[0]["start"],
            "end": tokens[-1]["end"],
        }

    def _group(self, entities: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "entity_group": entities[0]["entity"].split("-", 1)[-1],
            "score": np.nanmean([entity["score"] for entity in entities]),
            "word": self.text_tokenizer.joined([entity["word"] for entity in entities]),
            "start": entities[0]["start"],
            "end": entities[-1]["end"],
        }


def _words_of(item: Any) -> bool:
    """Whether an input is a text as a list of words."""
    return isinstance(item, list) and bool(item) and all(isinstance(word, str) for word in item)


def _words(tokens: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if words and token["inner"]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _groups(entities: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Neighbours of one kind; a label that begins with "B-" begins a new one."""
    groups: list[list[dict[str, Any]]] = []
    for entity in entities:
        begins, kind = _kind(entity["entity"])
        if groups and not begins and _kind(groups[-1][-1]["entity"])[1] == kind:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _kind(label: str) -> tuple[bool, str]:
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _without_overlaps(entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that overlap, the longest, and of those the surest."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda e: e["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif (entity["end"] - entity["start"], entity["score"]) > (
            kept[-1]["end"] - kept[-1]["start"],
            kept[-1]["score"],
        ):
            kept[-1] = entity
    return kept
