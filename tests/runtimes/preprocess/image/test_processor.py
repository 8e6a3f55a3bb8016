"""Pictures against transformers' Pillow processors, bit for bit, and what can be wrong with one."""

from __future__ import annotations

import base64
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image import pictures as image_source
from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.runtimes.preprocess.image.processor import ImageProcessor, ImageSettings
from isoform.validators.cases.media import drawn

PROCESSORS = ("Beit", "Bit", "ViT", "CLIP", "Siglip", "Blip", "DeiT")
MODES = ("RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "YCbCr", "PA", "I", "F", "HSV", "LAB")


def oracle(kind: str, settings: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, f"{kind}ImageProcessorPil")(**settings)


def processor(folder: Path, kind: str, settings: dict[str, Any], key: str = "image_processor_type") -> ImageProcessor:
    named = {key: f"{kind}ImageProcessor" if key == "image_processor_type" else f"{kind}FeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps({**named, **settings}), encoding="utf-8")
    return ImageProcessor(folder, class_facts(folder))


def in_mode(mode: str) -> Image.Image:
    picture = drawn()
    if mode == "P":  # with one colour that is transparent
        picture = picture.quantize(16)
        picture.info["transparency"] = 3
        return picture
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 200)
    if mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("LA" if mode == "LA" else "RGBA")
        alpha = Image.fromarray(np.tile(np.linspace(0, 255, picture.width).astype(np.uint8), (picture.height, 1)))
        picture.putalpha(alpha)
        return picture.convert("PA") if mode == "PA" else picture
    if mode == "LAB":
        return Image.merge("LAB", drawn().split())
    return picture.convert(mode)


def same(ours: NDArray[Any], theirs: Any) -> None:
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, np.asarray(theirs, np.float32))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_mode_gives_transformers_pixels(kind: str, tmp_path: Path) -> None:
    """Through `load_image`, as the pipelines do it, and where the processor converts colours itself, without."""
    from transformers.image_utils import load_image as theirs

    ours, other = processor(tmp_path, kind, {}), oracle(kind, {})
    for mode in MODES:
        picture = in_mode(mode)
        same(ours.one(load_image(picture)), other(theirs(picture), return_tensors="np")["pixel_values"][0])
        if ours.settings.convert:
            same(ours.one(picture), other(picture, return_tensors="np")["pixel_values"][0])


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nearest": ("Bit", {"resample": 0, "size": {"shortest_edge": 40}, "crop_size": {"height": 33, "width": 47}}),
    "lanczos": ("CLIP", {"resample": 1, "size": {"height": 50, "width": 31}, "do_center_crop": False}),
    "bilinear": ("Blip", {"resample": 2, "size": {"height": 31, "width": 50}}),
    "bicubic": ("Siglip", {"resample": 3, "size": {"height": 200, "width": 300}}),
    "box": ("ViT", {"resample": 4, "size": {"height": 17, "width": 19}}),
    "hamming": ("DeiT", {"resample": 5, "size": {"height": 64, "width": 64}, "crop_size": {"height": 63, "width": 62}}),
    "crop larger than the picture": ("CLIP", {"size": {"shortest_edge": 21}, "crop_size": {"height": 40, "width": 31}}),
    "crop without resizing": ("Bit", {"do_resize": False, "crop_size": {"height": 130, "width": 99}}),
    "nothing": ("ViT", {"do_resize": False, "do_rescale": False, "do_normalize": False}),
    "no normalisation": ("ViT", {"do_normalize": False}),
    "no rescaling": ("Blip", {"do_rescale": False}),
    "another factor": ("ViT", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
    "one mean for all": ("ViT", {"image_mean": 0.4, "image_std": 0.3}),
    "old sizes, a number": ("CLIP", {"size": 48, "crop_size": 40}),
    "old sizes, a square": ("ViT", {"size": 48}),
    "old sizes, two numbers": ("DeiT", {"size": [50, 40], "crop_size": [32, 30]}),
    "two edges": ("CLIP", {"size": {"shortest_edge": 48, "longest_edge": 60}, "do_center_crop": False}),
    "two edges, wide enough": ("CLIP", {"size": {"shortest_edge": 48, "longest_edge": 90}, "do_center_crop": False}),
    "most": ("ViT", {"size": {"max_height": 50, "max_width": 90}}),
    "nulls": ("CLIP", {"do_convert_rgb": None, "do_center_crop": None}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_transformers_pixels(name: str, tmp_path: Path) -> None:
    kind, settings = SETTINGS[name]
    ours, other = processor(tmp_path, kind, settings), oracle(kind, settings)
    for picture in (drawn(), drawn().transpose(Image.Transpose.ROTATE_90), drawn().crop((0, 0, 49, 48))):
        same(ours.one(picture), other(picture, return_tensors="np")["pixel_values"][0])


def test_the_old_name_of_a_processor_is_read(tmp_path: Path) -> None:
    ours = processor(tmp_path, "CLIP", {"size": 40, "crop_size": 32}, "feature_extractor_type")
    want = oracle("CLIP", {"size": 40, "crop_size": 32})(drawn(), return_tensors="np")
    same(ours.one(drawn()), want["pixel_values"][0])


def test_a_processor_inside_another_file_is_read(tmp_path: Path) -> None:
    inside = {
        "image_processor": {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 20, "width": 30}}
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(inside), encoding="utf-8")
    assert ImageProcessor(tmp_path, class_facts(tmp_path)).one(drawn()).shape == (3, 20, 30)


def test_a_file_that_names_no_processor_takes_the_models(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    assert ImageSettings.read(tmp_path, class_facts(tmp_path)).size == {"height": 224, "width": 224}


ARRAYS: dict[str, NDArray[Any]] = {
    "last": np.asarray(drawn()),
    "first": np.moveaxis(np.asarray(drawn()), -1, 0),
    "float bytes": np.asarray(drawn()).astype(np.float32),
    "unit": (np.asarray(drawn()) / 255).astype(np.float32),
    "unit, double": np.asarray(drawn()) / 255,
    "wide integers": np.asarray(drawn()).astype(np.int64),
    "alpha": np.dstack((np.asarray(drawn()), np.full((120, 160), 99, np.uint8))),
    "alpha, unit": np.dstack((np.asarray(drawn()), np.full((120, 160), 99, np.uint8))).astype(np.float64) / 255,
    "gray": np.asarray(drawn())[..., :1],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_give_transformers_pixels(name: str, tmp_path: Path) -> None:
    settings = {"size": {"height": 40, "width": 50}}
    same(
        processor(tmp_path, "Blip", settings).one(ARRAYS[name]),
        oracle("Blip", settings)(ARRAYS[name], return_tensors="np")["pixel_values"][0],
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 5, 7), np.uint8), "no axis of 1, 3 or 4 channels"),
        (np.full((9, 5, 3), 2.5), "from 2.5 to 2.5"),
        (np.full((9, 5, 3), 300), "from 300 to 300"),
        (np.full((9, 5, 3), np.nan), "NaN"),
        (np.zeros((0, 5, 3)), "is no picture"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array: NDArray[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        processor(tmp_path, "Blip", {}).one(array)


def test_channels_that_the_means_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 channels.*convert it to RGB"):
        processor(tmp_path, "ViT", {}).one(drawn().convert("L"))


def test_several_pictures_are_what_each_is_alone(tmp_path: Path) -> None:
    ours = processor(tmp_path, "Bit", {})
    pictures = [drawn().resize((60 + n, 50 + 2 * n)) for n in range(5)]
    for alone, together in zip(map(ours.one, pictures), ours(pictures), strict=True):
        same(alone, together)


# ------------------------------------------------------------------ sources


def saved(path: Path, picture: Image.Image | None = None, **options: Any) -> Path:
    (picture or drawn()).save(path, **options)
    return path


def test_a_picture_is_a_path_bytes_base64_a_data_url_or_a_pil_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    broken = "\n".join(text[n : n + 76] for n in range(0, len(text), 76))
    for source in (path, str(path), data, text, broken, f"data:image/png;base64,{text}", drawn()):
        assert load_image(source).tobytes() == drawn().tobytes()


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    from transformers.image_utils import load_image as theirs

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path / f"{orientation}.jpg", exif=exif)
        assert load_image(path).tobytes() == theirs(str(path)).tobytes()
    assert load_image(tmp_path / "6.jpg").size == (120, 160)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((3, 3)) == (255, 0, 0)


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.png", Image.new("RGB", (1, 1), "green"))
    assert processor(tmp_path, "Bit", {}).load([path])[0].shape == (3, 224, 224)


def huge(path: Path, width: int, height: int) -> Path:
    """A PNG that says it is that large; what it holds decodes to black, and takes 1 kB per million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c") + chunk(b"IEND", b""))
    return path


def truncated(path: Path) -> Path:
    data = saved(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def text(path: Path) -> Path:
    path.write_text("not a picture", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: huge(p / "bomb.png", 20_000, 20_000), "more than 178,956,970 pixels"),
        (lambda p: truncated(p / "half.jpg"), "cannot be decoded .*damaged or incomplete"),
        (lambda p: truncated(p / "half.png"), "cannot be decoded .*damaged or incomplete"),
        (lambda p: text(p / "text.jpg"), "no picture that Pillow can read"),
        (lambda p: p / "missing.jpg", "is not there"),
        (lambda p: p, "is a folder"),
        (lambda p: "hello world!", "neither a file, an address .* nor base64"),
        (lambda p: base64.b64encode(b"no picture").decode(), "no picture that Pillow can read"),
        (lambda p: b"", "no picture that Pillow can read"),
        (lambda p: 7, "a picture is a path"),
        (lambda p: "http://127.0.0.1:9/cat.jpg", "cannot be fetched"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_picture_that_would_grow_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 x 30000 would become 224 x 6720000"):
        processor(tmp_path, "Bit", {}).one(Image.new("RGB", (1, 30_000)))


class Web(BaseHTTPRequestHandler):
    """`/cat.png` is a picture, `/moved` leads there, `/away` leads out of the web, `/long` does not end."""

    def do_GET(self) -> None:
        if self.path in ("/moved", "/away"):
            self.send_response(302)
            self.send_header("Location", "/cat.png" if self.path == "/moved" else "ftp://localhost/cat.png")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        if self.path == "/cat.png":
            stream = BytesIO()
            drawn().save(stream, "PNG")
            self.wfile.write(stream.getvalue())
        elif self.path == "/long":
            self.wfile.write(bytes(1000))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched(web: str) -> None:
    assert load_image(f"{web}/cat.png").tobytes() == load_image(f"{web}/moved").tobytes() == drawn().tobytes()


@pytest.mark.parametrize(
    ("path", "message"), [("/none", "404"), ("/away", "leads to ftp"), ("/long", r"larger than .* fetch it yourself")]
)
def test_an_address_without_a_picture_is_refused(
    path: str, message: str, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_source, "DOWNLOAD", 900)
    with pytest.raises(InputError, match=message):
        load_image(web + path)


# ------------------------------------------------------------------ settings that are wrong


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"image_processor_type": "Swin2SRImageProcessor"},
            UnsupportedModel,
            "'Swin2SRImageProcessor' is not supported",
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": "large"}, CheckpointError, "make no sense"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, CheckpointError, "make no sense"),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": {"shortest_edge": 9}}, CheckpointError, "height"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": ["a"]}, CheckpointError, "make no sense"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": []}, CheckpointError, "make no sense"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [float("nan")]}, CheckpointError, "no finite"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 10**400}, CheckpointError, "make no sense"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(error, match=message):
        ImageProcessor(tmp_path, class_facts(tmp_path))


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    assert not ImageProcessor.is_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        ImageProcessor(tmp_path, class_facts(tmp_path))
