"""How often `check` calls an honest export wrong: every tiny checkpoint of the tests, many seeds, every format.

    python -m benchmarks.false_alarms [--seeds 20] [--dtypes f32,f16] [NAME …]

A checkpoint is exported once per dtype. Every seed makes other rows of tokens, and each of its numbers is held to its
limit; a number beyond it is a false alarm. Prints a line per checkpoint and dtype, and exits with 1 if there was any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from isoform.errors import UnsupportedExport
from isoform.exporters import gguf, onnx, torchscript
from isoform.formats import CHECKED_ON
from isoform.manifest import Artifact
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_session
from isoform.validators.cases.registry import cases_of
from isoform.validators.levels.graph import check_graph
from isoform.validators.report.records import Result
from isoform.validators.truth.reference import Truth
from tests import oracle


def artifacts(model: Model, folder: Path, dtype: str) -> Iterator[Artifact]:
    """The model in every format that can hold it."""
    yield from onnx.write(model, folder, dtype, lambda *_: None)
    yield from torchscript.write(model, folder, dtype)
    try:
        yield from gguf.write(model, folder, [dtype])
    except UnsupportedExport as error:
        print(f"  no GGUF: {error}", flush=True)


def check(model: Model, dtype: str, seeds: range) -> list[Result]:
    """Every number of every seed, part and backend."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sessions = [
            (
                artifact.part,
                stack.enter_context(
                    open_session(
                        Path(folder) / artifact.files[0].path,
                        CHECKED_ON[artifact.format],
                        signature=artifact.signature,
                        strict=True,
                        threads=1,
                    )
                ),
            )
            for artifact in artifacts(model, Path(folder), dtype)
        ]
        for seed in seeds:
            for part in model.parts:
                truth = Truth(part, cases_of(part, seed))
                for name, session in sessions:
                    if name == part.part:
                        results += check_graph(part, session, dtype, truth=truth).results
    return results


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    every = [*oracle.ENCODERS, *oracle.DECODERS, *oracle.AUDIO, *oracle.PICTURES]
    options.add_argument("names", nargs="*", default=every)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--dtypes", default="f32,f16")
    asked = options.parse_args()
    total = alarms = 0
    for name in asked.names:
        model = open_model(oracle.tiny(name))
        for dtype in asked.dtypes.split(","):
            start = time.perf_counter()
            results = check(model, dtype, range(asked.seeds))
            wrong = [result for result in results if not result.passed]
            total, alarms = total + len(results), alarms + len(wrong)
            used = max((r.value / r.limit for r in results if r.limit), default=0.0)
            spent = time.perf_counter() - start
            print(f"{name} {dtype}: {len(results)} numbers, {len(wrong)} false alarms, {used:.0%} of a limit at most, "
                  f"{spent:.0f} s", flush=True)  # fmt: skip
            for result in wrong:
                print(f"  {result.backend}, {result.where}: {result.metric} {result.value:.3g} > {result.limit:.3g}")
    print(f"{total} numbers of {len(asked.names)} checkpoints and {asked.seeds} seeds, {alarms} false alarms")
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
