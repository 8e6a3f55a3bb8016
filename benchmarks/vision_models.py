"""Models of pictures at the shapes of real checkpoints, against transformers, and OpenVINO on our standard graphs.

    python -m benchmarks.vision_models [NAME …] [--rounds 3] [--threads 1] [--folder DIR] [--write]

Weights are random. "model" goes from tensors to outputs, in wall seconds. In float32 isoform's best form is compared
with transformers, in bf16 with the better of transformers and OpenVINO; rounds alternate, ratios are medians within a
round. Peaks are the largest resident memory of a process; weights that are mapped from a file count once they are read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from benchmarks.harness import OURS, ROOT, Contestant, Outcome, apart, compete, installed, ours, prepare, ratio
from benchmarks.machine import conditions, machine
from benchmarks.tables import RESULTS
from benchmarks.vision_shapes import SHAPES, Shape

COLUMNS = ["model", "precision", "isoform, s", "by", "transformers", "OpenVINO", "ratio to the better", "peak, MB"]


def checkpoint(name: str, folder: Path) -> None:
    """Random weights by transformers, in the Hub's layout, with a processor's settings."""
    import torch
    import transformers

    sys.path.insert(0, str(ROOT))
    from tests.oracle import tiny

    shape = SHAPES[name]
    torch.manual_seed(0)
    kind = getattr(transformers, shape.model)
    if shape.tiny:
        _without_losses()
    with torch.device("cpu"):
        model = kind(kind.config_class(**shape.config)).eval()
    model.save_pretrained(folder)
    for file in tiny(shape.tiny).iterdir() if shape.tiny else ():
        if file.name not in ("config.json", "model.safetensors", "golden.safetensors"):
            shutil.copyfile(file, folder / file.name)
    if not (folder / "preprocessor_config.json").is_file():
        (folder / "preprocessor_config.json").write_text(json.dumps(shape.processor))


def _without_losses() -> None:
    """OneFormer's loss asks for SciPy when the model is made."""
    from transformers.models.oneformer import modeling_oneformer

    modeling_oneformer.requires_backends = lambda *_: None


def tensors(shape: Shape, path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        name: random.standard_normal(size, np.float32) if len(size) > 2 else random.integers(1, 40, size)
        for name, size in shape.inputs.items()
    }
    np.savez(path, **arrays)


def contestants(shape: Shape, source: Path, folder: Path, threads: int) -> dict[str, list[Contestant]]:
    """By precision: isoform's forms, transformers, and OpenVINO."""
    bundle, inputs = folder / f"{source.name}-bundle", folder / f"{source.name}.npz"
    tensors(shape, inputs)
    types = "f32,f32-portable" if shape.portable else "f32"
    options = "--onnx-type", types, "--out", bundle, "--no-check", "--task", shape.task
    prepare(bundle, *OURS, "export", source, "--to", "onnx", *options)
    graphs = sorted((bundle / "onnx").glob(f"{shape.part or 'model'}*_portable.onnx"))
    part, method = shape.part or "-", shape.forward or "-"

    def mine(form: str) -> Contestant:
        command = ours("tensors_isoform", shape.task, bundle, form, threads, part, inputs)
        return Contestant(f"isoform {form}", command)

    def theirs(dtype: str) -> Contestant:
        command = ours("tensors_transformers", shape.model, source, dtype, threads, method, inputs)
        return Contestant(f"transformers {dtype}", command)

    def openvino(precision: str) -> list[Contestant]:
        if not graphs or not installed("openvino"):
            return []
        command = ours("tensors_openvino", graphs[0], precision, threads, inputs)
        return [Contestant(f"OpenVINO {precision}", command)]

    exact = [mine("onnxruntime:f32"), mine("torch:f32"), theirs("float32"), *openvino("f32")]
    high = [mine("torch:bf16"), theirs("bfloat16"), *openvino("bf16")]
    if graphs and installed("openvino"):
        high.insert(0, mine("openvino:f32-portable:bf16"))
    return {"float32": exact, "bfloat16": high}


def row(name: str, precision: str, outcomes: Sequence[Outcome]) -> list[str]:
    """isoform's fastest form beside its peers."""
    mine = [one for one in outcomes if one.name.startswith("isoform")]
    peers = {one.name.split()[0]: one for one in outcomes if not one.name.startswith("isoform")}
    if not mine:
        return [name, precision, *["–"] * (len(COLUMNS) - 2)]
    best = min(mine, key=lambda one: 1 / one.rate("model"))

    def seconds(one: Outcome | None) -> str:
        return "–" if one is None else f"{1 / one.rate('model'):.2f}"

    rivals = [ratio(best, one, "model") for one in peers.values()]
    by = best.name.removeprefix("isoform ")
    figures = seconds(peers.get("transformers")), seconds(peers.get("OpenVINO"))
    return [
        *(name, precision, seconds(best), by, *figures),
        *(f"{min(rivals):.2f}" if rivals else "–", f"{best.peak:,.0f}"),
    ]


def measure(name: str, folder: Path, rounds: int, threads: int) -> list[list[str]]:
    shape = SHAPES[name]
    source = folder / name.replace(" ", "-").replace(",", "").lower()
    if not source.exists():
        apart(checkpoint, name, source)
    made = []
    for precision, found in contestants(shape, source, folder, threads).items():
        outcomes = compete(found, rounds, threads)
        for one in outcomes:
            print(f"{name}, {one.name}: {1 / one.rate('model'):.3f} s, {one.peak:,.0f} MB", flush=True)
        made.append(row(name, precision, outcomes))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which models, by the beginning of their names; all when not said")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--write", action="store_true", help="renew the result of the documentation")
    given = parser.parse_args()
    names = [name for name in SHAPES if not given.names or name.lower().startswith(tuple(map(str.lower, given.names)))]
    state = conditions(("onnxruntime-gpu", "openvino", "torch", "transformers"))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            rows += measure(name, folder, given.rounds, given.threads)
    for cells in [COLUMNS, *rows]:
        print(f"| {' | '.join(cells)} |")
    if given.write:
        about = {"command": f"python -m benchmarks.vision_models --threads {given.threads}", "machine": machine()}
        result = {**about, "date": date.today().isoformat(), "conditions": state, "columns": COLUMNS, "rows": rows}
        path = RESULTS / f"vision_models_{given.threads}.json"
        path.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
