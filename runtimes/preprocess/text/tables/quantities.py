"""Numbers and dates in a text, as TAPAS finds them: "1,234.5", "3rd", "twelve", "may 1990", "monday, jan 5".

A span of text may be several quantities: 1990 is a number and a year. Spans inside longer ones do not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

Quantity = float | tuple[int | None, int | None, int | None]
"""A number, or a date as year, month and day, None for what the text does not say."""
Kind = Literal["number", "date"]

_NUMBER = re.compile(r"(?:(?:^|\s)[+-])?(?:\.\d+|\d+(?:,\d{3})*(?:\.\d*)?)")
_WORDS = (*("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),)
_ORDINALS = (
    *("zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    *("eleventh", "twelfth"),
)
_NAMED = {name: float(number) for names in (_WORDS, _ORDINALS) for number, name in enumerate(names)}
_ENDINGS = ("st", "nd", "rd", "th")

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
    *("november", "december"),
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FIELDS = {
    "Weekday": f"(?:{'|'.join(_DAYS)})",
    "Month": f"(?P<month_name>{'|'.join(_MONTHS)})",
    "Mon": f"(?P<month_name>{'|'.join(name[:3] for name in _MONTHS)})",
    "YYYY": r"(?P<year>\d\d\d\d)",
    "MM": "(?P<month>1[0-2]|0[1-9]|[1-9])",
    "DD": r"(?P<day>3[01]|[12]\d|0[1-9]|[1-9])",
}
_DATES = tuple(
    re.compile(re.sub("|".join(_FIELDS), lambda field: _FIELDS[field[0]], form.replace(".", r"\."))).fullmatch
    for form in (
        *("Month", "YYYY", "YYYYs", "Mon YYYY", "Month YYYY", "Month DD", "Mon DD", "DD Mon", "DD Month"),
        *("Month DD, YYYY", "DD Month YYYY", "MM-DD-YYYY", "YYYY-MM-DD", "YYYY-MM", "DD Mon YYYY", "Mon DD, YYYY"),
        *("DD.MM.YYYY", "Weekday, Mon DD", "Weekday, Month DD"),
    )
)
_DATE_WORDS = 5  # the most words of a date
_FIRST_YEAR, _LAST_YEAR = 1700, 2016  # other years are no dates
_NO_YEAR = 1900  # in which a day without a year must exist


def kind_of(quantity: Quantity) -> Kind:
    return "date" if isinstance(quantity, tuple) else "number"


@dataclass(frozen=True, slots=True)
class Span:
    """The characters from `start` to `end`, and the quantities that they may be."""

    start: int
    end: int
    quantities: tuple[Quantity, ...]


def normalized(text: str) -> str:
    """A text in lower case, with one space between words."""
    return " ".join(text.lower().split())


def quantities_of(text: str) -> list[Quantity]:
    """The quantities of a text, in its order."""
    return [quantity for span in spans_of(normalized(text)) for quantity in span.quantities]


def spans_of(text: str) -> list[Span]:
    """The longest spans of a normalized text that are quantities, by their beginning."""
    found: dict[tuple[int, int], list[Quantity]] = defaultdict(list)
    for match in _NUMBER.finditer(text):
        number = _number(match[0])
        if number is not None:
            found[match.span()].append(number)
    for start, end in _runs(text, 1):
        if (start, end) in found:
            continue
        word = text[start:end]
        values = (_number(word), _NAMED.get(word))
        if known := [value for value in values if value is not None]:
            found[start, end] = [*known]
    for start, end in _runs(text, _DATE_WORDS):
        day = _date(text[start:end])
        if day is not None:
            found[start, end].append(day)
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda span: (span[0] - span[1], span[0])):
        if not any(first <= start and end <= last for first, last in chosen):
            chosen.append((start, end))
    return [Span(start, end, tuple(found[start, end])) for start, end in sorted(chosen)]


def _runs(text: str, words: int) -> Iterator[tuple[int, int]]:
    """Where up to so many neighbouring runs of letters and digits begin and end, with what is between them."""
    starts: list[int] = []
    for n, letter in enumerate(text):
        if not letter.isalnum():
            continue
        if n == 0 or not text[n - 1].isalnum():
            starts.append(n)
        if n + 1 == len(text) or not text[n + 1].isalnum():
            for start in starts[-words:]:
                yield start, n + 1


def _number(text: str) -> float | None:
    """A number, also an ordinal ("3rd"); None for what is none or not finite above."""
    ending = next((ending for ending in _ENDINGS if text.endswith(ending)), "")
    try:
        value = float(text[: len(text) - len(ending)].replace(",", ""))
    except ValueError:
        return None
    return value if value < float("inf") else None  # which NaN is not, either


def _date(text: str) -> tuple[int | None, int | None, int | None] | None:
    """The first form of a date that a text has, with a day that exists."""
    for matched in _DATES:
        match = matched(text)
        if match is None:
            continue
        parts = match.groupdict()
        name = parts.get("month_name")
        month = next((n for n, full in enumerate(_MONTHS, 1) if full.startswith(name)), None) if name else None
        year, number, day = (int(parts[key]) if parts.get(key) else None for key in ("year", "month", "day"))
        month = number if month is None else month
        try:
            whole = date(_NO_YEAR if year is None else year, month or 1, day or 1)
        except ValueError:
            continue
        if _FIRST_YEAR <= whole.year <= _LAST_YEAR:
            return year, month, day
    return None
