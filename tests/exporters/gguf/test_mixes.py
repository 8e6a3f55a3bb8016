"""The types of llama-quantize: for each mix the same type and the same bytes in every tensor, and the same metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.errors import InputError, UnsupportedExport
from isoform.exporters.gguf import Options, path_of, write
from isoform.exporters.gguf.mixes import (
    CONVERTED,
    MIXES,
    Depths,
    bytes_per_weight,
    mix_name,
    parse_overrides,
    tensor_types,
)
from isoform.exporters.gguf.tensors import Files
from isoform.reference.checkpoints.checkpoint import TensorInfo
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import open_model
from tests.oracle.convert_gguf import oracle_convert
from tests.oracle.quantize_gguf import oracle_quantize
from tests.oracle.wide import wide

NARROW: dict[str, Any] = {"intermediate_size": 256}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**NARROW, "tie_word_embeddings": False}),
    "four heads share": ("llama", {**NARROW, "num_key_value_heads": 1}),
    "odd rows": (
        "llama",
        {"tie_word_embeddings": False, "hidden_size": 320, "intermediate_size": 544, "num_hidden_layers": 10},
    ),
    "odd rows, not by 32": ("qwen2", {"hidden_size": 256, "intermediate_size": 280, "num_hidden_layers": 3}),
    "qwen2": ("qwen2", {**NARROW, "num_hidden_layers": 9}),
    "gemma3": ("gemma3", NARROW),
}
PRE = {"llama": "llama-bpe", "qwen2": "qwen2"}

# Without an importance matrix, llama-quantize refuses the others.
PLAIN = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m"),
    *("q6_k", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4_moe"),
)
WEIGHTED = ("q2_k_s", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs")
QUICK = ("q2_k", "q3_k_m", "q4_k_m")


def data(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a file: type, shape, bytes."""
    raw = path.read_bytes()
    return {
        name: (info.dtype, info.shape, raw[info.offset : info.offset + info.nbytes])
        for name, info in read_gguf(path).tensors.items()
    }


Sources = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Shape -> its checkpoint, and what llama.cpp's converter makes of it in float32; filled as they are asked for."""
    return _Sources(tmp_path_factory.mktemp("wide"))


class _Sources(Sources):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, shape: str) -> tuple[Path, Path]:
        family, config = SHAPES[shape]
        folder = wide(family, self.folder / shape.replace(" ", "_"), **config)
        self[shape] = folder, oracle_convert(folder, folder.with_suffix(".gguf"), "f32", PRE.get(family), True)
        return self[shape]


def differing(ours: Path, theirs: Path) -> list[str]:
    """The tensors that are not the same, each with the two types."""
    a, b = data(ours), data(theirs)
    assert a.keys() == b.keys()
    return [f"{name}: {a[name][0]}, not {b[name][0]}" for name in a if a[name] != b[name]]


def importance(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(seed)
    return {
        name: draw.gamma(1.0, 1.0, shape[-1]).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith("blk.") and len(shape) > 1
    }


# ------------------------------------------------------------------ against llama-quantize
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "kinds", [QUICK, pytest.param(tuple(k for k in PLAIN if k not in QUICK), marks=pytest.mark.slow)], ids=len
)
def test_files_are_those_of_llama_quantize(
    sources: Sources, tmp_path: Path, shape: str, kinds: tuple[str, ...]
) -> None:
    folder, plain = sources[shape]
    if shape.endswith("not by 32"):  # there llama-quantize gives up with types of 32 that nothing stands in for
        kinds = tuple(kind for kind in kinds if kind.startswith(("q2", "q3", "q4_k", "q5_k", "q6", "tq")))
    write(open_model(folder), tmp_path, kinds)
    for kind in kinds:
        theirs = oracle_quantize(plain, tmp_path / "theirs.gguf", MIXES[kind].file_type)
        ours = tmp_path / path_of(kind)
        assert differing(ours, theirs) == [], kind
        a, b = read_gguf(ours).metadata, read_gguf(theirs).metadata
        assert {k: v for k, v in a.items() if k.startswith("general.")} == {
            k: v for k, v in b.items() if k.startswith("general.")
        }


@pytest.mark.slow
def test_a_70b_gets_more_bits_for_its_values(tmp_path: Path) -> None:
    """llama.cpp knows it by its eighty layers."""
    folder = wide("llama", tmp_path / "70b", **NARROW, num_hidden_layers=80)
    plain = oracle_convert(folder, tmp_path / "plain.gguf", "f32", "llama-bpe", True)
    for kind in ("q3_k_m", "q4_k_m", "q4_k_s"):
        write(open_model(folder), tmp_path, [kind])
        theirs = oracle_quantize(plain, tmp_path / "theirs.gguf", MIXES[kind].file_type)
        assert differing(tmp_path / path_of(kind), theirs) == []
    assert read_gguf(tmp_path / path_of("q4_k_s")).tensors["blk.40.attn_v.weight"].dtype == "Q5_K"


