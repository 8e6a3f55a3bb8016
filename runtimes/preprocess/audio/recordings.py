"""Sound from where people have it: a path, an address, bytes, an array; always one channel at the model's rate.

As transformers' `load_audio` does with soundfile: libsndfile decodes, channels are averaged, soxr resamples ("HQ"), and
the length is rounded up. Its pipelines take ffmpeg for files instead, and torchaudio for arrays, where these are
installed; their resamplers give slightly other samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from isoform.errors import BackendUnavailable, InputError
from isoform.runtimes.preprocess.download import ADDRESSES, fetch
from isoform.runtimes.preprocess.shared import content_of, is_file, lock_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from soundfile import SoundFile

DOWNLOAD = 2**30  # bytes of a recording from the network at most; they go to a temporary file
VALUES = 2**20  # samples times channels decoded at once
SLOWEST, FASTEST = 1000, 10**7  # samples per second that can be sound
SHOWN = 120  # characters of a name in a message


def load_audio(source: Any, rate: int, *, timeout: float | None = None) -> NDArray[np.float32]:
    """All of it as float32 (N,) at `rate` samples per second. Raises InputError as `audio_blocks` does."""
    blocks = list(audio_blocks(source, rate, timeout=timeout))
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def audio_blocks(source: Any, rate: int, *, timeout: float | None = None) -> Iterator[NDArray[np.float32]]:
    """The same in blocks, none of them empty: of a file, no more than a block is in memory.

    `source`: a path, an http(s) address, a file's bytes, an opened file, samples (N,) or (channels, N) at `rate`, or
    {"array" or "raw": samples, "sampling_rate": their rate}. Raises InputError that says what is wrong with it.
    """
    name = name_of(source)
    if is_file(source):
        source = content_of(source, name)
    if isinstance(source, str | Path | bytes | bytearray | memoryview):
        with _opened(source, name, timeout) as file:
            native, blocks = _rate(file.samplerate, name), _decoded(file, name)
            yield from _checked(_resampled(blocks, native, rate), rate, name)
        return
    samples, native = _samples(source, rate, name)
    yield from _checked(_resampled(iter([samples]), native, rate), rate, name)


def is_audio(source: Any) -> bool:
    """Whether this is one recording in a form that `audio_blocks` takes (a text may still be no file)."""
    if isinstance(source, Mapping):
        return "array" in source or "raw" in source
    plain = isinstance(source, str | Path | bytes | bytearray | memoryview | np.ndarray)
    return plain or _is_foreign(source) or is_file(source)


def name_of(source: Any) -> str:
    """What to call a recording in a message."""
    if isinstance(source, str | Path):
        text = str(source)
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
    return "the sound"


def duration(source: Any, rate: int) -> float | None:
    """Seconds, where they are known without decoding; None elsewhere."""
    if isinstance(source, str | Path) and not str(source).startswith(ADDRESSES):
        with _opened(source, name_of(source), None) as file:
            return file.frames / file.samplerate if 0 < file.frames < 2**62 and file.samplerate else None
    if isinstance(source, np.ndarray):
        return source.shape[-1] / rate if source.ndim else None
    return None


# ---------------------------------------------------------------------- files
@contextmanager
def _opened(source: Any, name: str, timeout: float | None) -> Iterator[SoundFile]:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"sound files need soundfile ({error}); pip install soundfile") from None
    with _stream(source, name, timeout) as stream:
        try:
            file = soundfile.SoundFile(stream)
        except (soundfile.LibsndfileError, TypeError, ValueError, OSError) as error:
            raise InputError(
                f"{name} is no sound that libsndfile can read ({_reason(error)}); give WAV, FLAC, OGG or MP3, for "
                "example with ffmpeg -i FILE out.wav"
            ) from None
        with file:
            yield file


@contextmanager
def _stream(source: Any, name: str, timeout: float | None) -> Iterator[str | IO[bytes]]:
    """What libsndfile can open: a path, or a stream that can be wound."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield BytesIO(source)
        return
    if str(source).startswith(ADDRESSES):
        with TemporaryFile() as file:
            fetch(str(source), file, DOWNLOAD, timeout)
            yield file
        return
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or a byte 0 in it
        is_file = is_folder = False
    if is_folder:
        raise InputError(f"{name} is a folder; give a recording in it")
    if not is_file:
        raise InputError(f"{name} is not there; give a file, or an address that begins with http:// or https://")
    if path.stat().st_size == 0:
        raise InputError(f"{name} is empty; give a recording")
    yield str(path)


