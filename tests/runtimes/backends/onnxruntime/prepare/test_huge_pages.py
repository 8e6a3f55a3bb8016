"""Huge pages: contents stay, and what is not wanted is not asked for."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoform.runtimes.backends.onnxruntime.prepare import huge_pages


def test_memory_keeps_what_it_holds() -> None:
    before = huge_pages.regions()
    array = np.arange(2**21)  # 16 MiB
    grown = huge_pages.regions() - before
    assert huge_pages.ask(grown, 60.0) == set()
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
    assert huge_pages.ask({(array.ctypes.data, array.ctypes.data + array.nbytes)}, -1.0) == set()


@pytest.mark.skipif(
    "[never]" in (huge_pages._SWITCH.read_text() if huge_pages._SWITCH.exists() else "[never]"),
    reason="this system has no huge pages to ask for",
)
def test_what_there_was_no_time_for_is_left_for_another_time() -> None:
    array = np.ones(2**22)
    start, end = region = (array.ctypes.data, array.ctypes.data + array.nbytes)
    ((first, last),) = left = huge_pages.ask({region}, -1.0)
    assert (first % huge_pages.PAGE, last % huge_pages.PAGE) == (0, 0)
    assert start <= first <= start + huge_pages.PAGE
    assert end - huge_pages.PAGE <= last <= end
    assert huge_pages.ask(left, 60.0) == set()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another library")
def test_gathered_blocks_lie_side_by_side() -> None:
    """In a process of its own: what was freed before decides as well."""
    program = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from isoform.runtimes.backends.onnxruntime.prepare import huge_pages
        if sys.argv[1] == "gather":
            huge_pages.gather()
        blocks = [np.ones(2**20, np.uint8) for _ in range(8)]
        (heap,) = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line]
        start, end = (int(address, 16) for address in heap.split("-"))
        print(sum(start <= block.ctypes.data < end for block in blocks))
    """
    inside = [
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("leave", "gather")
    ]
    assert inside == [0, 8]
