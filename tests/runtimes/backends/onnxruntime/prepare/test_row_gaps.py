"""The input that lets rows of a cache end at slots of their own: where it is, and that nothing changes without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from isoform.runtimes.backends.onnxruntime.library import ROW_GAPS
from isoform.runtimes.backends.onnxruntime.prepare.row_gaps import add_row_gaps
from tests.exports import exported, file_of

ort: Any = pytest.importorskip("onnxruntime")


def graph_of(name: str) -> onnx.ModelProto:
    return onnx.load(file_of(exported(name), "onnx"))


def test_only_a_graph_that_appends_in_place_gets_the_input() -> None:
    model = graph_of("qwen2")  # heads of 4 channels, which the kernel does not take
    before = model.SerializeToString()
    assert not add_row_gaps(model.graph, ROW_GAPS)
    assert model.SerializeToString() == before
    assert add_row_gaps(graph_of("mistral_full").graph, ROW_GAPS)


def test_without_gaps_no_number_changes_and_with_them_a_row_is_as_it_is_alone() -> None:
    plain = graph_of("mistral_full")
    changed = onnx.ModelProto.FromString(plain.SerializeToString())
    assert add_row_gaps(changed.graph, ROW_GAPS)
    first, second = (ort.InferenceSession(model.SerializeToString()) for model in (plain, changed))
    names = [output.name for output in first.get_outputs()]
    pasts = [port for port in first.get_inputs() if port.name.startswith("past")]

    def run(session: Any, ids: Any, mask: Any, positions: Any, past: Any, **more: Any) -> dict[str, Any]:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past, **more}
        feeds = {name: np.asarray(value) for name, value in given.items()}
        return dict(zip(names, session.run(names, feeds), strict=True))

    empty = {port.name: np.zeros((2, port.shape[1], 0, port.shape[3]), np.float32) for port in pasts}
    ids, ones = np.array([[5, 6, 7], [8, 9, 10]]), np.ones((2, 3), np.int64)
    made = [run(session, ids, ones, [[0, 1, 2]] * 2, empty) for session in (first, second)]
    for name in names:
        np.testing.assert_array_equal(made[0][name], made[1][name])
    past = {port.name: made[0][port.name.replace("past_key_values", "present")] for port in pasts}
    # Row 1 forgets its last token: its next one stands where that was.
    mask, gaps = [[1, 1, 1, 1], [1, 1, 1, 0]], np.array([0, 1], np.int32)
    ragged = run(second, [[11], [12]], mask, [[3], [2]], past, row_gaps=gaps)["logits"]
    shorter = {name: array[1:, :, :2] for name, array in past.items()}
    alone = run(first, [[12]], [[1, 1, 1]], [[2]], shorter)["logits"]
    np.testing.assert_allclose(ragged[1], alone[0], atol=1e-5)
