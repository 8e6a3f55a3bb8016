"""Laws of a decoder: whatever joins, leaves or is forgotten, each row gives what its tokens give alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.runtimes.backends.decoder import HOLES
from tests.runtimes.open_sessions import close_all, opened

GRAPHS = ("torch", "torchscript", "onnxruntime")
MODELS = ("llama", "gemma2", "mistral_full", "qwen2")  # windows in the second; the third appends in place
FLOAT32 = 5e-5  # of the largest logit: 24 bits of mantissa, sums in another order at every length
TABLE = 5e-3  # llama.cpp looks the tanh form of GELU up in half-precision floats, which a last bit may move
Row = tuple[int, ...]

quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    close_all()
    for found in (alone, speech):
        found.cache_clear()


@cache
def alone(name: str, backend: str, row: Row) -> NDArray[np.float32]:
    """The logits (V,) after these tokens, in one step of a decoder of one row."""
    logits: NDArray[np.float32] = opened(name, backend).decoder(1).step(np.array([row]))[0]
    return logits


def tolerance(name: str, backend: str) -> float:
    return TABLE if backend == "llamacpp" and name.startswith("gemma") else FLOAT32


def assert_alone(name: str, backend: str, logits: NDArray[Any], rows: Sequence[Row]) -> None:
    for got, row in zip(logits, rows, strict=True):
        want = alone(name, backend, row)
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error <= tolerance(name, backend), (row, float(error))


class History:
    """A decoder, and the tokens that each of its rows should hold."""

    def __init__(self, name: str, backend: str, data: st.DataObject, rows: int) -> None:
        self.name, self.backend, self.data = name, backend, data
        self.session = opened(name, backend)
        self.decoder, self.rows = self.begun(rows)

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def tokens(self, rows: int, length: int) -> NDArray[np.int64]:
        seed = self.draw(st.integers(0, 2**16))
        return np.random.default_rng(seed).integers(5, 90, (rows, length))

    def fed(self, decoder: Any, rows: Sequence[Row], length: int) -> list[Row]:
        """Feed random tokens under a random mask, and compare the rows whose last slot holds a token."""
        shape = len(rows), length
        ids = self.tokens(*shape)
        mask = np.array(self.draw(st.lists(st.integers(0, 3), min_size=ids.size, max_size=ids.size))).reshape(shape) > 0
        if self.draw(st.booleans()):
            mask[:] = True
        mask[[n for n, row in enumerate(rows) if not row], -1] = True  # a row without a token has no logits
        plain = mask.all() and self.draw(st.booleans())
        logits = decoder.step(ids) if plain else decoder.step(ids, mask=mask.astype(np.int64))
        new = [(*row, *ids[n, mask[n]].tolist()) for n, row in enumerate(rows)]
        ends = np.flatnonzero(mask[:, -1])
        assert_alone(self.name, self.backend, logits[ends], [new[n] for n in ends])
        assert len(decoder) == len(new)
        return new

    def begun(self, rows: int) -> tuple[Any, list[Row]]:
        """A decoder of rows with random prompts."""
        decoder = self.session.decoder(rows)
        return decoder, self.fed(decoder, [()] * rows, self.draw(st.integers(1, 9)))

    def step(self) -> None:
        self.rows = self.fed(self.decoder, self.rows, self.draw(st.sampled_from((1, 1, 1, 3))))

    def walk(self) -> None:
        """Steps of one token in one array, as a loop feeds them."""
        token = np.empty((len(self.rows), 1), np.int64)
        for _ in range(self.draw(st.integers(2, 4))):
            token[:] = self.tokens(*token.shape)
            self.rows = [(*row, int(new)) for row, new in zip(self.rows, token[:, 0], strict=True)]
            assert_alone(self.name, self.backend, self.decoder.step(token), self.rows)

    def select(self) -> None:
        order = self.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, max_size=4))
        self.decoder.select(np.array(order))
        self.rows = [self.rows[n] for n in order]

    def join(self) -> None:
        other, rows = self.begun(self.draw(st.integers(1, 2)))
        self.decoder.join(other)
        self.rows += rows

    def rewind(self) -> None:
        counts = [self.draw(st.integers(0, len(row))) for row in self.rows]
        self.decoder.rewind(counts)
        self.rows = [row[: len(row) - count] for row, count in zip(self.rows, counts, strict=True)]

    def run(self, changes: Sequence[str]) -> None:
        for _ in range(self.draw(st.integers(1, 4))):
            getattr(self, self.draw(st.sampled_from(changes)))()
            getattr(self, self.draw(st.sampled_from(["step", "walk"])))()


CHANGES = {"join": ["join"], "rewind": ["rewind"], "select": ["select"], "all": ["join", "rewind", "select", "step"]}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", [*GRAPHS, "llamacpp"])
@quick
@given(data=st.data())
def test_rows_give_what_their_tokens_give_alone(backend: str, name: str, changes: str, data: st.DataObject) -> None:
    History(name, backend, data, data.draw(st.integers(1, 3))).run(CHANGES[changes])


@quick
@given(data=st.data())
def test_states_inside_of_a_graph_give_what_their_tokens_give_alone(data: st.DataObject) -> None:
    History("gemma2", "openvino", data, data.draw(st.integers(1, 3))).run(CHANGES["all"])


# ------------------------------------------------------------------ encoder states
SPEECH = ("whisper_b", "moonshine_b")


@cache
def speech(name: str, backend: str) -> tuple[Any, Any]:
    """A session, and four rows of encoder states."""
    session = opened(name, backend)
    random = np.random.default_rng(0)
    port = session.part(session.parts[0]).signature.inputs[0]
    shape = (4, 80, 100) if port.role == "features" else (4, 4000)
    return session, session.encode({port.name: random.standard_normal(shape).astype(np.float32)})


@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize("backend", GRAPHS)
@quick
@given(data=st.data())
def test_rows_with_encoder_states_give_what_each_gives_alone(backend: str, name: str, data: st.DataObject) -> None:
    session, encoded = speech(name, backend)
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))

    def begun(rows: list[int], slots: int) -> tuple[Any, NDArray[np.int64]]:
        decoder = session.decoder(encoded.select(np.array(rows)))
        ids = random.integers(5, 90, (len(rows), slots))
        if slots:
            decoder.step(ids)
        return decoder, ids

    places = st.lists(st.integers(0, 3), min_size=1, max_size=3)
    rows = data.draw(places)
    decoder, ids = begun(rows, data.draw(st.integers(0, 4)))
    for change in data.draw(st.lists(st.sampled_from(["step", "select", "join", "rewind"]), max_size=5)):
        if change == "select":
            order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
            decoder.select(np.array(order))
            rows, ids = [rows[n] for n in order], ids[order]
        elif change == "join":
            more = data.draw(places)
            other, new = begun(more, ids.shape[1])
            decoder.join(other)
            rows, ids = rows + more, np.concatenate((ids, new))
        elif change == "rewind":
            count = data.draw(st.integers(0, ids.shape[1]))
            decoder.rewind(count)
            ids = ids[:, : ids.shape[1] - count]
        new = random.integers(5, 90, (len(rows), data.draw(st.integers(1, 2))))
        ids = np.concatenate((ids, new), 1)
        got, want = decoder.step(new), session.decoder(encoded.select(np.array(rows))).step(ids)
        assert np.abs(got - want).max() <= FLOAT32 * np.abs(want).max()


@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize("backend", [*GRAPHS, "openvino"])
def test_rows_that_share_encoder_states_begin_anew_alone(backend: str, name: str) -> None:
    session, encoded = speech(name, backend)
    decoder = session.decoder(encoded.select(np.array([1])))
    decoder.step(np.array([[7, 8]]))
    decoder.select(np.array([0, 0]))
    decoder.rewind(2)
    ids = np.array([[9, 10], [11, 12]])
    want = session.decoder(encoded.select(np.array([1, 1]))).step(ids)
    assert np.abs(decoder.step(ids) - want).max() <= FLOAT32 * np.abs(want).max()


@pytest.mark.parametrize("backend", GRAPHS)
def test_rows_without_a_mask_are_grouped_by_length(backend: str) -> None:
    session, encoded = speech("whisper_b", backend)
    first, second = session.decoder(encoded.select([0, 1])), session.decoder(encoded.select([2]))
    first.step(np.full((2, 3), 7))
    second.step(np.full((1, 2), 7))
    with pytest.raises(InputError, match="rows of 2 slots cannot join rows of 3"):
        first.join(second)
    with pytest.raises(InputError, match="all forget equally many"):
        first.rewind([1, 0])
    with pytest.raises(InputError, match="take no padding"):
        first.step(np.full((2, 1), 7), mask=np.array([[1], [0]]))
    first.rewind(1)
    first.join(second)
    assert first.step(np.full((3, 1), 7)).shape[0] == 3


def test_encoder_states_of_other_sizes_do_not_join() -> None:
    session = opened("moonshine_b", "torch")
    first, second = (
        session.decoder(session.encode({"input_values": np.ones((1, size), np.float32)})) for size in (4000, 2000)
    )
    with pytest.raises(InputError, match="cannot be joined; group rows by their size"):
        first.join(second)


def test_rows_that_are_appended_in_place_end_where_they_do() -> None:
    session: Any = opened("mistral_full", "onnxruntime")
    assert session.ragged
    decoder = session.decoder(3)
    decoder.step(np.array([[5, 6, 7, 8]] * 3))
    first = next(iter(decoder._bound.past.values())).data_ptr()
    decoder.rewind([2, 0, 3])
    decoder.step(np.array([[9]] * 3))
    assert decoder._mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], "there are no holes"
    assert next(iter(decoder._bound.past.values())).data_ptr() == first, "nothing was copied"
    decoder.rewind([0, 5, 0])
    assert decoder.slots == 3


def test_rows_that_are_chosen_in_place_move_alone() -> None:
    session: Any = opened("mistral_full", "onnxruntime")
    decoder = session.decoder(4)
    ids = np.arange(5, 25).reshape(4, 5)
    decoder.step(ids)
    place = next(iter(decoder._bound.past.values())).data_ptr()
    for order in ([0, 1, 3], [1, 1, 0], [2, 0, 1]):
        decoder.select(np.array(order))
        ids = ids[order]
        assert next(iter(decoder._bound.past.values())).data_ptr() == place, "nothing was copied to another place"
        new = np.array([[7]] * 3)
        ids = np.concatenate((ids, new), 1)
        assert_alone("mistral_full", "onnxruntime", decoder.step(new), [tuple(row) for row in ids.tolist()])
    decoder.select(np.array([2]))
    assert next(iter(decoder._bound.past.values())).data_ptr() != place, "a room of four rows is too large for one"
    assert_alone("mistral_full", "onnxruntime", decoder.step(new[:1]), [(*ids[2].tolist(), 7)])


# ------------------------------------------------------------------ the size of the states
def held_slots(decoder: Any, backend: str) -> int:
    """The slots for which each row has memory."""
    if backend == "llamacpp":
        return int(decoder._session._opened.slots)
    if hasattr(decoder, "_buffers"):
        return int(decoder._buffers[0].shape[1])
    if hasattr(decoder, "_arrays"):
        return max(array.shape[2] for array in decoder._arrays().values())
    if hasattr(decoder, "_bound"):
        return max(value.shape()[2] for value in decoder._bound.past.values())
    return max(tensor.shape[2] for tensor in decoder._past.values())


def cycle(name: str, backend: str, cycles: int) -> None:
    """Rows join one by one and leave when they have some tokens; three are alive."""
    session, random = opened(name, backend), np.random.default_rng(0)
    capacity = 512 if backend == "llamacpp" else 256  # slots of a new cache
    decoder, counts = session.decoder(1), [4]
    decoder.step(random.integers(5, 90, (1, 4)))
    for _ in range(cycles):
        newcomer, length = session.decoder(1), int(random.integers(1, 12))
        newcomer.step(random.integers(5, 90, (1, length)))
        decoder.join(newcomer)
        counts.append(length)
        del newcomer
        for _ in range(int(random.integers(1, 4))):
            decoder.step(random.integers(5, 90, (len(counts), 1)))
            counts = [count + 1 for count in counts]
        if len(counts) > 3:
            kept = sorted(random.permutation(len(counts))[:3].tolist()) if max(counts) < 40 else [1, 2, 3]
            decoder.select(np.array(kept))
            counts = [counts[n] for n in kept]
        assert held_slots(decoder, backend) <= max(capacity, 2 * max(counts))
        if backend == "llamacpp":
            assert session._opened.rows <= 16, "four live rows, one newcomer and those about to leave"
        else:
            assert decoder.slots <= max(counts) / (1 - HOLES) + 1
    if backend == "llamacpp":
        session.sequences.take(1)
        assert len(session.sequences.sizes()) <= 10


@pytest.mark.parametrize("backend", [*GRAPHS, "llamacpp"])
def test_a_cache_is_no_larger_than_its_live_rows_need(backend: str) -> None:
    cycle("mistral_full", backend, 150)


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", [*GRAPHS, "llamacpp", "openvino"])
def test_a_cache_is_no_larger_after_ten_thousand_rows(backend: str, name: str) -> None:
    cycle(name, backend, 10_000)
