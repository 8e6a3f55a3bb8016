"""What is lost of the answers of a task: nothing where they are the same, and as much as was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_session
from isoform.signature import BATCH, LENGTH, Port, Signature
from isoform.validators.cases.case import Row
from isoform.validators.check.proof import prove
from isoform.validators.levels.deployment import task_result
from isoform.validators.report.subject import Subject
from isoform.validators.truth.budgets import BUDGETS, PRECISIONS
from isoform.validators.truth.task_losses import (
    TaskLoss,
    boxes_lost,
    corners_of,
    depths_lost,
    endpoints_lost,
    intersection_over_union,
    keypoints_lost,
    labels_lost,
    masks_lost,
    matches_lost,
    overlap_lost,
    task_loss,
)
from isoform.validators.truth.tolerances import chosen
from tests.oracle import tiny

CHANCE = np.random.default_rng(0)
NONE = Row(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Beside:
    """A checkpoint with the files of a tiny one."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def folder(self) -> Path:
        return tiny(self._name)


def made(task: str, *outputs: Port, beside: str = "rt_detr_v2") -> Model:
    """A model of which nothing but the task, the outputs and the class of its processor are known."""
    signature = Signature((Port("pixel_values", "float", (BATCH, 3, 8, 8)),), outputs)
    found: Any = SimpleNamespace(task=SimpleNamespace(name=task), signature=signature, checkpoint=Beside(beside))
    return found


def port(name: str, *axes: Any, role: Any = None) -> Port:
    return Port(name, "float", (BATCH, *axes), role)


DETECTOR = (port("logits", 30, 4), port("pred_boxes", 30, 4))
SEGMENTER = (port("classes", 9, 5, role="scores"), port("masks", 9, 16, 16, role="masks"))
MODELS: dict[str, tuple[Model, str]] = {
    "masks": (made("mask-generation", port("pred_masks", 1, 3, 16, 16), port("iou_scores", 1, 3)), "masks"),
    "queries": (made("image-segmentation", *SEGMENTER), "masks"),
    "map": (made("image-segmentation", port("logits", 4, 16, 16)), "masks"),
    "boxes": (made("object-detection", *DETECTOR), "boxes"),
    "boxes and none": (made("object-detection", *DETECTOR, beside="yolos"), "boxes"),
    "heat maps": (made("pose-estimation", port("heatmaps", 17, 16, 16)), "endpoints"),
    "depth": (made("depth-estimation", port("predicted_depth", 16, 16)), "depth"),
    "pixels": (made("keypoint-detection", port("scores", 64, 6, 5, role="scores")), "keypoints"),
    "pairs": (made("keypoint-matching", port("assignment", 20, 20, role="scores")), "keypoints"),
    "spans": (made("document-question-answering", port("start_logits", 9), port("end_logits", 9)), "spans"),
}


def outputs(model: Model) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for one in model.signature.outputs:
        shape = tuple(axis for axis in one.axes[1:] if isinstance(axis, int))
        found[one.name] = CHANCE.standard_normal(shape).astype(np.float32)
        if one.role in ("depth", "boxes"):
            found[one.name] = np.abs(found[one.name]) + 0.1
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_same_answers_lose_nothing_and_others_lose_much(name: str) -> None:
    model, metric = MODELS[name]
    task = task_loss(model)
    assert task is not None
    assert task.metric == metric
    lost = among = 0.0
    for _ in range(5):
        one, other = outputs(model), outputs(model)
        nothing, count = task.lost(NONE, one, one)
        assert nothing == 0
        assert count > 0
        lost, among = lost + task.lost(NONE, one, other)[0], among + count
    assert lost / among > 0.2
    noise = {key: value * (1 + 1e-5 * CHANCE.standard_normal(value.shape)) for key, value in one.items()}
    assert task.lost(NONE, noise, one)[0] / count < 0.05


