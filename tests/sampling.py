"""Which tests of a sweep over all families `make test` runs: all of the families that a change touches, and a sample.

A sweep is a test that goes over many tiny checkpoints. Of a family that the change does not touch, each sweep runs on
one checkpoint, another one in each sweep; the rest is the nightly suite. A family is touched by its own file and by
every file of `reference/` that few families read; what all read touches none more than the others.

The change is what differs from the branch `origin/main`, or, where HEAD is on it, from some commits before HEAD.
`ISOFORM_TEST_BASE` names another commit to compare with, or "all" for every test of every sweep.
"""

from __future__ import annotations

import ast
import os
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SWEEP = 12  # checkpoints from which on a test is a sweep
FEW = 8  # families that a file may serve, so that a change in it touches them
COMMITS = 30  # before HEAD, where nothing else says what the change is
EVERYTHING = "all"


class Case(NamedTuple):
    """One test: its identifier, its function, and the tiny checkpoint or family that it is about ("" for none)."""

    identifier: str
    function: str
    subject: str


def left_out(cases: Iterable[Case], families: Mapping[str, Collection[str]], touched: Collection[str]) -> set[str]:
    """The identifiers of the tests that the sample leaves out. `families`: family -> its tiny checkpoints."""
    family_of = {name: family for family, names in families.items() for name in names}
    sweeps: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for case in cases:
        if case.subject in family_of:
            sweeps[case.function][family_of[case.subject]][case.subject].append(case.identifier)
    out: set[str] = set()
    for function, found in sweeps.items():
        if sum(map(len, found.values())) < SWEEP:
            continue
        for family, subjects in found.items():
            if family not in touched:
                names = sorted(subjects)
                kept = names[zlib.crc32(f"{function} {family}".encode()) % len(names)]
                out.update(identifier for name in names if name != kept for identifier in subjects[name])
    return out


def touched_families(changed: Collection[str], modules: Mapping[str, str]) -> set[str]:
    """The families that these files touch, paths from the root of the repository. `modules`: family -> its module."""
    readers: dict[str, set[str]] = defaultdict(set)
    for family, module in modules.items():
        for path in _read_by(f"reference/{module.replace('.', '/')}.py"):
            readers[path].add(family)
    return {family for path in changed for family in readers[path] if len(readers[path]) <= FEW}


@cache
def _read_by(path: str) -> frozenset[str]:
    """A file of `reference/` and every file of it that this one imports, directly or not."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        if (name := waiting.pop()) not in seen and (ROOT / name).is_file():
            seen.add(name)
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isoform.reference"):
                    package = node.module.removeprefix("isoform.").replace(".", "/") if node.module else ""
                    waiting += [f"{package}.py", *(f"{package}/{alias.name}.py" for alias in node.names)]
    return frozenset(seen)


def changed_files() -> set[str] | None:
    """What differs from the commit that the change began with; None where every test is asked for.

    Without git, or in a copy without history, nothing is known to have changed. ValueError for a commit that is none.
    """
    base = os.environ.get("ISOFORM_TEST_BASE", "")
    if base == EVERYTHING:
        return None
    if base and not _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"):
        raise ValueError(f"ISOFORM_TEST_BASE={base} is no commit of this repository; name one, or {EVERYTHING!r}")
    if not base:
        base = _git("merge-base", "HEAD", "origin/main")
        if not base or base == _git("rev-parse", "HEAD"):
            base = _git("rev-list", "--max-count=1", f"--skip={COMMITS}", "HEAD")
    return set(_git("diff", "--name-only", base).splitlines()) if base else set()


def _git(*arguments: str) -> str:
    """What git prints, "" when it fails."""
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ran.stdout.strip()
