"""The sdist and the wheel hold the real files behind the four links, and the wheel runs where nothing else is."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("reference", "exporters", "runtimes", "validators")
OWN = ("chat", "drawing", "steps")  # folders of the package itself
CLEAN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel made from the sdist; built from a copy, so that the checkout stays clean."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    unwanted = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "benchmarks", "shared"
    )
    shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree, cwd=tree)
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    (wheel,) = (tree / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def expected(built: tuple[Path, Path]) -> set[str]:
    """Every file of the package that was built, under the name it is imported by."""
    tree = built[0].parents[1]
    package = tree / "src" / "isoform"
    found = {f"isoform/{path.name}" for path in package.iterdir() if path.is_file()}
    found |= {f"isoform/{room}/{path.name}" for room in OWN for path in (package / room).glob("*.py")}
    for room in ROOMS:
        for path in (tree / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"isoform/{room}/{path.relative_to(tree / room).as_posix()}")
    return found


def test_the_wheel_holds_every_file_of_the_rooms(built: tuple[Path, Path], expected: set[str]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_the_sdist_holds_real_files_instead_of_links(built: tuple[Path, Path], expected: set[str]) -> None:
    with tarfile.open(built[0]) as sdist:
        members = {m.name.split("/src/", 1)[1]: m for m in sdist.getmembers() if "/src/isoform/" in m.name}
        assert not [m.name for m in sdist.getmembers() if m.issym() or m.islnk()]
    assert expected <= set(members)


def test_the_installed_wheel_answers_on_the_command_line(built: tuple[Path, Path], tmp_path: Path) -> None:
    """A new environment that sees the dependencies installed here, but not this checkout."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=os.name != "nt")
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", built[1], cwd=tmp_path)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # A plain path: the .pth files of that folder (an editable isoform among them) are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    assert Path(run(python, "-c", "import isoform; print(isoform.__file__)", cwd=tmp_path).strip()).is_relative_to(site)
    version = run(scripts / "isoform", "--version", cwd=tmp_path)
    assert version.split() == ["isoform", importlib.metadata.version("isoform")]
    assert run(python, "-m", "isoform", "--version", cwd=tmp_path) == version
    rooms = "".join(f"import isoform.{room}; " for room in ROOMS)
    run(python, "-c", rooms, cwd=tmp_path)