@pytest.mark.parametrize("name", ["vit_cls", "bert", "llama", "dinov2", "clip"])
def test_texts_labels_and_states_have_no_loss_of_a_task(name: str) -> None:
    assert task_loss(open_model(tiny(name))) is None


def test_masks_lose_what_they_do_not_share() -> None:
    want = np.zeros((3, 4, 4), bool)
    want[0, :2], want[1, 0, 0] = True, True
    got = want.copy()
    got[0, 1:3] = True  # 4 of 12 more
    got[0, 0, :] = False
    assert overlap_lost(want, want) == (0, 2), "a mask that both leave empty does not count"
    assert overlap_lost(got, want) == pytest.approx((1 - 4 / 12, 2))


def test_pixels_that_the_reference_hardly_decides_do_not_count() -> None:
    want, got = np.full((1, 2, 2), 5.0), np.full((1, 2, 2), 5.0)
    want[0, 0], got[0, 0, 0], got[0, 1, 1] = 0.1, -0.1, -5
    assert masks_lost(got, want) == (0.25, 1)
    chances = np.array([[[0.9, 0.52, 0.1]], [[0.1, 0.48, 0.9]]])
    assert labels_lost(chances, chances) == (0, 2)
    other = np.array([[[0.9, 0.4, 0.9]], [[0.1, 0.6, 0.1]]])
    assert labels_lost(other, chances) == pytest.approx((1 - 2 / 3 + 1, 2)), "the third pixel alone"


def test_boxes_are_the_same_where_they_overlap_by_half_under_one_label() -> None:
    boxes = np.array([[0, 0, 2, 2], [10, 0, 12, 2], [20, 0, 22, 2]], float)
    assert intersection_over_union(boxes[:1], boxes[:1] + np.array((1, 0, 1, 0))) == pytest.approx(1 / 3)
    assert corners_of(np.array([[1, 2, 2, 4]])).tolist() == [[0, 0, 2, 4]]
    scores = np.array([[0.9, 0.0], [0.0, 0.8], [0.7, 0.0]])  # and six entries in all, of which each is a box

    def lost(got: NDArray[Any], places: NDArray[Any] = boxes) -> float:
        return boxes_lost((got, places), (scores, boxes))[0]

    assert boxes_lost((scores, boxes), (scores, boxes)) == (0, 12)
    assert lost(scores, boxes + 0.4) == 12
    assert lost(scores, boxes + np.array((0.4, 0, 0.4, 0))) == 0
    assert lost(scores - 0.05) == 0
    assert lost(scores[:, ::-1]) == 6, "under other labels"
    assert lost(np.array([[0.9, 0.0], [0.0, 0.8], [0.2, 0.0]])) == 1, "a box with a low score"
    assert lost(np.array([[0.9, 0.6], [0.0, 0.8], [0.7, 0.0]])) == 1, "a box that the reference does not have"


def test_keypoints_lose_the_pixels_between_them_where_the_choice_is_clear() -> None:
    want = np.zeros((2, 8, 8))
    want[0, 2, 3], want[1, 5, 5], want[1, 5, 1] = 1, 1, 0.99
    got = np.zeros((2, 8, 8))
    got[0, 5, 7], got[1, 5, 1] = 1, 1
    assert endpoints_lost(got, want) == (5, 2), "the second one is a near tie"
    assert keypoints_lost(np.array([[3, 3], [9, 9]]), np.array([[3, 5], [9, 5]])) == (1, 2)
    assert keypoints_lost(np.zeros((0, 2)), np.array([[3, 5]])) == (1, 1)


def test_depths_are_right_up_to_a_quarter() -> None:
    want = np.array([[1.0, 2.0, 4.0, 0.0]])
    assert depths_lost(want * 1.24, want) == (0, 3)
    assert depths_lost(want * [1, 1.26, 0.79, 5], want) == (2, 3)
    assert depths_lost(-want, want) == (3, 3)


