"""Device names, the CPUs this process may use, and the GPUs the driver sees."""

from __future__ import annotations

import ctypes
import os

from isoform.errors import InputError


def parse_device(device: str) -> int | None:
    """The index of a GPU, or None for the CPU. Raises InputError unless it is "cpu", "cuda" or "cuda:N"."""
    kind, colon, index = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and (index.isdecimal() or not colon):
        return int(index or 0)
    raise InputError(f"device {device!r} is none of cpu, cuda, cuda:N")


def cpus() -> int:
    """How many threads to use: OMP_NUM_THREADS where it is set, else the CPUs that this process may run on."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and limit != "0":
        return int(limit)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> int:
    """How many CUDA devices the driver has; 0 without a driver. Loads no other library."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
