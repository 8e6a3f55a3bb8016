"""Pages: answers, labels and states equal transformers', tokens keep their words' boxes, and what can be wrong."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isoform
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.exporters import onnx
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.document.page import SpecialBoxes
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn
from tests.conformance.test_answers import assert_same
from tests.exports import exported
from tests.oracle import tiny

pipeline: Any = isoform.pipeline
FLOAT32: dict[str, Any] = {"rtol": 2e-4, "atol": 1e-6}  # a few layers, summed in another order
QUESTION = "what is the total of the invoice?"


@cache
def words(count: int = 40) -> list[list[Any]]:
    """Words as they are on pages, of one token and of several, in two columns."""
    some = ["Invoice", "total:", "42.50", "naïve", "café", "数字", "a", "NO.", "<s>", "due", "12/07", "…"]
    random = np.random.default_rng(3)
    left = random.integers(0, 600, count)
    return [[some[n % 12], [int(left[n]), 20 * n % 900, int(left[n]) + 200, 20 * n % 900 + 30]] for n in range(count)]


@cache
def page() -> dict[str, Any]:
    return {"image": drawn(), "word_boxes": words()}


@cache
def theirs(name: str) -> Any:
    import transformers

    return transformers.pipeline("document-question-answering", str(tiny(name)))


@cache
def inputs_of(name: str) -> Any:
    """Inputs of transformers' model for the page: its processor's, cut to the model's positions."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(tiny(name))
    limit = transformers.AutoConfig.from_pretrained(tiny(name)).max_position_embeddings - 2
    pairs = {"text": [word for word, _ in words()], "boxes": [box for _, box in words()]}
    return processor(drawn(), **pairs, return_tensors="pt", truncation=True, max_length=limit)


@cache
def model_of(name: str) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny(name))
    return getattr(transformers, config.architectures[0]).from_pretrained(tiny(name)).eval()


PARAMETERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 6, "handle_impossible_answer": True},
    {"max_seq_len": 48, "doc_stride": 9, "top_k": 4, "max_answer_len": 3, "padding": "max_length"},
    {"max_seq_len": 61, "handle_impossible_answer": True},
)


@pytest.mark.parametrize("name", ["layoutlmv3_qa", "layoutlmv3_qa_b"])
def test_answers_equal_those_of_transformers_pipeline(name: str) -> None:
    with pipeline("document-question-answering", tiny(name), backend="torch") as pipe:
        for given in PARAMETERS:
            if name == "layoutlmv3_qa_b":  # its tokenizer's 512 are more than its positions, where transformers fails
                given = {"max_seq_len": 78, **given}
            expected = theirs(name)(drawn(), QUESTION, words(), **given)
            assert_same(pipe(drawn(), QUESTION, words(), **given), expected, FLOAT32)


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "openvino"])
def test_a_bundle_answers_as_its_checkpoint(backend: str) -> None:
    asked = [{**page(), "question": QUESTION}, {"question": "due?", "word_boxes": words()[:5]}] * 2
    given: dict[str, Any] = {"top_k": 3, "max_seq_len": 48, "batch_size": 3}
    with pipeline("document-question-answering", tiny("layoutlmv3_qa_b"), backend="torch") as pipe:
        expected = [pipe(asked, use_image=seen, **given) for seen in (False, True)]
    from tests.exports import portable

    source = portable("layoutlmv3_qa_b") if backend == "openvino" else exported("layoutlmv3_qa_b")
    with pipeline("document-question-answering", source, backend=backend) as pipe:
        for seen, wanted in zip((False, True), expected, strict=True):
            assert_same(pipe(asked, use_image=seen, **given), wanted, FLOAT32)


def test_one_graph_serves_one_page_and_seven() -> None:
    asked = [{"image": drawn(), "question": QUESTION, "word_boxes": words()[: 3 + 5 * n]} for n in range(7)]
    with pipeline("document-question-answering", exported("layoutlmv3_qa"), backend="onnxruntime") as pipe:
        together = pipe(asked, batch_size=7, use_image=True, top_k=2)
        assert_same(together, [pipe(one, use_image=True, top_k=2) for one in asked], FLOAT32)