def test_pairs_count_where_both_sides_prefer_them() -> None:
    want = np.array([[3.0, 1, 0], [0, 0.5, 2], [1, 2, 2.5]])
    assert matches_lost(want, want) == (0, 2)  # the second row prefers the third column, which prefers another
    assert matches_lost(want.T, want) == (0, 2)
    assert matches_lost(want[::-1], want) == (2, 2)


TYPES = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 2, 1], [1, 2, 2]])
"""A token of the question, one of the header, two of a cell, and two cells of one."""


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, 0),
        ({2: -9.0, 3: -9.0}, 1),
        ({4: 9.0, 5: 9.0}, 2),
        ({0: -9.0, 1: -9.0}, 0),  # which is no cell
    ],
)
def test_cells_are_counted_once_and_only_those_of_the_table(changes: dict[int, float], lost: int) -> None:
    table = made("table-question-answering", Port("logits", "float", (BATCH, LENGTH), "cells"))
    task = task_loss(table)
    assert task is not None
    want = np.array([5.0, 5, 5, 5, -5, -5])
    got = want.copy()
    for place, value in changes.items():
        got[place] = value
    types = np.concatenate((TYPES, np.zeros((6, 4), int)), 1)
    assert task.lost(Row(np.zeros(6, np.int64), types), {"logits": got}, {"logits": want}) == (lost, 3)
    assert task.lost(Row(np.zeros(6, np.int64), np.zeros((6, 7), int)), {"logits": got}, {"logits": want}) == (0, 0)


def test_the_action_on_the_cells_counts_as_one_of_them() -> None:
    task = task_loss(open_model(tiny("tapas_qa")))
    assert task is not None
    row = Row(np.zeros(6, np.int64), np.concatenate((TYPES, np.zeros((6, 4), int)), 1))
    want = {"logits": np.zeros(6), "logits_aggregation": np.array([5.0, 0, 0, 0])}
    assert task.lost(row, want, want) == (0, 4)
    assert task.lost(row, {**want, "logits_aggregation": np.array([0.0, 5, 0, 0])}, want) == (1, 4)
    near = {**want, "logits_aggregation": np.array([0.01, 0, 0, 0])}
    assert task.lost(row, {**want, "logits_aggregation": np.array([0, 0.01, 0, 0])}, near) == (0, 4)


SUBJECT = Subject("onnxruntime", "deployment", "q8_0", "", "")


def test_one_of_few_may_be_lost_and_what_a_user_has_chosen_is_kept() -> None:
    budget = BUDGETS["q8_0"].cells
    whole = TaskLoss("cells", "cells", lambda row, got, want: (0, 0))
    assert task_result(SUBJECT, whole, (1, 10), budget).passed
    assert not task_result(SUBJECT, whole, (2, 10), budget).passed
    assert task_result(SUBJECT, whole, (2, 10), budget, "q8_0", (2, 10)).passed, "torch quantized alike loses as much"
    part = TaskLoss("masks", "masks", lambda row, got, want: (0, 0), whole=False)
    assert not task_result(SUBJECT, part, (1, 10), BUDGETS["q8_0"].masks).passed
    with chosen({budget.name: 0.05}):
        assert not task_result(SUBJECT, whole, (1, 10), budget, "q8_0", (5, 10)).passed


def test_a_proof_holds_the_cells_of_a_table_to_the_budget_of_its_precision() -> None:
    model = open_model(tiny("tapas_qa"))
    with open_session(model, "torch") as session:
        report = prove(session, model, "bf16")
        assert report.same
        (found,) = (result for result in report.results if result.metric == "cells")
        assert (found.value, found.limit >= PRECISIONS["bf16"].cells.value) == (0, True)

        class Other:
            """The session with the logits of the cells turned round."""

            backend, signature = session.backend, session.signature

            def run(self, inputs: Any) -> Any:
                given = session.run(inputs)
                return {**given, "logits": -given["logits"]}

        other: Callable[..., Any] = Other
        report = prove(other(), model, "bf16")
    assert not report.same
    assert any(result.metric == "cells" and not result.passed for result in report.results)
