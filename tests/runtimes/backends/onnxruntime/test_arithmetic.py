"""A graph in float16 is worth opening only where products are computed in it."""

from __future__ import annotations

import platform

import pytest

from isoform.errors import InputError
from isoform.runtimes.backends.onnxruntime.arithmetic import computes_in

pytest.importorskip("onnxruntime")


def test_every_device_computes_in_float32() -> None:
    assert computes_in("f32") and computes_in("f32", "cuda:1")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Arm has products in float16")
def test_an_x86_cpu_computes_in_no_other_floats() -> None:
    assert not computes_in("f16") and not computes_in("bf16")


def test_a_gpu_computes_in_float16() -> None:
    assert computes_in("f16", "cuda")


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [("int8", "cpu", "'int8' is none of f32, f16, bf16"), ("f16", "tpu", "'tpu' is none of cpu, cuda")],
)
def test_what_is_no_float_or_device_is_named(dtype: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        computes_in(dtype, device)
