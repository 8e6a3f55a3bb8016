"""The cases of a model that takes pictures or sound: noise of several sizes, and what its own processor makes of one.

The role of a port says what goes in: pixels (B, C, H, W), masks of those that are no padding (B, H, W), sound (B,
samples), features of sound (B, bands, frames), points (B, prompts, points, 2) with their labels, videos (B, frames, C,
H, W), choices (B, ...) out of as many as the card says, keypoints of two pictures (B, 2, N, 2) with scores and
descriptors, those of the second padded. Which sizes are free, and in which steps, says the signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from isoform.errors import IsoformError
from isoform.reference.classes import class_facts
from isoform.signature import LENGTH, Port, Role
from isoform.validators.cases.case import SHORT, Case, Row, may_be_left_out
from isoform.validators.cases.text import SIDES, positions, text_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model

MOST = 16  # units of a free axis in a check: 256 patches of a picture
LONGEST = 320  # pixels of a side in a check, where one unit alone has many
POINTS = ((2, 2), (1, 1), (3, 5))
"""Prompts and points of each in the rows of a check."""
KEYPOINTS = (23, 1, 40)
"""Keypoints in the rows of a check."""
LABELS = (1, 0, 2, 3, -1, -10, -11)
"""What a point may be: inside, outside, either corner of a box, no point, padding, nothing at all."""
CHOSEN = (4, 2, 3)
"""Fifths of a list that are chosen from it in the rows of a check."""
GIVEN = ("labels", "choice", "pixel_mask", "task")
"""Roles of whole numbers that are neither tokens nor what stands beside them."""
SOUND = (1, 4, 11)  # units of sound in the rows of a check; a little more each, so that no size is a whole number


def media_cases(model: Model, seed: int = 0) -> list[Case]:
    """Alone, in a batch, of every shape that the signature leaves free, padded where there is a mask."""
    import numpy as np

    maker = _Maker(model, np.random.default_rng(seed))
    shapes = list(maker.shapes())
    cases = [Case("noise", (maker.row(shape),), detail=_shape(shape)) for shape in shapes]
    first = shapes[0]
    cases.append(Case("batch of 3", tuple(maker.row(first) for _ in range(3)), detail=_shape(first)))
    if maker.reads_text and maker.masked:
        mixed = tuple(maker.row(first, length) for length in (SHORT, 1, 2 * SHORT))
        lengths = " ".join(str(len(row)) for row in mixed)
        cases += [Case(f"{side} padding", mixed, side, detail=f"texts of {lengths}") for side in SIDES]
    elif maker.masked and len(shapes) > 1:
        mixed = tuple(maker.row(shape) for shape in shapes)
        lengths = " ".join(str(len(row)) for row in mixed)
        cases.append(Case("right padding", mixed, detail=f"rows of {lengths}"))
    if maker.may_see_nothing:
        bare = tuple(maker.row({}, length) for length in (SHORT, 2 * SHORT))
        cases.append(Case("no picture", bare, "left", detail=f"texts of {SHORT} {2 * SHORT}"))
    real = maker.real()
    if real:
        cases.append(Case(real[0], (real[1],), detail=_shape(real[1].media), natural=True))
    return cases


def _shape(media: Mapping[str, Any]) -> str:
    shapes = (getattr(value, "shape", value) for value in media.values())
    return " and ".join("x".join(map(str, shape[-2:])) for shape in shapes)


class _Maker:
    """Rows for one model. `masked`: shorter ones can be padded. `may_see_nothing`: its pictures may be left out."""

    def __init__(self, model: Model, random: np.random.Generator) -> None:
        self.model, self.random, self.signature = model, random, model.signature
        self.matches = self.signature.takes("points", "descriptors")
        given = (*GIVEN, "mask") if self.matches else GIVEN
        self.ports = [port for port in self.signature.given if port.dtype == "float" or port.role in given]
        self.choices: Mapping[str, int] = model.task.facts(model.config).get("choices", {})
        self.reads_text = self.signature.takes("tokens")
        self.may_see_nothing = any(may_be_left_out(self.signature, port) for port in self.ports)
        mask = None if self.matches else self.signature.port("mask")
        self.masked = mask is not None and mask.axes[1] == (LENGTH if self.reads_text else self.ports[0].axes[-1])

    def row(self, shape: Mapping[str, tuple[int, ...]], length: int = SHORT) -> Row:
        """Noise of this shape by port, and `length` random tokens where the model reads text."""
        import numpy as np

        roles = {port.name: port.role for port in self.ports}
        media = {name: self._noise(roles[name], size, self.choices.get(name, 1)) for name, size in shape.items()}
        length = min(length, positions(self.model)) if self.reads_text else 0
        vocabulary = self.model.config.vocabulary or 1
        tokens = self.random.integers(0, vocabulary, length)
        return Row(tokens, np.zeros(length, np.int64), media)

    def _noise(self, role: Role | None, size: tuple[int, ...], choices: int) -> NDArray[Any]:
        """`choices`: of how many one is chosen, or several in their order."""
        import numpy as np

        if role == "choice":
            return np.sort(self.random.choice(choices, size, replace=False), None).reshape(size)
        if role == "task":
            return self.random.integers(0, self.model.config.vocabulary or 1, size)
        if role == "labels":
            return self.random.choice(LABELS, size)
        if role == "pixel_mask":
            mask = np.ones(size, np.int64)
            mask[size[0] - size[0] // 3 :] = 0
            mask[:, size[1] - size[1] // 4 :] = 0
            return mask
        if role == "mask":
            mask = np.ones(size, np.int64)
            mask[1, size[1] - size[1] // 3 :] = 0
            return mask
        if self.matches and role == "points":
            return self.random.uniform(-0.7, 0.7, size).astype(np.float32)
        if self.matches and role == "scores":
            return self.random.uniform(0, 1, size).astype(np.float32)
        if role == "points":
            return self.random.uniform(0, self._own(), size).astype(np.float32)
        return self.random.standard_normal(size).astype(np.float32)

    def shapes(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Shapes by port without the batch: the model's own first."""
        free = [
            axis
            for port in self.ports
            for axis in port.axes[1:]
            if isinstance(axis, str) and port.role != "pixel_mask"  # it is as large as the picture, or half
        ]
        units = [self.signature.units.get(axis, 1) for axis in free]
        if not free:
            yield self._sized({})
        elif self.signature.takes("video"):
            for fifths in CHOSEN:
                yield self._sized({axis: max(1, self._choices_along(axis) * fifths // 5) for axis in free})
        elif self.matches:
            for count in KEYPOINTS:
                yield self._sized(dict.fromkeys(free, count))
        elif self.signature.takes("points"):
            for counts in POINTS:
                yield self._sized(dict(zip(dict.fromkeys(free), counts, strict=True)))
        elif self.ports[0].role == "pixels":
            own = min(self._own() // max(units), MOST, max(2, LONGEST // max(units)))
            for factors in ((own, own), (3, 5), (own + 2, own + 1)):
                sizes = [f * unit for f, unit in zip(factors, units, strict=True)]
                masked = [size if factors[0] == 3 else size // 2 for size in sizes]
                yield self._sized(dict(zip((*free, *self._masked()), (*sizes, *masked), strict=False)))
        else:
            for count in SOUND[::-1]:
                yield self._sized({axis: count * unit + count // 2 for axis, unit in zip(free, units, strict=True)})

    def _masked(self) -> tuple[str, ...]:
        """The axes of a mask of pixels."""
        port = self.signature.port("pixel_mask")
        return () if port is None else tuple(axis for axis in port.axes[1:] if isinstance(axis, str))

    def _choices_along(self, axis: str) -> int:
        return next(self.choices[port.name] for port in self.ports if axis in port.axes)

    def _own(self) -> int:
        """The size of picture that the config names, or a middling one."""
        return self.model.config.picture or MOST * max(self.signature.units.values(), default=1)

    def _sized(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        return {
            port.name: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.axes[1:])
            for port in self.ports
        }

    def real(self) -> tuple[str, Row] | None:
        """What it is and a row of it, when the checkpoint has a processor and its result fits the ports."""
        import numpy as np

        media = {}
        for port in self.ports:
            found = self._prepared(port)
            if found is None or not _fits(port, found):
                return None
            media[port.name] = found
        texts = text_rows(self.model, self.model.config.vocabulary or 0, positions(self.model))
        none = np.zeros(0, np.int64)
        if self.reads_text:
            row = texts[0] if texts else self.row({})
            return "a picture and a text", Row(row.tokens, row.types, media)
        kinds: tuple[tuple[Role, str], ...] = (("video", "a video"), ("pixels", "a picture"))
        what = next((name for role, name in kinds if self.signature.takes(role)), "speech")
        return what, Row(none, none, media)

    def _prepared(self, port: Port) -> NDArray[Any] | None:
        """What goes into a port, without the batch, as the checkpoint's processor makes it; None without one."""
        import numpy as np

        match port.role:
            case "choice":
                return self._noise(port.role, next(self.shapes())[port.name], self.choices[port.name])
            case "pixels":
                return _picture(self.model)
            case "pixel_mask":
                picture = _picture(self.model)
                return None if picture is None else np.ones(picture.shape[1:], np.int64)
            case "video":
                frame, count = _picture(self.model), port.axes[1]
                assert isinstance(count, int)
                return None if frame is None else np.stack([np.roll(frame, n, -1) for n in range(count)])
        return _speech(self.model, port.role == "features")


def _fits(port: Port, array: NDArray[Any]) -> bool:
    pairs = zip(port.axes[1:], array.shape, strict=True) if array.ndim == len(port.axes) - 1 else ()
    return bool(pairs) and all(isinstance(axis, str) or axis == size for axis, size in pairs)


def _picture(model: Model) -> NDArray[np.float32] | None:
    """The drawn picture as the checkpoint's processor prepares it; None without one."""
    from isoform.runtimes.preprocess.image.opening import open_processor
    from isoform.runtimes.preprocess.image.processor import ImageProcessor

    folder = model.checkpoint.folder
    if not ImageProcessor.is_in(folder):
        return None
    try:
        return open_processor(folder, class_facts(folder))([drawn()])[0]
    except IsoformError:
        return None


def _speech(model: Model, spectra: bool) -> NDArray[np.float32] | None:
    """The made-up voice as the checkpoint's processor prepares it, as spectra (bands, frames) or samples; or None."""
    from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel, pad
    from isoform.runtimes.preprocess.audio.waveform import WaveformSettings, normalize

    folder = model.checkpoint.folder
    if not (folder / "preprocessor_config.json").is_file():
        return None
    try:
        if not spectra:
            return normalize(voice()) if WaveformSettings.read(folder).do_normalize else voice()
        settings = LogMelSettings.read(folder)
        return log_mel(pad(voice(), settings), settings)
    except IsoformError:
        return None


def voice() -> NDArray[np.float32]:
    """A second of something like a voice at 16 kHz: a gliding pitch with overtones, in four syllables, and hiss."""
    import numpy as np

    at = np.arange(16000) / 16000
    turns = np.cumsum(110 + 40 * np.sin(2 * np.pi * 1.3 * at)) / 16000
    formants = (500 + 250 * np.sin(2 * np.pi * 2 * at), 1500 + 400 * np.cos(2 * np.pi * 3 * at))
    sound = np.zeros_like(at)
    for n in range(1, 25):
        pitch = n * np.gradient(turns, at)
        loud = sum(np.exp(-(((pitch - formant) / 180) ** 2)) for formant in formants)
        sound += (loud + 0.3 / n) * np.sin(2 * np.pi * n * turns)
    syllables = np.clip(np.sin(2 * np.pi * 4 * at), 0, 1)
    hiss = np.random.default_rng(5).standard_normal(len(at)) * 0.02
    return (0.2 * sound * syllables + hiss).astype(np.float32)


def drawn() -> Any:
    """A PIL picture (RGB, 160 x 120) with edges, gradients, fine lines and noise, the same every time."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:120, 0:160]
    sky = np.stack((90 + x // 4, 140 + y // 2, 230 - y), -1)
    hills = y > 80 + 12 * np.sin(x / 17)
    sun = (x - 120) ** 2 + (y - 28) ** 2 < 18**2
    fence = (x % 6 < 2) & (y > 95) & (x < 70)
    for where, colour in ((hills, (60, 130, 50)), (sun, (250, 220, 90)), (fence, (110, 70, 40))):
        sky[where] = colour
    noise = np.random.default_rng(7).integers(-12, 13, sky.shape)
    return Image.fromarray(np.clip(sky + noise, 0, 255).astype(np.uint8))
