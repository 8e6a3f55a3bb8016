"""`backend="auto"` of a pipeline: what it opens, at which quality, when it measures, and what it says of all that."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isoform
from isoform.choosing import Spent, Target
from isoform.errors import InputError
from isoform.export_cache import content_key
from isoform.exporters.onnx import Options
from isoform.manifest import Manifest
from isoform.measuring import measure_candidates
from isoform.reference.model import open_model
from isoform.runtimes.backends.onnxruntime.arithmetic import computes_in
from isoform.runtimes.choose.cache import MeasurementCache
from isoform.runtimes.choose.choose import Series
from isoform.runtimes.choose.records import Candidate, Measurement, Timing
from isoform.todays_choice import form_of, proof_of
from tests.cli.test_bad_input import run
from tests.exports import exported

Tiny = Callable[[str], Path]
TODAY = Candidate(backend="torch", dtype="f32", threads=1)
BF16 = Candidate(backend="torch", dtype="bf16", threads=1)
ONNX = Candidate(backend="onnxruntime", dtype="f32", threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeasurementCache:
    """An empty cache folder, and a machine of one CPU that measures where it pays."""
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ISOFORM_MEASURE", "auto")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return MeasurementCache(tmp_path / "cache")


def measured(candidate: Candidate, rate: float, **more: Any) -> Measurement:
    timings = {name: Timing(rate=rate, unit="texts", spread=1.0) for name in ("batch 1", "batch 8")}
    return Measurement(candidate=candidate, timings=timings, **more)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """Measurements that are made up: bfloat16 is four times as fast. Holds what was measured."""
    asked: list[Target] = []

    def measure(target: Target, *arguments: Any, **options: Any) -> Series:
        asked.append(target)
        return Series(taken="2026-11-30", measurements=(measured(TODAY, 10), measured(BF16, 40)))

    monkeypatch.setattr(Target, "measure", measure)
    return asked


@pytest.fixture
def stored_bf16(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint that is stored in bfloat16."""
    open_model(tiny("bert")).save(tmp_path / "bf16", dtype=torch.bfloat16)
    return tmp_path / "bf16"


def key(path: Path) -> str:
    model = open_model(path, "fill-mask")
    return content_key("fill-mask", (*model.checkpoint.files(), *model.checkpoint.sidecars()))


# ------------------------------------------------------------------ when it measures
def test_nothing_is_measured_before_a_model_was_used_for_long(
    tiny: Tiny, cache: MeasurementCache, measuring: list[Target], stored_bf16: Path
) -> None:
    with isoform.pipeline("fill-mask", stored_bf16) as pipe:
        pipe("a [MASK]")
        assert str(pipe.chosen) == "torch f32, 1 thread: today's choice, not measured yet"
        assert 0 < pipe.clock.seconds < 60
        pipe.clock.seconds = 20.0
    assert not measuring and cache.spent(key(stored_bf16), "fill-mask") == 20
    pipe = isoform.pipeline("fill-mask", stored_bf16)
    pipe.clock.seconds = 11.0
    del pipe  # never closed, as most scripts leave it
    gc.collect()
    assert not measuring and cache.spent(key(stored_bf16), "fill-mask") == 31
    with isoform.pipeline("fill-mask", stored_bf16) as pipe:
        assert pipe.chosen is not None and pipe.chosen.measured and pipe.chosen.quality == "high"
        assert str(pipe.chosen) == "torch bf16, 1 thread: 4.0 times today's torch f32 (measured 2026-11-30)"
        assert pipe.model.dtype is torch.bfloat16 and "bf16" in repr(pipe)
        assert pipe("a [MASK]")
    with isoform.pipeline("fill-mask", stored_bf16) as pipe:
        assert pipe.chosen is not None and pipe.chosen.measured
    assert len(measuring) == 1, "what is kept is not measured again"
    with isoform.pipeline("fill-mask", stored_bf16, quality="exact") as pipe:
        assert pipe.model.dtype is torch.float32
    assert [target.quality for target in measuring] == ["high", "exact"]


