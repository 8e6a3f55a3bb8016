"""`isoform doctor`: what this machine has, and what would be faster or is missing. It changes nothing.

Every probe answers on every system: what cannot be found out is "not known", with the reason where there is one.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isoform.runtimes.choose.machine import processor
from isoform.runtimes.devices import memory, said

UNITS = {
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni", "avx512vnni"),
    "bf16": ("avx512_bf16", "avx512bf16"),
    "AMX bf16": ("amx_bf16",),
    "AMX int8": ("amx_int8",),
    "NEON": ("asimd", "neon"),
    "SVE": ("sve",),
    "i8mm": ("i8mm",),
    "ARM bf16": ("bf16",),
}
"""Instructions that matter for matrices -> how systems spell them."""

PACKAGES = (
    "isoform",
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "xllamacpp",
    "tokenizers",
    "huggingface_hub",
)
SECONDS = 3.0  # to wait for the Hub


def examine(*, hub: bool = True) -> dict[str, Any]:
    """The facts of this machine, and advice; `hub`: ask the Hub whether it answers."""
    from isoform.export_cache import cache_folder
    from isoform.runtimes.devices import cpus, gpus
    from isoform.runtimes.open import available

    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": {
            "name": processor(),
            "cores": os.cpu_count() or 1,
            "threads to use": cpus(),
            "units": _units(),
        },
        "memory": memory(),
        "gpus": _gpus(gpus()),
        "backends": {state.backend: state.detail if state.ready else "" for state in available()},
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "caches": {"Hub": _folder(_hub_cache()), "isoform": _folder(cache_folder())},
        "hub": _hub() if hub else "not asked",
    }
    return facts | {"advice": list(_advice(facts))}


# ------------------------------------------------------------------ probes
def _units() -> list[str]:
    """The instructions of `UNITS` that the processor has; empty where the system does not tell."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip().lower() in ("flags", "features"):
                flags |= set(line.partition(":")[2].lower().split())
    except OSError:
        spoken = said("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        flags = set(spoken.lower().replace(".", "").split())
        if platform.machine().lower() in ("arm64", "aarch64"):
            flags.add("neon")  # part of the architecture
    return [name for name, spellings in UNITS.items() if flags & set(spellings)]


def _gpus(count: int) -> list[str]:
    """The names of the GPUs that the driver sees."""
    listed = said("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") if count else ""
    return listed.splitlines() or ["not known"] * count


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _folder(path: Path) -> dict[str, Any]:
    """Where a cache is, what it holds and what its disk has left, in bytes."""
    size = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118  many thousand files
            except OSError:
                continue
    there = next((p for p in (path, *path.parents) if p.exists()), path)
    try:
        free: int | None = shutil.disk_usage(there).free
    except OSError:
        free = None
    return {"path": str(path), "size": size, "free": free}


def _hub() -> str:
    """Whether the Hub answers: "reachable", or what is in the way."""
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "switched off by HF_HUB_OFFLINE"
    try:
        request = urllib.request.Request(f"{ENDPOINT}/api/models?limit=1", method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS):
            return "reachable"
    except urllib.error.HTTPError:
        return "reachable"  # it answered
    except (OSError, ValueError) as error:
        return f"not reachable ({getattr(error, 'reason', error)})"


# ------------------------------------------------------------------ advice
def _advice(facts: Mapping[str, Any]) -> Iterable[str]:
    """What would be faster or is missing here, one sentence each."""
    backends, packages, units = facts["backends"], facts["packages"], facts["processor"]["units"]
    for backend, detail in backends.items():
        if not detail:
            yield f"{backend} does not run here: `isoform backends` says what to install"
    if facts["gpus"] and "onnxruntime-gpu" not in packages:
        yield "there is a GPU, and ONNX Runtime is the build for CPUs: pip install onnxruntime-gpu"
    if facts["gpus"] and "+cpu" in packages.get("torch", ""):
        yield "there is a GPU, and torch is the build for CPUs: install a CUDA build"
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield "onnxruntime and onnxruntime-gpu are both installed and share their files: remove one"
    if facts["processor"]["threads to use"] < facts["processor"]["cores"]:
        yield "fewer threads are used than there are cores: OMP_NUM_THREADS or the CPU mask of this process says so"
    if units and "VNNI" not in units and "i8mm" not in units:
        yield "the processor multiplies no bytes (VNNI): 8-bit forms save memory here, not time"
    if (free := facts["memory"]["free"]) is not None and free < 2e9:
        yield f"{free / 1e9:.1f} GB of memory are free: prefer 4-bit forms, and `isoform check --memory`"
    for name, cache in facts["caches"].items():
        if cache["free"] is not None and cache["free"] < 5e9:
            yield f"{cache['free'] / 1e9:.1f} GB are left where the cache of {name} lies ({cache['path']})"
    if facts["hub"].startswith("not reachable"):
        yield "Hub ids open only from the cache: pass offline=True, or set HF_ENDPOINT to a mirror"
