"""What `isoform run` reads, in which order it answers, and what it says of an input without an answer."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isoform
from isoform import run_inputs
from isoform.errors import InputError
from tests.cli.test_bad_input import run

Tiny = Callable[[str], Path]
Printed = Callable[..., tuple[str, str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a run prints on standard output and error; `code` is the exit code that it must have."""

    def call(*arguments: object, stdin: str = "", code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        assert run(monkeypatch, "run", *arguments) == code
        out, err = capsys.readouterr()
        return out, err

    return call


def lines(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for n, name in enumerate(("b.png", "a.JPG", "more/c.webp")):
        pixels = np.random.default_rng(n).integers(0, 255, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


MASKS = ["a [MASK]", "the [MASK] sat on the mat", "[MASK]"]


@pytest.fixture
def masks(tiny: Tiny) -> list[Any]:
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        return [[one["token"] for one in pipe(text)] for text in MASKS]


def tokens(answers: list[Any]) -> list[Any]:
    return [[one["token"] for one in answer] for answer in answers]


def test_standard_input_is_a_line_an_input(tiny: Tiny, printed: Printed, masks: list[Any]) -> None:
    command = ("fill-mask", tiny("bert"))
    given = "\n".join(MASKS) + "\n"
    assert tokens(json.loads(printed(*command, "--json", stdin=given)[0])) == masks
    assert tokens(lines(printed(*command, "-", "--jsonl", stdin=given)[0])) == masks
    out, _ = printed(*command, "-", MASKS[0], "--jsonl", "--batch-size", 2, stdin=given)
    assert tokens(lines(out)) == [*masks, masks[0]]


def test_text_files_are_one_text_each(tiny: Tiny, printed: Printed, masks: list[Any], tmp_path: Path) -> None:
    for n, text in enumerate(MASKS):
        (tmp_path / f"{n}.txt").write_text(text + "\n", encoding="utf-8")
    command = ("fill-mask", tiny("bert"), "--jsonl")
    assert tokens(lines(printed(*command, tmp_path / "1.txt")[0])) == [masks[1]]
    assert tokens(lines(printed(*command, f"{tmp_path}/*.txt")[0])) == masks
    assert tokens(lines(printed(*command, f"{tmp_path}/")[0])) == masks
    assert "no file is called" in printed(*command, f"{tmp_path}/*.jsonl", code=2)[1]
    (tmp_path / "wrong.txt").write_bytes(b"caf\xe9")
    assert "is not UTF-8 text (byte 3)" in printed(*command, tmp_path / "wrong.txt", code=2)[1]


def test_a_text_that_looks_like_a_pattern_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    texts = ["what? [MASK] *", "folder", "a" * 5000, "x\0y", "no.txt"]
    read = run_inputs.read_inputs(texts, "text", (), io.StringIO())
    assert [one.value for one in read] == texts
    assert run_inputs.count_inputs(texts, "text") == 5


def test_folders_and_patterns_of_pictures_are_read_in_order(pictures: Path, tiny: Tiny, printed: Printed) -> None:
    command = ("image-classification", tiny("vit_cls"))
    out, _ = printed(*command, pictures)
    order = [out.index(name) for name in ("a.JPG", "b.png", "c.webp")]
    assert order == sorted(order)
    assert "notes.txt" not in out
    with isoform.pipeline("image-classification", tiny("vit_cls")) as pipe:
        expected = [pipe(str(pictures / name))[0]["label"] for name in ("a.JPG", "b.png", "more/c.webp")]
    assert [answer[0]["label"] for answer in lines(printed(*command, pictures, "--jsonl")[0])] == expected
    assert [a[0]["label"] for a in lines(printed(*command, f"{pictures}/*.png", "--jsonl")[0])] == expected[1:2]
    (empty := pictures / "empty").mkdir()
    assert "holds no picture files" in printed(*command, empty, code=2)[1]


def test_an_input_that_fails_is_named_and_the_others_are_answered(pictures: Path, tiny: Tiny, printed: Printed) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG nothing")
    command = ("image-classification", tiny("vit_cls"), pictures, "nowhere.png")
    out, err = printed(*command, "--jsonl", code=2)
    answers = lines(out)
    assert ["error" in answer for answer in answers] == [False, False, True, False, True]
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(pictures / "broken.png"), "nowhere.png"]
    assert json.loads(printed(*command, "--json", code=2)[0])[2] == answers[2]
    out, err = printed(*command, code=2)
    assert "error" not in out
    assert err.count("\n") == 2
    # An only input has no others: its error alone.
    out, err = printed("image-classification", tiny("vit_cls"), "nowhere.png", "--jsonl", code=2)
    assert (out, err.count("\n")) == ("", 1)


def test_objects_of_a_jsonl_file_carry_the_keywords_of_the_task(
    pictures: Path, tiny: Tiny, printed: Printed, tmp_path: Path
) -> None:
    def stored(*items: Any) -> Path:
        path = tmp_path / "items.jsonl"
        path.write_text("\n\n".join(map(json.dumps, items)) + "\n", encoding="utf-8")
        return path

    question: dict[str, Any] = {"question": "Where?", "context": "In Paris."}
    file = stored(question, {"question": "", "context": "x"}, {**question, "context": "In Rome, not Paris."})
    out, err = printed("question-answering", tiny("bert_qa"), file, "--jsonl", code=2)
    with isoform.pipeline("question-answering", tiny("bert_qa")) as pipe:
        assert lines(out)[0]["answer"] == pipe(**question)["answer"]
    assert f"{file}, line 3: " in err

    picture = str(pictures / "b.png")
    file = stored({"image": picture, "candidate_labels": ["cat", "dog"]}, {"image": picture, "candidate_labels": ["x"]})
    answers = lines(printed("zero-shot-image-classification", tiny("clip"), file, "--jsonl")[0])
    assert [{one["label"] for one in answer} for answer in answers] == [{"cat", "dog"}, {"x"}]

    chat = [{"role": "user", "content": "Hi"}]
    greedy = ("-s", "do_sample=false", "-s", "max_new_tokens=3")
    file = stored("the cat", chat, {"messages": chat}, {"text_inputs": "the cat", "max_new_tokens": 1})
    answers = lines(printed("text-generation", tiny("llama3_instruct"), file, "--jsonl", *greedy)[0])
    with isoform.pipeline("text-generation", tiny("llama3_instruct"), do_sample=False) as pipe:
        assert answers[:2] == [pipe("the cat", max_new_tokens=3), pipe(chat, max_new_tokens=3)]
        assert answers[2] == answers[1]
        assert answers[3] == pipe("the cat", max_new_tokens=1)

    pair = {"text": "a cat", "text_pair": "a dog"}
    answers = lines(printed("text-classification", tiny("bert_seqcls"), stored(pair, "a"), "--jsonl")[0])
    with isoform.pipeline("text-classification", tiny("bert_seqcls")) as pipe:
        assert answers[0]["score"] == pytest.approx(pipe(pair)["score"], rel=1e-5)

    (tmp_path / "items.jsonl").write_text('"fine"\n{"text": \n')
    out, err = printed("feature-extraction", tiny("bert"), tmp_path / "items.jsonl", code=2)
    assert "items.jsonl, line 2 is not JSON" in err


def test_streams_print_each_text_and_its_error(tiny: Tiny, printed: Printed) -> None:
    options = ("--stream", "-s", "do_sample=false", "-s", "max_new_tokens=3")
    with isoform.pipeline("text-generation", tiny("llama"), do_sample=False, max_new_tokens=3) as pipe:
        expected = [pipe(text, return_full_text=False)[0]["generated_text"] for text in ("a", "the cat")]
    out, _ = printed("text-generation", tiny("llama"), "a", "the cat", *options)
    assert out == "".join(text + "\n" for text in expected)


def test_texts_from_texts_and_labels_are_printed(tiny: Tiny, printed: Printed) -> None:
    call = ("-s", "num_beams=1", "-s", "max_new_tokens=4", "-s", "min_length=0")
    summarize = ("summarization", tiny("bart"), "the cat", *call)
    (whole,) = json.loads(printed(*summarize, "--json")[0])
    said = whole[0]["summary_text"].strip()
    assert [printed(*summarize, *more)[0].strip() for more in ((), ("--stream",))] == [said, said]
    out, _ = printed("translation_en_to_de", tiny("t5"), "the cat", "a", *call)
    assert out.splitlines()[0] == repr("the cat")
    with pytest.warns(UserWarning, match="begins with 'entail'"):
        labels = ("-s", "candidate_labels=red, blue")
        out, _ = printed("zero-shot-classification", tiny("bert_seqcls"), "the cat", *labels)
    assert all(word in out for word in ("red", "blue", "0."))


def test_ways_that_exclude_each_other_are_refused(tiny: Tiny, printed: Printed) -> None:
    command = ("fill-mask", tiny("bert"), "a [MASK]")
    assert "pass one of them" in printed(*command, "--json", "--jsonl", code=2)[1]
    assert "--stream" in printed(*command, "--stream", code=2)[1]
    assert "nothing to run on" in printed(*command[:2], "-", code=2)[1]
    assert "batch" in printed(*command, "--batch-size", 0, code=2)[1]
    assert printed(*command, "--dtype", "bf16", "--jsonl")[0]


def test_an_unknown_task_has_no_kind() -> None:
    with pytest.raises(InputError, match="no pipeline for 'poetry'"):
        run_inputs.kind_of("poetry")
    kinds = {task: run_inputs.kind_of(task) for task in ("ner", "vqa", "audio-classification", "image-to-text")}
    assert list(kinds.values()) == ["text", "picture", "sound", "picture"]
