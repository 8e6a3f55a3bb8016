"""Which candidate is chosen out of measurements, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isoform.runtimes.choose.candidates import admitted, in_fewer_threads, of_bundle, of_checkpoint, quality_with
from isoform.runtimes.choose.choose import THROUGHPUT, Series, choose, request_seconds
from isoform.runtimes.choose.records import Candidate, Measurement, Timing

TODAY = Candidate(backend="torch", dtype="f32", threads=2)
BF16 = Candidate(backend="torch", dtype="bf16", threads=2)
INT8 = Candidate(backend="onnxruntime", dtype="int8", threads=2)
FOUR_BITS = Candidate(backend="onnxruntime", dtype="q4w", threads=2)


def taken(
    candidate: Candidate,
    prefill: float,
    decode: float,
    *,
    spread: float = 1.0,
    proof: dict[str, tuple[float, float]] | None = None,
    error: str = "",
    **batches: float,
) -> Measurement:
    rates = {"prefill 128": prefill, "decode": decode} | {f"batch {name[1:]}": rate for name, rate in batches.items()}
    timings = {name: Timing(rate=rate, unit="tokens", spread=spread) for name, rate in rates.items()}
    return Measurement(candidate=candidate, timings=timings, proof=proof or {}, error=error)


def series(*measurements: Measurement, control: float = 1.0) -> Series:
    return Series(taken="2026-11-30", measurements=measurements, control=control)


def test_the_fastest_for_a_typical_request_is_chosen() -> None:
    reads, writes = taken(BF16, 240, 20), taken(INT8, 200, 80)
    chosen = choose(series(taken(TODAY, 100, 20), reads, writes), "high")
    assert chosen is not None and chosen.candidate == INT8 and chosen.measured
    assert chosen.seconds == pytest.approx(128 / 200 + 64 / 80)
    assert str(chosen) == "onnxruntime int8, 2 threads: 3.1 times today's torch f32 (measured 2026-11-30)"
    reasons = {rival.candidate: rival.reason for rival in chosen.rivals}
    assert reasons == {TODAY: "3.1 times as slow", BF16: "2.6 times as slow"}


def test_a_second_form_reads_long_prompts_where_it_is_fast_enough() -> None:
    fast = Measurement(
        candidate=INT8,
        timings={name: Timing(rate=rate, unit="tokens", spread=1.0) for name, rate in TIMES_OF_INT8.items()},
        load_seconds=0.5,
    )
    found = choose(series(taken(TODAY, 100, 20), taken(FOUR_BITS, 400, 100), fast), "small")
    assert found is not None
    assert found.candidate == replace(FOUR_BITS, prefill="onnxruntime int8", prefill_from=400)
    assert "onnxruntime int8 reads long prompts 2.0 times as fast" in found.reason
    assert str(found.candidate) == "onnxruntime q4w, prompts from 400 tokens on onnxruntime int8, 2 threads"
    assert Candidate.from_json(found.candidate.to_json()) == found.candidate
    wrong = replace(fast, proof={"kl": (1.0, 0.1)})
    elsewhere = replace(fast, candidate=replace(INT8, backend="openvino"))
    for other in (wrong, elsewhere, taken(INT8, 500, 50)):
        found = choose(series(taken(TODAY, 100, 20), taken(FOUR_BITS, 400, 100), other), "small")
        assert found is not None and found.candidate == FOUR_BITS


TIMES_OF_INT8 = {"prefill 128": 800, "decode": 50}


def test_batches_are_another_use_of_the_same_measurements() -> None:
    found = series(taken(TODAY, 100, 50, b8=100, b32=100), taken(BF16, 100, 40, b8=120, b32=300))
    assert choose(found, "high").candidate == TODAY  # type: ignore[union-attr]
    assert choose(found, "high", THROUGHPUT).candidate == BF16  # type: ignore[union-attr]
    alone = {
        "batch 1": Timing(rate=4, unit="pictures", spread=1),
        "batch 8": Timing(rate=10, unit="pictures", spread=1),
    }
    assert (request_seconds(alone, "latency"), request_seconds(alone, THROUGHPUT)) == (0.25, 0.1)
    assert request_seconds({"30 s": Timing(rate=20, unit="s", spread=1)}, THROUGHPUT) == 0.05
    assert request_seconds({"prefill 128": Timing(rate=20, unit="tokens", spread=1)}, "latency") is None


def test_what_is_not_proven_is_never_chosen() -> None:
    wrong = taken(BF16, 9000, 900, proof={"kl": (0.3, 0.02), "top1": (0.0, 0.1)})
    unknown = taken(INT8, 9000, 900, proof={"kl": (float("nan"), 0.02)})
    broken = taken(FOUR_BITS, 9000, 900, error="its process was ended by SIGSEGV: it wrote no message")
    chosen = choose(series(taken(TODAY, 100, 20), wrong, unknown, broken), "small")
    assert chosen is not None and chosen.candidate == TODAY
    assert "today's choice" in chosen.reason
    reasons = [rival.reason for rival in chosen.rivals]
    assert reasons[0] == "not proven: kl 0.3 (limit 0.02)"
    assert reasons[1] == "not proven: kl nan (limit 0.02)"
    assert "SIGSEGV" in reasons[2]
    assert choose(series(wrong, unknown), "small") is None


def test_a_lower_quality_than_asked_for_is_never_chosen() -> None:
    found = series(taken(TODAY, 100, 20), taken(BF16, 400, 80), taken(FOUR_BITS, 900, 900))
    assert [choose(found, quality).candidate for quality in ("exact", "high", "small")] == [  # type: ignore[union-attr]
        TODAY,
        BF16,
        FOUR_BITS,
    ]
    reasons = {rival.candidate: rival.reason for rival in choose(found, "exact").rivals}  # type: ignore[union-attr]
    assert reasons == {BF16: "not exact", FOUR_BITS: "not exact"}


def test_ties_go_to_todays_choice() -> None:
    chosen = choose(series(taken(TODAY, 100, 20), taken(BF16, 102, 20.4)), "high")
    assert chosen is not None and chosen.candidate == TODAY
    assert chosen.rivals[0].reason == "as fast, within the noise"
    chosen = choose(series(taken(TODAY, 100, 20), taken(BF16, 104, 20.8)), "high")
    assert chosen is not None and chosen.candidate == BF16


def test_a_noisy_machine_keeps_todays_choice_where_it_may_be_the_best_and_says_so() -> None:
    ahead = series(taken(TODAY, 100, 20), taken(BF16, 120, 24), control=1.3)
    chosen = choose(ahead, "high")
    assert chosen is not None and chosen.candidate == TODAY
    assert "noisy machine (the speed of the first one changed by 30%)" in str(chosen)
    far = choose(series(taken(TODAY, 100, 20), taken(BF16, 400, 80), taken(INT8, 420, 84), control=1.3), "high")
    assert far is not None and far.candidate == INT8, "today's is out of reach, so that the fastest is the best guess"
    rounds = choose(series(taken(TODAY, 100, 20, spread=1.6), taken(BF16, 120, 24, spread=1.6)), "high")
    assert rounds is not None and rounds.candidate == TODAY
    assert "torch bf16 is ahead by no more than rounds differ" in rounds.reason


def test_a_choice_without_todays_time_says_why() -> None:
    chosen = choose(series(Measurement(candidate=TODAY, error="left out: memory"), taken(BF16, 4, 4)), "high")
    assert chosen is not None and "today's torch f32 has no time (left out: memory)" in chosen.reason


# ------------------------------------------------------------------ candidates
EVERYWHERE = ("torch", "onnxruntime", "openvino", "llamacpp", "torchscript")


def test_the_quality_of_a_candidate_is_that_of_its_lowest_part() -> None:
    portable = Candidate(backend="openvino", dtype="f32-portable", threads=1, precision="bf16")
    assert quality_with(portable) == "high"
    assert quality_with(Candidate(backend="onnxruntime", dtype="q8_0", threads=1, prefill="onnxruntime q4w")) == "small"
    assert admitted("exact", TODAY) and not admitted("high", FOUR_BITS)


def test_a_checkpoint_has_candidates_for_its_quality_and_backends() -> None:
    exact = of_checkpoint("exact", 2, EVERYWHERE, {"decodes", "gguf"})
    assert exact[0] == TODAY
    assert {(one.backend, one.dtype, one.precision) for one in exact} == {
        ("torch", "f32", ""),
        ("onnxruntime", "f32", ""),
        ("openvino", "f32-portable", "f32"),
    }
    high = of_checkpoint("high", 2, EVERYWHERE, {"decodes", "gguf"})
    assert {"bf16", "int8", "q8_0"} <= {one.dtype for one in high} and set(exact) < set(high)
    small = of_checkpoint("small", 2, EVERYWHERE, {"decodes", "gguf"})
    assert {"q4w", "q4_0", "int4w"} <= {one.dtype for one in small} and set(high) < set(small)
    assert {one.backend for one in of_checkpoint("small", 2, ("torch",), {"decodes"})} == {"torch"}
    assert not {"llamacpp"} & {one.backend for one in of_checkpoint("small", 2, EVERYWHERE, {"decodes"})}
    assert "q4w" not in {one.dtype for one in of_checkpoint("small", 2, EVERYWHERE, ())}, "for decoders only"


def test_a_bundle_has_its_own_forms_and_torch_beside_its_checkpoint() -> None:
    forms = [("onnx", "q4w"), ("onnx", "f32"), ("gguf", "q8_0")]
    found = of_bundle("high", 2, EVERYWHERE, forms, ("onnxruntime", "f32"), ("decodes",), checkpoint=False)
    assert found[0] == Candidate(backend="onnxruntime", dtype="f32", threads=2)
    assert {(one.backend, one.dtype) for one in found} >= {("onnxruntime", "f32"), ("llamacpp", "q8_0")}
    assert all(one.backend != "torch" and one.dtype != "q4w" for one in found)
    beside = of_bundle("high", 2, EVERYWHERE, forms, ("onnxruntime", "f32"), ("decodes",), checkpoint=True)
    assert {one.dtype for one in beside if one.backend == "torch"} >= {"f32", "bf16"}
    only = of_bundle("exact", 2, EVERYWHERE, [("onnx", "q4w")], ("onnxruntime", "q4w"), ("decodes",), checkpoint=False)
    assert [one.dtype for one in only] == ["q4w"], "what opens without a measurement is there whatever its quality"


def test_fewer_threads_are_half_and_one() -> None:
    assert [one.threads for one in in_fewer_threads(Candidate(backend="torch", dtype="f32", threads=8))] == [4, 1]
    assert [one.threads for one in in_fewer_threads(TODAY)] == [1]
    assert in_fewer_threads(Candidate(backend="torch", dtype="f32", threads=1)) == []