def test_overrides_are_llama_quantizes(sources: Sources, tmp_path: Path) -> None:
    folder, plain = sources["llama"]
    texts = (r"blk\.[0-2]\.attn_v=q8_0", "ffn_down=iq4_xs", "token_embd=Q5_1", r"attn_v\.weight=f16")
    write(open_model(folder), tmp_path, ["q4_k_m"], options=Options(overrides=texts))
    theirs = oracle_quantize(plain, tmp_path / "theirs.gguf", 15, overrides=parse_overrides(texts))
    ours = tmp_path / path_of("q4_k_m")
    assert differing(ours, theirs) == []
    kinds = {name: info.dtype for name, info in read_gguf(ours).tensors.items()}
    assert kinds["blk.2.attn_v.weight"] == "Q8_0"
    assert kinds["blk.3.attn_v.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_mxfp4_alone_packs_dense_matrices(sources: Sources, tmp_path: Path) -> None:
    folder, plain = sources["llama"]
    write(open_model(folder), tmp_path, ["mxfp4"])
    overrides = [("^output.weight$", "Q6_K"), ("blk|token_embd", "MXFP4")]
    theirs = oracle_quantize(plain, tmp_path / "theirs.gguf", 38, overrides=overrides)
    assert differing(tmp_path / path_of("mxfp4"), theirs) == []


# ------------------------------------------------------------------ one read, several files
def test_one_read_writes_every_type(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = sources["llama"]
    kinds = ("f32", "f16", "q8_0", "q4_0", "q6_k")
    for kind in kinds:
        write(open_model(folder), tmp_path / "alone", [kind])
    model = open_model(folder)
    loaded: list[tuple[int, int]] = []
    read = Files.rows

    def noted(files: Files, info: TensorInfo, expert: int, start: int, stop: int) -> Any:
        loaded.append((info.offset, start))
        return read(files, info, expert, start, stop)

    monkeypatch.setattr(Files, "rows", noted)
    artifacts = write(model, tmp_path / "together", [*kinds, "Q6_K"])
    assert [artifact.dtype for artifact in artifacts] == list(kinds)
    assert {offset for offset, _ in loaded} == {model.checkpoint.info(key).offset for key in model.checkpoint}
    assert len(loaded) == len(set(loaded))
    for kind in kinds:
        assert (tmp_path / "together" / path_of(kind)).read_bytes() == (tmp_path / "alone" / path_of(kind)).read_bytes()


# ------------------------------------------------------------------ the rules themselves
def test_names_are_llama_quantizes() -> None:
    assert mix_name("Q4_K_M") == mix_name("q4_k") == "q4_k_m"
    assert mix_name("IQ4_XS") == "iq4_xs"
    with pytest.raises(InputError, match=r"'q9' is not written; choose from f32, f16, bf16, q4_0"):
        mix_name("q9")
    assert set(MIXES) == {*CONVERTED, *PLAIN, *WEIGHTED, "mxfp4"}
    assert bytes_per_weight("q4_k") == 144 / 256


MATRICES = {f"blk.{n}.{name}.weight": (256, 256) for n in range(8) for name in ("attn_k", "attn_v", "attn_output")}
EXPERTS = {f"blk.{n}.ffn_{name}_exps.weight": (8, 256, 256) for n in range(8) for name in ("gate", "up", "down")}
ROUTERS = {f"blk.{n}.ffn_gate_inp.weight": (8, 256) for n in range(8)}


def test_eight_experts_leave_room_for_their_attention() -> None:
    shapes = {"token_embd.weight": (512, 256), "output.weight": (512, 256), **MATRICES, **EXPERTS, **ROUTERS}
    types = tensor_types("q4_k_m", shapes, Depths(layers=8, sharing=2, experts=8))
    assert {types[f"blk.{n}.attn_v.weight"] for n in range(8)} == {"Q8_0"}
    assert {types[f"blk.{n}.attn_k.weight"] for n in range(8)} == {"Q8_0"}
    assert {types[f"blk.{n}.attn_output.weight"] for n in range(8)} == {"Q5_K"}
    assert {types[name] for name in ROUTERS} == {"F32"}
    down = [types[f"blk.{n}.ffn_down_exps.weight"] for n in range(8)]
    assert down == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_K", "Q6_K")
    moe = tensor_types("mxfp4_moe", shapes, Depths(layers=8, sharing=2, experts=8))
    assert {moe[name] for name in EXPERTS} == {"MXFP4"}
    assert {moe[name] for name in (*MATRICES, "token_embd.weight", "output.weight")} == {"Q8_0"}


def test_a_matrix_of_one_row_is_a_vector_to_ggml() -> None:
    shapes = {"cls.output.weight": (1, 256), **MATRICES}
    assert tensor_types("q4_0", shapes, Depths(layers=8))["cls.output.weight"] == "F32"
    assert tensor_types("f16", shapes, Depths(layers=8))["cls.output.weight"] == "F16"


# ------------------------------------------------------------------ what cannot be
@pytest.mark.parametrize("kind", WEIGHTED)
def test_types_that_need_an_importance_matrix_say_so(sources: Sources, tmp_path: Path, kind: str) -> None:
    folder, _ = sources["llama"]
    with pytest.raises(InputError, match=rf"{kind} gives blk\.0\.\S+ the type \S+, garbage without an impo"):
        write(open_model(folder), tmp_path, [kind])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["attn_v"], "takes regex=type, not 'attn_v'"),
        (["attn_v=q9"], "a type is one of f32, f16"),
        (["attn_v=q4_k_m"], "a type is one of"),
        (["(=q4_0"], r"is no regular expression \(missing \)"),
        (["nothing=q4_0"], "'nothing' matches no tensor"),
        (["attn_norm=q4_0"], "'attn_norm' matches no tensor that can be quantized"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(
    sources: Sources, tmp_path: Path, texts: list[str], words: str
) -> None:
    folder, _ = sources["llama"]
    with pytest.raises(InputError, match=words):
        write(open_model(folder), tmp_path, ["q8_0"], options=Options(overrides=tuple(texts)))
    assert not any(tmp_path.iterdir())


def test_rows_too_short_for_any_block_are_refused() -> None:
    shapes = {"token_embd.weight": (100, 24), "blk.0.attn_v.weight": (24, 24), "blk.0.attn_norm.weight": (24,)}
    with pytest.raises(UnsupportedExport, match=r"q4_k_m packs values by 256 or 32.*the longest has 24 values"):
        tensor_types("q4_k_m", shapes, Depths(layers=1))
