"""The README's quickstart, word for word, with the wheel in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START, END = "<!-- --8<-- [start:quickstart] -->", "<!-- --8<-- [end:quickstart] -->"
QUICKSTART = README.partition(START)[2].partition(END)[0]
INSTALL, COMMANDS = re.findall(r"```sh\n(.*?)```", QUICKSTART, re.DOTALL)
(CODE,) = re.findall(r"```python\n(.*?)```", QUICKSTART, re.DOTALL)
SAID = [line.removeprefix("# ") for line in CODE.splitlines() if line.startswith("# ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with everything that the first block installs, and the variables of its environment."""
    folder = tmp_path_factory.mktemp("quickstart")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
    )
    venv.create(folder / "env", with_pip=True)
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "ISOFORM_"))},
        "PATH": f"{folder / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_FIND_LINKS": str(folder / "dist"),  # where `pip install isoform` finds it
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "ISOFORM_CACHE": str(folder / "cache"),
    }
    shell(INSTALL, folder, variables)
    return folder, variables


def shell(script: str, folder: Path, variables: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_code_prints_what_the_readme_says(place: tuple[Path, dict[str, str]]) -> None:
    folder, variables = place
    (folder / "quickstart.py").write_text(CODE, encoding="utf-8")
    printed = shell("python quickstart.py", folder, variables).splitlines()
    assert len(printed) == len(SAID)
    for line, said in zip(printed, SAID, strict=True):
        pattern = re.escape(said.strip()).replace("…", r"\d*")
        assert re.fullmatch(pattern, line.strip()), (line, said)


def test_the_commands_end_with_the_same(place: tuple[Path, dict[str, str]]) -> None:
    folder, variables = place
    printed = shell(COMMANDS, folder, variables)
    assert "the same" in printed.splitlines()


def test_nothing_but_isoform_and_its_dependencies_is_there(place: tuple[Path, dict[str, str]]) -> None:
    folder, variables = place
    listed = shell("pip list --format=freeze", folder, variables).lower()
    assert "isoform==" in listed
    assert "transformers==" not in listed
