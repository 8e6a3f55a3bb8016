"""Text that follows a grammar: of every next token, only those stay that the grammar can go on with.

llguidance (https://github.com/guidance-ai/llguidance) parses: a JSON schema, a regular expression, a list of choices,
or a grammar in llama.cpp's notation (GBNF) or Lark's. The end of the text is allowed where the grammar is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 2**17  # characters of a grammar: a longer one takes seconds to read
SPACE = r" |\n {0,12}"
"""What may stand between the signs of JSON, if anything: a bound, so that no text is spaces without end."""
NOWHERE = -1e5  # the score of beams that stand for missing ones is lower by far
_FORMATS = "{'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema', 'json_schema': {'schema': …}}"
_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarOptions:
    """What a call says of the form of its text; one of them at most."""

    response_format: Mapping[str, Any] | None = None
    grammar: str | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None

    def source(self) -> str | None:
        """The grammar as llguidance reads it, None for any text. Raises InputError for what is none."""
        given = [name for name in self.__dataclass_fields__ if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} each say what the text looks like; pass one of them")
        if not given:
            return None
        (name,) = given
        value = getattr(self, name)
        if name == "response_format":
            schema = _schema(value)
            return None if schema is None else _read(name, "json_schema", schema)
        if name == "choices":
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise InputError(f"choices={value!r:.60} is no list of texts")
            if not all(isinstance(one, str) and one for one in value):
                raise InputError(f"choices={value!r:.60} holds what is no text")
            return _read(name, "choice", value)
        if not isinstance(value, str):
            raise InputError(f"{name}={value!r:.60} is no text")
        return _read(name, "regex" if name == "regex" else "cfg", value)


def _schema(value: Any) -> Any:
    """The JSON schema of a `response_format`, as OpenAI's or llama.cpp's clients write it; None for any text."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    keys = {"text": (), "json_object": ("schema",), "json_schema": ("json_schema", "schema", "name", "strict")}
    if not isinstance(kind, str) or kind not in keys:
        raise InputError(f"response_format={value!r:.80} is not {_FORMATS}")
    unknown = [key for key in value if key not in ("type", *keys[kind])]
    if unknown:
        raise InputError(f"response_format has the key {unknown[0]!r}, which {kind} does not have; leave it out")
    if kind == "text":
        return None
    inner = value.get("json_schema")
    schema = value.get("schema") if inner is None else inner.get("schema") if isinstance(inner, Mapping) else None
    if schema is None and kind == "json_object":
        return _OBJECT
    if not isinstance(schema, Mapping | bool):
        raise InputError(f"response_format={value!r:.80} has no schema; it is {_FORMATS}")
    return schema


