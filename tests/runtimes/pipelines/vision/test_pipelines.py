"""The pipelines over pictures against transformers' on the same checkpoints and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import api
from isoform.cli import app
from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.nested_lists import nested
from isoform.runtimes.pipelines.scores import trained_function
from isoform.validators.cases.media import drawn
from tests import oracle

Tiny = Callable[[str], Path]
LABELS = ["a cat", "two dogs", "a house"]


@cache
def theirs(task: str, name: str) -> Any:
    """transformers' pipeline with its Pillow processor."""
    import transformers

    folder = str(oracle.tiny(name))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    options = {"tokenizer": folder} if task.startswith("zero-shot") else {}
    return transformers.pipeline(task, model=folder, image_processor=processor, device="cpu", **options)


def pictures() -> list[Any]:
    return [drawn(), drawn().rotate(90, expand=True), drawn().convert("L"), drawn().convert("RGBA").resize((33, 70))]


def close(ours: Any, want: Any) -> None:
    """The same labels in the same order, the scores to 1e-5 (logits among them: sums of another order near zero)."""
    assert [[list(row) for row in rows] for rows in ours] == [[list(row) for row in rows] for rows in want]
    for mine, other in zip(ours, want, strict=True):
        assert [row["label"] for row in mine] == [row["label"] for row in other]
        np.testing.assert_allclose([r["score"] for r in mine], [r["score"] for r in other], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", ["beit_cls", "dinov2_cls", "dinov2_b", "segformer_cls", "vit_cls"])
def test_image_classification_is_transformers(name: str) -> None:
    calls: tuple[dict[str, Any], ...] = ({}, {"top_k": 2}, {"top_k": 9, "function_to_apply": "sigmoid"})
    for options in (*calls, {"function_to_apply": "none"}):
        with api.pipeline("image-classification", oracle.tiny(name)) as pipe:
            close(pipe(pictures(), **options), theirs("image-classification", name)(pictures(), **options))


def test_one_picture_has_one_answer_and_a_stream_an_iterator(tiny: Tiny) -> None:
    with api.pipeline("image-classification", tiny("vit_cls")) as pipe:
        alone = pipe(drawn(), top_k=1)
        assert list(alone[0]) == ["label", "score"]
        assert pipe(np.asarray(drawn()), top_k=1) == alone
        close(list(pipe((drawn() for _ in range(3)), top_k=1)), [alone] * 3)
        assert len(pipe(drawn())) == 5
        assert len(pipe(drawn(), top_k=None)) == 5


def test_a_batch_changes_nothing(tiny: Tiny) -> None:
    with api.pipeline("image-classification", tiny("dinov2_cls")) as pipe:
        one, many = (pipe(pictures(), batch_size=size) for size in (1, 3))
        close(one, many)


@pytest.mark.parametrize(
    ("kind", "count", "function"),
    [("regression", 1, "none"), (None, 1, "sigmoid"), ("multi_label_classification", 3, "sigmoid")],
)
def test_the_function_follows_what_the_model_was_trained_for(kind: str | None, count: int, function: str) -> None:
    assert trained_function({"problem_type": kind}, count) == function


@pytest.mark.parametrize("name", ["dinov2", "dinov2_giant", "dinov2_registers", "vit_b"])
def test_image_feature_extraction_is_transformers(name: str) -> None:
    with api.pipeline("image-feature-extraction", oracle.tiny(name)) as pipe:
        choices: tuple[dict[str, Any], ...] = ({}, {"pool": True})
        for options in choices:
            ours = pipe(pictures(), **options)
            for mine, other in zip(ours, theirs("image-feature-extraction", name)(pictures(), **options), strict=True):
                assert np.shape(mine) == np.shape(other)
                np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
        tensor = pipe(drawn(), return_tensors="np")
        assert tensor.dtype == np.float32
        assert tensor.tolist() == pipe(drawn())


def test_a_classifier_without_a_pooler_gives_its_states_only(tiny: Tiny) -> None:
    """As the default model of this task, google/vit-base-patch16-224: a checkpoint of another task."""
    with api.pipeline("image-feature-extraction", tiny("vit_cls")) as pipe:
        assert np.shape(pipe(drawn())) == (1, 17, 48)
        with pytest.raises(InputError, match="needs a model with a pooler"):
            pipe(drawn(), pool=True)


@pytest.mark.parametrize("name", ["clip", "clip_b", "siglip", "siglip_b"])
def test_zero_shot_image_classification_is_transformers(name: str) -> None:
    with api.pipeline("zero-shot-image-classification", oracle.tiny(name)) as pipe:
        calls: tuple[dict[str, Any], ...] = ({}, {"hypothesis_template": "{}, seen from the old house"})
        for options in calls:
            want = theirs("zero-shot-image-classification", name)(pictures(), candidate_labels=LABELS, **options)
            close(pipe(pictures(), candidate_labels=LABELS, **options), want)
        assert list(pipe(drawn(), candidate_labels=["one"])[0]) == ["score", "label"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "is no list of texts"),
        ({"candidate_labels": []}, "is no list of texts"),
        ({"candidate_labels": ["a", 3]}, "is no list of texts"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a {} {}"}, "must have one {}"),
        ({"candidate_labels": ["word " * 200]}, "tokens"),
        ({"candidate_labels": LABELS, "top_k": 3}, "has no parameter 'top_k'"),
    ],
)
def test_zero_shot_parameters_that_make_no_sense_are_refused(
    parameters: dict[str, Any], message: str, tiny: Tiny
) -> None:
    with api.pipeline("zero-shot-image-classification", tiny("clip")) as pipe, pytest.raises(InputError, match=message):
        pipe(drawn(), **parameters)


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        (3, {}, "takes a picture .*, not 3"),
        (["missing.png"], {}, "is not there"),
        ([drawn(), None], {}, "takes a picture .*, not None"),
        (drawn(), {"top_k": 0}, "top_k=0"),
        (drawn(), {"function_to_apply": "relu"}, "is not one of sigmoid, softmax, none"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    inputs: Any, parameters: dict[str, Any], message: str, tiny: Tiny
) -> None:
    with api.pipeline("image-classification", tiny("vit_cls")) as pipe, pytest.raises(InputError, match=message):
        pipe(inputs, **parameters)


