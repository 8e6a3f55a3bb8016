"""What measurements belong to: the processor, the CPUs that may be used, and the versions of what computes."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from isoform.runtimes.devices import cpus, said

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