def _read(name: str, kind: str, value: Any) -> str:
    """The grammar as llguidance reads it; `value` is a JSON schema, a list of texts, or text."""
    from llguidance import LLMatcher, grammar_from

    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > LONGEST:
            raise InputError(f"{name} has {len(text)} characters, and a grammar may have {LONGEST}; simplify it")
        if kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": SPACE})
        return grammar_from(kind, text)  # type: ignore[arg-type]
    except (RecursionError, TypeError, ValueError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{name} is not understood: {_line(reason)}") from None


def after_a_space(source: str) -> str:
    """The grammar of the same texts with one space before them."""
    try:
        grammars = json.loads(source)["grammars"]
    except ValueError:  # in Lark's notation
        grammars = [{"lark_grammar": source}]
    return json.dumps(
        {"grammars": [{"lark_grammar": 'start: " " @text'}, {**grammars[0], "name": "text"}, *grammars[1:]]}
    )


class Vocabulary:
    """The tokens of a model as llguidance knows them. It takes about a second to make, for 50,000 of them."""

    def __init__(self, tokenizer: Any, size: int | None, ends: Sequence[int]) -> None:
        """`tokenizer` is the tokenizers library's; `size` the number of logits, `ends` the tokens that end a text."""
        from llguidance import LLTokenizer

        count = tokenizer.get_vocab_size(with_added_tokens=True)
        options: dict[str, Any] = {"n_vocab": max(size or 0, count), "eos_token": list(ends) or None}
        try:
            self.native = LLTokenizer(tokenizer.to_str(), **options)
        except ValueError:  # pieces whose spaces are marks, without bytes
            from llguidance import TokenizerWrapper

            self.native = LLTokenizer(TokenizerWrapper(_Pieces(tokenizer, ends)), **options)
        self.ends = tuple(ends)


class _Pieces:
    """A tokenizer of pieces in which "▁" is a space, in the shape that llguidance asks for."""

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        count = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self.special_token_ids = [index for index, token in added.items() if token.special]
        self.tokens = [self._piece(index) for index in range(count)]
        special = set(self.special_token_ids)
        self._longest = {piece: index for index, piece in enumerate(self.tokens) if piece and index not in special}
        self._widest = max(map(len, self._longest), default=0)
        self.bos_token_id, self.eos_token_id = None, next(iter(ends), next(iter(self.special_token_ids), 0))

    def _piece(self, index: int) -> bytes:
        token = self._tokenizer.id_to_token(index)
        return b"" if token is None else str(token).replace("\u2581", " ").encode()

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that goes on; the tokenizer would put a space before one that begins with none."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if b"".join(self.tokens[index] for index in ids) == text.encode():
            return ids
        ids, rest = [], text.encode()
        while rest:
            length = next((n for n in range(min(len(rest), self._widest), 0, -1) if rest[:n] in self._longest), 0)
            if not length:
                break
            ids.append(self._longest[rest[:length]])
            rest = rest[length:]
        return ids


class Grammar:
    """A grammar over a vocabulary, ready for texts. Any number of threads may use one."""

    def __init__(self, source: str, vocabulary: Vocabulary, name: str) -> None:
        """`name` is the parameter that gave it. Raises InputError for one that no text follows."""
        from llguidance import LLMatcher

        self.name, self._vocabulary = name, vocabulary
        self._matcher = LLMatcher(vocabulary.native, source, log_level=0)
        if self._matcher.is_error():
            raise InputError(f"{name} is not understood: {_line(self._matcher.get_error())}")
        allowed = _allowed(self._matcher, name)
        allowed[[*vocabulary.ends]] = False
        if not allowed.any() and not self._matcher.is_accepting():
            raise InputError(f"{name} cannot be met: no text follows it, or none that the model's tokens can write")

    def constraint(self, begin: int, end: int | None = None) -> GrammarConstraint:
        """The `Processor` of one row, or of the beams of one prompt; the tokens from `begin` on follow the grammar.

        Before `begin`, and from `end` on, what settings force stays as it is.
        """
        return GrammarConstraint(self._matcher.deep_copy(), begin, end, self.name, self._vocabulary.ends)

    def follows(self, made: Sequence[int], score: float | None) -> bool:
        """Whether a text of beams, its end included, follows the grammar so far, and is no beam that was not there."""
        if score is not None and score < NOWHERE:
            return False
        matcher = self._matcher.deep_copy()
        text = [token for token in made if token not in self._vocabulary.ends]
        return bool(matcher.try_consume_tokens(text) == len(text))


class GrammarConstraint:
    """A `Processor` that leaves the tokens that the grammar allows after a text; it follows from one text to the next.

    Texts may be shown in any order: what a text shares with the one before is not parsed again.
    """

    def __init__(self, matcher: Any, begin: int, end: int | None, name: str, ends: Sequence[int]) -> None:
        self._matcher, self._begin, self._end, self._name = matcher, begin, end, name
        self._ends = frozenset(ends)
        self._made: list[int] = []

    def __call__(self, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(ids) < self._begin or (self._end is not None and len(ids) >= self._end):
            return scores
        if not self._follow(ids[self._begin :].tolist()):
            return scores  # a beam that has ended, or is none: it is never chosen
        allowed = _allowed(self._matcher, self._name)
        kept = np.full_like(scores, -np.inf)
        count = min(len(allowed), len(scores))
        kept[:count][allowed[:count]] = scores[:count][allowed[:count]]
        if kept.max() == -np.inf:
            raise InputError(
                f"{self._name} allows no token that the other settings allow here; leave out what forbids tokens "
                "(min_new_tokens, no_repeat_ngram_size, bad_words_ids, …)"
            )
        return kept

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether nothing can follow this text."""
        return self._follow(list(ids[self._begin :])) and bool(self._matcher.is_stopped())

    def _follow(self, made: list[int]) -> bool:
        """Parse a text; whether the grammar allows it and it goes on."""
        shared = min(len(made), len(self._made))
        if made[:shared] != self._made[:shared]:
            shared = next(n for n in range(shared) if made[n] != self._made[n])
        if shared < len(self._made):
            self._matcher.rollback(len(self._made) - shared)
            del self._made[shared:]
        new = made[shared:]
        if not self._ends.isdisjoint(new):
            return False
        count = self._matcher.try_consume_tokens(new)
        if self._matcher.is_error():
            raise InputError(f"{self._name} takes too long to follow: {_line(self._matcher.get_error())}; simplify it")
        self._made += new[:count]
        return bool(count == len(new))


def _allowed(matcher: Any, name: str) -> NDArray[np.bool_]:
    """Which tokens may come next."""
    bits = matcher.compute_bitmask()
    if matcher.is_error() and matcher.get_error().startswith("NoExtension"):
        raise InputError(f"{name} cannot be met: no text follows it, or goes on from here; change the grammar")
    if matcher.is_error():
        raise InputError(f"{name} takes too long to follow: {_line(matcher.get_error())}; simplify it")
    allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)
    # Where no token writes the only bytes that can follow, those that could follow these are given.
    if (
        allowed.any()
        and not matcher.validate_tokens([int(allowed.argmax())])
        and (forced := matcher.compute_ff_bytes())
    ):
        text = forced.decode(errors="replace")
        raise InputError(f"{name} cannot be met: no token of the model writes {text!r:.60}; change the grammar")
    return allowed


def _line(reason: Any) -> str:
    """The reason of an error in one line."""
    return " ".join(str(reason).split())[:300]
