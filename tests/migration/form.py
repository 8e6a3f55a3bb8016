"""A way to call a pipeline, as a snippet, and what becomes of it when the import changes."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True, slots=True)
class Form:
    """`code` is a script that is given `pipeline`; the value of its last line is compared. Files are those of `desk`.

    `refused`: why isoform does not do it; its error must say `says`. `like`: another snippet of isoform's that must
    give the same answer, where transformers cannot be asked, and `note` says why.
    """

    code: str
    refused: str = ""
    says: str = ""
    like: str = ""
    note: str = ""

    @property
    def source(self) -> str:
        return dedent(self.code).strip()


def same(*snippets: str) -> tuple[Form, ...]:
    """Forms that give what transformers gives."""
    return tuple(Form(code) for code in snippets)


def like(expected: str, *snippets: str, note: str) -> tuple[Form, ...]:
    """Forms that give what another form of isoform's gives; `note` completes "same"."""
    return tuple(Form(code, like=expected, note=note) for code in snippets)
