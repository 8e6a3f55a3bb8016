"""Videos against transformers' pipeline, which decodes them with PyAV and prepares frames with its Pillow processor."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from isoform import api
from isoform.cli import app
from isoform.errors import InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.video.frames import sampled
from isoform.validators.cases.media import drawn
from tests import oracle
from tests.exports import exported

Tiny = Callable[[str], Path]


def clip(count: int = 12) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) of the drawn picture, which glides and darkens."""
    pixels = np.asarray(drawn())
    return np.stack([np.roll(pixels, 9 * n, 1) // (1 + n // 4) for n in range(count)])


def write(path: Path, frames: NDArray[np.uint8], codec: str = "mpeg4") -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("videos") / "glide.mp4", clip())


@cache
def theirs(name: str) -> Any:
    import transformers

    folder = str(oracle.tiny(name))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return transformers.pipeline("video-classification", model=folder, image_processor=processor, device="cpu")


def close(ours: Any, want: Any) -> None:
    """The same labels in the same order under the same keys, the scores to 1e-5."""
    assert [list(row) for row in ours] == [list(row) for row in want]
    assert [row["label"] for row in ours] == [row["label"] for row in want]
    np.testing.assert_allclose([row["score"] for row in ours], [row["score"] for row in want], rtol=1e-5, atol=2e-6)


CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 2, "frame_sampling_rate": 2},
    {"top_k": 99, "function_to_apply": "sigmoid"},
    {"function_to_apply": "none"},
)


@pytest.mark.parametrize("name", ["videomae_cls", "videomae_cls_b"])
def test_video_classification_is_transformers(name: str, video: Path) -> None:
    with api.pipeline("video-classification", oracle.tiny(name), quality="exact") as pipe:
        for options in CALLS:
            close(pipe(str(video), **options), theirs(name)(str(video), **options))
        found = pipe([str(video), video], frame_sampling_rate=2)
        for mine, other in zip(found, theirs(name)([str(video)] * 2, frame_sampling_rate=2), strict=True):
            close(mine, other)


def test_one_label_has_the_softmax_of_one() -> None:
    """Unlike pictures: transformers' pipeline of videos knows no sigmoid for a single label."""
    from isoform.runtimes.pipelines.scores import trained_function

    assert trained_function({}, 1, single="softmax") == "softmax"


def test_a_video_comes_in_many_forms(video: Path, tmp_path: Path, tiny: Tiny) -> None:
    """The same frames as a file, its bytes, an opened file, an array, a list and a folder give the same answer."""
    frames = sampled(video, range(12))
    folder = tmp_path / "frames"
    folder.mkdir()
    for n, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{n + 1}.png")  # 10 comes after 9
    (folder / "notes.txt").write_text("no picture")
    with api.pipeline("video-classification", tiny("videomae_cls")) as pipe:
        want = pipe(video, frame_sampling_rate=3)
        content = video.read_bytes()
        array = np.stack(frames)
        pictures = [Image.fromarray(frame) for frame in frames]
        paths = [str(folder / f"frame_{n + 1}.png") for n in range(12)]
        for form in (content, BytesIO(content), array, frames, pictures, folder, str(folder)):
            close(pipe(form, frame_sampling_rate=3), want)
        several = pipe([array, pictures, str(video)], frame_sampling_rate=3, batch_size=3)
        streamed = list(pipe((one for one in (array, video)), frame_sampling_rate=3))
        for found in (*several, *streamed, *pipe([paths], frame_sampling_rate=3)):
            close(found, want)
        assert (len(several), len(streamed)) == (3, 2)
        close(pipe(videos=video, frame_sampling_rate=3), want)


def test_frames_of_one_kind_are_prepared_to_the_bit(tmp_path: Path) -> None:
    from transformers import VideoMAEImageProcessorPil

    settings: tuple[dict[str, Any], ...] = (
        {},
        {"size": {"shortest_edge": 50}, "crop_size": {"height": 40, "width": 60}, "image_mean": [0.4, 0.5, 0.6]},
        {"do_center_crop": False, "size": {"height": 31, "width": 33}, "resample": 3},
    )
    for given in settings:
        known = {"image_processor_type": "VideoMAEImageProcessor", **given}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(known))
        ours = open_processor(tmp_path, class_facts(tmp_path))
        for frames in (list(clip(3)), [drawn(), drawn().rotate(3)]):
            want = VideoMAEImageProcessorPil(**given)(frames, return_tensors="np")["pixel_values"][0]
            np.testing.assert_array_equal(np.stack(ours(frames)), want)


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "openvino"])
def test_a_bundle_answers_as_its_checkpoint_does(backend: str, tiny: Tiny) -> None:
    with (
        api.pipeline("video-classification", tiny("videomae_cls"), backend="torch") as torch,
        api.pipeline("video-classification", exported("videomae_cls"), backend=backend) as pipe,
    ):
        for mine, other in zip(pipe([clip(), clip(7)]), torch([clip(), clip(7)]), strict=True):
            close(mine, other)


