"""Runs a job in a process of its own, so that a crash costs one candidate and no state is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isoform import errors
from isoform.runtimes.choose.records import Candidate, Measurement

WORKER = "isoform.candidate_worker"
"""The module that is run: it reads a job from standard input and writes a measurement to the file it names."""
KILLED = " (the system does that when memory runs out)"


def run_job(candidate: Candidate, job: Mapping[str, Any], seconds: float, module: str = WORKER) -> Measurement:
    """The measurement that a worker makes of a candidate; one with an error where it dies, hangs or writes none."""
    with tempfile.TemporaryDirectory(prefix="isoform-measured-") as folder:
        answer = Path(folder) / "measurement.json"
        text = json.dumps({**job, "candidate": candidate.to_json(), "answer": str(answer)})
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
            encoding="utf-8",
            errors="replace",
            start_new_session=os.name == "posix",
        )
        try:
            _, said = process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return Measurement(candidate=candidate, error=f"stopped: not done in {seconds:.0f} s")
        except BaseException:
            _end(process)
            raise
        if process.returncode:
            return Measurement(candidate=candidate, error=_death(process.returncode, said))
        try:
            return Measurement.from_json(json.loads(answer.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Measurement(candidate=candidate, error=f"its process wrote no measurement: {_last(said)}")


def _environment() -> dict[str, str]:
    """Ours, with the place of this package; a worker neither measures nor counts what it does."""
    env = {**os.environ, "ISOFORM_MEASURE": "never"}
    root = Path(errors.__file__).parents[1]
    if root.name not in ("site-packages", "dist-packages"):  # not installed there: the worker must find it too
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return env


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a worker and what it has started."""
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.communicate()


def _death(code: int, said: str) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"its process was ended by {name}{KILLED if name == 'SIGKILL' else ''}: {_last(said)}"
    return f"its process ended with code {code}: {_last(said)}"


def _last(said: str) -> str:
    """The last line that a process wrote."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote no message"
