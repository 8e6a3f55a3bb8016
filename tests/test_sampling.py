"""The sample of a sweep keeps every family and every test of what a change touches."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from isoform.reference.families import modules
from tests import sampling
from tests.sampling import SWEEP, Case, changed_files, left_out, touched_families

FAMILIES = {family: [f"{family}_{n}" for n in range(4)] for family in ("one", "two", "three", "four")}
MODULES = {module.rsplit(".", 1)[-1]: module for module in modules()}


def sweep(function: str, names: list[str]) -> list[Case]:
    """A test that runs twice on each of these checkpoints."""
    return [Case(f"{function}[{name}-{n}]", function, name) for name in names for n in range(2)]


NAMES = [name for names in FAMILIES.values() for name in names]


def test_a_sweep_keeps_one_checkpoint_of_a_family_and_all_of_a_touched_one() -> None:
    cases = sweep("test_a", NAMES)
    out = left_out(cases, FAMILIES, {"two"})
    kept = [case.subject for case in cases if case.identifier not in out]
    assert {name for name in kept if name.startswith("two")} == set(FAMILIES["two"])
    for family in ("one", "three", "four"):
        mine = [name for name in kept if name.startswith(family)]
        assert len(mine) == 2 and len(set(mine)) == 1


def test_another_sweep_keeps_another_checkpoint() -> None:
    kept = set()
    for n in range(20):
        cases = sweep(f"test_{n}", NAMES)
        out = left_out(cases, FAMILIES, ())
        kept |= {case.subject for case in cases if case.identifier not in out}
    assert kept == set(NAMES)


def test_a_short_list_and_what_is_about_no_checkpoint_stay_whole() -> None:
    short = sweep("test_short", NAMES)[: SWEEP - 1]
    others = [Case(f"test_other[{n}]", "test_other", "") for n in range(50)]
    assert not left_out([*short, *others], FAMILIES, ())


def test_a_family_is_touched_by_its_own_file_and_by_those_that_few_read() -> None:
    assert touched_families({"reference/text/gpt2.py"}, MODULES) == {"gpt2"}
    assert touched_families({"reference/multimodal/towers.py"}, MODULES) >= {"clip", "siglip"}
    assert not touched_families({"reference/modules/layers.py", "docs/text.md", "reference/nothing.py"}, MODULES)


def test_the_change_is_read_from_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(sampling, "ROOT", tmp_path)
    monkeypatch.delenv("ISOFORM_TEST_BASE", raising=False)
    assert changed_files() == set()  # no history
    git("init", "-b", "main")
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
        git("add", "-A")
        git("commit", "-m", name)
    assert changed_files() == set()  # fewer commits than are looked back
    monkeypatch.setattr(sampling, "COMMITS", 1)
    assert changed_files() == {"second"}
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    git("checkout", "-b", "mine")
    (tmp_path / "third").write_text("third")
    git("add", "-A")
    git("commit", "-m", "third")
    assert changed_files() == {"third"}
    monkeypatch.setenv("ISOFORM_TEST_BASE", "HEAD~2")
    assert changed_files() == {"second", "third"}
    monkeypatch.setenv("ISOFORM_TEST_BASE", "nobody")
    with pytest.raises(ValueError, match="ISOFORM_TEST_BASE=nobody is no commit"):
        changed_files()
    monkeypatch.setenv("ISOFORM_TEST_BASE", "all")
    assert changed_files() is None