def test_the_command_line_classifies_videos(video: Path, tiny: Tiny, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    (tmp_path / "frames").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "empty").mkdir()
    for n, frame in enumerate(sampled(video, range(4))):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{n}.png")
    for name in ("a.mp4", "b.MP4", "c.txt"):
        shutil.copyfile(video, tmp_path / "videos" / name)
    arguments = ["run", "video-classification", str(tiny("videomae_cls")), "--json"]
    answers = []
    for given, count in ((video, 1), (tmp_path / "frames", 1), (tmp_path / "videos", 2)):
        done = CliRunner().invoke(app, [*arguments, str(given)])
        assert done.exit_code == 0, done.output
        answers += json.loads(done.stdout)[-count:]
        assert [list(row) for row in answers[-1]] == [["score", "label"]] * 5
    for answer in answers[1:]:
        close(answer, answers[0])
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "empty")])
    assert isinstance(done.exception, InputError)
    assert "holds no video files" in str(done.exception)


# ------------------------------------------------------------------ what can be wrong
def refused(tiny: Tiny, inputs: Any, message: str, **parameters: Any) -> None:
    with (
        api.pipeline("video-classification", tiny("videomae_cls")) as pipe,
        pytest.raises(InputError, match=message),
    ):
        pipe(inputs, **parameters)


def test_a_video_that_is_too_short_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    one = write(tmp_path / "one.mp4", clip(1))
    refused(tiny, one, r"one\.mp4 has too few frames: the model reads 4, up to number 4, and 1 of these are there")
    refused(tiny, clip(7), "reads 4, up to number 8, and 3 of these", frame_sampling_rate=2)
    refused(tiny, [drawn()] * 3, "the video has too few frames")


def test_a_broken_video_is_refused(video: Path, tmp_path: Path, tiny: Tiny) -> None:
    content = video.read_bytes()
    files = {"no.mp4": b"no video at all" * 99, "empty.mp4": b"", "cut.mp4": content[: len(content) // 2]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        refused(tiny, tmp_path / name, rf"{name} cannot be decoded \(.*\); it is damaged, or no video")
    start = content.index(b"mdat") + 8
    noise = np.random.default_rng(0).bytes(len(content) - start - 600)
    (tmp_path / "noise.mp4").write_bytes(content[:start] + noise + content[start + len(noise) :])
    refused(tiny, tmp_path / "noise.mp4", r"noise\.mp4 (cannot be decoded|has too few frames)")
    refused(tiny, b"", "cannot be decoded")


def test_sound_is_no_video(tmp_path: Path, tiny: Tiny) -> None:
    import soundfile

    soundfile.write(tmp_path / "tone.wav", np.zeros(1600, np.float32), 16000)
    refused(tiny, tmp_path / "tone.wav", r"tone\.wav has no pictures in it")


def test_what_is_not_there_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    refused(tiny, tmp_path / "nowhere.mp4", r"nowhere\.mp4 is not there")
    refused(tiny, "x" * 5000, "is not there")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    refused(tiny, tmp_path / "empty", "empty has no pictures; put the frames of the video there")


def test_a_broken_frame_is_named(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(4):
        drawn().save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    refused(tiny, tmp_path, r"2\.png is no picture")


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        (clip(), {"num_frames": 8}, "num_frames=8: the model reads 4 frames"),
        (clip(), {"num_frames": 0}, "whole number of at least 1"),
        (clip(), {"frame_sampling_rate": 0}, "frame_sampling_rate=0 must be a whole number"),
        (clip(), {"top_k": 0}, "top_k=0 must be a whole number"),
        (clip(), {"function_to_apply": "tanh"}, "is not one of sigmoid, softmax, none"),
        (clip(), {"frames": 3}, "has no parameter 'frames'"),
        (3, {}, "video-classification takes a video"),
        ([3], {}, "video-classification takes a video"),
        ([[]], {}, "video-classification takes a video"),
        ([drawn(), "a.png"], {}, "video-classification takes a video"),
        (clip()[..., 0], {}, r"shape \(12, 120, 160\) is one picture, and no video; give \(frames, height, width, 3\)"),
        (np.zeros((4, 0, 8, 3), np.uint8), {}, "is no picture"),
    ],
)
def test_calls_without_meaning_are_refused(inputs: Any, parameters: dict[str, Any], message: str, tiny: Tiny) -> None:
    refused(tiny, inputs, message, **parameters)


def test_the_number_of_frames_may_be_said(tiny: Tiny) -> None:
    with api.pipeline("video-classification", tiny("videomae_cls")) as pipe:
        close(pipe(clip(), num_frames=4), pipe(clip()))


def test_frames_of_unlike_sizes_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("videomae_cls"), tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": False}))
    frames = [drawn(), drawn().rotate(90, expand=True), drawn(), drawn()]
    with (
        api.pipeline("video-classification", tmp_path / "model") as pipe,
        pytest.raises(InputError, match="pictures of unlike sizes"),
    ):
        pipe(frames)


def test_without_pyav_a_file_names_it_and_frames_need_nothing(
    video: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return known(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(tiny, video, r"PyAV only, which is not installed: pip install isoform\[video\]")
    with api.pipeline("video-classification", tiny("videomae_cls")) as pipe:
        assert len(pipe(clip())) == 5


def test_a_classifier_of_pictures_reads_no_videos(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedModel, match="has no task 'video-classification'"):
        api.pipeline("video-classification", tiny("vit_cls"))
    with (
        api.pipeline("image-feature-extraction", tiny("videomae_cls")) as pipe,
        pytest.raises(UnsupportedModel, match="needs a model that takes pixels"),
    ):
        pipe(drawn())
