"""How close the families of pictures, documents and tables are to transformers, and their graphs to them.

    python -m benchmarks.vision_parity [FAMILY …] [--write]

Each tiny checkpoint of tests/oracle is run in torch on the inputs that transformers ran it on, and its largest
difference is taken as a part of the largest value; then it is exported, and the check says how much of its limits the
graphs use, in float32 and float16. A whole model that starts from other inputs than transformers' is not in the first
column; its tests compare its parts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS

from isoform import api
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from tests.oracle import MULTIMODAL, TABLES, VISION, tiny

COLUMNS = ["family", "configurations", "torch against transformers", "ONNX, TorchScript f32", "ONNX f16"]
WITH_TEXTS = ("blip", "clip", "layoutlmv3", "siglip")
TYPES = ("f32", "f16")


def against_transformers(model: Model, folder: Path) -> float | None:
    """The largest difference of an output as a part of its largest value; None where the inputs are others."""
    import torch
    from safetensors.torch import load_file

    golden, signature = load_file(folder / "golden.safetensors"), model.signature
    ports = [port.name for port in signature.inputs]
    if len(model.parts) > 1 or any(f"in.{name}" not in golden for name in ports):
        return None
    with torch.inference_mode():
        outputs = model.module()(*(golden[f"in.{name}"] for name in ports))
    pairs = [(x, golden.get(f"out.{port.name}")) for port, x in zip(signature.outputs, outputs, strict=True)]
    found = [_apart(x, y) for x, y in pairs if y is not None and y.shape == x.shape]
    return max(found, default=None)


def _apart(found: Any, expected: Any) -> float:
    found, expected = found.double(), expected.double()
    seen = expected.isfinite()
    return float((found - expected)[seen].abs().max() / expected[seen].abs().max())


def shares(folder: Path, made: Path) -> dict[str, float]:
    """The largest share of a limit that a form uses, by dtype."""
    report = api.export_and_check(folder, made, to=("onnx", "torchscript"), onnx_types=TYPES, overwrite=True)[1]
    assert report is not None
    worst = dict.fromkeys(TYPES, 0.0)
    for result in report.results:
        if result.dtype in worst and 0 < result.limit < float("inf"):
            worst[result.dtype] = max(worst[result.dtype], result.value / result.limit)
    return worst


def row(family: str, names: tuple[str, ...]) -> list[str]:
    title = load_family(json.loads((tiny(names[0]) / "config.json").read_text())["model_type"]).title
    apart, worst = [], dict.fromkeys(TYPES, 0.0)
    for name in names:
        model = open_model(tiny(name))
        if (found := against_transformers(model, tiny(name))) is not None:
            apart.append(found)
        with tempfile.TemporaryDirectory() as made:
            for kind, share in shares(tiny(name), Path(made) / "bundle").items():
                worst[kind] = max(worst[kind], share)
    said = f"{max(apart):.1e}" if apart else "by its parts"
    return [title, str(len(names)), said, *(f"{worst[kind]:.2f}" for kind in TYPES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--write", action="store_true", help="renew the result of the documentation")
    given = parser.parse_args()
    table = {**VISION, **{name: MULTIMODAL[name] for name in WITH_TEXTS}, **TABLES}
    rows = []
    for family, names in table.items():
        if not given.families or family in given.families:
            rows.append(row(family, names))
            print(f"| {' | '.join(rows[-1])} |", flush=True)
    if given.write:
        about = {"command": "python -m benchmarks.vision_parity", "date": date.today().isoformat()}
        path = RESULTS / "vision_parity.json"
        path.write_text(json.dumps({**about, "columns": COLUMNS, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
