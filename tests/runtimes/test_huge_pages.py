"""Huge pages: contents stay, and what is not wanted is not asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from isoform.runtimes import huge_pages


def test_memory_keeps_what_it_holds() -> None:
    before = huge_pages.regions()
    array = np.arange(2**21)  # 16 MiB
    grown = huge_pages.regions() - before
    assert 0 <= huge_pages.ask(grown, 5.0) <= sum(end - start for start, end in grown)
    assert np.array_equal(array, np.arange(2**21))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is known of regions")
def test_a_large_array_lies_in_a_region() -> None:
    array = np.ones(2**22)
    middle = array.ctypes.data + array.nbytes // 2
    assert any(start <= middle < end for start, end in huge_pages.regions())


def test_nothing_is_asked_for_where_the_system_says_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "enabled"
    switch.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_SWITCH", switch)
    array = np.ones(2**22)
    assert huge_pages.ask({(array.ctypes.data, array.ctypes.data + array.nbytes)}, 5.0) == 0


def test_no_time_is_spent_beyond_what_is_given() -> None:
    array = np.ones(2**22)
    assert huge_pages.ask({(array.ctypes.data, array.ctypes.data + array.nbytes)}, -1.0) == 0
