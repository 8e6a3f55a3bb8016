"""Speech with settings that nobody uses, and one picture or recording given several times."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import isoform as package
from tests.field.making import copied, isoform, keys, refused
from tests.oracle import tiny

SOUND = (0.1 * np.random.default_rng(3).standard_normal(32000)).astype(np.float32)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", SOUND, 16000, subtype="FLOAT")
    return tmp_path / "a.wav"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


# ------------------------------------------------------------------ an optional setting that nobody uses
def heard(folder: Path, **options: Any) -> Any:
    with package.pipeline("automatic-speech-recognition", str(folder)) as pipe:
        return pipe(SOUND, max_new_tokens=5, **options)


@pytest.mark.parametrize("heads", [[[5, 3], [3, 1]], [], None, "x", [[0]], [[-1, 0]], [["0", "1"]], {"a": 1}])
def test_heads_that_do_not_exist_matter_to_the_times_of_words_alone(heads: Any, tmp_path: Path, sound: Path) -> None:
    folder = copied("whisper", tmp_path, keys("generation_config.json", alignment_heads=heads))
    assert heard(folder) == heard(tiny("whisper"))
    assert heard(folder, return_timestamps=True) == heard(tiny("whisper"), return_timestamps=True)
    timed = ("--set", 'return_timestamps="word"')
    assert "alignment_heads" in refused("run", "automatic-speech-recognition", folder, sound, *timed)


def test_heads_that_exist_serve_beside_others(tmp_path: Path) -> None:
    folder = copied("whisper", tmp_path, keys("generation_config.json", alignment_heads=[[5, 3], [1, 1], [1, 1]]))
    alone = copied("whisper", tmp_path / "alone", keys("generation_config.json", alignment_heads=[[1, 1]]))
    with pytest.warns(UserWarning, match=r"heads that the decoder does not have \(\[5, 3\]\)"):
        timed = heard(folder, return_timestamps="word")
    assert timed == heard(alone, return_timestamps="word")
    assert timed["chunks"]


def test_such_a_folder_is_exported(tmp_path: Path) -> None:
    folder = copied("whisper", tmp_path, keys("generation_config.json", alignment_heads=[[5, 3], [3, 1]]))
    ran = isoform("export", folder, "--to", "onnx", "--out", tmp_path / "out")
    assert ran.code == 0, ran
    assert "serves automatic-speech-recognition" in " ".join(ran.out.split())


@pytest.mark.parametrize("width", [0, -1, 6])
def test_a_filter_that_is_none_matters_to_the_times_of_words_alone(width: int, tmp_path: Path, sound: Path) -> None:
    folder = copied(
        "whisper",
        tmp_path,
        keys("config.json", median_filter_width=width),
        keys("generation_config.json", alignment_heads=[[1, 1]]),
    )
    assert heard(folder) == heard(tiny("whisper"))
    timed = ("--set", 'return_timestamps="word"')
    said = refused("run", "automatic-speech-recognition", folder, sound, *timed)
    assert f"median_filter_width of config.json is {width}" in said


# ------------------------------------------------------------------ one object given several times
PICTURES: dict[str, Callable[[Path], Any]] = {
    "opened lazily": Image.open,
    "over a file object": lambda path: Image.open(path.open("rb")),
    "over bytes": lambda path: Image.open(io.BytesIO(path.read_bytes())),
    "a path": Path,
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_picture_that_is_given_eight_times_has_eight_answers(kind: str, picture: Path) -> None:
    with package.pipeline("image-classification", str(tiny("vit_cls"))) as pipe:
        expected = pipe([str(picture), str(picture)])[0]
        for _ in range(4):
            one = PICTURES[kind](picture)
            for answer in (*pipe([one] * 8), *pipe(each for each in [one] * 3), pipe(one)):
                assert [each["label"] for each in answer] == [each["label"] for each in expected]
                scores, others = ([each["score"] for each in found] for found in (answer, expected))
                np.testing.assert_allclose(scores, others, 1e-5)


def test_the_callers_picture_is_neither_changed_nor_closed(picture: Path) -> None:
    one, pixels = Image.open(picture).convert("RGBA"), np.asarray(Image.open(picture).convert("RGBA"))
    with package.pipeline("image-classification", str(tiny("vit_cls"))) as pipe:
        pipe([one, one])
    assert one.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(one), pixels)


def test_two_questions_may_share_a_picture(picture: Path) -> None:
    one = Image.open(picture)
    items = [{"image": one, "question": text} for text in ("what", "who")]
    with package.pipeline("visual-question-answering", str(tiny("blip_vqa"))) as pipe:
        expected = [pipe({**item, "image": str(picture)}, max_new_tokens=2) for item in items]
        assert pipe(items, max_new_tokens=2) == expected


RECORDINGS: dict[str, Callable[[Path], Any]] = {
    "an array": lambda path: SOUND.copy(),
    "an object": lambda path: {"raw": SOUND.copy(), "sampling_rate": 16000},
    "bytes": Path.read_bytes,
    "a file object": lambda path: path.open("rb"),
    "bytes in memory": lambda path: io.BytesIO(path.read_bytes()),
}


@pytest.mark.parametrize("name", ["wav2vec2_ctc", "whisper", "moonshine"])
@pytest.mark.parametrize("kind", RECORDINGS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_recording_that_is_given_twice_has_two_answers(kind: str, name: str, sound: Path) -> None:
    options: dict[str, Any] = {} if name == "wav2vec2_ctc" else {"max_new_tokens": 3}
    one = RECORDINGS[kind](sound)
    with package.pipeline("automatic-speech-recognition", str(tiny(name))) as pipe:
        expected = pipe(str(sound), **options)
        assert pipe([one, one], **options) == [expected, expected]
        assert pipe(one, **options) == expected, "the first call left it as it was"
    if isinstance(one, dict):
        assert sorted(one) == ["raw", "sampling_rate"]
        np.testing.assert_array_equal(one["raw"], SOUND)
    assert not getattr(one, "closed", False)