@pytest.mark.nightly
def test_narrow_forms_keep_the_best_answer() -> None:
    types = ("f16", "int8", "q8_0", "q4_0")
    source = exported("layoutlmv3_qa", ["onnx"], onnx=onnx.Options(types=types))
    asked = {**page(), "question": QUESTION}
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        (expected,) = pipe(asked, use_image=True)
    for dtype in types:
        with pipeline("document-question-answering", source, dtype=dtype, backend="onnxruntime") as pipe:
            (found,) = pipe(asked, use_image=True)
        assert found["answer"] == expected["answer"]
        assert found["score"] == pytest.approx(expected["score"], rel=0.1)


def test_a_pipeline_is_saved_and_has_what_scripts_read(tmp_path: Path) -> None:
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        assert pipe.image_processor.size == {"height": 64, "width": 64} and not pipe.image_processor.apply_ocr
        assert pipe.model.config.max_2d_position_embeddings == 1024
        pipe.save_pretrained(tmp_path / "saved")
        expected = pipe(drawn(), QUESTION, words())
    with pipeline("document-question-answering", tmp_path / "saved", backend="torch") as pipe:
        assert pipe(drawn(), QUESTION, words()) == expected


def test_the_picture_counts_where_it_is_asked_for() -> None:
    inputs = inputs_of("layoutlmv3_qa")
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        asked = {**page(), "question": QUESTION}
        found = pipe(asked, use_image=True)
        assert found != pipe(asked)
        (window,) = next(iter(pipe.prepare([asked], pipe._call({"use_image": True}))))
        assert np.array_equal(window.page.pixels, inputs["pixel_values"][0])
        feed = pipe.feed([window], None)
    given = {name: torch.from_numpy(array) for name, array in feed.items()}
    with torch.inference_mode():
        out = model_of("layoutlmv3_qa")(**given)
    tokens = len(window)
    assert out.start_logits.shape[1] == tokens + 17  # a class token and 4 x 4 patches
    begin, end = (x[0, :tokens].double() for x in (out.start_logits, out.end_logits))
    seen = torch.tensor([n == 1 for n in window.row.sequence_ids]) | (given["input_ids"][0] == 0)
    chances = [torch.where(seen, x, -10000.0).softmax(0) for x in (begin, end)]
    assert found[0]["score"] == pytest.approx(
        float(torch.outer(*(x * (torch.arange(tokens) > 0) for x in chances)).triu().tril(14).max()), rel=1e-4
    )


@pytest.mark.parametrize("name", ["layoutlmv3_tokcls", "layoutlmv3_tokcls_b"])
def test_labels_of_tokens_equal_those_of_processor_and_model(name: str) -> None:
    inputs, model = inputs_of(name), model_of(name)
    with torch.inference_mode():
        scores, best = model(**inputs).logits[0].softmax(-1).max(-1)
    row = inputs.encodings[0]
    expected = [
        {
            "entity": model.config.id2label[int(best[n])],
            "score": float(scores[n]),
            "index": n,
            "word": token,
            "start": None,
            "end": None,
        }
        for n, token in enumerate(row.tokens)
        if not row.special_tokens_mask[n]
    ]
    with pipeline("token-classification", tiny(name), backend="torch") as pipe:
        found = pipe(page())
        assert_same(found, expected, FLOAT32)
        others = [entity for entity in found if entity["entity"] != "LABEL_1"]
        assert pipe(page(), ignore_labels=["LABEL_1"]) == others
        alone = pipe({"word_boxes": words()[:3]})
        assert_same(pipe([page(), {"word_boxes": words()[:3]}, drawn_with_words()], batch_size=3)[1], alone, FLOAT32)


def drawn_with_words() -> dict[str, Any]:
    return {"image": drawn(), "words": [word for word, _ in words()], "boxes": [box for _, box in words()]}


def test_labels_of_a_page_equal_those_of_the_model() -> None:
    import transformers

    name = "layoutlmv3_seqcls"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(name))
    pairs = {"text": [word for word, _ in words()], "boxes": [box for _, box in words()]}
    inputs = tokenizer(**pairs, return_tensors="pt", truncation=True, max_length=78)
    with torch.inference_mode():
        scores = model_of(name)(**inputs).logits[0].softmax(-1)
    order = scores.argsort(descending=True)
    expected = [{"label": f"LABEL_{n}", "score": float(scores[n])} for n in order]
    for backend, source in (("torch", tiny(name)), ("onnxruntime", exported(name))):
        with pipeline("text-classification", source, backend=backend) as pipe:
            assert_same(pipe(page(), top_k=None), expected, FLOAT32)
            assert_same(pipe([page(), page()]), [expected[0]] * 2, FLOAT32)


