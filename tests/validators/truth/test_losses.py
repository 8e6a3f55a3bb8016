"""What is lost, by metric: nothing without an error, and as much as was planted."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.reference.model import open_model
from isoform.validators.cases.case import Case, Row
from isoform.validators.check.known_answers import Known
from isoform.validators.check.transcripts import word_errors
from isoform.validators.truth.budgets import BUDGETS, PRECISIONS, Budget, proof_budget_of
from isoform.validators.truth.distances import cosine_distance, edit_distance, log_probabilities, word_error_rate
from isoform.validators.truth.losses import Kind, Loss, kind_of
from tests.oracle import tiny

LOGITS = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32) * 3


def lost(kind: Kind, got: NDArray[Any], want: NDArray[Any], *, greedy: bool = False) -> dict[str, float]:
    loss = Loss(kind)
    loss.add(got, want, greedy=greedy)
    return loss.metrics()


@pytest.mark.parametrize("kind", ["text", "labels", "vectors", "values"])
def test_what_is_equal_loses_nothing(kind: Kind) -> None:
    assert set(lost(kind, LOGITS, LOGITS).values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "text"),
        ("bert", "text"),
        ("bert_seqcls", "labels"),
        ("bert_ner", "labels"),
        ("vit_cls", "labels"),
        ("clip", "labels"),
        ("bert_qa", "values"),
        ("bert_embed", "vectors"),
        ("dinov2", "vectors"),
    ],
)
def test_the_kind_of_an_output_follows_from_its_port(name: str, kind: Kind) -> None:
    model = open_model(tiny(name))
    assert kind_of(model, model.signature.results[0]) == kind


def moved(share: float) -> NDArray[Any]:
    """The logits, of which so many rows clearly prefer another entry."""
    got = LOGITS.copy()
    rows = round(share * len(got))
    got[:rows] = -got[:rows]
    return got


@pytest.mark.parametrize(("kind", "metric"), [("text", "top1"), ("labels", "labels")])
def test_clear_choices_are_counted(kind: Kind, metric: str) -> None:
    chance = np.exp(log_probabilities(LOGITS))
    clear = chance.max(-1) - chance[np.arange(len(chance)), LOGITS.argmin(-1)] >= 0.1
    assert lost(kind, moved(0.1), LOGITS)[metric] == clear[:20].sum() / 200
    near = LOGITS.copy()
    top = np.argsort(near)[:, -2:]
    want = near.copy()
    want[np.arange(200), top[:, 0]] = want[np.arange(200), top[:, 1]] - 0.01  # a near tie everywhere
    turned = want.copy()
    turned[np.arange(200), top[:, 0]] += 0.02
    assert lost(kind, turned, want)[metric] == 0


def test_scores_are_the_largest_difference_of_a_probability() -> None:
    want, got = np.array([[0.0, 0.0], [5.0, -5.0]]), np.array([[np.log(0.7 / 0.3), 0.0], [5.0, -5.0]])
    assert lost("labels", got, want)["scores"] == pytest.approx(0.2)
    one, other = np.array([[0.0], [1.0]]), np.array([[np.log(0.7 / 0.3)], [1.0]])
    found = lost("labels", other, one)  # a single label has a probability of its own
    assert found == {"scores": pytest.approx(0.2), "nmse": pytest.approx(np.log(0.7 / 0.3) ** 2)}


def test_cosine_is_that_of_the_mean_over_the_slots() -> None:
    want = np.tile(np.array([1.0, 0.0]), (4, 1))
    got = np.tile(np.array([np.cos(0.1), np.sin(0.1)]), (4, 1))
    assert lost("vectors", got, want)["cosine"] == pytest.approx(1 - np.cos(0.1))
    assert lost("vectors", 2 * want, want) == {"nmse": 1.0, "cosine": 0.0}
    assert cosine_distance(np.zeros(2), np.zeros(2)) == 0
    assert cosine_distance(np.zeros(2), np.ones(2)) == cosine_distance(np.ones(2), np.zeros(2)) == 1
    assert cosine_distance(-np.ones(2), np.ones(2)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("got", "want", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edits_are_counted(got: str, want: str, distance: int) -> None:
    assert edit_distance(got, want) == distance


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert word_error_rate("ever tried ever failed", "Ever tried. Ever failed.") == 0
    assert word_error_rate("Ever tried. Never failed; no.", "Ever tried. Ever failed.") == 0.5
    assert word_error_rate("", "Ever tried.") == 1
    assert (word_error_rate("", "..."), word_error_rate("a", "")) == (0, 1)


def test_a_transcript_is_wrong_from_a_clear_choice_on_but_not_from_a_near_tie() -> None:
    logits = np.zeros((1, 4, 6), np.float32)
    logits[0, np.arange(4), [1, 2, 3, 4]] = 5  # clear but for the third
    logits[0, 2, 5] = 4.95
    model = open_model(tiny("vit_cls"))  # without a tokenizer: its tokens are counted
    case = Case("sound", (Row(np.zeros(4, np.int64), np.zeros(4, np.int64)),))
    known = Known(case, {"logits": logits}, spoken=True)
    for said, wrong in (([1, 2, 3, 4], 0), ([1, 2, 5, 0], 0), ([1, 0, 3, 4], 1), ([0, 0, 0, 0], 4)):
        assert word_errors(np.array([said]), known, model) == (wrong, 4)


def test_every_budget_grows_with_the_precision_that_is_given_up() -> None:
    for metric in (field.name for field in fields(Budget)):
        for budget in (*PRECISIONS.values(), *BUDGETS.values()):
            limit = getattr(budget, metric)
            assert limit.value > 0
            assert limit.reason
        order = [getattr(PRECISIONS[name], metric).value for name in ("f16", "bf16", "int8", "small")]
        assert order == sorted(order), metric


@pytest.mark.parametrize(
    ("dtype", "quality", "name"),
    [
        ("bf16", "", "bf16"),
        ("f16", "high", "f16"),
        ("int8-portable", "", "int8"),
        ("int8w", "", "int8"),
        ("q8_0", "", "int8"),
        ("q4w", "", "small"),
        ("q4_k_m", "", "small"),
        ("int4w", "", "small"),
        ("int8", "small", "small"),
        ("f32", "high", "bf16"),
    ],
)
def test_a_proof_has_the_budget_of_the_precision_or_the_quality(dtype: str, quality: str, name: str) -> None:
    assert proof_budget_of(dtype, quality) is PRECISIONS[name]


@pytest.mark.parametrize(("dtype", "quality"), [("q7_x", ""), ("", "small"), ("f32", ""), ("bf16", "exact")])
def test_what_is_unknown_or_exact_has_no_budget(dtype: str, quality: str) -> None:
    assert proof_budget_of(dtype, quality) is None