def test_a_picture_of_another_size_than_the_model_reads_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(tiny("vit_cls"), folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "size": 40}), encoding="utf-8")
    with api.pipeline("image-classification", folder) as pipe, pytest.raises(InputError, match=r"\(1, 3, 40, 40\)"):
        pipe(drawn())


def test_a_model_of_another_task_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedModel, match="has no task 'zero-shot-image-classification'"):
        api.pipeline("zero-shot-image-classification", tiny("vit_cls"))


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript"])
@pytest.mark.parametrize(
    ("task", "name"), [("image-classification", "dinov2_b"), ("image-feature-extraction", "dinov2")]
)
def test_every_backend_gives_the_same_answers(
    task: str, name: str, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))
    with (
        api.pipeline(task, oracle.tiny(name)) as torch,
        api.pipeline(task, oracle.tiny(name), backend=backend) as other,
    ):
        if task == "image-classification":
            close(other(pictures()), torch(pictures()))
        else:
            np.testing.assert_allclose(other(pictures()), torch(pictures()), rtol=1e-4, atol=1e-5)


def test_the_command_line_classifies_a_file(tiny: Tiny, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    drawn().save(tmp_path / "a.jpg")
    arguments = ["run", "image-classification", str(tiny("dinov2_cls")), str(tmp_path / "a.jpg"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [list(row) for row in json.loads(done.stdout)[0]] == [["label", "score"]] * 5


@pytest.mark.parametrize("collects", [True, False])
def test_nested_lists_leave_the_collector_as_it_was(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[str] = []
    monkeypatch.setattr("gc.isenabled", lambda: collects)
    for name in ("disable", "enable"):
        monkeypatch.setattr(f"gc.{name}", lambda name=name: switched.append(name))
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert nested(array) == array.tolist()
    with pytest.raises(AttributeError):
        nested(None)  # type: ignore[arg-type]
    assert switched == (["disable", "enable"] if collects else ["disable"]) * 2
