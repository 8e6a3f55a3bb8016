"""Device names, the CPUs and the memory this process may use, and the GPUs the driver sees."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from isoform.errors import InputError


def check_device(device: str) -> None:
    """Raises InputError for a name that no backend knows."""
    if not _is_indexed(device, "gpu") and device != "npu":
        parse_device(device)


def parse_device(device: str) -> int | None:
    """The index of a CUDA GPU, or None for the CPU. Raises InputError unless it is "cpu", "cuda" or "cuda:N"."""
    if device == "cpu":
        return None
    if _is_indexed(device, "cuda"):
        return int(device.partition(":")[2] or 0)
    if _is_indexed(device, "gpu") or device == "npu":
        raise InputError(
            f"device {device!r} is one of OpenVINO's; pass backend='openvino', or a device cpu, cuda, cuda:N"
        )
    raise InputError(f"device {device!r} is none of cpu, cuda, cuda:N (and with OpenVINO gpu, gpu:N, npu)")


def openvino_device(device: str) -> str:
    """OpenVINO's name of a device: "gpu:1" -> "GPU.1". Raises InputError for a device that is not OpenVINO's."""
    if device in ("cpu", "npu") or _is_indexed(device, "gpu"):
        return device.upper().replace(":", ".")
    if _is_indexed(device, "cuda"):
        raise InputError(
            f"device {device!r} is not one of OpenVINO's, which runs on cpu, gpu, gpu:N and npu (Intel's); use "
            "backend='onnxruntime' or 'torch' for it"
        )
    raise InputError(f"device {device!r} is none of cpu, gpu, gpu:N, npu")


def _is_indexed(device: str, kind: str) -> bool:
    """Whether it is "kind" or "kind:N"."""
    name, colon, index = device.partition(":")
    return name == kind and (index.isdecimal() or not colon)


def accelerators() -> bool:
    """Whether the system has drivers of GPUs or NPUs that OpenVINO may use. Loads no library."""
    return os.name == "nt" or any(map(os.path.isdir, ("/dev/accel", "/dev/dri")))


def cpus() -> int:
    """How many threads to use: OMP_NUM_THREADS where it is set, else the CPUs that this process may run on."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and limit != "0":
        return int(limit)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
