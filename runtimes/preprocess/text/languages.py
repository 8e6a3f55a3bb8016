"""The languages of a tokenizer whose texts carry the token of their language, as many translation models want it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Languages:
    """`tokens`: code of a language ("fra_Latn") -> its token with the id. `end`: what ends a text, and its id.

    `before`: the language's token stands before the text, `end` after it; otherwise both stand after it, `end` first.
    `source` and `target` are the codes that tokenizer_config.json or the class states.
    """

    tokens: Mapping[str, tuple[str, int]]
    end: tuple[str, int]
    before: bool
    source: str | None
    target: str | None

    def around(self, source: str | None = None) -> tuple[list[int], list[int]]:
        """The ids before and after a text of that language, by default of `source`. Raises InputError for another."""
        before, after = self._around(source)
        return [index for _, index in before], [index for _, index in after]

    def forced(self, target: str | None = None) -> int:
        """`forced_bos_token_id` of a text to be written in that language, by default in `target`.

        Raises InputError for another one, or none.
        """
        return self._token(target or self.target, "tgt_lang")[1]

    def frame(self, source: str | None = None) -> Any:
        """The post-processor of the `tokenizers` library that puts the tokens of `around` around one text or two."""
        from tokenizers import processors

        before, after = self._around(source)
        first, last = ([text for text, _ in part] for part in (before, after))
        return processors.TemplateProcessing(
            single=[*first, "$A", *last], pair=[*first, "$A", "$B", *last], special_tokens=[*before, *after]
        )

    def _around(self, source: str | None) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        language = self._token(source or self.source, "src_lang")
        return ([language], [self.end]) if self.before else ([], [self.end, language])

    def _token(self, code: str | None, name: str) -> tuple[str, int]:
        if code is None:
            known = _few(sorted(self.tokens))
            raise InputError(f"translation with this model needs {name}, the code of a language; it knows {known}")
        if not isinstance(code, str) or code not in self.tokens:
            near = get_close_matches(str(code), self.tokens, 4, 0.5) or sorted(self.tokens)
            raise InputError(f"{name}={code!r:.60} is no language of this model; near ones are {_few(near)}")
        return self.tokens[code]


def _few(codes: Sequence[str]) -> str:
    shown = ", ".join(codes[:6])
    return shown if len(codes) <= 6 else f"{shown} and {len(codes) - 6} more"


def read_languages(facts: Mapping[str, Any], tokenizer: Tokenizer, end: str | None) -> Languages | None:
    """The languages among the tokens of an assembled tokenizer; None where there is none, or no token that ends a text.

    `facts`: what the tokenizer's class states. "pattern": a regular expression that the tokens match, with the code as
    its group; "before", "source" and "target" as above.
    """
    pattern = re.compile(facts["pattern"])
    found = tokenizer.get_vocab(True)
    tokens = {match[1]: (token, index) for token, index in found.items() if (match := pattern.fullmatch(token))}
    if not tokens or end is None or end not in found:
        return None
    return Languages(tokens, (end, found[end]), facts["before"], facts.get("source"), facts.get("target"))
