"""What an item needs, and the share of the nearer limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoform import candidate_worker
from isoform.runtimes.choose.probe import Machine
from isoform.runtimes.choose.records import Candidate, Measurement, Timing
from isoform.runtimes.choose.work import Share, Weights, bound, operations_of, share_of, unit_of, with_counts, with_work

MACHINE = Machine(
    processor="", cores=2, threads=2, bandwidth=20e9, peaks={"f32": 100e9, "bf16": 200e9, "int8": 400e9}, noise=1.0
)


def candidate(dtype: str, backend: str = "torch", **more: Any) -> Candidate:
    return Candidate(backend=backend, dtype=dtype, threads=2, **more)


def timing(rate: float, unit: str = "tokens", **work: float) -> Timing:
    return Timing(rate=rate, unit=unit, spread=1.0, **work)


@pytest.mark.parametrize(
    ("one", "workload", "unit"),
    [
        (candidate("f32"), "decode", "f32"),
        (candidate("f64"), "decode", "f32"),
        (candidate("f32-portable", "openvino", precision="bf16"), "decode", "bf16"),
        (candidate("int8-portable", "openvino", precision="f32"), "decode", "int8"),
        (candidate("bf16"), "prefill 128", "bf16"),
        (candidate("int4w"), "decode", "bf16"),
        (candidate("q4_k_m", "llamacpp"), "decode", "int8"),
        (candidate("q4w", "onnxruntime", prefill="onnxruntime f32"), "prefill 128", "f32"),
        (candidate("q4w", "onnxruntime", prefill="onnxruntime f32"), "decode", "int8"),
    ],
)
def test_a_candidate_multiplies_in_one_dtype(one: Candidate, workload: str, unit: str) -> None:
    assert unit_of(one, workload) == unit


def test_the_nearer_limit_counts() -> None:
    decode = timing(100.0, bytes=100e6, operations=200e6)
    assert share_of(candidate("f32"), "decode", decode, MACHINE) == Share(0.5, "bandwidth")
    prefill = timing(400.0, bytes=1e6, operations=200e6)
    assert share_of(candidate("f32"), "prefill 128", prefill, MACHINE) == Share(0.8, "f32")
    assert share_of(candidate("int8"), "prefill 128", prefill, MACHINE) == Share(0.2, "int8")
    assert bound(candidate("f32"), "decode", decode, MACHINE) == 200.0


def test_there_is_no_share_where_the_work_is_not_known() -> None:
    assert share_of(candidate("f32"), "batch 1", timing(5.0, "pictures"), MACHINE) is None
    assert bound(candidate("f32"), "batch 1", timing(5.0, "pictures"), MACHINE) is None


def test_a_step_reads_all_weights_but_a_table_that_is_looked_up() -> None:
    tied, untied = (Weights(parameters=1000, table=100, tied=tied) for tied in (True, False))
    assert tied.bytes_read("f32") == 4000
    assert untied.bytes_read("f32") == 3600
    assert untied.bytes_read("bf16") == 1800
    assert untied.bytes_read("int8-portable") == 900
    assert tied.bytes_read("q4w", files=640) == 640, "the files' own size"
    assert untied.bytes_read("q8_0", files=1070) == pytest.approx(1070 - 106.25)
    assert untied.bytes_read("q5_0", files=700) == pytest.approx(630), "as many bytes a weight as its files have"
    assert untied.bytes_read("q5_0") is None


def test_a_prompt_has_one_row_of_logits() -> None:
    tied, untied = (Weights(parameters=1000, table=100, tied=tied) for tied in (True, False))
    assert (tied.operations(), untied.operations()) == (2000, 1800)
    assert tied.operations(100) == 2 * 900 + 2


def test_tokens_get_the_work_of_the_weights_and_others_what_was_counted() -> None:
    weights = Weights(parameters=1000, table=100, tied=True)
    found = with_work(
        [
            Measurement(candidate=candidate("f32"), timings={"batch 1": timing(1.0, "pictures", operations=7.0)}),
            Measurement(candidate=candidate("bf16"), timings={"batch 1": timing(2.0, "pictures")}),
            Measurement(
                candidate=candidate("q4w", "onnxruntime"),
                timings={name: timing(3.0) for name in ("prefill 100", "decode", "batch 8")},
            ),
        ],
        weights,
        lambda one: 600 if one.dtype == "q4w" else None,
    )
    assert [one.timings["batch 1"].operations for one in found[:2]] == [7.0, 7.0]
    assert found[0].timings["batch 1"].bytes == 0
    timings = found[2].timings
    assert (timings["prefill 100"].bytes, timings["prefill 100"].operations) == (0, 1802)
    assert (timings["decode"].bytes, timings["decode"].operations) == (600, 2000)
    assert timings["batch 8"].bytes == 75


def test_operations_of_a_pass_in_torch_are_counted_with_attention() -> None:
    import torch

    x, weight = torch.ones(6, 8), torch.ones(16, 8)
    q, k = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4)

    def run() -> tuple[float, float]:
        with torch.inference_mode():
            torch.nn.functional.linear(x, weight)
            torch.nn.functional.scaled_dot_product_attention(q, k, k)
        return 6.0, 1.0

    one = (2 * 6 * 8 * 16 + 4 * 2 * 3 * 5 * 4) / 6
    assert operations_of(run) == one
    timings = {"batch 8": timing(1.0, "texts"), "decode": timing(1.0)}
    found = with_counts(Measurement(candidate=candidate("f32"), timings=timings), dict.fromkeys(timings, run))
    assert [found.timings[name].operations for name in timings] == [one, 0.0]


def test_the_worker_counts_what_a_table_needs_and_nothing_for_a_choice(tiny: Callable[[str], Path]) -> None:
    told: dict[str, object] = {
        "model": str(tiny("vit_cls")),
        "task": "image-classification",
        "served": "image-classification",
        "use": "latency",
        "slowest": None,
    }
    told |= {"rounds": 1, "least": 0.0, "timing": 60.0, "prove": False, "proof": None, "quality": "high"}
    one = Candidate(backend="torch", dtype="f32", threads=1)
    for names, counted in ((["batch 1", "batch 8"], True), (None, False)):
        timings = candidate_worker.measured({**told, "workloads": names}, one).timings
        assert [timing.operations > 0 for timing in timings.values()] == [counted, counted]
        assert timings["batch 1"].operations == pytest.approx(timings["batch 8"].operations)
