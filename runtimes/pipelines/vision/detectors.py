"""The detector in front of another pipeline: opened where it is given by name, and asked for what has a label."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.pipelines.base import Pipeline

TASK = "object-detection"


class Detectors:
    """The detectors of one pipeline. Those that it opened are kept until it closes; any thread may ask for one."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe, self._lock = pipe, Lock()
        self._opened: dict[str, Any] = {}

    def find(
        self, detector: Any, labels: tuple[str, ...], threshold: float | None
    ) -> Callable[[NDArray[Any]], list[Any]]:
        """What finds things of these labels in pixels (H, W, C): their {"score", "label", "box"}, the surest first.

        `detector` is a folder, a Hub id, or a pipeline of object-detection, also another library's.
        """
        found = detector if callable(detector) else self._open(detector)
        wanted = {label.lower() for label in labels}
        known = _labels(found)
        if known and not wanted & {label.lower() for label in known}:
            shown = ", ".join(sorted(known)[:8])
            raise InputError(
                f"the detector finds no {' or '.join(map(repr, labels))}; set detector_label to what it finds: {shown}"
            )
        options = {} if threshold is None else {"threshold": threshold}

        def detect(pixels: NDArray[Any]) -> list[Any]:
            things = [thing for thing in found(_picture(pixels), **options) if thing["label"].lower() in wanted]
            things = [thing for thing in things if _is_in(thing["box"], *pixels.shape[:2])]
            return sorted(things, key=lambda thing: thing["score"], reverse=True)

        return detect

    def _open(self, name: Any) -> Any:
        key = str(name)
        with self._lock:
            if key not in self._opened:
                beside = self._pipe.origin.beside
                if beside is None:
                    raise InputError(
                        f"detector={key!r:.60} cannot be opened by this pipeline; give a pipeline of {TASK}"
                    )
                try:
                    self._opened[key] = beside(name, None, TASK)
                except IsoformError as error:
                    raise InputError(f"detector: {error}") from None
            return self._opened[key]

    def close(self) -> None:
        """Close what was opened here."""
        for pipe in self._opened.values():
            pipe.close()
        self._opened.clear()


def _labels(detector: Any) -> list[str]:
    """The names of what a pipeline finds; none of a plain function."""
    config = getattr(getattr(detector, "model", None), "config", None)
    return list(map(str, (getattr(config, "id2label", None) or {}).values()))


def _picture(pixels: NDArray[Any]) -> Any:
    """Pixels (H, W, C), bytes or values from 0 to 1, as a PIL picture."""
    from PIL import Image

    if pixels.dtype.kind == "f":
        pixels = (pixels * 255).round().clip(0, 255)
    grey = pixels.shape[2] == 1
    return Image.fromarray((pixels[..., 0] if grey else pixels).astype("uint8")).convert("RGB")


def _is_in(box: dict[str, float], height: int, width: int) -> bool:
    """Whether a box has a size, and a part of it is in the picture."""
    left, top, right, bottom = (box[edge] for edge in ("xmin", "ymin", "xmax", "ymax"))
    return left < right and top < bottom and right > 0 and bottom > 0 and left < width and top < height
