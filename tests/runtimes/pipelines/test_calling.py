"""What every pipeline can be called with, how an input that fails is named, and how progress is shown."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

import isoform
from isoform import progress_bar
from isoform.errors import InputError, ItemError
from isoform.runtimes.pipelines import reporting
from isoform.runtimes.pipelines.calling import READ, Answers
from isoform.runtimes.preprocess.audio.recordings import load_audio
from isoform.runtimes.preprocess.image.pictures import load_image
from tests.runtimes.pipelines.test_batching import Digits, Doubling

Tiny = Callable[[str], Path]


class Refusing(Digits):
    """Digits whose model refuses a 9."""

    task: ClassVar[str] = "refusing"

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def prepare(self, items: Any, call: Any) -> Any:
        for item in items:
            if not item.isdigit():
                raise InputError(f"{item!r} has no digits")
        return super().prepare(items, call)

    def feed(self, batch: list[int], call: Any) -> dict[str, Any]:
        if 9 in batch:
            raise InputError("the model refuses 9")
        return super().feed(batch, call)


@pytest.fixture
def refusing(tmp_path: Path) -> Refusing:
    (tmp_path / "config.json").write_text(json.dumps({}), encoding="utf-8")
    session: Any = Doubling()
    return Refusing(session, tmp_path, facts={})


class Texts(Dataset[str]):
    """A dataset of torch: a length and numbered items, and nothing that ends an iteration."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.read = texts, 0

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> str:
        self.read += 1
        return self.texts[number % len(self.texts)]


def assert_alike(got: Any, expected: Any) -> None:
    """The same answers, whose scores may differ by the rounding of another batch."""
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_alike(one, other)
    else:
        assert {**got, "score": 0} == {**expected, "score": 0}
        assert got["score"] == pytest.approx(expected["score"], rel=1e-5)


# ------------------------------------------------------------------ kinds of input
def test_lists_and_tuples_give_lists_and_a_keyword_is_the_same(refusing: Refusing) -> None:
    assert refusing("12") == refusing(inputs="12") == "24"
    assert refusing(["1", "2"]) == refusing(("1", "2")) == refusing(inputs=["1", "2"]) == ["2", "4"]
    assert refusing([]) == []


@pytest.mark.parametrize("wrong", [None, 3, b"1", {"text": "1"}, object()])
def test_what_is_no_input_is_refused(refusing: Refusing, wrong: Any) -> None:
    with pytest.raises(InputError, match="refusing"):
        refusing(wrong)


def test_inputs_are_given_once(tiny: Tiny) -> None:
    with isoform.pipeline("text-generation", tiny("llama"), do_sample=False, max_new_tokens=2) as pipe:
        assert pipe("a") == pipe(text_inputs="a") == pipe(inputs="a")
        with pytest.raises(InputError, match="given its inputs twice; leave text_inputs= out"):
            pipe("a", text_inputs="b")


def test_a_dataset_gives_an_iterator_with_a_length_that_reads_it_again(refusing: Refusing) -> None:
    data = Texts("1", "2", "3")
    answers = refusing(data)
    assert isinstance(answers, Answers)
    assert data.read == 0
    assert len(answers) == 3
    assert list(answers) == list(answers) == ["2", "4", "6"]


def test_a_dataset_is_read_a_batch_at_a_time(refusing: Refusing) -> None:
    data = Texts(*["1"] * (READ + 2))
    next(refusing(data))
    assert data.read == READ
    next(refusing(data, batch_size=3))
    assert data.read == READ + 3


def test_an_iterator_is_read_one_by_one_because_it_may_wait_for_an_answer(refusing: Refusing) -> None:
    answered: list[str] = []

    def texts() -> Iterator[str]:
        yield "1"
        while len(answered) < 4:
            yield answered[-1]

    answers = refusing(texts())
    while (answer := next(answers, None)) is not None:
        answered.append(answer)
    assert answered == ["2", "4", "8", "16"]


def test_a_million_inputs_are_never_held(refusing: Refusing) -> None:
    reading = iter(str(n) for n in range(1_000_000))
    answers = refusing(reading, batch_size=4)
    assert [next(answers) for _ in range(5)] == ["0", "2", "4", "6", "8"]
    assert next(reading) == "8"


def test_a_table_is_no_list_of_inputs(refusing: Refusing) -> None:
    class Table(list[str]):
        def iterrows(self) -> None: ...

    with pytest.raises(InputError, match="one of its columns"):
        refusing(iter_like(Table(["1"])))


def iter_like(rows: Any) -> Any:
    """A thing that is no list, with the methods of `rows`."""

    class Like:
        iterrows = rows.iterrows

        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, number: int) -> Any:
            return rows[number]

    return Like()


# ------------------------------------------------------------------ inputs that fail
def test_a_failing_item_names_itself_and_keeps_the_answers_before_it(refusing: Refusing) -> None:
    with pytest.raises(ItemError, match=r"input 2 \('x'\): 'x' has no digits") as caught:
        refusing(["1", "2", "x", "3"])
    assert (caught.value.index, caught.value.item) == (2, "x")
    assert isinstance(caught.value.__cause__, InputError)
    session: Any = refusing.session
    assert session.ran == []  # nothing ran, as the list cannot be answered
    with pytest.raises(ItemError, match=r"input 1 \('19'\): the model refuses 9") as caught:
        refusing(["12", "19", "3"], batch_size=1)
    assert caught.value.answers == []  # batches run the longest first