def test_states_equal_those_of_the_headless_model() -> None:
    with torch.inference_mode():
        expected = model_of("layoutlmv3")(**inputs_of("layoutlmv3")).last_hidden_state.numpy()
    for backend, source in (("torch", tiny("layoutlmv3")), ("onnxruntime", exported("layoutlmv3"))):
        with pipeline("feature-extraction", source, backend=backend) as pipe:
            both = pipe([page(), {"image": drawn(), "word_boxes": words()[:2]}], return_tensors="np", batch_size=2)
        np.testing.assert_allclose(both[0], expected, rtol=2e-4, atol=2e-5)
        assert both[1].shape[1] < both[0].shape[1]


# ------------------------------------------------------------------ tokens and boxes
@pytest.mark.parametrize("boxes", [{}, {"cls_token_box": [1, 2, 3, 4], "sep_token_box": [1000, 1000, 1000, 1000]}])
@pytest.mark.parametrize("length", [None, 40])
def test_windows_are_those_of_transformers_tokenizer(tmp_path: Path, boxes: dict[str, Any], length: int | None) -> None:
    import transformers

    folder = changed(tmp_path, "layoutlmv3_qa", "tokenizer_config.json", pad_token_box=[5, 6, 7, 8], **boxes)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts, places = [word for word, _ in words()], [box for _, box in words()]
    cut = {"truncation": True, "max_length": length, "stride": 7, "return_overflowing_tokens": True} if length else {}
    pair = {**cut, "truncation": "only_second"} if length else {}
    with pipeline("document-question-answering", folder, backend="torch") as pipe:
        (read,) = pipe.pages([page()], pipe._call({}))
        for questions, expected in (
            (None, tokenizer([texts], boxes=[places], **cut)),
            ([QUESTION.split()], tokenizer([QUESTION], [texts], boxes=[places], **pair)),
        ):
            (found,) = pipe.windows([read], questions, length=length, stride=7 if length else None)
            assert [window.row.ids for window in found] == expected["input_ids"]
            assert [window.boxes.tolist() for window in found] == expected["bbox"]
        short = pipe.windows([read], [["due"]], length=None)[0][0]
        padded = pipe.feed([found[0], short], None)["bbox"][1, len(short) :]
        assert (padded == [5, 6, 7, 8]).all() and (len(padded) or length)


@pytest.mark.parametrize("prefix", [True, False])
def test_words_are_cut_as_by_transformers(tmp_path: Path, prefix: bool) -> None:
    import transformers

    folder = changed(tmp_path, "layoutlmv3_qa", "tokenizer_config.json", add_prefix_space=prefix)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["  two  spaces ", "", "naïve<pad>", "\u200d👩", "</s>", "1,234.5", "word" * 30]
    expected = tokenizer(texts, boxes=[[0, 0, 9, 9]] * len(texts))
    with pipeline("document-question-answering", folder, backend="torch") as pipe:
        row = pipe.encode([texts], words=True)[0]
    assert row.ids == expected["input_ids"]
    assert row.word_ids == expected.word_ids()


@pytest.mark.parametrize(
    "settings", [{}, {"size": 36, "resample": 3}, {"do_normalize": False, "size": {"height": 20, "width": 31}}]
)
def test_pixels_equal_those_of_the_pillow_processor(tmp_path: Path, settings: dict[str, Any]) -> None:
    import transformers

    stated = {"image_processor_type": "LayoutLMv3FeatureExtractor", "apply_ocr": False, "rescale_value": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stated, **settings}))
    found = open_processor(tmp_path, class_facts(tmp_path))([drawn()])[0]
    expected = transformers.LayoutLMv3ImageProcessorPil(apply_ocr=False, **settings)(drawn())["pixel_values"][0]
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


# ------------------------------------------------------------------ what can be wrong, and what only seems so
def changed(tmp_path: Path, name: str, file: str, **settings: Any) -> Path:
    folder = tmp_path / name
    shutil.copytree(tiny(name), folder, dirs_exist_ok=True)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def test_a_page_without_words_has_no_answer() -> None:
    blank = Image.new("RGB", (60, 80), "white")
    assert theirs("layoutlmv3_qa")(blank, QUESTION, []) == []
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        assert pipe(blank, QUESTION, []) == []
        expected = theirs("layoutlmv3_qa")(blank, QUESTION, [], handle_impossible_answer=True)
        assert_same(pipe(blank, QUESTION, [], handle_impossible_answer=True), expected, FLOAT32)
    with pipeline("token-classification", tiny("layoutlmv3_tokcls"), backend="torch") as pipe:
        assert pipe({"image": blank, "word_boxes": []}) == []