def _decoded(file: SoundFile, name: str) -> Iterator[NDArray[np.float32]]:
    """Blocks of the mean of all channels."""
    import soundfile

    size, seen = max(1, VALUES // file.channels), 0
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            at = seen / file.samplerate
            raise InputError(f"{name} is damaged after {at:.1f} seconds ({_reason(error)}); fetch it again") from None
        if not len(block):
            break
        seen += len(block)
        yield np.ascontiguousarray(block[:, 0] if file.channels == 1 else block.mean(1))
    if not seen:
        raise InputError(f"{name} holds no sound; give a recording of at least one sample")


# ---------------------------------------------------------------------- arrays
def _is_foreign(source: Any) -> bool:
    """A torch tensor, or torchcodec's decoder, as `datasets` gives it; neither package is needed to tell."""
    return hasattr(source, "detach") or hasattr(source, "get_all_samples")


def _samples(source: Any, rate: int, name: str) -> tuple[NDArray[np.float32], int]:
    """One channel of an array in one of its forms, and its rate."""
    if isinstance(source, Mapping):
        values = source.get("raw") if source.get("raw") is not None else source.get("array")
        native = source.get("sampling_rate")
        if values is None or native is None:
            raise InputError(
                'a recording as a dictionary needs its samples as "array" (or "raw") and their "sampling_rate"; this '
                f"one has {', '.join(map(repr, source)) or 'nothing'}"
            )
        return _one_channel(_array(values)), _rate(native, name)
    if hasattr(source, "get_all_samples"):
        with lock_of(source):
            decoded = source.get_all_samples()
        return _one_channel(_array(decoded.data)), _rate(decoded.sample_rate, name)
    return _one_channel(_array(source)), rate


def _array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if isinstance(values, list | tuple):
        try:
            values = np.asarray(values)
        except ValueError:
            raise InputError("a list of samples must hold numbers, or one list of them per channel") from None
    if not isinstance(values, np.ndarray):
        raise InputError(
            "a recording is a path, an address, a file's bytes, an array of samples, or "
            f'{{"array": samples, "sampling_rate": Hz}}, not {values!r:.80}'
        )
    if values.dtype.kind in "iu" and values.size:
        scale = 2 ** (8 * values.dtype.itemsize - 1)
        raise InputError(
            f"samples of {values.dtype} are not scaled; give floats from -1 to 1 (array.astype('float32') / {scale})"
        )
    if values.dtype.kind not in "fiu":
        raise InputError(f"samples are {values.dtype}; give floats from -1 to 1")
    return values


def _one_channel(values: NDArray[Any]) -> NDArray[np.float32]:
    """The mean of the channels: (N,) or (channels, N) -> (N,). More than two rows are as likely samples as channels."""
    if values.ndim == 2 and values.shape[0] <= 2:
        return np.ascontiguousarray(values.astype(np.float32, copy=False).mean(0))
    if values.ndim == 1:
        return np.ascontiguousarray(values, np.float32)
    raise InputError(
        f"samples of shape {values.shape} are neither (samples,) nor (channels, samples) with at most two channels; "
        "transpose them if channels come last, or average them yourself"
    )


def _rate(value: Any, name: str) -> int:
    """A sampling rate that can be sound's; a lower one would blow a small file up beyond measure."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or value != int(value):
        raise InputError(f"the sampling rate {value!r} of {name} is not a whole number of samples per second")
    if not SLOWEST <= value <= FASTEST:
        raise InputError(f"{name} has {int(value)} samples per second; give sound of {SLOWEST} to {FASTEST}")
    return int(value)


# ---------------------------------------------------------------------- both
def _resampled(blocks: Iterator[NDArray[np.float32]], native: int, rate: int) -> Iterator[NDArray[np.float32]]:
    """From `native` to `rate` samples per second, ceil(N * rate / native) in all."""
    if native == rate:
        yield from blocks
        return
    try:
        import soxr
    except ImportError:
        raise BackendUnavailable(f"sound of {native} samples per second needs soxr; pip install soxr") from None
    stream = soxr.ResampleStream(native, rate, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        for start in range(0, len(block), VALUES):
            piece = block[start : start + VALUES]
            taken += len(piece)
            made = stream.resample_chunk(piece, last=False)
            given += len(made)
            yield made
    rest, wanted = stream.resample_chunk(np.zeros(0, np.float32), last=True), math.ceil(taken * rate / native)
    missing = wanted - given
    yield np.pad(rest, (0, max(0, missing - len(rest))))[: max(0, missing)]


def _checked(blocks: Iterator[NDArray[np.float32]], rate: int, name: str) -> Iterator[NDArray[np.float32]]:
    """The blocks that are not empty. Raises InputError for samples that are no numbers."""
    seen = 0
    for block in blocks:
        if not block.size:
            continue
        # A sum is finite unless a sample is not, or the sum overflows: only then is every sample looked at.
        if not np.isfinite(block.sum(dtype=np.float64)) and not (finite := np.isfinite(block)).all():
            first = int(finite.argmin())
            raise InputError(
                f"{name} holds {block[first]} at {(seen + first) / rate:.3f} seconds, which is no sound; repair it, "
                "for example with numpy.nan_to_num"
            )
        seen += block.size
        yield block


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the name of the file before them."""
    text = " ".join(str(error).split())
    return (text.rpartition("': ")[2] or text or type(error).__name__).rstrip(".")