@pytest.mark.parametrize("size", [None, 1, 2])
def test_others_are_answered_where_errors_are_returned(refusing: Refusing, size: int | None) -> None:
    items = ["1", "x", "2", "19", "3", "y", "4"]
    answers = refusing(items, on_error="return", batch_size=size)
    assert [answer for answer in answers if isinstance(answer, str)] == ["2", "4", "6", "8"]
    errors = {answer.index: str(answer.__cause__) for answer in answers if isinstance(answer, ItemError)}
    assert errors == {1: "'x' has no digits", 3: "the model refuses 9", 5: "'y' has no digits"}
    assert str(list(refusing(iter(items), on_error="return", batch_size=size))) == str(answers)


@pytest.mark.parametrize("size", [None, 1, 3])
def test_an_iterator_goes_on_after_an_item_that_fails(refusing: Refusing, size: int | None) -> None:
    answers, got = iter(refusing(Texts("1", "x", "2", "9", "3"), batch_size=size)), []
    while True:
        try:
            got.append(next(answers))
        except ItemError as error:
            got.append(error.index)
        except StopIteration:
            break
    assert got == ["2", 1, "4", 3, "6"]


def test_one_input_raises_its_own_error(refusing: Refusing) -> None:
    with pytest.raises(InputError) as caught:
        refusing("x", on_error="return")
    assert not isinstance(caught.value, ItemError)
    with pytest.raises(InputError, match="on_error='skip' is neither 'raise' nor 'return'"):
        refusing("1", on_error="skip")
    with pytest.raises(InputError, match="progress='yes' is neither True, False"):
        refusing("1", progress="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_workers=-1"):
        refusing("1", num_workers=-1)


def test_real_tasks_name_their_items(tiny: Tiny) -> None:
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        with pytest.raises(ItemError, match=r"input 1 .*no \[MASK\]"):
            pipe(["a [MASK]", "none"])
        good, bad = pipe(["a [MASK]", "none"], on_error="return")
        assert_alike(good, pipe("a [MASK]"))
        assert bad.index == 1
    with isoform.pipeline("image-classification", tiny("vit_cls")) as pipe:
        pixels = np.zeros((8, 8, 3), np.uint8)
        with pytest.raises(ItemError, match=r"input 1 \('nowhere.png'\): nowhere.png is not there"):
            pipe([pixels, "nowhere.png"])
        answers = pipe([pixels, "nowhere.png", pixels], on_error="return")
        assert_alike([answers[0], answers[2]], [pipe(pixels)] * 2)


# ------------------------------------------------------------------ objects that are shared
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_a_picture_that_is_not_decoded_yet_may_be_given_many_times(tmp_path: Path, tiny: Tiny, kind: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    noise = np.random.default_rng(0).integers(0, 255, (400, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, kind)
    with isoform.pipeline("image-classification", tiny("vit_cls")) as pipe:
        expected = pipe(str(path))
        for _ in range(5):
            with Image.open(path) as picture:
                mode, size = picture.mode, picture.size
                assert_alike(pipe([picture] * 4, batch_size=4), [expected] * 4)
                assert (picture.mode, picture.size) == (mode, size)
                picture.load()  # still readable


def test_an_opened_file_may_be_given_many_times_and_stays_as_it_was(tmp_path: Path, tiny: Tiny) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)).save(path)
    with isoform.pipeline("image-classification", tiny("vit_cls")) as pipe, path.open("rb") as file:
        file.seek(7)
        assert_alike(pipe([file, file, file]), [pipe(str(path))] * 3)
        assert (file.tell(), file.closed) == (7, False)
    with pytest.raises(InputError, match="without bytes"):
        load_image(io.BytesIO())
    with path.open("wb") as file, pytest.raises(InputError, match="cannot be read"):
        load_image(file)


def test_a_sound_file_may_be_given_many_times(tmp_path: Path) -> None:
    import soundfile

    path = tmp_path / "a.wav"
    soundfile.write(path, np.sin(np.arange(800) / 5), 8000)
    with path.open("rb") as file:
        first, second = load_audio(file, 8000), load_audio(file, 8000)
        np.testing.assert_array_equal(first, load_audio(str(path), 8000))
        np.testing.assert_array_equal(first, second)
        assert (file.tell(), file.closed) == (0, False)


# ------------------------------------------------------------------ progress
def test_progress_is_told_for_lists_and_iterators(refusing: Refusing) -> None:
    told: list[tuple[str, int, int]] = []
    steps = [("answer", 1, 2), ("answer", 2, 2)]
    refusing(["1", "2"], progress=lambda *step: told.append(step))
    assert told == steps
    told.clear()
    refusing.progress = lambda *step: told.append(step)
    list(refusing(Texts("1", "2"), batch_size=1))
    assert told == steps
    told.clear()
    list(refusing(iter(["1", "2"])))
    assert told == [("answer", 1, 0), ("answer", 2, 0)]
    told.clear()
    refusing(["1"], progress=False)
    assert told == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_after_a_while_and_a_pipe_none(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(patience: float, stream: io.StringIO, **options: Any) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(reporting, "PATIENCE", patience)
        monkeypatch.setenv("TERM", "xterm")
        refusing(["1", "2"], **options)
        list(refusing(iter(["1", "2"]), **options))
        return stream.getvalue()

    assert "answer" in shown(0.0, Terminal())
    assert shown(60.0, Terminal()) == ""
    assert shown(0.0, Terminal(), progress=False) == ""
    assert "answer" in shown(60.0, Terminal(), progress=True)
    assert shown(0.0, io.StringIO()) == ""
    assert shown(60.0, io.StringIO(), progress=True).strip() == ""


def test_bars_of_two_calls_never_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar.bars() as first, progress_bar.bars() as second:
        first("first", 1, 2)
        second("second", 1, 2)
    assert "first" in stream.getvalue()
    assert "second" not in stream.getvalue()
    with progress_bar.bars() as third:
        third("third", 1, 2)
    assert "third" in stream.getvalue()
