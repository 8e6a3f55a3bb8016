"""table-question-answering, against what transformers' pipeline gave (`table_goldens`), on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.facts import facts_of
from isoform.reference.model import open_model
from isoform.runtimes.backends.torch.session import TorchSession
from isoform.runtimes.pipelines import build_pipeline
from tests.exports import exported
from tests.oracle import table_goldens as goldens

Tiny = Callable[[str], Path]
TASK = "table-question-answering"


def opened(folder: Path, task: str = TASK, **parameters: Any) -> Any:
    model = open_model(folder, task)
    where = model.checkpoint.folder
    return build_pipeline(task, TorchSession(model), where, facts=facts_of(model), keep=model, **parameters)


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(goldens.__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return found


def same(found: Any, expected: Any) -> None:
    """Equal but for tuples, which the stored answers have as lists."""
    assert json.loads(json.dumps(found)) == expected


@pytest.mark.parametrize("name", ["tapas_qa", "tapas_sqa_b"])
def test_answers_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    with opened(tiny(name)) as pipe:
        for (of, number, options), expected in zip(goldens.CALLS, stored()["answers"], strict=True):
            if of == name:
                table, asked = goldens.HAND[number]
                for size in (None, 1, 7):
                    same(pipe(table, asked, batch_size=size, **options), expected)


def test_masks_of_a_text_are_filled_as_by_transformers(tiny: Tiny) -> None:
    with opened(tiny("tapas"), "fill-mask") as pipe:
        for text, expected in zip(goldens.FILLED, stored()["filled"], strict=True):
            for one, other in zip(pipe(text), expected, strict=True):
                assert {**one, "score": 0} == {**other, "score": 0}
                assert one["score"] == pytest.approx(other["score"], abs=2e-5)


def test_what_a_text_says_of_a_table_is_classified_as_by_transformers(tiny: Tiny) -> None:
    asked = [(goldens.HAND[n][0], question) for n in goldens.CLASSIFIED for question in goldens.HAND[n][1]]
    with opened(tiny("tapas_seqcls_b"), "text-classification") as pipe:
        items: list[Any] = [{"text": question, "table": table} for table, question in asked]
        answers = pipe([*items, "a text alone"], top_k=None, batch_size=3)
        for answer, expected in zip(answers[:-1], stored()["scores"], strict=True):
            found = {one["label"]: one["score"] for one in answer}
            assert [found["REFUTED"], found["ENTAILED"]] == pytest.approx(expected, abs=1e-5)
        assert answers[-1] == pipe("a text alone", top_k=None)
        assert pipe(items[0]) == answers[0][0]
        for wrong, reason in (
            ({"text": "a", "table": {}}, "the table has no columns"),
            ({"text": "a", "text_pair": "b", "table": goldens.SHORT}, "not with both"),
            ({"table": goldens.SHORT}, "takes a text"),
            ({"text": "how many " * 60, "table": goldens.SHORT}, "too long for the model's 64 positions"),
        ):
            with pytest.raises(InputError, match=reason):
                pipe(wrong)
    with opened(tiny("bert_seqcls"), "text-classification") as pipe, pytest.raises(UnsupportedModel, match="no tables"):
        pipe({"text": "a", "table": goldens.SHORT})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torchscript"])
def test_a_bundle_answers_as_its_checkpoint_does(backend: str, tiny: Tiny) -> None:
    expected = [
        answer for call, answer in zip(goldens.CALLS, stored()["answers"], strict=True) if call[0] == "tapas_qa"
    ]
    calls = [call for call in goldens.CALLS if call[0] == "tapas_qa"]
    pipe: Any
    with isoform.pipeline(TASK, exported("tapas_qa"), backend=backend, threads=1) as pipe:
        for (_, number, options), answer in zip(calls[:5], expected, strict=False):
            same(pipe(*goldens.HAND[number], **options), answer)


class Frame:
    """What is asked of a data frame; it is neither true nor false, like pandas'."""

    def __init__(self, table: goldens.Columns) -> None:
        self.columns, self._rows = list(table), list(zip(*table.values(), strict=True))

    def __bool__(self) -> bool:
        raise ValueError("a data frame has no truth")

    def itertuples(self, index: bool = True, name: str | None = "Pandas") -> Iterator[tuple[str, ...]]:
        return iter(self._rows)


def test_every_form_of_a_call_gives_the_same_answer(tiny: Tiny) -> None:
    table, (first, second) = goldens.ACTORS, goldens.HAND[1][1]
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    with opened(tiny("tapas_qa")) as pipe:
        one, both = pipe(table, first), pipe(table, [first, second])
        assert list(one) == ["answer", "coordinates", "cells", "aggregator"]
        assert both == [one, pipe(table, second)]
        assert pipe(table, [first]) == one, "a list of one question, as in transformers"
        for same_table in (table, rows, Frame(table), {name: np.array(cells) for name, cells in table.items()}):
            assert pipe(same_table, first) == one
            assert pipe(table=same_table, query=first) == one
            assert pipe({"table": same_table, "query": [first, second]}) == both
            assert pipe([{"table": same_table, "query": first}]) == one, "a list of one, as in transformers"
        asked = [{"table": table, "query": first}, {"table": rows, "query": [first, second]}]
        assert pipe(asked) == [one, both]
        assert list(pipe(iter(asked))) == [one, both]


