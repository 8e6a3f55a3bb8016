"""The cases of pictures and sound: what they hold, honest backends pass them, and planted faults do not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isoform.errors import InputError
from isoform.reference.model import open_model
from isoform.reference.vision import patches
from isoform.runtimes.backends.inputs import checked
from isoform.signature import BATCH, DOCUMENT, Port, Signature
from isoform.validators.cases.case import Case, Row, real
from isoform.validators.cases.registry import cases_of
from isoform.validators.levels.graph import check_graph
from isoform.validators.report.records import Report
from isoform.validators.truth.reference import Truth
from tests import oracle
from tests.validators.torch_session import TorchSession

FREE, FIXED, TOWERS, BLIND, PAGES = "dinov2_b", "vit_b", "clip", "siglip_b", "layoutlmv3_qa_b"


@cache
def truth(name: str) -> Truth:
    model = open_model(oracle.tiny(name))
    return Truth(model, cases_of(model))


def check(name: str, module: nn.Module | None = None, artifact: str = "f32", **session: Any) -> Report:
    known = truth(name)
    return check_graph(known.model, TorchSession(known.model, module, **session), artifact, truth=known)


def failures(report: Report) -> set[str]:
    return {result.case for result in report.results if not result.passed}


@pytest.mark.parametrize("name", [FREE, FIXED, TOWERS, BLIND, PAGES])
def test_the_reference_agrees_with_itself(name: str) -> None:
    report = check(name)
    assert report.same, [r for r in report.results if not r.passed]
    assert report.skipped == []


def test_a_narrow_artifact_is_held_to_its_dtype() -> None:
    assert check(FREE, artifact="f16", dtype=torch.float16).same
    assert not check(FREE, artifact="f32", dtype=torch.float16).same


def test_free_sizes_are_asked_for_in_several_shapes_and_fixed_ones_in_one() -> None:
    def shapes(name: str) -> set[tuple[int, ...]]:
        return {row.media["pixel_values"].shape for case in truth(name).cases for row in case.rows}

    assert shapes(FREE) == {(3, 48, 48), (3, 24, 40), (3, 64, 56), (3, 32, 32)}  # the last is the processor's
    assert shapes(FIXED) == {(3, 24, 36)}
    names = [case.name for case in truth(TOWERS).cases]
    assert names == [
        *("noise, 32x32", "batch of 3, 32x32", "left padding, texts of 7 1 14", "right padding, texts of 7 1 14"),
        "a picture and a text, 32x32",
    ]


def test_pages_have_the_same_box_for_the_same_token_and_may_have_no_picture() -> None:
    known = truth(PAGES)
    cases = {case.name: case for case in known.cases}
    mixed = cases["left padding, texts of 7 1 14"]
    signature = known.model.signature
    alone, together = Case("", mixed.rows[:1]).inputs(signature), mixed.inputs(signature)
    assert alone["bbox"].shape == (1, 7, 4) and alone["bbox"].min() >= 0 and alone["bbox"].max() <= 1000
    assert (alone["bbox"][..., :2] <= alone["bbox"][..., 2:]).all()
    assert np.array_equal(together["bbox"][0, -7:], alone["bbox"][0])
    assert together["pixel_values"].shape == (3, 3, 36, 36)
    bare = cases["no picture, texts of 7 14"].inputs(signature)
    assert bare["pixel_values"].shape == (0, 3, 36, 36) and bare["input_ids"].shape == (2, 14)


def test_what_lies_behind_padded_tokens_counts() -> None:
    port, case = Port("y", "float", (BATCH, DOCUMENT)), Case("", (Row(np.arange(1), np.arange(1)),) * 2)
    short = Case("", (Row(np.arange(3), np.arange(3)), Row(np.arange(1), np.arange(1))))
    assert real(port, np.arange(5), short, 1, (3,)).tolist() == [0, 3, 4]
    assert real(port, np.arange(5), short, 0, (5,)).tolist() == [0, 1, 2, 3, 4]
    assert real(port, np.arange(4), case, 0, (4,)).tolist() == [0, 1, 2, 3]


def test_sound_is_padded_by_zeros_where_there_is_a_mask() -> None:
    rows = tuple(Row(np.zeros(0, np.int64), np.zeros(0, np.int64), {"x": np.ones(n, np.float32)}) for n in (3, 1))
    ports = Port("x", "float", (BATCH, "samples")), Port("attention_mask", "int64", (BATCH, "samples"))
    out = Port("y", "float", (BATCH, "frames", 2))
    case = Case("", rows)
    inputs = case.inputs(Signature(ports, (out,)))
    assert inputs["x"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert real(out, np.ones((5, 2)), case, 1, (2, 2)).shape == (2, 2)
    assert real(out, np.ones((5, 2)), case, 0, (2, 2)).shape == (5, 2)  # not padded: a wrong length stays wrong


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (FREE, "another interpolation"),
        (FREE, "colours turned"),
        (FREE, "a scale left out"),
        (FIXED, "rows for columns"),
        (TOWERS, "the last token, not the end of the text"),
        (BLIND, "no bias of the logits"),
        (PAGES, "x and y of boxes turned"),
        (PAGES, "states without patches normed all the same"),
    ],
)
def test_a_planted_fault_is_found(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = truth(name)
    module: Any = known.model.module()
    if fault == "another interpolation":
        cubic = patches.cubic
        monkeypatch.setattr(patches, "cubic", lambda x, a: cubic(x, -0.74))
    elif fault == "colours turned":
        module.patch_embed.weight = nn.Parameter(module.patch_embed.weight.flip(1), False)
    elif fault == "a scale left out":
        module.layers[1].scaled = False
    elif fault == "rows for columns":
        table = module.position_embed[:, 1:].unflatten(1, (2, 6)).transpose(1, 2).flatten(1, 2)
        module.position_embed = nn.Parameter(torch.cat((module.position_embed[:, :1], table), 1), False)
    elif fault == "the last token, not the end of the text":
        module.text.eos = -1
    elif fault == "x and y of boxes turned":
        layout = module.layout.forward
        monkeypatch.setattr(module.layout, "forward", lambda bbox: layout(bbox[..., [1, 0, 3, 2]]))
    elif fault == "states without patches normed all the same":
        monkeypatch.setattr(torch, "where", lambda seen, normed, other: normed)
    else:
        module.logit_bias = nn.Parameter(module.logit_bias + 1e-3, False)
    found = failures(check(name, module))
    assert found
    if fault == "states without patches normed all the same":
        assert found == {"no picture, texts of 7 14"}
    if fault == "another interpolation":  # which the model's own grid cannot show
        assert not any("48x48" in case for case in found)


def test_a_picture_that_is_smaller_than_a_patch_is_refused() -> None:
    signature = truth(FREE).model.signature
    with pytest.raises(InputError, match="height 7 is too small: the model reads at least 8"):
        checked(signature, {"pixel_values": np.zeros((1, 3, 7, 8), np.float32)})
    with pytest.raises(InputError, match=r"pixel_values has shape \(1, 1, 8, 8\), not \(1, 3, height, width\)"):
        checked(signature, {"pixel_values": np.zeros((1, 1, 8, 8), np.float32)})


def test_cases_are_the_same_for_the_same_seed() -> None:
    model = truth(FREE).model
    one, two, other = cases_of(model), cases_of(model), cases_of(model, seed=1)
    first = [cases[0].rows[0].media["pixel_values"] for cases in (one, two, other)]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
