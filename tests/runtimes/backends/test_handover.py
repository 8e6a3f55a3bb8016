"""A cache that one session has filled and another goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.exporters.onnx import Options
from isoform.reference.model import open_model
from isoform.runtimes import open as opening
from isoform.runtimes.backends import handover
from isoform.runtimes.backends.handover import HandoverSession, open_with_handover
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import resolve
from isoform.runtimes.open import open_path
from tests.exports import exported
from tests.runtimes.backends.test_decoder_laws import CHANGES, History, quick

IN_PLACE, GROWING = "mistral_full", "llama"  # the first appends to its cache in place
FLOAT32 = 5e-5  # of the largest logit: sums in another order at every length
MODELS = (IN_PLACE, GROWING)


@cache
def opened(name: str) -> Any:
    return open_path(exported(name), "onnxruntime", threads=1)[0]


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for name in MODELS:
        handed(name).close()
    for found in (opened, handed):
        found.cache_clear()


def handing(name: str, from_slots: int = 1, **options: Any) -> HandoverSession:
    """A session whose prompts another session of the same form reads."""
    session = open_path(exported(name), "onnxruntime", threads=1)[0]
    return HandoverSession(
        session, lambda: open_path(exported(name), "onnxruntime", threads=1)[0], from_slots, **options
    )


def tokens(rows: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(5, 90, (rows, length))


def left(lengths: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompts of these lengths, padded on the left, with their mask."""
    longest = max(lengths)
    mask = (np.arange(longest) >= longest - np.array(lengths)[:, None]).astype(np.int64)
    return tokens(len(lengths), longest) * mask, mask


def assert_alone(name: str, logits: NDArray[Any], rows: list[list[int]]) -> None:
    for got, row in zip(logits, rows, strict=True):
        want = opened(name).decoder(1).step(np.array([row]))[0]
        assert np.abs(got - want).max() <= FLOAT32 * np.abs(want).max()


# ------------------------------------------------------------------ states out and in
@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_goes_on_from_what_another_has_filled(name: str) -> None:
    ids = tokens(2, 9)
    first, second, want = (opened(name).decoder(2) for _ in range(3))
    first.step(ids)
    want.step(ids)
    second.take(first.filled())
    for n in range(3):
        np.testing.assert_array_equal(second.step(tokens(2, 1, n)), want.step(tokens(2, 1, n)))


@pytest.mark.parametrize("name", MODELS)
def test_torch_and_onnxruntime_hand_over_to_each_other(name: str, tiny: Callable[[str], Path]) -> None:
    ids, mask = left([4, 9, 6])
    rows = [row[kept != 0].tolist() for row, kept in zip(ids, mask, strict=True)]
    new = tokens(3, 1, 3)
    longer = [[*row, int(token)] for row, token in zip(rows, new[:, 0], strict=True)]
    with opening.open_session(open_model(tiny(name)), "torch") as eager:
        for reader, writer in ((eager, opened(name)), (opened(name), eager)):
            first, second = cast(Any, reader).decoder(3), cast(Any, writer).decoder(3)
            first.step(ids, mask=mask)
            second.take(first.filled())
            assert_alone(name, second.step(new), longer)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_several_lengths_are_handed_over_and_then_chosen_joined_and_rewound(name: str) -> None:
    ids, mask = left([4, 9, 6])
    rows = [row[kept != 0].tolist() for row, kept in zip(ids, mask, strict=True)]
    session = handing(name)
    with session:
        decoder = session.decoder(3)
        assert_alone(name, decoder.step(ids, mask=mask), rows)
        decoder.select(np.array([2, 0]))
        rows = [rows[2], rows[0]]
        newcomer = session.decoder(1)
        newcomer.step(tokens(1, 5, 1))
        decoder.join(newcomer)
        rows.append(tokens(1, 5, 1)[0].tolist())
        for n in range(2):
            new = tokens(3, 1, n)
            rows = [[*row, int(token)] for row, token in zip(rows, new[:, 0], strict=True)]
            assert_alone(name, decoder.step(new), rows)
        decoder.rewind([3, 0, 1])
        rows = [rows[0][:-3], rows[1], rows[2][:-1]]
        new = tokens(3, 1, 7)
        assert_alone(name, decoder.step(new), [[*row, int(t)] for row, t in zip(rows, new[:, 0], strict=True)])


def test_long_prompts_alone_go_to_the_other_form() -> None:
    session = handing(IN_PLACE, from_slots=8)
    with session:
        decoder = session.decoder(1)
        decoder.step(tokens(1, 7))
        decoder.step(tokens(1, 9))
        assert session._prefill is None, "a short prompt, and a long step behind it, are the decoding form's own"
        with_places = session.decoder(1)
        with_places.step(tokens(1, 9), positions=np.arange(9)[None])
        session.decoder(1).step(tokens(1, 9), last=None)
        assert session._prefill is None
        session.decoder(2).step(tokens(2, 4))
        assert session._prefill is not None, "eight slots of two rows"
        rewound = session.decoder(1)
        rewound.step(tokens(1, 9))
        rewound.rewind(9)
        assert_alone(IN_PLACE, rewound.step(tokens(1, 9)), [tokens(1, 9)[0].tolist()])