def test_a_conversation_tells_each_question_the_answer_before(tiny: Tiny) -> None:
    table, asked = goldens.HAND[1]
    with opened(tiny("tapas_qa")) as pipe:
        alone, together = pipe(table, asked), pipe(table, asked, sequential=True)
        assert together[0] == alone[0]
        assert together[1] != alone[1]
        assert pipe(table, [asked[1], asked[0]], sequential=True)[0] == alone[1]


def test_cells_that_are_no_text_are_read_as_their_text(tiny: Tiny) -> None:
    with opened(tiny("tapas_qa")) as pipe:
        numbers = pipe({"word": ["cat", "dog"], "count": [3, None]}, "how many?")
        assert numbers == pipe({"word": ["cat", "dog"], "count": ["3", "nan"]}, "how many?")


def changed(folder: Path, to: Path, **config: Any) -> Path:
    goldens.changed(folder, to, {})
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return to


def test_aggregations_are_named_by_the_configuration(tiny: Tiny, tmp_path: Path) -> None:
    table, asked = goldens.HAND[1]
    names = {"0": "COUNT", "1": "NONE", "2": "", "3": "MORE"}
    with opened(tiny("tapas_qa")) as pipe:
        plain = pipe(table, asked[0])
    assert plain["aggregator"] == "AVERAGE"
    with opened(changed(tiny("tapas_qa"), tmp_path / "other", aggregation_labels=names)) as pipe:
        found = pipe(table, asked[0])
    assert "aggregator" not in found, "its name is empty"
    assert found["answer"] == plain["answer"].replace("AVERAGE", "")
    without: tuple[Any, ...] = ({}, None)
    for labels in without:
        folder = changed(tiny("tapas_qa"), tmp_path / f"{labels}", aggregation_labels=labels)
        with opened(folder) as pipe:
            found = pipe(table, asked[0])
        assert found == {"answer": ", ".join(plain["cells"]), **{k: plain[k] for k in ("coordinates", "cells")}}
    with opened(changed(tiny("tapas_qa"), tmp_path / "other index", no_aggregation_label_index=2)) as pipe:
        assert pipe(table, asked[0]) == {**plain, "answer": ", ".join(plain["cells"])}


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((goldens.SHORT,), r'takes table= and query=, \{"table", "query"\}'),
        ((goldens.SHORT, ""), "a query is a text that is not empty"),
        ((goldens.SHORT, []), "a query is a text that is not empty"),
        ((goldens.SHORT, ["a", ""]), "a query is a text that is not empty"),
        ((goldens.SHORT, 3), "a query is a text that is not empty"),
        (({"table": None, "query": "a"},), "takes table= and query="),
        (([{"query": "a"}],), "takes table= and query="),
        (({}, "a"), "the table has no columns"),
        (({"a": []}, "a"), "the table has no rows"),
        (({"a": ["x"], "b": ["y", "z"]}, "a"), "unlike numbers of cells"),
        (("a table", "a"), "a table is"),
        (({f"c{n}": ["x"] for n in range(600)}, "a"), "600 columns, and the model reads up to 255"),
    ],
)
def test_wrong_input_is_one_line(inputs: tuple[Any, ...], reason: str, tiny: Tiny) -> None:
    with opened(tiny("tapas_qa")) as pipe, pytest.raises(InputError, match=reason):
        pipe(*inputs)


@pytest.mark.parametrize(
    "options", [{"truncation": "longest_first"}, {"padding": "left"}, {"sequential": "yes"}, {"top_k": 3}]
)
def test_a_parameter_that_the_task_does_not_have_is_one_line(options: dict[str, Any], tiny: Tiny) -> None:
    with opened(tiny("tapas_qa")) as pipe, pytest.raises(InputError, match=next(iter(options))):
        pipe(goldens.SHORT, "a", **options)


def test_too_many_tokens_are_one_line_where_positions_go_on(tiny: Tiny) -> None:
    with opened(tiny("tapas_sqa_b")) as pipe:
        with pytest.raises(InputError, match=r"too many for the model's 64 positions; pass truncation=True"):
            pipe(goldens.ACTORS, "how many stars?", truncation=False)
        with pytest.raises(InputError, match=r"too many for the model's 64 positions"):
            pipe(goldens.SHORT, "how many " * 60)
        assert pipe(goldens.STARS, "how many stars?", truncation="drop_rows_to_fit")


def test_a_long_question_leaves_no_place_for_rows(tiny: Tiny) -> None:
    with opened(tiny("tapas_qa")) as pipe:
        answer = pipe(goldens.SHORT, "how many " * 300)
        assert answer["cells"] == []


@pytest.mark.parametrize(
    ("config", "kind", "reason"),
    [
        ({"select_one_column": False}, UnsupportedModel, "select_one_column"),
        ({"type_vocab_sizes": [3, 256, 256]}, CheckpointError, "has 3 sizes; a token of a table has 7 types"),
        ({"aggregation_labels": {"0": "NONE"}}, CheckpointError, "does not name all 4 aggregations"),
        ({"aggregation_labels": ["NONE"]}, CheckpointError, "not an object of names by number"),
        ({"aggregation_labels": {"a": "NONE"}}, CheckpointError, "not an object of names by number"),
        ({"is_decoder": True}, UnsupportedModel, "is_decoder"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(
    config: dict[str, Any], kind: type[Exception], reason: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=reason):
        open_model(changed(tiny("tapas_qa"), tmp_path / "changed", **config))


def test_another_model_is_refused(tiny: Tiny) -> None:
    model = open_model(tiny("bert_seqcls"))
    with pytest.raises(UnsupportedModel, match="types of rows and columns"):
        build_pipeline(TASK, TorchSession(model), model.checkpoint.folder, facts=facts_of(model))
