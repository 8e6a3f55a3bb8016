"""The limits of this machine are positive numbers, and a kernel that torch does not have is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest

from isoform.runtimes.choose import probe
from isoform.runtimes.choose.probe import Machine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that takes a moment: of a small buffer and small products."""
    monkeypatch.setattr(probe, "READ", 2**20)
    monkeypatch.setattr(probe, "SHAPES", ((8, 64, 64), (16, 64, 64)))
    monkeypatch.setattr(probe, "SHORT", 1e-4)


def missing(*_: object) -> Callable[[], object]:
    raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_prepack'")


def test_the_limits_of_this_machine_are_finite_and_threads_are_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    found = probe.probe(1)
    assert torch.get_num_threads() == before
    assert found.threads == 1
    assert {"f32", "bf16"} <= found.peaks.keys() <= set(probe.UNITS)
    for value in (found.bandwidth, found.noise, *found.peaks.values()):
        assert isfinite(value)
        assert value > 0
    assert found.noise >= 1
    assert found.peaks.keys() | found.missing.keys() == set(probe.UNITS)


@pytest.mark.usefixtures("small")
def test_a_unit_without_a_kernel_has_no_peak_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.KERNELS, "int8", (missing,))
    found = probe.probe(1)
    assert "int8" not in found.peaks
    assert "qlinear_prepack" in found.missing["int8"]
    assert found.peak("int8") == found.peaks["f32"], "bytes may be converted to float32"


@pytest.mark.usefixtures("small")
def test_another_kernel_takes_the_place_of_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.KERNELS, "bf16", (missing, probe._linear))
    found = probe.probe(1)
    assert found.peaks["bf16"] > 0
    assert not found.missing


@pytest.mark.usefixtures("small")
def test_too_little_memory_for_the_buffer_halves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ones, sizes = torch.ones, []

    def limited(size: object, **options: object) -> torch.Tensor:
        if isinstance(size, int) and size > 2**17:
            sizes.append(size)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return ones(size, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "ones", limited)
    assert probe.probe(1).bandwidth > 0
    assert sizes == [2**18]


def test_a_peak_is_never_below_that_of_float32() -> None:
    machine = Machine(
        processor="", cores=1, threads=1, bandwidth=1e9, peaks={"f32": 9e9, "bf16": 2e9, "int8": 40e9}, noise=1.0
    )
    assert [machine.peak(unit) for unit in ("f32", "bf16", "f16", "int8")] == [9e9, 9e9, 9e9, 40e9]
    assert replace(machine, peaks={}).peak("f32") is None


@pytest.mark.usefixtures("small")
def test_what_was_probed_is_kept_by_processor_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "NOISY", 1e9)
    first = probe.cached_probe(tmp_path, 1, processor="A")
    assert probe.cached_probe(tmp_path, 1, processor="A") == first
    assert Machine.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert probe.cached_probe(tmp_path, 1, processor="B") != first
    probe.cached_probe(tmp_path, 1, processor="A", again=True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    probe.cached_probe(tmp_path, 1, processor="A")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"bandwidth": "fast"}', "null"])
def test_a_damaged_file_counts_as_missing(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "NOISY", 1e9)
    probe.cached_probe(tmp_path, 1)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert probe.cached_probe(tmp_path, 1).bandwidth > 0
    assert file.read_text() != damage


@pytest.mark.usefixtures("small")
def test_a_noisy_measurement_is_not_kept_and_no_folder_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "NOISY", 0.0)
    assert probe.cached_probe(tmp_path, 1).noisy
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(probe, "NOISY", 1e9)
    for folder in (None, tmp_path / "file" / "measured"):
        assert probe.cached_probe(folder, 1).bandwidth > 0


@pytest.mark.usefixtures("small")
def test_a_probe_that_had_to_wait_is_noisy_even_where_its_rounds_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "thread_time", lambda: 0.0)
    assert probe.probe(1).noisy


@pytest.mark.parametrize("wrong", [{"bandwidth": 0.0}, {"noise": float("nan")}, {"peaks": {"f32": -1.0}}])
def test_limits_that_are_no_positive_numbers_are_refused(wrong: dict[str, object]) -> None:
    machine = Machine(processor="", cores=1, threads=1, bandwidth=1e9, peaks={"f32": 1e9}, noise=1.0)
    with pytest.raises(ValueError, match="positive"):
        Machine.from_json({**machine.to_json(), **wrong})
