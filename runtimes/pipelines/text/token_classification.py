"""token-classification: a label for every token, or for every word or entity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import Pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

STRATEGIES = ("none", "simple", "first", "average", "max")


class TokenClassification(Pipeline):
    """`pipe("Ada lives in Paris")` -> [{"entity", "score", "index", "word", "start", "end"}, …].

    With `aggregation_strategy` neighbours of one kind are joined: {"entity_group", "score", "word", "start", "end"}.
    A text that is too long is cut, unless `stride` makes it run in overlapping parts.
    """

    task: ClassVar[str] = "token-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def _answer(
        self,
        items: Sequence[str],
        batch_size: int | None,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] | None = None,
        stride: int | None = None,
    ) -> list[Any]:
        """`aggregation_strategy`: "simple" joins tokens; "first", "average" and "max" first give each word the label
        of its first token, of the mean of its tokens, or of its surest token. `ignore_labels` are left out ("O")."""
        strategy = str(aggregation_strategy).lower()
        if strategy not in STRATEGIES:
            raise InputError(f"aggregation_strategy={aggregation_strategy!r} is not one of {', '.join(STRATEGIES)}")
        if stride is not None and strategy == "none":
            raise InputError("stride= runs a text in overlapping parts, which needs an aggregation_strategy")
        ignored = ["O"] if ignore_labels is None else list(ignore_labels)
        whole = self._encode(items, truncation=True, stride=stride or 0)
        parts = [[row, *(row.overflowing if stride is not None else ())] for row in whole]
        outputs = iter(self._forward([part for row in parts for part in row], batch_size))
        answers = []
        for text, row in zip(items, parts, strict=True):
            found: list[dict[str, Any]] = []
            for part in row:
                entities = self._entities(text, part, softmax(next(outputs)["logits"]), strategy)
                found += [
                    e for e in entities if e.get("entity") not in ignored and e.get("entity_group") not in ignored
                ]
            answers.append(_without_overlaps(found) if len(row) > 1 else found)
        return answers

    def _entities(self, text: str, row: Encoding, scores: NDArray[np.float32], strategy: str) -> list[dict[str, Any]]:
        """Shapes: scores (T, labels)."""
        tokens = self._tokens(text, row, scores)
        if strategy in ("none", "simple"):
            entities = []
            for token in tokens:
                best = int(token["scores"].argmax())
                entity = {"entity": self._label(best), "score": token["scores"][best], "index": token["index"]}
                entities.append(entity | {name: token[name] for name in ("word", "start", "end")})
        else:
            entities = [self._word(word, strategy) for word in _words(tokens)]
        if strategy != "none":
            entities = [self._group(group) for group in _groups(entities)]
        return [entity | {"score": float(entity["score"])} for entity in entities]

    def _tokens(self, text: str, row: Encoding, scores: NDArray[np.float32]) -> list[dict[str, Any]]:
        """The real tokens with their scores, and whether each continues the word before it."""
        unknown, marked = self.tokenizer.token_id("unk_token"), self.tokenizer.marks_subwords
        tokens = []
        for index, special in enumerate(row.special_tokens_mask):
            if special:
                continue
            word, (start, end) = row.tokens[index], row.offsets[index]
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
            "entity": self._label(best),
            "score": scores[best],
            "word": self.tokenizer.joined([token["word"] for token in tokens]),
            "start": tokens[0]["start"],
            "end": tokens[-1]["end"],
        }

    def _group(self, entities: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "entity_group": entities[0]["entity"].split("-", 1)[-1],
            "score": np.nanmean([entity["score"] for entity in entities]),
            "word": self.tokenizer.joined([entity["word"] for entity in entities]),
            "start": entities[0]["start"],
            "end": entities[-1]["end"],
        }


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
