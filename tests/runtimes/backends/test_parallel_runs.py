"""Runs side by side give what runs one after another give, in the same order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform import api
from isoform.errors import InputError
from isoform.runtimes.backends.onnxruntime.session import ENOUGH, OnnxRuntimeSession
from isoform.runtimes.backends.parallel_runs import in_turn, run_each
from isoform.validators.cases.media import drawn
from tests.exports import exported

pytest.importorskip("onnxruntime")

SUMS = 1e-6  # of logits of order 1: a thread that has a product alone may sum it in another order
MANY = ENOUGH * 2


@pytest.fixture(scope="module")
def bundle() -> Path:
    return exported("vit_cls")


def opened(bundle: Path, threads: int) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(bundle / "onnx" / "model.onnx", threads=threads)


def feeds(session: OnnxRuntimeSession, count: int) -> list[dict[str, Any]]:
    (port,) = session.signature.inputs
    size = [axis if isinstance(axis, int) else 1 for axis in port.axes]
    return [{port.name: np.random.default_rng(n).normal(size=size).astype(np.float32)} for n in range(count)]


def test_many_runs_equal_single_ones(bundle: Path) -> None:
    with opened(bundle, 2) as session:
        given_ = feeds(session, MANY)
        together = list(run_each(session, iter(given_), MANY))
        assert session._single is not None
        for one, other in zip(given_, together, strict=True):
            np.testing.assert_allclose(session.run(one)["logits"], other["logits"], rtol=0, atol=SUMS)
        assert len({out["logits"].tobytes() for out in together}) == MANY


@pytest.mark.parametrize(("threads", "count"), [(1, MANY), (2, MANY - 1)])
def test_few_runs_or_one_thread_hold_the_weights_once(threads: int, count: int, bundle: Path) -> None:
    with opened(bundle, threads) as session:
        assert len(list(run_each(session, feeds(session, count), count))) == count
        assert session._single is None


def test_a_closed_session_runs_nothing(bundle: Path) -> None:
    with opened(bundle, 2) as session:
        given_ = feeds(session, MANY)
    with pytest.raises(InputError, match="closed"):
        list(run_each(session, given_, MANY))


def test_weights_that_are_too_large_are_held_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoform.runtimes.backends.onnxruntime.session.TWICE", 1000)
    with opened(bundle, 2) as session:
        assert len(list(run_each(session, feeds(session, MANY), MANY))) == MANY
        assert session._single is None


def test_a_list_of_pictures_has_the_answers_of_each(bundle: Path) -> None:
    pictures = [drawn().rotate(20 * n) for n in range(4 * ENOUGH + 1)]
    with api.pipeline("image-classification", bundle, threads=2) as pipe:
        alone = [pipe(picture, top_k=3) for picture in pictures]
        for one, other in zip(alone, pipe(pictures, top_k=3), strict=True):
            assert [row["label"] for row in one] == [row["label"] for row in other]
            np.testing.assert_allclose([r["score"] for r in one], [r["score"] for r in other], atol=SUMS)
        with pytest.raises(InputError, match="no-such-file"):
            pipe([*pictures, "no-such-file.png"])


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_order_is_kept_and_few_items_wait(items: list[int], threads: int) -> None:
    taken, done = 0, 0
    lock = threading.Lock()

    def source() -> Iterator[int]:
        nonlocal taken
        for item in items:
            taken += 1
            assert taken - done <= 2 * threads
            yield item

    def work(item: int) -> int:
        nonlocal done
        with lock:
            done += 1
        return item + 1

    assert list(in_turn(work, source(), threads)) == [item + 1 for item in items]


@pytest.mark.parametrize("place", [0, 3, 9])
def test_an_error_comes_in_its_turn(place: int) -> None:
    def work(item: int) -> int:
        if item == place:
            raise InputError(f"item {item}")
        return item

    seen: list[int] = []
    with pytest.raises(InputError, match=f"item {place}"):
        for item in in_turn(work, range(10), 2):
            seen.append(item)  # noqa: PERF402  (what came before the error is kept)
    assert seen == list(range(place))


def test_a_consumer_that_stops_leaves_no_thread() -> None:
    before = threading.active_count()
    results = in_turn(lambda item: item, range(100), 3)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
