"""The writer that every room shares: a file or folder appears complete, or nothing changes."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from isoform import whole
from isoform.whole import CannotStage, NoSpace, free_bytes, whole_file, whole_folder


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "new" / "file"
    with whole_file(out) as part:
        part.write_text("first")
        assert not out.exists()
    with whole_file(out) as part:
        part.write_text("second")
        assert out.read_text() == "first"
    assert out.read_text() == "second"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_fails_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "file"
    out.write_text("old")
    with pytest.raises(type(error)), whole_file(out) as part:
        part.write_text("half")
        raise error
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def fill(out: Path, text: str, **options: bool) -> None:
    with whole_folder(out, **options) as part:
        (part / "file").write_text(text)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "folder"
    fill(out, "first")
    fill(out, "second", replace=True)
    assert (out / "file").read_text() == "second"
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_is_no_obstacle_and_a_filled_one_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "text")
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "empty", "other")
    assert (tmp_path / "empty" / "file").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_fails_leaves_no_parent_behind(tmp_path: Path, replace: bool) -> None:
    with (
        pytest.raises(RuntimeError, match="half-way"),
        whole_folder(tmp_path / "a" / "b" / "folder", replace=replace) as part,
    ):
        (part / "file").write_text("half")
        raise RuntimeError("half-way")
    assert not list(tmp_path.iterdir())


def test_an_old_folder_stays_when_two_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "_exchange", lambda a, b: False)
    out = tmp_path / "folder"
    fill(out, "first")
    fill(out, "second", replace=True)
    assert (out / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_too_little_space_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(NoSpace) as caught, whole_folder(tmp_path / "a" / "folder", needed=1001):
        raise AssertionError("the block must not run")
    assert (caught.value.needed, caught.value.free) == (1001, 1000)
    assert free_bytes(tmp_path / "a" / "folder") == 1000
    assert not list(tmp_path.iterdir())


def test_a_parent_that_cannot_be_made_is_an_error_of_its_own() -> None:
    with pytest.raises(CannotStage), whole_folder(Path("/proc/isoform/folder")):
        raise AssertionError("the block must not run")


WAITS = """
import sys, time
from pathlib import Path
from isoform.whole import whole_folder
with whole_folder(Path(sys.argv[1])) as part:
    (part / "half").write_text("half")
    print("under way", flush=True)
    time.sleep(60)
"""


def started(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_what_a_killed_process_left_is_removed_and_a_running_one_is_not_disturbed(tmp_path: Path) -> None:
    alive, killed = started(tmp_path / "folder"), started(tmp_path / "folder")
    killed.kill()
    killed.communicate(timeout=60)
    assert len(list(tmp_path.iterdir())) == 2
    fill(tmp_path / "folder", "text")
    assert len(list(tmp_path.iterdir())) == 2  # the folder, and the staging folder of the running process
    alive.send_signal(signal.SIGINT)
    alive.communicate(timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