def test_a_text_is_that_of_the_decoding_form() -> None:
    prompts = [tokens(1, n, n)[0].tolist() for n in (3, 12, 7)]
    settings = resolve({"max_new_tokens": 5, "do_sample": False})
    with handing(IN_PLACE) as session:
        got = generate(session, prompts, settings)
    assert [row.made for row in got] == [row.made for row in generate(opened(IN_PLACE), prompts, settings)]


# ------------------------------------------------------------------ what is refused
def test_a_decoder_that_has_begun_takes_nothing() -> None:
    first, second = opened(IN_PLACE).decoder(1), opened(IN_PLACE).decoder(1)
    first.step(tokens(1, 3))
    second.step(tokens(1, 2))
    with pytest.raises(InputError, match="has 2 slots already; take states with a new one"):
        second.take(first.filled())
    with pytest.raises(InputError, match="states are of 1 rows, and this decoder has 2"):
        opened(IN_PLACE).decoder(2).take(first.filled())


def test_states_of_another_model_are_refused_by_name() -> None:
    first = opened(IN_PLACE).decoder(1)
    first.step(tokens(1, 3))
    with pytest.raises(InputError, match=r"the state past_key_values\.0\.key is of shape"):
        opened(GROWING).decoder(1).take(first.filled())


def test_a_prefill_form_of_another_model_is_refused_and_closed() -> None:
    made: list[Any] = []

    def open_other() -> Any:
        made.append(open_path(exported(GROWING), "onnxruntime", threads=1)[0])
        return made[0]

    with HandoverSession(open_path(exported(IN_PLACE), "onnxruntime", threads=1)[0], open_other, 1) as session:
        with pytest.raises(InputError, match="it is another model's"):
            session.decoder(1).step(tokens(1, 3))
        with pytest.raises(InputError, match="closed"):
            _ = made[0].native


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("llama", "llamacpp", "the llamacpp backend keeps its cache to itself"),
        ("bert", "onnxruntime", "keeps no cache"),
    ],
)
def test_a_session_without_such_a_cache_is_refused(name: str, backend: str, message: str) -> None:
    session = open_path(exported(name), backend)[0]
    with session, pytest.raises(InputError, match=message):
        HandoverSession(session, lambda: session)


def test_encoder_states_are_not_handed_over() -> None:
    session = open_path(exported("whisper_b"), "onnxruntime")[0]
    with session, pytest.raises(InputError, match=r"is no cache of all slots \(once\)"):
        HandoverSession(session, lambda: session)


def test_a_bundle_without_the_prefill_form_says_what_it_has() -> None:
    with pytest.raises(InputError, match="has no form int8 of one graph for the onnxruntime backend"):
        open_with_handover(exported(IN_PLACE), dtype="f32", prefill="int8")


def test_without_room_for_two_copies_one_reads_all_prompts_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "memory", lambda: {"free": 10**6})
    with handing(IN_PLACE, needs=2 * 10**9) as session:
        with pytest.warns(UserWarning, match=r"needs 2\.0 GB and 0\.0 GB are free; going on without it"):
            got = session.decoder(1).step(tokens(1, 9))
        np.testing.assert_array_equal(got, opened(IN_PLACE).decoder(1).step(tokens(1, 9)))
        session.decoder(1).step(tokens(1, 9))  # a second warning would be an error here
        assert session._prefill is None


def test_a_system_that_does_not_say_what_is_free_opens_the_second_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "memory", lambda: {"free": None})
    with handing(IN_PLACE, needs=10**18) as session:
        session.decoder(1).step(tokens(1, 9))
        assert session._prefill is not None


def test_a_bundle_opens_with_two_of_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported(IN_PLACE, ("onnx",), onnx=Options(types=("f32", "q8_0")))
    asked: list[str] = []

    def open_and_note(path: Path, *rest: Any, **options: Any) -> Any:
        asked.append(options["dtype"])
        return opening.open_path(path, *rest, **options)

    monkeypatch.setattr(handover, "open_path", open_and_note)
    session, folder = open_with_handover(bundle, dtype="q8_0", prefill="f32", from_slots=4, threads=1)
    with session:
        assert (folder, asked) == (bundle, ["q8_0"])
        got = session.decoder(1).step(tokens(1, 9))
        assert asked == ["q8_0", "f32"]
        assert_alone(IN_PLACE, got, [tokens(1, 9)[0].tolist()])


class Handed(History):
    """A history whose prompts another session reads."""

    def __init__(self, name: str, data: st.DataObject, rows: int) -> None:
        self.name, self.backend, self.data = name, "onnxruntime", data
        self.session = handed(name)
        self.decoder, self.rows = self.begun(rows)


@cache
def handed(name: str) -> HandoverSession:
    return handing(name, from_slots=3)


@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_rows_that_are_handed_over_give_what_their_tokens_give_alone(name: str, data: st.DataObject) -> None:
    Handed(name, data, data.draw(st.integers(1, 4))).run(CHANGES["all"])
