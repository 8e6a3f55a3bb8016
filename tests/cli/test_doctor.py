"""`isoform doctor` answers on every machine, in twenty lines."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoform import doctor
from isoform.runtimes import devices
from isoform.runtimes.choose import machine
from tests.cli.test_bad_input import run
from tests.cli.test_commands import answer


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests as a whole are offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub on this machine, and the requests that it got."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


def test_the_doctor_says_what_is_here_in_twenty_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: list[str]
) -> None:
    monkeypatch.setattr("isoform.show.out.width", 100)
    capsys.readouterr()
    assert run(monkeypatch, "doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20
    text = "\n".join(lines)
    for word in ("processor", "memory", "onnxruntime", "llamacpp", "Hub cache", "Hub: reachable"):
        assert word in text
    assert hub


def test_the_doctor_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: list[str]
) -> None:
    found = answer(monkeypatch, capsys, "doctor")
    assert found["processor"]["cores"] >= 1
    assert set(found["caches"]) == {"Hub", "isoform"}
    assert found["packages"]["isoform"]
    assert found["hub"] == "reachable"


def test_a_system_that_tells_nothing_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(path: Path, *arguments: Any, **options: Any) -> str:
        raise OSError("no such file")

    monkeypatch.setattr(Path, "read_text", silent)
    monkeypatch.setattr(machine, "said", lambda *command: "")
    monkeypatch.setattr(devices, "said", lambda *command: "")
    monkeypatch.setattr(doctor, "said", lambda *command: "")
    monkeypatch.setattr("platform.processor", lambda: "")
    assert machine.processor() == "not known"
    assert devices.memory() == {"all": None, "free": None}
    assert doctor._gpus(2) == ["not known", "not known"]


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert doctor._hub().startswith("not reachable (")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backends": {"llamacpp": ""}}, "llamacpp does not run here"),
        ({"gpus": ["H200"], "packages": {"torch": "2.13.0+cpu", "onnxruntime": "1"}}, "the build for CPUs"),
        ({"memory": {"all": 4e9, "free": 1e9}}, "1.0 GB of memory are free"),
        ({"hub": "not reachable (no route)"}, "HF_ENDPOINT"),
        ({"caches": {"Hub": {"path": "/c", "size": 0, "free": 10**9}}}, "1.0 GB are left"),
        ({"processor": {"cores": 8, "threads to use": 2, "units": ["AVX2"]}}, "fewer threads"),
        ({"processor": {"cores": 2, "threads to use": 2, "units": ["AVX2"]}}, "multiplies no bytes"),
    ],
)
def test_what_is_missing_is_advised(change: dict[str, Any], words: str) -> None:
    healthy: dict[str, Any] = {
        "backends": {"torch": "torch 2"},
        "gpus": [],
        "packages": {"torch": "2", "onnxruntime-gpu": "1"},
        "processor": {"cores": 2, "threads to use": 2, "units": ["AVX2", "VNNI"]},
        "memory": {"all": 16e9, "free": 8e9},
        "caches": {},
        "hub": "reachable",
    }
    assert not list(doctor._advice(healthy))
    assert any(words in line for line in doctor._advice(healthy | change))
