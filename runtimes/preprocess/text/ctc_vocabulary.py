"""The characters of a CTC model, and how frames become text, as transformers' Wav2Vec2CTCTokenizer does it.

Its vocabulary is `vocab.json` alone; such a folder has no tokenizer.json. Graves et al. 2006 (CTC): a character that
lasts over several frames is one, and a blank lies between two that are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.json_files import JsonObject
from isoform.runtimes.preprocess.text.tokenizer import clean_up
from isoform.tokenization import MOST_ID, read_settings, text_of


@dataclass(frozen=True, slots=True)
class Span:
    """A character or a word, and the frames over which it lasts: `start` to `end`, the last not included."""

    text: str
    start: int
    end: int


class CtcVocabulary:
    """Frames' best characters to text. `blank` is the token that stands for none.

    `ids` holds every name with its id, `special` the special tokens by name; `listed` ids are in vocab.json.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """`facts` of the model, of which "characters" names the special tokens.

        Raises CheckpointError for a folder without a readable vocab.json, UnsupportedModel for another class.
        """
        folder = Path(folder)
        path = folder / "vocab.json"
        read = read_settings(folder)
        settings = read.values
        kind = facts.get("characters", {"tokens": {}})
        if "refused" in kind:
            raise UnsupportedModel(f"{folder}: {kind['refused']}")
        table = JsonObject.read(path)
        if not table:
            raise CheckpointError(f"{folder} has no vocab.json, the characters of the model; fetch it from the Hub")
        if (language := settings.text("target_lang")) is not None:
            if not isinstance(table.get(language), dict):
                raise CheckpointError(f"{path} has no language {language!r}, which tokenizer_config.json asks for")
            table = table.object(language)
        elif any(isinstance(value, dict) for value in table.values()):
            raise CheckpointError(
                f"{path} holds a vocabulary per language ({', '.join(list(table)[:4])}, …); say which with "
                '"target_lang" in tokenizer_config.json'
            )
        ids = {token: table.integer(token, -1, least=0, most=MOST_ID) for token in table}
        named = read.named(kind["tokens"])
        delimiter = settings.text("word_delimiter_token", "|")
        special = [text_of(token) for token in named.values() if token]
        special += [text_of(token) for token in (delimiter, *read.own().values(), *read.extra()) if token]
        self._tokens = _by_id(ids, {index: token.content for index, token in read.added.items()}, special)
        self.listed: int = len({*ids.values()})
        self.ids: Mapping[str, int] = {token: index for index, token in self._tokens.items()} | ids
        self.special: Mapping[str, str] = {name: text_of(token) for name, token in named.items() if token} | (
            {"word_delimiter_token": delimiter} if delimiter else {}
        )
        self.blank: str | None = named["pad_token"] and text_of(named["pad_token"])
        self._unknown: str = text_of(named["unk_token"]) if named["unk_token"] else ""
        self._delimiter: str = delimiter
        self._space: str = settings.text("replace_word_delimiter_char", " ")
        self._lowers = settings.flag("do_lower_case", False)
        self._cleans_up = settings.flag("clean_up_tokenization_spaces", False)

    def __len__(self) -> int:
        return len(self._tokens)

    def token(self, index: int) -> str:
        """The token of an id; the unknown token for an id without one."""
        return self._tokens.get(int(index), self._unknown)

    def spelled(self, text: str) -> list[str]:
        """The characters of a text as the vocabulary spells them."""
        return list((text.upper() if self._lowers else text).replace(" ", self._delimiter))

    def text(self, ids: Sequence[int]) -> str:
        """The text of frames' ids (T,)."""
        return self.joined([self.token(index) for index in ids])

    def joined(self, tokens: Sequence[str], *, grouped: bool = True) -> str:
        """The text of frames' tokens; `grouped`: repeated tokens are one."""
        kept = [token for token, _ in groupby(tokens)] if grouped else tokens
        text = "".join(self._space if token == self._delimiter else token for token in kept if token != self.blank)
        text = text.strip()
        text = text.lower() if self._lowers else text
        return clean_up(text) if self._cleans_up else text

    def spans(self, ids: Sequence[int], kind: Literal["char", "word"]) -> list[Span]:
        """Characters, spaces among them, or words."""
        characters = self.characters(ids)
        return characters if kind == "char" else self._words(characters)

    def characters(self, ids: Sequence[int]) -> list[Span]:
        """What is not blank, in the vocabulary's own case; repeated ids are one."""
        found: list[Span] = []
        start = 0
        for token, run in groupby(self.token(index) for index in ids):
            end = start + sum(1 for _ in run)
            if token != self.blank:
                found.append(Span(self._space if token == self._delimiter else token, start, end))
            start = end
        return found

    def _words(self, characters: Sequence[Span]) -> list[Span]:
        found = []
        for is_space, run in groupby(characters, lambda span: span.text == self._space):
            if not is_space:
                word = list(run)
                found.append(Span("".join(span.text for span in word), word[0].start, word[-1].end))
        return found


def _by_id(table: Mapping[str, int], added: Mapping[int, str], special: Sequence[str]) -> dict[int, str]:
    """id -> token. Of several names for an id the last of the vocabulary counts.

    Special tokens that no file lists come behind all others, by the number of names: with holes or repeated ids in the
    vocabulary that may be an id which it has already, and then the vocabulary's own name counts.
    """
    behind, known = dict(added), {*table, *added.values()}
    for token in special:
        if token not in known:
            behind[len(known)] = token
            known.add(token)
    return behind | {index: token for token, index in table.items()}
