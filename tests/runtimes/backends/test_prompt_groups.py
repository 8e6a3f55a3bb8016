"""Prompts of a batch go in by groups of about one length, and give what each gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoform.runtimes.backends import decoder as decoding
from tests.runtimes.backends.test_decoder_laws import CHANGES, History, assert_alone, quick
from tests.runtimes.open_sessions import close_all, opened

MODELS = ("mistral_full", "qwen2", "gemma2")  # the first appends to its cache in place; windows in the last


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    close_all()


def tokens(rows: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(5, 90, (rows, length))


def test_rows_of_like_length_go_in_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOGETHER", 40)
    monkeypatch.setattr(decoding, "WASTE", 4)

    def groups(*lengths: int) -> list[list[int]]:
        return [rows.tolist() for rows in decoding.grouped(np.array(lengths))]

    assert groups(3, 20, 2, 19, 3) == [[1, 3], [0, 2, 4]]
    assert groups(20, 20, 20) == [[0, 1], [2]], "no pass takes more than 40 slots"
    assert groups(10, 8, 7) == [[0, 1], [2]], "five slots of padding are more than a pass costs"
    assert groups(90, 1) == [[0], [1]]


@pytest.mark.parametrize("name", MODELS)
def test_prompts_that_go_in_by_groups_give_what_each_gives_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOGETHER", 16)
    monkeypatch.setattr(decoding, "WASTE", 3)
    lengths = np.array([3, 11, 10, 1, 11, 2])
    mask = (np.arange(11) >= 11 - lengths[:, None]).astype(np.int64)
    ids = tokens(6, 11) * mask
    rows = [tuple(row[kept != 0].tolist()) for row, kept in zip(ids, mask, strict=True)]
    check = partial(assert_alone, name, "onnxruntime")
    passes: list[tuple[int, ...]] = []
    decoder = opened(name, "onnxruntime").decoder(6)
    make = decoder._begun

    def noted(count: int, slots: int) -> Any:
        passes.append((count, slots))
        return make(count, slots)

    monkeypatch.setattr(decoder, "_begun", noted)
    check(decoder.step(ids, mask=mask), rows)
    assert passes == [(1, 11), (1, 11), (1, 10), (3, 3)]
    for n in range(2):
        new = tokens(6, 1, n)
        rows = [(*row, int(token)) for row, token in zip(rows, new[:, 0], strict=True)]
        check(decoder.step(new), rows)
    assert len(passes) == 4, "only prompts go in by groups"


@pytest.fixture(scope="module")
def in_small_groups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "TOGETHER", 6)
        patch.setattr(decoding, "WASTE", 1)
        yield


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("in_small_groups")
@quick
@given(data=st.data())
def test_rows_read_by_groups_give_what_their_tokens_give_alone(name: str, data: st.DataObject) -> None:
    History(name, "onnxruntime", data, data.draw(st.integers(1, 4))).run(CHANGES["all"])
