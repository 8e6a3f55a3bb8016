"""The registry names one module per family, and opening a file imports no more than its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoform.exporters.gguf import path_of, write
from isoform.reference.families import GGUF_FAMILIES, all_families, gguf_family
from isoform.reference.model import open_model

Tiny = Callable[[str], Path]


def imported(program: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter holds after `program`."""
    printed = f"import json, sys\n{program}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", printed, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def file(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write(open_model(tiny("qwen2")), folder, ["f32"])
    return folder / path_of("f32")


def test_the_table_of_gguf_architectures_agrees_with_the_cards() -> None:
    cards = [(card, gguf) for card in all_families() for gguf in card.ggufs]
    assert {gguf.arch for _, gguf in cards} == set(GGUF_FAMILIES)
    for card, gguf in cards:
        assert gguf_family(gguf.arch, gguf.holds, *gguf.vocabularies[:1]) is card
    assert gguf_family("moonbeam", ()) is None


def test_inspecting_a_gguf_imports_no_torch_and_no_family(file: Path) -> None:
    program = "from isoform.validators.tools.inspection import inspect; inspect(sys.argv[1])"
    modules = imported(program, str(file))
    assert "torch" not in modules
    assert not {name for name in modules if name.startswith("isoform.reference.text")}


def test_opening_a_gguf_imports_its_own_family_and_no_torch(file: Path) -> None:
    program = "from isoform.reference.model import open_model; open_model(sys.argv[1])"
    modules = imported(program, str(file))
    families = {card.config.__module__ for card in all_families()}
    assert modules & families == {gguf_family("qwen2", ()).config.__module__}  # type: ignore[union-attr]
    assert "torch" not in modules


def test_exporting_a_decoder_to_gguf_imports_no_torch(tiny: Tiny, tmp_path: Path) -> None:
    program = "from isoform import api; api.export(sys.argv[1], sys.argv[2], to='gguf', check=False)"
    assert "torch" not in imported(program, str(tiny("qwen2")), str(tmp_path / "bundle"))
