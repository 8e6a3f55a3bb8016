"""What measurements belong to: the processor, the CPUs that may be used, and the versions of what computes."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from isoform.runtimes.devices import cpus

LIBRARIES = ("isoform", "torch", "onnxruntime-gpu", "onnxruntime", "openvino", "xllamacpp")
"""A measurement holds for these versions only."""


def machine() -> dict[str, str | int]:
    """The machine that a measurement holds for. What it can do is found out by measuring, never read off its name."""
    return {"processor": processor(), "cores": os.cpu_count() or 1, "usable": cpus()}


def versions() -> dict[str, str]:
    """The installed versions of `LIBRARIES`."""
    found: dict[str, str] = {}
    for package in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def processor() -> str:
    """Its name as the system says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip().lower() in ("model name", "hardware"):
                return line.partition(":")[2].strip()
    return said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or "not known"


def memory() -> Mapping[str, int | None]:
    """Bytes in all and free; the limit of a container counts as all."""
    total = free = None
    try:
        stated = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(stated[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        total = min(total, int(limit)) if limit.isdecimal() else total
    except (OSError, KeyError, ValueError, IndexError):
        told = said("sysctl", "-n", "hw.memsize")
        total = total or (int(told) if told.isdecimal() else None)
    return {"all": total, "free": free if total is None or free is None else min(free, total)}


def said(*command: str) -> str:
    """What a program of the system prints, or ""."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
