"""The worker process of llama.cpp: how it starts, and the one clear error when it, its file or its library is bad."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isoform.errors import BackendUnavailable, CheckpointError, InputError, IsoformError
from isoform.runtimes.backends.llamacpp import api, frames, process
from isoform.runtimes.backends.llamacpp import session as session_module
from isoform.runtimes.backends.llamacpp.session import LlamaCppSession
from isoform.signature import decoder_signature
from tests.oracle.convert_gguf import oracle_convert

SIGNATURE = decoder_signature(3, 2, 8, 459)


@pytest.fixture(scope="module")
def path(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle_convert(tiny("llama"), tmp_path_factory.mktemp("gguf") / "llama.gguf")


@pytest.fixture
def session(path: Path) -> Any:
    with LlamaCppSession(path, SIGNATURE) as opened:
        yield opened


def inputs(length: int) -> dict[str, Any]:
    ones = np.ones((1, length), np.int64)
    return {"input_ids": ones, "attention_mask": ones, "position_ids": np.arange(length)[None]}


def gone(pid: int) -> bool:
    for _ in range(60):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended; nobody has asked for its code yet
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_the_worker_starts_light() -> None:
    heavy = "{'numpy', 'torch', 'xllamacpp', 'transformers'} & set(sys.modules)"
    code = f"import sys, isoform.runtimes.backends.llamacpp.worker as w; w.Worker(); sys.exit(str({heavy} or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_killed_worker_is_one_clear_error(session: LlamaCppSession) -> None:
    session.run(inputs(3))
    os.kill(session._process.pid, signal.SIGKILL)
    with pytest.raises(BackendUnavailable, match=r"llama\.gguf was ended by SIGKILL .*memory.* open a new session"):
        session.run(inputs(3))
    with pytest.raises(InputError, match="closed"):
        session.run(inputs(3))


def test_a_worker_killed_in_the_middle_is_one_clear_error(
    session: LlamaCppSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = frames.receive

    def kill_first(pipe: Any) -> Any:
        os.kill(session._process.pid, signal.SIGKILL)
        return receive(pipe)

    monkeypatch.setattr(frames, "receive", kill_first)
    with pytest.raises(BackendUnavailable, match="SIGKILL"):
        session.run(inputs(400))


def test_a_failed_assertion_in_llamacpp_is_one_clear_error(
    session: LlamaCppSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "BATCH", 4096)  # more than the worker allows for
    with pytest.raises(BackendUnavailable, match=r"SIGABRT during 'decode': .*GGML_ASSERT\(.*n_batch"):
        session.run(inputs(600))


def test_what_llamacpp_says_is_part_of_the_error(session: LlamaCppSession) -> None:
    rooms = {"rows": 1, "slots": 512, "outputs": 512, "shared": True, "states": False}
    session._process.request("open", name="run", keep=[], room=rooms)
    token, position, row = (np.array([n], np.int32).tobytes() for n in (1, 0, 0))
    with pytest.raises(IsoformError, match=r"batch of 1 tokens \(code -1\): .*invalid token\[0\] = 999999"):
        bad = np.array([999999], np.int32).tobytes()
        session._process.request("decode", [bad, position, row, b"\1"], name="run")
    _, (out,) = session._process.request("decode", [token, position, row, b"\1"], name="run")
    assert len(out) == 459 * 4  # it lives on


def test_an_interrupt_ends_the_worker(session: LlamaCppSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(pipe: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(frames, "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.run(inputs(400))
    assert gone(session._process.pid)
    with pytest.raises(InputError, match="closed"):
        session.run(inputs(3))


def test_closing_ends_the_worker_and_may_be_repeated(path: Path) -> None:
    session = LlamaCppSession(path, SIGNATURE)
    pid = session._process.pid
    session.close()
    session.close()
    assert gone(pid)
    with pytest.raises(InputError, match="closed"):
        session.decoder(1).step(inputs(1)["input_ids"])


def test_a_forgotten_session_ends_its_worker(path: Path) -> None:
    session = LlamaCppSession(path, SIGNATURE)
    pid = session._process.pid
    del session
    assert gone(pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_worker_ends_with_its_parent(how: signal.Signals, path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from isoform.runtimes.backends.llamacpp.process import Process\n"
        "process = Process(Path(sys.argv[1])); print(process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
    assert gone(pid)


# ------------------------------------------------------------------ files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.gguf is not a file"):
        LlamaCppSession(tmp_path / "none.gguf", SIGNATURE)
    with pytest.raises(CheckpointError, match="is not a file"):
        LlamaCppSession(tmp_path, SIGNATURE)


@pytest.mark.parametrize("keep", [0.5, 0.02, 0.0])
def test_a_file_cut_short_is_named(keep: float, path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"cannot load .*cut\.gguf: .+ damaged") as error:
        LlamaCppSession(cut, SIGNATURE)
    assert "\n" not in str(error.value)
    assert "no reason" not in str(error.value)


def test_something_else_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello " * 100)
    with pytest.raises(CheckpointError, match=r"cannot load .*text\.gguf"):
        LlamaCppSession(tmp_path / "text.gguf", SIGNATURE)


# ------------------------------------------------------------------ the library


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install xllamacpp=="):
        api.library_path()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2027.1.12000")
    with pytest.raises(BackendUnavailable, match=r"xllamacpp 2027\.1\.12000 is installed.*pip install xllamacpp=="):
        api.library_path()


@pytest.mark.parametrize("field", ["n_ctx", "yarn_ext_factor", "swa_full", "n_samplers", "use_extra_bufts"])
def test_another_layout_is_refused(field: str) -> None:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(api.DECLARATIONS)
    real = ffi.dlopen(str(api.library_path()))
    model, context = real.llama_model_default_params(), real.llama_context_default_params()
    for struct in (model, context):
        if hasattr(struct, field):
            setattr(struct, field, not getattr(struct, field))
    fake = SimpleNamespace(llama_model_default_params=lambda: model, llama_context_default_params=lambda: context)
    with pytest.raises(BackendUnavailable, match=rf"unexpected defaults \({field} is"):
        api._check_layout(ffi, fake)


def test_a_gpu_is_refused_by_a_library_without_one(path: Path) -> None:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(api.DECLARATIONS)
    if ffi.dlopen(str(api.library_path())).llama_supports_gpu_offload():
        pytest.skip("the installed xllamacpp does have GPU support")
    with pytest.raises(BackendUnavailable, match="CPU only; use device='cpu'"):
        LlamaCppSession(path, SIGNATURE, device="cuda")


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(path: Path) -> None:
    try:
        session = LlamaCppSession(path, SIGNATURE, device="cuda", strict=True)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with session, LlamaCppSession(path, SIGNATURE, strict=True) as cpu:
        difference = np.abs(session.run(inputs(20))["logits"] - cpu.run(inputs(20))["logits"]).max()
    assert difference < 1e-2  # tensor cores may round products to 10 bits


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize("blocks", [[], [b""], [b"abc", b"", bytes(300_000)]])
def test_a_frame_arrives_as_it_was_sent(blocks: list[bytes], tmp_path: Path) -> None:
    with (tmp_path / "pipe").open("w+b") as pipe:
        frames.send(pipe, {"do": "it", "text": "né"}, blocks)
        pipe.seek(0)
        message, arrived = frames.receive(pipe)
        assert message == {"do": "it", "text": "né"}
        assert [bytes(block) for block in arrived] == blocks
        with pytest.raises(EOFError):
            frames.receive(pipe)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipes have another size on Linux alone")
def test_a_pipe_takes_the_logits_of_a_token_at_once_or_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb"):
        before = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        monkeypatch.setattr(process, "PIPE", 2**31 - 1)  # more than any system allows
        process.widen(pipe)
        assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) == before
        monkeypatch.setattr(process, "PIPE", 2 * before)
        process.widen(pipe)
        assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) == 2 * before


def test_a_process_is_found_without_installation(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from isoform.runtimes.backends.llamacpp.process import Process\n"
        "Process(Path(sys.argv[1])).close()"
    )
    source = Path(__file__).parents[4] / "src"
    env = {**os.environ, "PYTHONPATH": str(source)}
    (tmp_path / "json.py").write_text("raise SystemExit('the working folder is on the path')")
    subprocess.run([sys.executable, "-P", "-c", code, str(path)], cwd=tmp_path, env=env, check=True)
