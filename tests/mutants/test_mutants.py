"""A few mutants in the ordinary tests; all of them with `-m mutants`, or as a table by `python -m tests.mutants`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mutants.faults import FAULTS, Fault
from tests.mutants.hunt import hunt, is_honest
from tests.mutants.planting import FORMS, Sources

QUICK = (
    ("stale cache", "onnx f32"),
    ("epsilon of the norms, encoder", "onnx q4_0"),
    ("padding ignored, encoder", "torchscript f32"),
    ("rotary scaling", "gguf f32"),
    ("epsilon of the norms, encoder", "gguf q8_0"),
)
"""One of each way to plant and of each way to be found."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("mutants"))


def every() -> Iterator[object]:
    for fault in FAULTS:
        for form in fault.forms:
            marks = [] if (fault.name, form) in QUICK else [pytest.mark.slow, pytest.mark.mutants]
            yield pytest.param(fault, form, id=f"{fault.name}, {form}", marks=marks)


@pytest.mark.parametrize(("fault", "form"), list(every()))
def test_a_mutant_is_killed_and_found(sources: Sources, fault: Fault, form: str) -> None:
    outcome = hunt(sources, fault, form)
    assert outcome.killed
    assert outcome.found, outcome.place


@pytest.mark.slow
@pytest.mark.mutants
@pytest.mark.parametrize(("source", "form"), sorted({(fault.source, form) for fault in FAULTS for form in fault.forms}))
def test_without_a_fault_the_bundle_is_the_same(sources: Sources, source: str, form: str) -> None:
    report = is_honest(sources, source, form)
    assert report.same, [r for r in report.results if not r.passed]
    assert report.departures == []


def test_the_quick_ones_are_mutants() -> None:
    assert set(QUICK) <= {(fault.name, form) for fault in FAULTS for form in fault.forms}
    assert {form for fault in FAULTS for form in fault.forms} == set(FORMS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
