"""What transformers' TAPAS tokenizer and pipeline make of tables, which `table_goldens.json` stores: both need pandas.

    pip install --no-deps --target PANDAS pandas python-dateutil pytz tzdata six
    PYTHONPATH=.:PANDAS python tests/oracle/table_goldens.py TINIES > tests/oracle/table_goldens.json

TINIES is a folder that `python -m tests.oracle.checkpoints TINIES NAME…` wrote. Of made-up tables (`made`) a digest of
ids and types is stored, of those written by hand the numbers themselves.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Columns = dict[str, list[str]]

STARS: Columns = {
    "Repository": ["Transformers", "Datasets", "Tokenizers"],
    "Stars": ["36542", "4512", "3934"],
    "Contributors": ["651", "77", "34"],
    "Programming language": ["Python", "Python", "Rust, Python and NodeJS"],
}
ACTORS: Columns = {
    "actors": ["brad pitt", "leonardo di caprio", "george clooney"],
    "age": ["56", "45", "59"],
    "number of movies": ["87", "53", "69"],
    "date of birth": ["7 february 1967", "10 june 1996", "28 november 1967"],
}
ODD: Columns = {
    "": ["", " ", "n/a"],
    "?": ["?", "nan", "[EMPTY]"],
    "1990": ["third of may", "1,234.5", "-7 and +8"],
    "Year": ["1990", "2016", "1690"],
    "Ties": ["5", "may", "5th"],
    "Ünïcödé": ["naïve café", "ΣΟΦΟΣ İ", "數値 [SEP] 한국"],
}
SHORT: Columns = {"The cat": ["a small cat", "a large dog", "an old house"], "Number": ["3", "1", "2"]}
LONG: Columns = {"Number": [str(n * n % 97) for n in range(90)], "word": ["the small cat reads"] * 90}
HAND: list[tuple[Columns, list[str]]] = [
    (STARS, ["How many stars does the transformers repository have?", "more than 4,000 stars or less than 651"]),
    (ACTORS, ["who was born in 1967?", "is there an actor older than 45 and younger than fifty?"]),
    (ODD, ["1990?", "What is [MASK] in may 1990, [MASK]?", "n/a", "five"]),
    (SHORT, ["the first cat", "which number is 2"]),
    (LONG, ["how many words", "above 90"]),
]

WORDS = (
    *("cat", "Dog", "house", "The", "small", "naïve", "café", "ΣΟΦΟΣ", "İstanbul", "數値", "株式", "🙂", "n/a", "nan"),
    *("?", "-", "[MASK]", "[SEP]", "[EMPTY]", "EMPTY", "one", "third", "twelfth", "zero", "1st", "22nd", "3,400"),
    *("3,40", "12.5", ".5", "-7", "+8", "1990", "1690", "2017", "2016", "1990s", "May", "may", "Sept", "september"),
    *("5", "31", "30", "February", "Feb", "29", "Monday,", "Jan", "2010-05-06", "5-6-2010", "05.06.2010", "2010-05"),
    *("inf", "1e5", "1e999", "1_000", "٣", "x" * 101, "a-b", "don't", "##x", "_", "\u0301e", "e\u0301", "\u200b"),
    *("\xa0", "\u3000", "ſept", "½", "²", "Ǆ", "ß", "ﬁ", "한국"),
)
DATES = ("{} May 1990", "May {}, 1990", "2010-05-{:02}", "{} may", "jan {}", "monday, jan {}", "{}.12.1999")
SEEDS = range(150)


def _text(chance: random.Random) -> str:
    between = chance.choice((" ", " ", " ", "  ", ", ", "\n", ""))
    return between.join(chance.choice(WORDS) for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5))))


def _column(chance: random.Random, rows: int) -> list[str]:
    kind = chance.choice(("number", "date", "text", "either", "year", "tie"))

    def cell() -> str:
        match kind:
            case "number":
                return chance.choice((str(chance.randint(-50, 50)), f"{chance.random() * 1000:,.2f}"))
            case "date":
                return chance.choice(DATES).format(chance.randint(1, 31))
            case "year":
                return str(chance.randint(1690, 2020))
            case "tie":
                return chance.choice(("5", "may"))
            case "either":
                return chance.choice((str(chance.randint(0, 9)), _text(chance)))
        return _text(chance)

    return [cell() for _ in range(rows)]


def made(seed: int) -> tuple[Columns, list[str]]:
    """A table and questions about it, the same for the same seed."""
    chance = random.Random(seed)
    rows, columns = chance.choice((1, 2, 3, 5, 8, 20)), chance.choice((1, 2, 3, 4, 7))
    table = {f"{_text(chance)}{n}": _column(chance, rows) for n in range(columns)}
    return table, [_text(chance) or "how many" for _ in range(chance.choice((1, 2, 3)))]


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lower case": ("tapas_qa", {}),
    "capitals": ("tapas_sqa_b", {}),
    "accents": ("tapas_qa", {"strip_accents": False}),
    "no ideographs": ("tapas_qa", {"tokenize_chinese_chars": False}),
    "trimmed": ("tapas_qa", {"cell_trim_length": 2, "model_max_length": 70}),
    "without names": ("tapas_qa", {"strip_column_names": True, "model_max_length": 40}),
    "few rows": ("tapas_qa", {"max_row_id": 4, "max_column_id": 6}),
    "added tokens": ("tapas_qa", {"additional_special_tokens": ["[SEP]", "<ent>"], "empty_token": "[EMPTY]"}),
}
"""Name -> a tiny checkpoint, and settings of its tokenizer_config.json."""


def changed(source: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """A copy of a checkpoint with other settings of its tokenizer."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8")
    return folder