def test_short_use_leaves_no_file(tiny: Tiny, cache: MeasurementCache, measuring: list[Target]) -> None:
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        pipe("a [MASK]")
        assert pipe.clock.seconds < Spent.LEAST or pipe.clock.seconds > 0
        pipe.clock.seconds = 0.5
    assert not cache.folder.exists()


def test_iterators_count_the_time_that_the_model_takes(tiny: Tiny) -> None:
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        answers = pipe(text for text in ("a [MASK]", "the [MASK]"))
        assert pipe.clock.seconds == 0
        assert len(list(answers)) == 2 and pipe.clock.seconds > 0


def test_the_environment_says_when_to_measure(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, measuring: list[Target], cache: MeasurementCache
) -> None:
    cache.spend(key(tiny("bert")), "fill-mask", 1000)
    monkeypatch.setenv("ISOFORM_MEASURE", "never")
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        pipe.clock.seconds = 50.0
    assert not measuring and cache.spent(key(tiny("bert")), "fill-mask") == 1000
    monkeypatch.setenv("ISOFORM_MEASURE", "always")
    with isoform.pipeline("feature-extraction", tiny("bert")):
        assert len(measuring) == 1
    monkeypatch.setenv("ISOFORM_MEASURE", "sometimes")
    with pytest.raises(InputError, match="ISOFORM_MEASURE='sometimes' is not known; choose from auto, always, never"):
        isoform.pipeline("fill-mask", tiny("bert"))


@pytest.mark.filterwarnings("error")
def test_a_cache_that_cannot_be_written_is_a_warning(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measuring: list[Target]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "file" / "below"))
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        pipe.clock.seconds = 50.0  # which cannot be written down
    monkeypatch.setenv("ISOFORM_MEASURE", "always")
    said = r"measurements cannot be kept in .*below.*; set ISOFORM_CACHE"
    with (
        pytest.warns(UserWarning, match=said) as caught,
        isoform.pipeline("fill-mask", tiny("bert"), quality="high") as pipe,
    ):
        assert pipe.chosen is not None and pipe.chosen.candidate == BF16
    assert len(caught) == 1


def test_a_choice_that_does_not_open_any_more_falls_back(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, measuring: list[Target]
) -> None:
    gone = Series(taken="2026-11-30", measurements=(measured(TODAY, 10), measured(ONNX, 90)))
    monkeypatch.setattr(Target, "measure", lambda *arguments, **options: gone)
    monkeypatch.setenv("ISOFORM_MEASURE", "always")

    def full(*arguments: Any) -> Path:
        raise InputError("the cache is full")

    monkeypatch.setattr("isoform.export_cache.cached_form", full)
    with isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        assert pipe.session.backend == "torch" and pipe("a [MASK]")
        assert str(pipe.chosen).endswith("onnxruntime f32, 1 thread is faster and fails: the cache is full")


def test_threads_that_are_asked_for_are_kept(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, measuring: list[Target]
) -> None:
    monkeypatch.setenv("ISOFORM_MEASURE", "always")
    one, two = (Candidate(backend="torch", dtype="f32", threads=count) for count in (1, 2))
    found = Series(taken="2026-11-30", measurements=(measured(two, 10), measured(one, 90)))
    monkeypatch.setattr(Target, "measure", lambda *arguments, **options: found)
    with isoform.pipeline("fill-mask", tiny("bert"), threads=2) as pipe:
        assert pipe.chosen is not None and pipe.chosen.candidate == two and pipe.chosen.measured
    torch.set_num_threads(1)


