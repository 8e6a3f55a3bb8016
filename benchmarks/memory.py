"""Peak memory and time of `isoform export` on a large random checkpoint.

    python benchmarks/memory.py [--size small|large] [--formats onnx,gguf,torchscript] [--keep FOLDER]

Writes a random Qwen2 checkpoint (large: 2.2 GB in bfloat16; its tokenizer is a tiny one of the tests), exports it in a
process of its own per format, and prints what the kernel says of each finished process: maximum resident set size
(what GNU time prints), CPU seconds (user + system), wall seconds, and the bytes written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIZES = {
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32000},
    "large": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 65536},
}
EXPORTS = {"onnx": [], "gguf": ["--gguf-type", "q8_0"], "torchscript": []}


def write_checkpoint(folder: Path, size: str) -> int:
    """A random Qwen2 checkpoint in bfloat16, sharded; returns its bytes."""
    sys.path.insert(0, str(ROOT))
    from tests.oracle import tiny

    config = json.loads((tiny("qwen2") / "config.json").read_text())
    config |= {**SIZES[size], "num_attention_heads": SIZES[size]["hidden_size"] // 64, "num_key_value_heads": 4}
    config |= {"head_dim": 64, "layer_types": None, "max_window_layers": config["num_hidden_layers"]}
    return write_random(folder, config | {"dtype": "bfloat16", "tie_word_embeddings": True})


def write_random(folder: Path, config: dict[str, Any], shard_bytes: int = 10**9) -> int:
    """A random decoder of this config, in its dtype, with the tokenizer of a tiny one; returns the bytes of weights."""
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(ROOT))
    from isoform.reference.families import load_family
    from isoform.reference.weights import hub_names
    from tests.oracle import tiny

    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tiny(config["model_type"]) / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    family = load_family(config["model_type"])
    with torch.device("meta"):
        built = family.tasks[0].build(family.config.from_dict(config))
        shapes = {name: parameter.shape for name, parameter in built.named_parameters()}
    if config["tie_word_embeddings"]:
        shapes.pop("head.weight", None)
    names = {name: key for name, (key, _) in hub_names(shapes, family.rules).items()}
    torch.manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    where: dict[str, str] = {}
    filled = total = 0
    for name, shape in shapes.items():
        if filled > shard_bytes:
            save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors", {"format": "pt"})
            shards[-1].clear()
            shards.append({})
            filled = 0
        tensor = torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape) * 0.02
        shards[-1][names[name]] = tensor.to(getattr(torch, config["dtype"]))
        where[names[name]] = f"model-{len(shards):05d}.safetensors"
        filled += shards[-1][names[name]].nbytes
        total += shards[-1][names[name]].nbytes
    save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return total


def measure(
    command: list[str], *, env: dict[str, str] | None = None, quiet: bool = False
) -> tuple[int, float, float, float]:
    """Exit code, peak MB, CPU seconds and wall seconds of a process of its own; `quiet` drops its messages too."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if quiet else None, env=env
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--formats", default="onnx,gguf,torchscript")
    parser.add_argument("--keep", type=Path, help="reuse or keep the checkpoint in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = arguments.keep or Path(temporary) / "checkpoint"
        if not source.exists():
            total = write_checkpoint(source, arguments.size)
            print(f"checkpoint: {total / 1e9:.2f} GB")
        print("| export | peak MB | CPU s | wall s | written MB |\n|---|---|---|---|---|")
        for form in arguments.formats.split(","):
            out = Path(temporary) / form
            command = [sys.executable, "-m", "isoform", "export", str(source), "--to", form, "--out", str(out)]
            code, peak, cpu, wall = measure([*command, "--no-check", *EXPORTS[form]])
            if code:
                sys.exit(f"export to {form} failed with exit code {code}")
            written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            print(f"| {form} | {peak:.0f} | {cpu:.1f} | {wall:.1f} | {written / 1e6:.0f} |", flush=True)
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
