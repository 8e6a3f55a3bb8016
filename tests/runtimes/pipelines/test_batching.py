"""What runs together, and a task of three hooks over the base that all pipelines share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, InputPiece, OneGraph
from isoform.runtimes.pipelines.batching import longest_first, neighbours
from isoform.signature import Port, Signature


@given(st.lists(st.integers(1, 9), max_size=30), st.one_of(st.none(), st.integers(1, 5)))
def test_neighbours_keep_their_order_and_stay_within_size_or_budget(lengths: list[int], size: int | None) -> None:
    groups = list(neighbours(lengths, size, length=lambda n: n, budget=12))
    assert [n for group in groups for n in group] == lengths
    for group, following in pairwise(groups):
        if size:
            assert len(group) == size
        else:
            assert len(group) == 1 or len(group) * max(group) <= 12
            assert (len(group) + 1) * max(*group, following[0]) > 12, "there was room for one more"


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 4))
def test_neighbours_of_one_kind_run_together(kinds: list[int], size: int) -> None:
    groups = list(neighbours(kinds, size, kind=lambda n: n))
    assert [n for group in groups for n in group] == kinds
    assert all(len(set(group)) == 1 and len(group) <= size for group in groups)
    assert all(a[0] != b[0] or len(a) == size for a, b in pairwise(groups))


def test_a_batch_is_given_as_soon_as_it_is_full() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for n in range(4):
            read.append(n)
            yield n

    groups = neighbours(items(), 2)
    assert (next(groups), read) == ([0, 1], [0, 1])


# ------------------------------------------------------------------ three hooks
class Doubling:
    """A session that doubles numbers."""

    backend = "doubling"
    signature = Signature((Port("x", "float", ("batch_size",)),), (Port("y", "float", ("batch_size",)),))

    def __init__(self) -> None:
        self.ran: list[list[float]] = []

    def run(self, inputs: Any) -> Any:
        self.ran.append(inputs["x"].tolist())
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitOptions:
    add: int = 0


class Digits(OneGraph):
    """A text -> the doubled digits in it, each plus `add`: a whole task, as short as one can be."""

    task: ClassVar[str] = "digits"
    outputs: ClassVar[tuple[str, ...]] = ("y",)
    options: ClassVar[type[DigitOptions]] = DigitOptions
    reads_text: ClassVar[bool] = False

    def prepare(self, items: Sequence[str], call: DigitOptions) -> Iterable[Iterable[int]]:
        return ([int(letter) for letter in item] for item in items)

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        rows = list(pieces)
        groups = list(longest_first([piece.value for piece in rows], size or 2))
        return Batches(len(groups), ([rows[n] for n in group] for group in groups))

    def feed(self, batch: list[int], call: DigitOptions) -> dict[str, Any]:
        return {"x": np.array(batch, np.float32)}

    def split(self, batch: list[int], outputs: dict[str, Any]) -> Sequence[float]:
        return [float(value) for value in outputs["y"]]

    def finish(self, item: str, pieces: Sequence[InputPiece], call: DigitOptions) -> str:
        return "".join(str(int(piece.output) + call.add) for piece in pieces)


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    (tmp_path / "config.json").write_text(json.dumps({}), encoding="utf-8")
    session: Any = Doubling()
    return Digits(session, tmp_path, facts={})


def test_pieces_run_in_another_order_and_answers_keep_theirs(digits: Digits) -> None:
    session: Any = digits.session
    assert digits(["12", "", "413"]) == ["24", "", "826"]
    assert session.ran == [[4, 3], [2, 1], [1]]
    assert digits("4", add=1) == "9"
    assert list(digits(iter(["1", "23"]), batch_size=3)) == ["2", "46"]
    assert digits([]) == []


def test_the_base_reports_progress_and_knows_the_parameters(digits: Digits) -> None:
    told: list[tuple[str, int, int]] = []
    digits.progress = lambda *step: told.append(step)
    digits(["1", "2", "3"])
    assert told == [("answer", 1, 3), ("answer", 2, 3), ("answer", 3, 3)]
    with pytest.raises(InputError, match="digits has no parameter 'sub'; it has batch_size, add"):
        digits("1", sub=2)
    with pytest.raises(InputError, match="batch_size=True"):
        digits("1", batch_size=True)
