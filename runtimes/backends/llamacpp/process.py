"""A session's handle on its worker process: requests, answers, and the one clear error when the process dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from isoform import errors
from isoform.errors import BackendUnavailable, CheckpointError, InputError, IsoformError
from isoform.runtimes.backends.llamacpp import frames

PIPE = 2**20  # bytes that an answer's pipe takes at once, where Linux allows it: the logits of a token, of all rows


class Process:
    """llama.cpp with the model at `path`, in a process of its own. Ends with `close`, with this object or with us."""

    def __init__(
        self, path: Path, *, vocab_only: bool = False, gpu: int | None = None, threads: int = 1, strict: bool = False
    ) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file; name a .gguf file")
        self.path = path
        self._lock = threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        env = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        root = Path(errors.__file__).parents[1]
        if root.name not in ("site-packages", "dist-packages"):  # not installed there: the worker must find it too
            env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(env):
            env["GOMP_SPINCOUNT"] = "10000"  # threads that wait let others run: ten times faster on a busy machine
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "isoform.runtimes.backends.llamacpp.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=env,
        )
        widen(self._process.stdout)
        self._end = weakref.finalize(self, _end, self._process, self._stderr)
        self.facts: dict[str, int] = {}
        try:
            self.facts, _ = self.request(
                "load", path=str(path.resolve()), vocab_only=vocab_only, gpu=gpu, threads=threads, strict=strict
            )
        except BaseException:
            self._end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(
        self, do: str, blocks: Sequence[frames.Buffer] = (), **arguments: Any
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """Have the worker do something; raises what it raised, or BackendUnavailable when it died of it."""
        with self._lock:
            if not self._end.alive:
                raise InputError(f"the llamacpp session of {self.path} is closed; open a new one")
            try:
                frames.send(cast(BinaryIO, self._process.stdin), {"do": do, **arguments}, blocks)
                reply, out = frames.receive(cast(BinaryIO, self._process.stdout))
            except (EOFError, OSError) as error:
                raise self._death(do) from error
            except BaseException:  # an interrupt leaves an answer in the pipe that belongs to nobody
                self._process.kill()
                self._end()
                raise
        if "error" in reply:
            kind: type[IsoformError] = getattr(errors, reply["error"])
            raise kind(reply["message"])
        return reply, out

    def close(self) -> None:
        self._end()

    def _death(self, do: str) -> BackendUnavailable:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:  # the pipe is gone, the process is not: no use for it either
            self._process.kill()
            code = self._process.wait()
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGKILL:
            how += " (the system does that when memory runs out)"
        self._end()
        said = "; ".join(line.strip() for line in lines[-3:]) or "it wrote no message"
        return BackendUnavailable(
            f"the llama.cpp process of {self.path} {how} during '{do}': {said}; open a new session, or another backend"
        )


def widen(pipe: IO[bytes] | None) -> None:
    """Make a pipe hold `PIPE` bytes; it stays as it is where the system cannot do that, or this user has many."""
    if pipe is None or not sys.platform.startswith("linux"):
        return
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE)


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    """Close the pipe, which ends an idle worker; kill one that is still busy after two seconds."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # the worker is gone and takes no more of what was still to be written
                continue
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    stderr.close()
