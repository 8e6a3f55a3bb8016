"""That a machine without units for bf16 and 8-bit integers is no slower than before: two checkouts, in one run.

    python -m benchmarks.without_units --before CHECKOUT [--work decode,prefill,embedding,pictures,speech]
                                       [--forms default,torch:f32,…] [--rounds N] [--folder DIR] [--write]

The machine is simulated: oneDNN and torch's own kernels are held to AVX2 by variables of the environment. ONNX Runtime
cannot be held to it, so that its forms show only that nothing else got slower. Each checkout opens the same bundle, and
the checkpoint that it was made from, with what it does when nothing is asked for (`default`) and by form; the bundle is
written by the checkout before. A ratio is the rate of this checkout over that of the other one, within a round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import models, vision
from benchmarks.harness import ROOT, Contestant, apart, brief, compete, ours, ratio, variables
from benchmarks.machine import conditions, machine
from benchmarks.tables import RESULTS

CAPS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
FORMS = ("default", "torch:f32", "onnxruntime:f32", "onnxruntime:int8", "onnxruntime:q8_0")
WORK = ("decode", "prefill", "embedding", "pictures", "speech")
COLUMNS = ["model", "opened", "part", "before", "now", "now ÷ before"]


def places(work: str, folder: Path) -> Iterator[tuple[str, Path, str, list[Any], list[Any]]]:
    """A model's name, its checkpoint, and a script with its arguments before and after the folder that it opens."""
    if work in ("decode", "prefill") and (source := models.smollm2(folder)):
        yield "SmolLM2-135M", source, "text_isoform", [f"{work}:1"], []
    if work == "embedding" and (source := models.minilm(folder)):
        yield "MiniLM", source, "embed_isoform", [], [models.sentences(folder)]
    if work == "pictures":
        for name, (task, *_) in vision.MODELS.items():
            yield name, apart(vision.checkpoint, name, folder), "pictures_isoform", [task], [models.pixels(folder)]
    if work == "speech" and (source := models.whisper(folder)) and (sound := models.speech(folder)):
        yield "Whisper tiny.en", source, "speech_isoform", [], [1, 1, sound]


def command(script: str, front: list[Any], opened: Path, back: list[Any], form: str) -> tuple[str, ...]:
    """The form comes before the pixels, and after all else."""
    last = [form, *back] if script == "pictures_isoform" else [*back, form]
    return ours(script, *front, opened, *last)


def write_bundle(source: Path, folder: Path, before: Path) -> Path:
    """Of ONNX forms, by the checkout before."""
    made = folder / f"{source.name}-before"
    if not made.exists():
        export = (sys.executable, "-m", "isoform", "export", source, "--to", "onnx", "--onnx-type", "f32,int8,q8_0")
        subprocess.run([*map(str, export), "--out", str(made), "--no-check"], env=variables(tree=before), check=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the commit to compare with")
    parser.add_argument("--work", default=",".join(WORK))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/")
    given = parser.parse_args()
    before, rows = given.before.resolve(), []
    if not (before / "src" / "isoform").is_dir():
        parser.error(f"--before {given.before} is no checkout: it has no src/isoform")
    if unknown := [name for name in given.work.split(",") if name not in WORK]:
        parser.error(f"--work knows no {unknown[0]!r}; choose from {', '.join(WORK)}")
    about: dict[str, Any] = {
        "command": "python -m benchmarks.without_units --before CHECKOUT",
        "machine": f"{machine()}, held to AVX2",
    }
    about |= {"date": date.today().isoformat(), "conditions": conditions(("torch", "onnxruntime-gpu", "onnxruntime"))}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="isoform-units-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for work in given.work.split(","):
            for name, source, script, front, back in places(work, folder):
                bundle = write_bundle(source, folder, before)
                for form in given.forms.split(","):
                    for what, opened in (("bundle", bundle), ("checkpoint", source)):
                        if what == "bundle" or form == "default":
                            line = command(script, front, opened, back, form)
                            rows += race(name, f"{what}, {form}", line, before, folder, given.rounds)
    if given.write:
        path = RESULTS / "without_units.json"
        path.write_text(json.dumps({**about, "columns": COLUMNS, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


def race(name: str, opened: str, line: tuple[str, ...], before: Path, folder: Path, rounds: int) -> list[list[str]]:
    """The rows of one contestant in both checkouts; none, and why, when one of them fails."""
    contestants = [
        Contestant(
            side,
            line,
            {**CAPS, "PYTHONPATH": str(tree / "src"), "ISOFORM_CACHE": str(folder / f"cache-{side}")},
        )
        for side, tree in (("before", before), ("now", ROOT))
    ]
    outcomes = compete(contestants, rounds)
    if len(outcomes) < 2:
        return []
    old, new = outcomes
    rows = [
        [name, opened, part, brief(old.rate(part)), brief(new.rate(part)), f"{ratio(new, old, part):.2f}"]
        for part in new.rounds[0]
        if part != "wall"
    ]
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
