"""Parts wired together: honest ones pass, and what only shows between two parts is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.reference.model import open_model
from isoform.runtimes.backends.parts import PartsSession
from isoform.runtimes.open import open_session
from isoform.validators.cases.registry import cases_of
from isoform.validators.cases.wired import TOKENS, WiredModel, wired_cases
from isoform.validators.levels.wired import WiredSession, check_wired
from isoform.validators.report.records import Report
from isoform.validators.truth.reference import Truth
from tests.oracle import tiny

Arrays = Mapping[str, NDArray[Any]]


@cache
def truth(name: str) -> Truth:
    model = WiredModel.of(open_model(tiny(name)))
    cases = {part.part: cases_of(part) for part in model.whole.parts}
    return Truth(model, wired_cases(model, cases))


class Changed:
    """A session whose decoder begins with other encoder states, or whose outputs are others."""

    def __init__(self, session: Any, memory: Callable[[Arrays], Arrays], outputs: Callable[[Arrays], Arrays]) -> None:
        self.session, self.memory, self.outputs = session, memory, outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, inputs: Arrays) -> Arrays:
        return self.outputs(self.session.run(inputs))

    def decoder(self, rows: Arrays) -> Any:
        return self.session.decoder(self.memory(rows))


def same(arrays: Arrays) -> Arrays:
    return arrays


def turned(arrays: Arrays) -> Arrays:
    """Every array with its rows in another order."""
    return {name: np.roll(array, 1, 0) for name, array in arrays.items()}


def check(
    name: str, changed: str = "", memory: Callable[[Arrays], Arrays] = same, outputs: Callable[[Arrays], Arrays] = same
) -> Report:
    known = truth(name)
    model: Any = known.model
    parts = {part.part: part for part in model.whole.parts}

    def open_part(part: str) -> Any:
        session = open_session(parts[part], "torch")
        return Changed(session, memory, outputs) if part == changed else session

    with WiredSession(PartsSession(model.signatures, open_part, model.task.wires), model) as session:
        return check_wired(session, model, {}, "f32", known)


def failed(report: Report) -> set[str]:
    return {result.case for result in report.results if not result.passed}


@pytest.mark.parametrize("name", ["moonshine_b", "whisper_b", "blip_vqa"])
def test_the_reference_wired_agrees_with_itself(name: str) -> None:
    report = check(name)
    assert report.same, failed(report)
    assert {result.group for result in report.results} == {"wired"}
    assert {result.metric for result in report.results} == {"max_abs", "rms", "argmax"}


def test_the_tokens_of_a_row_are_those_that_the_reference_chooses() -> None:
    known = truth("moonshine_b")
    for row in known.rows:
        assert len(row.tokens) == TOKENS
        assert known.outputs(row)[0].argmax(-1)[:-1].tolist() == row.tokens[1:].tolist()


def test_encoder_states_of_another_row_fail_in_batches_and_not_alone() -> None:
    wrong = failed(check("moonshine_b", "encoder", outputs=turned))
    assert {case.split(",")[1] for case in wrong} == {" batch of 3", " cached decoding"}


def test_a_decoder_that_begins_with_other_encoder_states_fails_when_it_decodes() -> None:
    wrong = failed(check("moonshine_b", "decoder", memory=turned))
    assert len(wrong) == 1
    assert "cached decoding" in wrong.pop()
