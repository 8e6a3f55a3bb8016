"""What a worker does with a candidate, in this process: it times workloads in rounds, stops a slow one, and proves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import isoform
from isoform import candidate_worker as worker
from isoform.runtimes.choose.records import Candidate, Measurement
from isoform.runtimes.pipelines import model_task
from isoform.validators.check import proof
from isoform.workloads import SENTENCES, workloads_of

Tiny = Callable[[str], Path]
F32 = Candidate(backend="torch", dtype="f32", threads=1)


@pytest.fixture(autouse=True)
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "cache"))


def job(path: Path, task: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    told = {"model": str(path), "source": str(path), "task": task, "use": "latency", "slowest": None, "prove": True}
    told["served"] = model_task(task)
    told["quality"] = "high"
    effort = {"rounds": 2, "least": 0.0, "timing": 60.0, "workloads": None}
    return {**told, **effort, "proof": None, "answers": str(tmp_path / "answers"), **changes}


@pytest.fixture
def proving(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A proof that is made up: `found` is what it finds, `asked` how often the reference was."""
    state: dict[str, Any] = {"found": {"kl": (0.001, 0.004)}, "asked": 0, "proven": []}

    def reference_answers(model: Any) -> proof.Answers:
        state["asked"] += 1
        return proof.Answers(())

    def prove(session: Any, model: Any, dtype: str, answers: Any, quality: str) -> Any:
        assert answers == proof.Answers(())
        state["proven"].append((session.backend, model.task.name, dtype))
        assert quality == "high"

    monkeypatch.setattr(proof, "reference_answers", reference_answers)
    monkeypatch.setattr(proof, "prove", prove)
    monkeypatch.setattr(proof, "worst_by_metric", lambda report: state["found"])
    return state


def test_a_decoder_is_timed_on_a_prompt_a_row_and_a_batch(tiny: Tiny, tmp_path: Path, proving: dict[str, Any]) -> None:
    found = worker.measured(job(tiny("llama"), "text-generation", tmp_path), F32)
    assert set(found.timings) == {"prefill 128", "decode", "batch 8"}
    assert {timing.unit for timing in found.timings.values()} == {"tokens"}
    assert all(timing.rate > 0 and timing.spread >= 1 for timing in found.timings.values())
    assert found.proof == {"kl": (0.001, 0.004)} and found.proven
    assert proving["proven"] == [("torch", "text-generation", "f32")]
    every = worker.measured(job(tiny("llama"), "text-generation", tmp_path, workloads=["batch 32"], rounds=1), F32)
    assert set(every.timings) == {"batch 32"}


def test_the_reference_answers_once_for_all_candidates(tiny: Tiny, tmp_path: Path, proving: dict[str, Any]) -> None:
    told = job(tiny("vit_cls"), "image-classification", tmp_path, rounds=1)
    for dtype in ("f32", "bf16"):
        found = worker.measured(told, Candidate(backend="torch", dtype=dtype, threads=1))
        assert set(found.timings) == {"batch 1", "batch 8"} and found.proof
    assert proving["asked"] == 1 and [dtype for *_, dtype in proving["proven"]] == ["f32", "bf16"]
    (Path(told["answers"]) / "answers.json").write_text("{")
    worker.measured(told, F32)
    assert proving["asked"] == 2, "a damaged folder counts as missing"


def test_what_is_known_or_not_wanted_is_not_proven(tiny: Tiny, tmp_path: Path, proving: dict[str, Any]) -> None:
    told = job(tiny("bert"), "fill-mask", tmp_path, rounds=1)
    assert worker.measured({**told, "proof": {"kl": [0.1, 0.2]}}, F32).proof == {"kl": (0.1, 0.2)}
    assert worker.measured({**told, "prove": False}, F32).proof == {}
    assert not proving["proven"]
    proving["found"] = {}
    nothing = worker.measured(told, F32)
    assert not nothing.proven and not nothing.error, "what nothing was measured of is not proven"


def test_a_slow_candidate_is_stopped_after_a_round(tiny: Tiny, tmp_path: Path, proving: dict[str, Any]) -> None:
    found = worker.measured(job(tiny("bert"), "fill-mask", tmp_path, slowest=1e-9), F32)
    assert "stopped after a round" in found.error and "times as slow as the best before it" in found.error
    assert found.timings["batch 1"].spread == 1 and not proving["proven"]


def test_an_error_of_ours_is_the_measurements(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = Candidate(backend="llamacpp", dtype="q8_0", threads=1)
    told = job(tiny("vit_cls"), "image-classification", tmp_path)
    told |= {"candidate": candidate.to_json(), "answer": str(tmp_path / "answer.json")}
    monkeypatch.setattr("json.load", lambda stream: told)
    worker.main()
    found = Measurement.from_json(json.loads((tmp_path / "answer.json").read_text()))
    assert found.candidate == candidate and "llama.cpp" in found.error and "\n" not in found.error


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("whisper", "automatic-speech-recognition", {"30 s": "s"}),
        ("wav2vec2_ctc", "automatic-speech-recognition", {"30 s": "s"}),
        ("bert_embed", "feature-extraction", {"batch 1": "texts", "batch 8": "texts", "batch 32": "texts"}),
        ("bert_qa", "question-answering", {"batch 1": "texts", "batch 8": "texts", "batch 32": "texts"}),
        ("vit_cls", "image-classification", {"batch 1": "pictures", "batch 8": "pictures"}),
        ("clip", "zero-shot-image-classification", {"batch 1": "pictures", "batch 8": "pictures"}),
    ],
)
def test_every_kind_of_task_has_workloads(tiny: Tiny, name: str, task: str, expected: dict[str, str]) -> None:
    with isoform.pipeline(task, tiny(name)) as pipe:
        workloads = workloads_of(pipe)
        assert {name: work.unit for name, work in workloads.items()} == expected
        first = next(iter(workloads.values()))
        items, seconds = first.run(first.begin())
        assert items == (30 if "30 s" in expected else 1) and seconds > 0


def test_sentences_are_of_typical_lengths() -> None:
    lengths = [len(text.split()) for text in SENTENCES[:-1]]
    assert min(lengths) >= 20 and max(lengths) <= 40 and len(set(lengths)) > 2