def test_a_picture_of_one_by_ten_thousand_is_a_page() -> None:
    long = Image.fromarray(np.random.default_rng(1).integers(0, 255, (10_000, 1, 3), dtype=np.uint8))
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        assert pipe(long, QUESTION, words()[:4], use_image=True)[0]["score"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"word_boxes": [["a", [0, 0, 10, 1001]]]}, "not inside 0 to 1000; give thousandths"),
        ({"word_boxes": [["a", [-1, 0, 10, 10]]]}, "not inside 0 to 1000"),
        ({"word_boxes": [["a", [0, 0, 10]]]}, "not left, top, right and bottom"),
        ({"word_boxes": [["a", [0, 0, 10, float("nan")]]]}, "not four numbers"),
        ({"word_boxes": [["a", [0, 0.5, 10, 10]]]}, "not of whole numbers"),
        ({"word_boxes": [["a", [0, 0, 10, 10]], ["b"]]}, r"word_boxes\[1\] is \['b'\], no pair"),
        ({"word_boxes": [[7, [0, 0, 10, 10]]]}, "no pair"),
        ({"word_boxes": "abc"}, "no list of pairs"),
        ({"words": ["a", "b"], "boxes": [[0, 0, 1, 1]]}, "2 words came with 1 boxes"),
        ({"words": ["a"]}, "lists of one length"),
        ({"word_boxes": [], "colour": 1}, "does not know 'colour'"),
        ({}, "takes image= and question="),
    ],
)
def test_wrong_pages_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with (
        pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe,
        pytest.raises(InputError, match=message),
    ):
        pipe({"question": QUESTION, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": " "}, "not empty"),
        ({"question": 7}, "takes image= and question="),
        ({"top_k": 0}, "top_k"),
        ({"max_answer_len": 0}, "max_answer_len"),
        ({"max_seq_len": 9}, "truncation to 9 tokens failed|cannot be truncated"),
        ({"max_seq_len": 40, "doc_stride": 39}, "truncation to 40 tokens failed|cannot be truncated"),
        ({"doc_stride": -1}, "doc_stride"),
        ({"temperature": 1}, "no parameter 'temperature'"),
        ({"question": [QUESTION] * 2, "inputs": [drawn()] * 3}, "3 pages came with 2 questions"),
    ],
)
def test_wrong_calls_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    call = {"inputs": drawn(), "question": QUESTION, **given}
    more = {} if isinstance(call["inputs"], list) else {"word_boxes": words()}
    with (
        pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe,
        pytest.raises(InputError, match=message),
    ):
        pipe(**call, **more)


def test_a_page_may_be_given_in_several_ways() -> None:
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        expected = pipe({**page(), "question": QUESTION})
        assert pipe(drawn(), QUESTION, words()) == expected
        assert pipe(image=drawn(), question=QUESTION, word_boxes=words()) == expected
        assert pipe(drawn_with_words(), QUESTION) == expected
        assert pipe(question=QUESTION, word_boxes=words()) == expected
        assert pipe(drawn(), [QUESTION, QUESTION], words()) == [expected, expected]
        assert pipe([page(), page()], QUESTION) == [expected, expected]
        assert list(pipe(iter([{**page(), "question": QUESTION}]))) == [expected]
        cut = pipe(drawn(), "what is " * 40, words(), max_question_len=2)
        assert cut == pipe(drawn(), "what is " * 40, words(), max_question_len=2, top_k=1)


def test_a_model_of_pages_refuses_tasks_of_texts_alone() -> None:
    with pytest.raises(UnsupportedModel, match="reads pages of words with boxes"):
        pipeline("sentence-similarity", tiny("layoutlmv3"), backend="torch")


def test_a_box_of_a_special_token_that_is_none_is_refused() -> None:
    with pytest.raises(CheckpointError, match="sep_token_box"):
        SpecialBoxes.read({"tokenizer": {"boxes": {"sep": [0, 0, 2000, 0]}}})
