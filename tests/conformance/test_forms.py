"""Every family computes the same in every form: tiny checkpoints of the table, exported and checked.

What is asked of a form comes from the model's signature and card: lengths, paddings on both sides, batches, a cache
filled in steps, chosen rows, switches, every part of a model of several graphs. So a family of any modality needs no
line here but its row in `tests/oracle/__init__.py`. Each tiny checkpoint is checked in float32 in all formats; the
other dtypes go round the checkpoints of a family, so that every family meets every dtype once. The full product is the
nightly suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isoform.exporters import gguf, onnx
from isoform.formats import FLOATS, FORMATS, checked_on
from isoform.manifest import Artifact, Manifest
from isoform.quality import plain_dtype
from isoform.reference.families import modules
from isoform.reference.model import Model, open_model
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.levels.packed import multiplies
from isoform.validators.report.records import Report
from tests.exports import exported
from tests.oracle import TINIES, listed, original, tiny


@dataclass(frozen=True)
class Forms:
    """Forms that are exported together, so that a check computes the reference's answers once: dtypes by format."""

    onnx: tuple[str, ...] = ()
    torchscript: str = ""
    gguf: tuple[str, ...] = ()

    def exported(self, name: str) -> Path:
        """The bundle of those forms that the model may have."""
        missing = Manifest.read(exported(name)).missing
        return exported(
            name,
            [form for form in FORMATS if getattr(self, form) and form not in missing],
            self.torchscript or "f32",
            gguf=gguf.Options(types=self.gguf or ("f32",)),
            onnx=onnx.Options(types=self.onnx),
        )


OTHERS = {
    "halves": Forms(onnx=("f16", "int8"), torchscript="f16"),
    "bfloat16": Forms(onnx=("q8_0",), torchscript="bf16"),
    "portable": Forms(onnx=("f32-portable",)),
}
GGUF = Forms(gguf=("f16", "bf16", "q8_0"))


def in_turn() -> list[Any]:
    """Every family with every dtype, on one of its checkpoints; the others of the product are nightly."""
    rows = []
    for family, checkpoints in TINIES.items():
        for n, kind in enumerate(OTHERS, 1):
            for m, name in enumerate(checkpoints):
                marks = () if n % len(checkpoints) == m else (pytest.mark.nightly,)
                rows.append(pytest.param(name, kind, id=f"{family}-{name}-{kind}", marks=marks))
    return rows


def checked(folder: Path) -> Report:
    return check_bundle(folder, threads=1, limits=Limits(keep=False))


def wrong(report: Report) -> list[str]:
    return [
        f"{r.backend} {r.level} {r.case}: {r.metric} {r.value:.3g}, allowed {r.limit:.3g} {r.note}"
        for r in report.results
        if not r.passed
    ]


def quantizes(model: Model) -> bool:
    """Whether a linear layer has rows of whole blocks of 32, so that q8_0 can hold it."""
    shapes = {key: weight.shape for part in model.parts for key, weight in part.weights.items() if "embed" not in key}
    return any(len(shape) == 2 and shape[1] % 32 == 0 for shape in shapes.values())


def assert_measured(report: Report, artifacts: list[Artifact]) -> None:
    """No form passes for want of a measurement: each has results of its weights and of what it computes."""
    for artifact in artifacts:
        wanted = "graph" if plain_dtype(artifact.dtype) in FLOATS else "deployment"
        form = artifact.format, artifact.dtype
        ran = {r.backend for r in report.results if (r.form, r.dtype, r.level) == (*form, wanted)}
        assert ran == set(checked_on(*form)), f"{artifact.format} {artifact.dtype} ran on {ran}"
        levels = {r.level for r in report.results if (r.form, r.dtype) == form}
        assert {"files", "weights", wanted} <= levels, f"{artifact.format} {artifact.dtype}: {levels}"


def test_every_family_has_two_tiny_checkpoints() -> None:
    listed_here = {original(family) for family in TINIES}
    assert listed_here == {module.rsplit(".", 1)[-1] for module in modules()}
    assert all(len(checkpoints) > 1 for checkpoints in TINIES.values())


@pytest.mark.parametrize("name", listed(TINIES))
def test_every_form_computes_the_same_in_float32(name: str) -> None:
    folder = exported(name)
    manifest, model = Manifest.read(folder), open_model(tiny(name))
    report = checked(folder)
    assert not wrong(report), "\n".join(wrong(report))
    assert_measured(report, manifest.artifacts)
    written = {artifact.format for artifact in manifest.artifacts}
    assert {"onnx", "torchscript"} <= written
    assert written | manifest.missing.keys() == set(FORMATS)
    assert all(len(reason) > 10 for reason in manifest.missing.values())
    for form in written - {"gguf"}:
        parts = [artifact.part for artifact in manifest.artifacts if artifact.format == form]
        assert parts == [part.part for part in model.parts]


@pytest.mark.parametrize(("name", "kind"), in_turn())
def test_every_form_computes_the_same_in_other_dtypes(name: str, kind: str) -> None:
    folder = OTHERS[kind].exported(name)
    report = checked(folder)
    found = wrong(report)
    model = open_model(tiny(name))
    if "q8_0" in OTHERS[kind].onnx and not quantizes(model) and any(map(multiplies, model.parts)):
        assert found and all("no weight is quantized in a file of type q8_0" in line for line in found)
        return
    assert not found, "\n".join(found)
    assert_measured(report, Manifest.read(folder).artifacts)


def in_gguf(family: str) -> list[str]:
    """The checkpoints of a family that GGUF can hold: some tasks of it may have no architecture there."""
    return [name for name in TINIES[family] if "gguf" not in Manifest.read(exported(name)).missing]


def check_gguf(name: str) -> None:
    folder = GGUF.exported(name)
    report = checked(folder)
    assert not wrong(report), "\n".join(wrong(report))
    assert_measured(report, Manifest.read(folder).artifacts)


@pytest.mark.parametrize("family", TINIES)
def test_gguf_computes_the_same_in_other_types(family: str) -> None:
    for name in in_gguf(family)[-1:]:
        check_gguf(name)


@pytest.mark.nightly
@pytest.mark.parametrize("family", TINIES)
def test_every_checkpoint_in_gguf_computes_the_same(family: str) -> None:
    for name in in_gguf(family):
        check_gguf(name)
