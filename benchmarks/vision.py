"""Pictures per second: a checkpoint of DINOv2-small's and of ViT-base's shape, here and in transformers.

    python -m benchmarks.vision [--rounds 5] [--pictures 16] [--threads 2] [--folder DIR]

Weights are random, pictures are JPEG files of 640 x 480. Contestants take turns, so that what else the machine does
meets all of them; for each its best round counts, in wall time and in CPU time. "pipeline" goes from file to answer,
"model" from pixels to outputs. Ratios are against transformers' pipeline and model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

MODELS = {
    "DINOv2-small": ("image-feature-extraction", "BitImageProcessor", {"shortest_edge": 256}),
    "ViT-base": ("image-classification", "ViTImageProcessor", {"height": 224, "width": 224}),
}


def checkpoint(name: str, folder: Path) -> Path:
    """Write the checkpoint, unless it is there."""
    import torch
    import transformers

    path = folder / name
    if (path / "preprocessor_config.json").is_file():
        return path
    torch.manual_seed(0)
    if name == "ViT-base":
        labels = {n: f"label {n}" for n in range(1000)}
        model = transformers.ViTForImageClassification(transformers.ViTConfig(id2label=labels))
    else:
        config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)
        model = transformers.Dinov2Model(config)
    model.save_pretrained(path)
    _, kind, size = MODELS[name]
    settings = {"image_processor_type": kind, "size": size, "crop_size": {"height": 224, "width": 224}}
    (path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def pictures(folder: Path, count: int) -> list[str]:
    from PIL import Image

    random, paths = np.random.default_rng(0), []
    for n in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        paths.append(str(folder / f"{n}.jpg"))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def contestants(name: str, folder: Path, paths: list[str], threads: int) -> dict[str, Callable[[], Any]]:
    """What to run, by name; each does all pictures."""
    import torch
    import transformers

    from isoform import api

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    source, (task, *_) = checkpoint(name, folder), MODELS[name]
    bundle = folder / f"{name}.bundle"
    if not (bundle / "isoform.json").is_file():
        api.export(source, bundle, to="onnx", check=False)
    ours = api.pipeline(task, bundle)
    processor = transformers.AutoImageProcessor.from_pretrained(str(source), backend="pil")
    theirs = transformers.pipeline(task, model=str(source), image_processor=processor, device="cpu")
    pixels = np.stack(ours.processor.load(paths))  # type: ignore[attr-defined]
    tensor, model = torch.from_numpy(pixels), theirs.model

    def plain() -> None:
        with torch.inference_mode():
            for start in range(0, len(tensor), 8):
                model(pixel_values=tensor[start : start + 8])

    def session() -> None:
        for start in range(0, len(pixels), 8):
            ours.session.run({"pixel_values": pixels[start : start + 8]})

    return {
        "transformers pipeline": lambda: theirs(paths),
        "transformers pipeline, batch_size=8": lambda: theirs(paths, batch_size=8),
        "isoform pipeline": lambda: ours(paths),
        "transformers model": plain,
        "isoform model": session,
    }


def measure(runs: dict[str, Callable[[], Any]], rounds: int, count: int) -> dict[str, tuple[float, float]]:
    """Pictures per second of wall time and of CPU time, of the best round each."""
    best = dict.fromkeys(runs, (0.0, 0.0))
    for _ in range(rounds + 1):  # the first warms up: its figures are never the best
        for name, run in runs.items():
            wall, cpu = perf_counter(), process_time()
            run()
            rates = count / (perf_counter() - wall), count / (process_time() - cpu)
            best[name] = max(best[name][0], rates[0]), max(best[name][1], rates[1])
    return best


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--rounds", type=int, default=5)
    reader.add_argument("--pictures", type=int, default=16)
    reader.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    reader.add_argument("--folder", type=Path, help="where the checkpoints are kept; a temporary one when not said")
    given = reader.parse_args()
    with tempfile.TemporaryDirectory(prefix="isoform-vision-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = pictures(Path(temporary), given.pictures)
        for name in MODELS:
            found = measure(contestants(name, folder, paths, given.threads), given.rounds, given.pictures)
            print(f"\n| {name}, {given.threads} threads | pictures/s | per CPU second | ratio | CPU ratio |")
            print("|---|---|---|---|---|")
            for what, (wall, cpu) in found.items():
                base = found[f"transformers {what.split()[1].rstrip(',')}"]
                print(f"| {what} | {wall:.2f} | {cpu:.2f} | {wall / base[0]:.2f} | {cpu / base[1]:.2f} |")


if __name__ == "__main__":
    main()