def digest(rows: list[Any] | str) -> str:
    """A short digest of the ids and types of rows; what is wrong stays as it is."""
    return rows if isinstance(rows, str) else hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


CALLS: list[tuple[str, int, dict[str, Any]]] = [
    *(("tapas_qa", n, options) for n in (0, 1, 3) for options in ({}, {"sequential": True})),
    *(("tapas_sqa_b", n, {}) for n in (0, 1, 2, 3)),
    ("tapas_sqa_b", 3, {"sequential": True}),
    ("tapas_qa", 4, {}),
    ("tapas_qa", 2, {"padding": "max_length"}),
    ("tapas_qa", 3, {"truncation": False}),
]
"""A tiny checkpoint, a table written by hand, and the parameters of a call."""
CLASSIFIED = (0, 1, 3)
FILLED = ["a small [MASK] reads", "? [MASK] n/a", "Naïve [MASK] in the house."]


def main(tinies: Path) -> None:
    """Print what both make of every table."""
    import pandas as pd  # type: ignore[import-untyped]
    from transformers import TapasForSequenceClassification, TapasTokenizer, pipeline

    def read(tokenizer: Any, table: Columns, asked: list[str], cut: bool) -> list[Any] | str:
        """Ids and types for each question, or what is wrong."""
        try:
            found = [tokenizer(pd.DataFrame(table), question, truncation=cut) for question in asked]
        except ValueError as error:
            return str(error)
        return [(row["input_ids"], row["token_type_ids"]) for row in found]

    tokens: dict[str, Any] = {}
    with TemporaryDirectory() as space:
        for name, (source, settings) in SETTINGS.items():
            tokenizer = TapasTokenizer.from_pretrained(changed(tinies / source, Path(space) / name, settings))
            hand = [read(tokenizer, *example, cut) for example in HAND for cut in (True, False)]
            seeds = SEEDS[:30] if settings else SEEDS
            tokens[name] = {
                "hand": [digest(rows) if settings and isinstance(rows, list) else rows for rows in hand],
                "made": [digest(read(tokenizer, *made(seed), seed % 3 > 0)) for seed in seeds],
            }
    answers = []
    for name, number, options in CALLS:
        table, asked = HAND[number]
        pipe = pipeline("table-question-answering", str(tinies / name), device="cpu")
        answers.append(pipe(table=pd.DataFrame(table), query=list(asked), **options))
    classifier = TapasForSequenceClassification.from_pretrained(tinies / "tapas_seqcls_b").eval()
    tokenizer = TapasTokenizer.from_pretrained(tinies / "tapas_seqcls_b")
    scores = []
    for number in CLASSIFIED:
        for question in HAND[number][1]:
            inputs = tokenizer(pd.DataFrame(HAND[number][0]), question, truncation=True, return_tensors="pt")
            scores.append(classifier(**inputs).logits[0].softmax(-1).tolist())
    fill = pipeline("fill-mask", str(tinies / "tapas"), device="cpu")
    found = {"tokens": tokens, "answers": answers, "scores": scores, "filled": [fill(text) for text in FILLED]}
    print(json.dumps(found, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
