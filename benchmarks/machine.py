"""What a measurement ran on, read from the machine: processor, memory, load, noise, and versions of packages."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from isoform.doctor import examine
from tests.clients import environments

LOOPS, PIECES = 20_000, 100


def machine() -> str:
    """In words, as the line under a table has it: "AMD EPYC, 2 cores (AVX2, FMA, AVX-512), 23 GB"."""
    facts = examine(hub=False)
    processor, total = facts["processor"], facts["memory"]["all"]
    units = ", ".join(processor["units"]) or "no units that it tells of"
    memory = f", {total / 2**30:.0f} GB" if total else ""
    return f"{processor['name']}, {processor['cores']} cores ({units}){memory}"


def noise() -> float:
    """How much longer a piece of work takes at times than at best: the ninth decile over the fastest, of 100 pieces."""
    passed = []
    for _ in range(PIECES):
        start = time.perf_counter()
        for _ in range(LOOPS):
            pass
        passed.append(time.perf_counter() - start)
    passed.sort()
    return passed[PIECES * 9 // 10] / passed[0]


def conditions(packages: Sequence[str], peers: Sequence[str] = (), theirs: Sequence[str] = ()) -> dict[str, Any]:
    """Of the moment before a measurement: load average, noise, and versions.

    `packages` are those of this environment, `theirs` those of the environments `peers`.
    """
    found = {name: text for name in packages if (text := _version(name))}
    for peer in peers:
        if environments.installed(peer):
            pinned = environments.pinned(peer)
            found |= {name: pinned[name] for name in theirs if name in pinned and name not in found}
    return {"load": round(os.getloadavg()[0], 1), "noise": round(noise(), 2), "versions": found}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