# ------------------------------------------------------------------ qualities
def test_the_quality_follows_the_stored_dtype(tiny: Tiny, stored_bf16: Path) -> None:
    for path, expected in ((tiny("bert"), "exact"), (stored_bf16, "high")):
        with isoform.pipeline("fill-mask", path) as pipe:
            assert pipe.chosen is not None and pipe.chosen.quality == expected
            assert pipe.model.dtype is torch.float32, "nothing lower is taken before it was measured"
    with isoform.pipeline("fill-mask", tiny("bert"), quality="small") as pipe:
        assert pipe.chosen is not None and pipe.chosen.quality == "small"
    isoform.export(stored_bf16, stored_bf16.parent / "bundle", to="onnx", check=False)
    assert Manifest.read(stored_bf16.parent / "bundle").source["dtype"] == "bf16"
    with isoform.pipeline("fill-mask", stored_bf16.parent / "bundle") as pipe:
        assert pipe.chosen is not None and pipe.chosen.quality == "high" and pipe.chosen.candidate == ONNX


def test_what_is_asked_for_wins(tiny: Tiny, measuring: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFORM_MEASURE", "always")
    for options, words, quality in (
        ({"dtype": "bf16"}, "torch bf16, 1 thread: asked for", "high"),
        ({"dtype": "float32", "quality": "small"}, "torch f32, 1 thread: asked for", "small"),
        ({"dtype": "auto"}, "torch f32, 1 thread: asked for", "exact"),
        ({"backend": "torch", "threads": 1}, "torch f32, 1 thread: asked for", "exact"),
        ({"backend": "onnxruntime", "quality": "high"}, "onnxruntime f32, 1 thread: asked for", "high"),
    ):
        with isoform.pipeline("fill-mask", tiny("bert"), **options) as pipe:
            assert (str(pipe.chosen), pipe.chosen and pipe.chosen.quality) == (words, quality)
    assert not measuring


def test_a_dtype_below_the_quality_is_refused(tiny: Tiny, stored_bf16: Path) -> None:
    with pytest.raises(InputError, match="quality='exact' does not admit dtype=bf16, which is 'high'; leave one out"):
        isoform.pipeline("fill-mask", tiny("bert"), quality="exact", dtype="bfloat16")
    with pytest.raises(InputError, match="quality='exact' does not admit dtype=bf16"):
        isoform.pipeline("fill-mask", stored_bf16, quality="exact", dtype="auto")
    with pytest.raises(InputError, match="quality='exact' does not admit dtype=f16"):
        isoform.pipeline("fill-mask", isoform.load(tiny("bert"), task="fill-mask", dtype="f16"), quality="exact")
    with pytest.raises(InputError, match="quality 'best' is not known; choose from exact, high, small"):
        isoform.pipeline("fill-mask", tiny("bert"), quality="best")


# ------------------------------------------------------------------ forms of bundles
def manifest(*dtypes: str, passed: dict[str, bool] | None = None) -> Manifest:
    """A bundle of ONNX forms, and how each fared in its last check."""
    known = Manifest.read(exported("bert"))
    [one] = [artifact for artifact in known.artifacts if artifact.format == "onnx"]
    known.artifacts = [
        type(one)(format="onnx", dtype=name, files=one.files, signature=one.signature) for name in dtypes
    ]
    about = {"backend": "onnxruntime", "form": "onnx", "level": "deployment", "metric": "kl", "limit": 0.1}
    worst = [{**about, "dtype": name, "value": 0.0 if good else None} for name, good in (passed or {}).items()]
    known.parity = {"same": True, "worst": worst} if passed is not None else None
    return known


def test_a_bundle_opens_the_first_form_that_is_good_enough_and_proven() -> None:
    held = manifest("q4w", "int8", "f32", passed={"q4w": True, "int8": False})
    assert form_of(held, "onnxruntime", "small") == ("q4w", "")
    assert form_of(held, "onnxruntime", "high") == ("f32", ""), "int8 did not pass its check"
    assert form_of(held, "onnxruntime", "exact") == ("f32", "")
    assert form_of(manifest("int8", "f32"), "onnxruntime", "high") == ("f32", ""), "int8 was not checked"
    assert form_of(manifest("int8", "f32", passed={"int8": True}), "onnxruntime", "high") == ("int8", "")
    assert proof_of(held, "onnx", "int8") == {"kl": (float("inf"), 0.1)}
    assert proof_of(held, "onnx", "f32") is None
    both = manifest("f32-portable", "f32", "int8")
    assert form_of(both, "onnxruntime", "exact") == ("f32", "")
    assert form_of(manifest("f32-portable", "int8"), "onnxruntime", "exact") == ("f32-portable", "")


def test_a_bundle_with_a_lower_form_alone_opens_and_says_so(tiny: Tiny, tmp_path: Path) -> None:
    first, why = form_of(manifest("q4w"), "onnxruntime", "exact")
    assert first == "q4w" and "holds no proven onnx form of the quality exact (q4w is small)" in why
    assert "(no check of it has passed)" in form_of(manifest("int8"), "onnxruntime", "high")[1]
    isoform.export(tiny("bert"), tmp_path / "b", to="onnx", onnx_types="q8_0", check=False)
    for backend in ("auto", "onnxruntime"):
        with isoform.pipeline("fill-mask", tmp_path / "b", backend=backend) as pipe:
            assert pipe("a [MASK]") and pipe.chosen is not None and pipe.chosen.candidate.dtype == "q8_0"
            assert "no proven onnx form of the quality exact (q8_0 is high)" in str(pipe.chosen)


# ------------------------------------------------------------------ measured for once
def test_two_candidates_are_measured_in_processes_and_the_choice_is_kept(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, cache: MeasurementCache
) -> None:
    monkeypatch.setattr(Target, "candidates", lambda target: [TODAY, ONNX])
    monkeypatch.setattr(Target, "proof", lambda target, candidate: {})
    told: list[str] = []
    found = measure_candidates(
        tiny("bert"), "fill-mask", rounds=2, seconds=200.0, progress=lambda text, done, total: told.append(text)
    )
    assert [one.candidate for one in found.series.measurements] == [TODAY, ONNX]
    assert not any(one.error for one in found.series.measurements)
    for one in found.series.measurements:
        assert set(one.timings) == {"batch 1", "batch 8", "batch 32"}
        assert all(timing.rate > 0 and timing.unit == "texts" for timing in one.timings.values())
        assert one.load_seconds > 0 and one.first_seconds > 0 and one.peak_bytes > 1e7
    assert found.series.control >= 1 and found.file is not None and found.file.is_file()
    assert found.choice is not None and found.target.quality == "exact"
    assert "measuring onnxruntime f32, 1 thread" in told and "measuring torch f32, 1 thread again" in told
    monkeypatch.setattr(Target, "measure", None)  # from here on, nothing may be measured
    again = measure_candidates(tiny("bert"), "fill-mask")
    assert again.series == found.series and again.choice == found.choice
    with warnings.catch_warnings(), isoform.pipeline("fill-mask", tiny("bert")) as pipe:
        assert pipe.chosen == found.choice
        assert pipe("a [MASK]")


def test_run_says_what_was_chosen(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run", "fill-mask", tiny("bert"), "a [MASK]", "-v", "--quality", "high") == 0
    assert capsys.readouterr().err.strip() == "torch f32, 1 thread: today's choice, not measured yet"
    assert run(monkeypatch, "run", "fill-mask", tiny("bert"), "a [MASK]", "--quality", "best") == 2
    assert "quality 'best' is not known" in capsys.readouterr().err


def test_a_bundle_has_no_candidate_that_is_cast_and_none_proven_by_a_wider_limit(measuring: list[Target]) -> None:
    bundle = exported("bert_seqcls", ("onnx",), onnx=Options(types=("f32", "f16", "int8")))
    measure_candidates(bundle, quality="high")
    (target,) = measuring
    found = {(one.backend, one.dtype) for one in target.candidates()}
    assert ("onnxruntime", "int8") in found
    assert (("onnxruntime", "f16") in found) is computes_in("f16")
    assert target.proof(Candidate(backend="onnxruntime", dtype="int8", threads=1)) is None, "its checkpoint is there"
