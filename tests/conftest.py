"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the network; a test of the Hub starts its own server
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of pytest-xdist already share the cores
os.environ.setdefault("ISOFORM_MEASURE", "never")  # the tests of measuring say when

import pytest

from isoform.reference.families import modules
from tests import oracle, sampling

APART = ("browser", "clients", "mutants", "nightly", "slow")
"""The marks of suites that are run by themselves."""


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Path]:
    """`tiny("qwen3_b")` is the folder of that tiny checkpoint; tests/oracle holds the names. Read-only."""
    return oracle.tiny


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the sample leaves out as nightly, and skip the tests marked `gpu` where torch sees no CUDA device."""
    if (changed := sampling.changed_files()) is not None:
        touched = sampling.touched_families(changed, {module.rsplit(".", 1)[-1]: module for module in modules()})
        daily = [item for item in items if not any(map(item.get_closest_marker, APART))]
        left_out = sampling.left_out(map(_case, daily), oracle.TINIES, touched)
        for item in daily:
            if item.nodeid in left_out:
                item.add_marker(pytest.mark.nightly)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none here"))


def _case(item: pytest.Item) -> sampling.Case:
    """What the sampling reads of a test: the first of its parameters that is a tiny checkpoint is its subject."""
    spec = getattr(item, "callspec", None)
    values = [value for value in spec.params.values() if isinstance(value, str)] if spec else []
    subject = next((value for value in values if value in oracle.BATCH), "")
    return sampling.Case(item.nodeid, item.nodeid.partition("[")[0], subject)
