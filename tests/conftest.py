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

from tests import oracle


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Path]:
    """`tiny("qwen3_b")` is the folder of that tiny checkpoint; tests/oracle holds the names. Read-only."""
    return oracle.tiny


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none here"))
