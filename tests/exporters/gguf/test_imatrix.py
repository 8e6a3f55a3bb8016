"""Importance matrices: llama.cpp's files read, its quantized bytes reproduced, and our own measured."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoform.errors import CheckpointError, InputError
from isoform.exporters.gguf import Options, path_of, write
from isoform.exporters.gguf.imatrix import (
    chunks_of,
    make_importance,
    measure,
    read_importance,
    weights_for,
    write_importance,
)
from isoform.exporters.gguf.mixes import MIXES
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import Model, open_model
from isoform.reference.names import GGUF, rename
from isoform.validators.bisection.llamacpp_probe import LlamaCppProbe
from isoform.validators.cases.case import Case, Row
from tests.oracle.convert_gguf import oracle_convert
from tests.oracle.quantize_gguf import oracle_quantize
from tests.oracle.wide import wide

Tiny = Callable[[str], Path]
Weights = dict[str, NDArray[np.float32]]

WEIGHTED = ("q2_k_s", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs")
CHANGED = ("q4_0", "q5_0", "q4_k_m", "iq4_xs")  # by the matrix, which they do without as well
TEXT = "The small model reads a strange house. " * 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Weights]:
    """A checkpoint, llama.cpp's float32 file of it, and a random importance for its layers."""
    folder = tmp_path_factory.mktemp("imatrix")
    small: dict[str, Any] = {"intermediate_size": 256, "tie_word_embeddings": False}
    checkpoint = wide("llama", folder / "model", **small)
    plain = oracle_convert(checkpoint, folder / "plain.gguf", "f32", "llama-bpe", True)
    draw = np.random.default_rng(0)
    weights = {
        name: draw.gamma(1.0, 1.0, info.shape[-1]).astype(np.float32)
        for name, info in read_gguf(plain).tensors.items()
        if name.startswith("blk.") and len(info.shape) > 1
    }
    return checkpoint, plain, weights


def data(path: Path) -> dict[str, tuple[str, bytes]]:
    raw = path.read_bytes()
    return {
        name: (info.dtype, raw[info.offset : info.offset + info.nbytes])
        for name, info in read_gguf(path).tensors.items()
    }


def legacy(path: Path, weights: Weights, calls: int = 3, dataset: bytes = b"old.txt") -> Path:
    """The .dat file that llama.cpp wrote for these means."""
    parts = [struct.pack("<i", len(weights))]
    for name, values in weights.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, len(values))]
        parts.append((values * calls).astype("<f4").tobytes())
    path.write_bytes(b"".join([*parts, struct.pack("<ii", 7, len(dataset)), dataset]))
    return path


# ------------------------------------------------------------------ quantizing with one
@pytest.mark.parametrize(
    "kinds", [("q2_k_s", "q4_0", "q4_k_m"), pytest.param((*WEIGHTED, *CHANGED), marks=pytest.mark.slow)], ids=len
)
def test_files_are_those_of_llama_quantize(
    source: tuple[Path, Path, Weights], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    checkpoint, plain, weights = source
    file = tmp_path / "weights.gguf"
    write_importance(file, {name: (values * 4, 4) for name, values in weights.items()}, "text.txt", 2, 512)
    write(open_model(checkpoint), tmp_path, kinds, options=Options(imatrix=file))
    for kind in kinds:
        theirs = data(oracle_quantize(plain, tmp_path / "theirs.gguf", MIXES[kind].file_type, importance=weights))
        ours = data(tmp_path / path_of(kind))
        assert {n: k for n, (k, _) in ours.items()} == {n: k for n, (k, _) in theirs.items()}, kind
        # Two builds of ggml, cyllama's and xllamacpp's, round this type's sums apart in one block of thousands.
        differing = sorted({ours[n][0] for n in ours if ours[n] != theirs[n]})
        assert differing == [] or differing == ["IQ1_M"], kind
    metadata = read_gguf(tmp_path / path_of(kinds[0])).metadata
    assert {key: value for key, value in metadata.items() if key.startswith("quantize.")} == {
        "quantize.imatrix.file": "weights.gguf",
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": len(weights),
        "quantize.imatrix.chunks_count": 2,
    }


# ------------------------------------------------------------------ reading
def test_both_formats_are_read(source: tuple[Path, Path, Weights], tmp_path: Path) -> None:
    _, _, weights = source
    old = read_importance(legacy(tmp_path / "old.dat", weights))
    write_importance(tmp_path / "new.gguf", {name: (values * 4, 4) for name, values in weights.items()}, "t", 9, 64)
    new = read_importance(tmp_path / "new.gguf")
    for name, values in weights.items():
        np.testing.assert_allclose(old.values[name], values, rtol=2e-7)  # times three and back
        assert np.array_equal(new.values[name], values)
    assert (old.chunks, old.datasets) == (7, ("old.txt",))
    assert (new.chunks, new.datasets) == (9, ("t",))


def test_the_file_is_what_llama_cpp_writes(source: tuple[Path, Path, Weights], tmp_path: Path) -> None:
    write_importance(tmp_path / "m.gguf", {"blk.0.attn_q.weight": (np.ones(8, np.float32), 5)}, "t.txt", 2, 512)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert [(t.name, list(t.shape), t.tensor_type.name) for t in reader.tensors] == [
        ("blk.0.attn_q.weight.in_sum2", [8], "F32"),
        ("blk.0.attn_q.weight.counts", [1], "F32"),
    ]
    fields = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["t.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_experts_are_counted_one_by_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "imatrix")
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[2.0, 4.0], [0.0, 0.0]], np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[2.0], [0.0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_importance(tmp_path / "m.gguf")
    assert found.values["blk.0.ffn_up_exps.weight"].tolist() == [1.0, 2.0, 1.0, 1.0]  # the second saw no token
    assert weights_for(found, {"blk.0.ffn_up_exps.weight": (2, 5, 2)}, "it")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no importance matrix"),
        (struct.pack("<i", 0), "it names no tensor"),
        (struct.pack("<ii", 1, 2**30), "a name is longer than the file"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 2**30), "'a' has 1073741824 values"),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, float("nan")), "the importance of a is negative or not finite"),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, -1.0), "the importance of a is negative or not finite"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=words) as error:
        read_importance(path)
    assert "\n" not in str(error.value)


def test_a_model_is_no_matrix(source: tuple[Path, Path, Weights]) -> None:
    with pytest.raises(CheckpointError, match="is a model, which holds no importance matrix"):
        read_importance(source[1])


@pytest.mark.parametrize("change", ["deeper", "wider", "shallower"])
def test_the_matrix_of_another_model_is_refused(
    source: tuple[Path, Path, Weights], tmp_path: Path, change: str
) -> None:
    checkpoint, _, weights = source
    other, words = dict(weights), "layer 7"
    if change == "deeper":
        other["blk.8.attn_q.weight"], words = weights["blk.0.attn_q.weight"], r"blk\.8\.attn_q\.weight, which the model"
    elif change == "wider":
        other["blk.3.ffn_up.weight"], words = np.ones(320, np.float32), r"320 weights for blk\.3\.ffn_up\.weight.*256"
    else:
        other = {name: values for name, values in weights.items() if not name.startswith("blk.7.")}
    options = Options(imatrix=legacy(tmp_path / "other.dat", other))
    with pytest.raises(InputError, match=rf"{words}.*measured on another model"):
        write(open_model(checkpoint), tmp_path / "out", ["q4_k_m"], options=options)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ measuring
def encoder(model: Model) -> Callable[[str, bool], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.checkpoint.folder / "tokenizer.json"))
    return lambda text, special: list(tokenizer.encode(text, add_special_tokens=special).ids)


@pytest.mark.parametrize("name", ["llama", "gemma3_b", "qwen3_b", "bert_embed"])
def test_importances_are_what_enters_the_linear_layers(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """Against hooks in transformers' own model."""
    from transformers import AutoModel, AutoModelForCausalLM

    decoder = name != "bert_embed"
    model = open_model(tiny(name), None if decoder else "feature-extraction")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    made = make_importance(model, encoder(model), text, tmp_path / "m.gguf", context=32, limit=3)
    read = read_importance(tmp_path / "m.gguf")
    assert read.chunks == made.chunks == 3
    assert read.datasets == (str(text),)

    hub = (AutoModelForCausalLM if decoder else AutoModel).from_pretrained(tiny(name), attn_implementation="eager")
    sums: dict[str, Any] = {}
    keys = {weight.hub: rename(key, GGUF) for key, weight in model.weights.items()}
    for path, layer in hub.named_modules():
        target = next((n for key, n in keys.items() if n and key.endswith(f"{path}.weight") and "blk." in n), None)
        if isinstance(layer, torch.nn.Linear) and target and path:

            def note(layer: Any, inputs: Any, target: str = target) -> None:
                sums.setdefault(target, []).append(inputs[0].flatten(0, -2))

            layer.register_forward_pre_hook(note)
    encode = encoder(model)
    chunks = list(chunks_of(encode(TEXT, decoder), encode("", True), 32, decoder=decoder))[:3]
    with torch.no_grad():
        for chunk in chunks:
            hub(torch.tensor([chunk]))
    assert set(read.values) == set(sums)
    assert set(weights_for(read, {n: i.shape for n, i in shapes(model, tmp_path).items()}, "it")) == set(sums)
    for key, rows in sums.items():
        expected = torch.cat(rows).double().square().mean(0).numpy()
        np.testing.assert_allclose(read.values[key], expected, rtol=1e-4, atol=1e-6 * expected.max(), err_msg=key)


def shapes(model: Model, folder: Path) -> Any:
    write(model, folder, ["f32"])
    return read_gguf(folder / path_of("f32")).tensors


@pytest.mark.parametrize(
    ("name", "relative"), [("llama", 1e-4), ("qwen2", 1e-4), pytest.param("gemma3_b", 1e-2, id="gemma3, a coarse GELU")]
)
def test_importances_are_what_llama_cpp_sees_at_its_weights(
    tiny: Tiny, tmp_path: Path, name: str, relative: float
) -> None:
    """llama.cpp's own collector sums the same squares, of what its graph hands each matrix."""
    model = open_model(tiny(name))
    [artifact] = write(model, tmp_path, ["f32"])
    draw = np.random.default_rng(0)
    chunks = [draw.integers(3, model.weights["embed.weight"].shape[0], 24).tolist() for _ in range(2)]
    ours = measure(model, chunks, lambda *_: None)
    theirs = dict.fromkeys(ours, np.float64(0))
    rows = tuple(Row(np.array(chunk, np.int64), np.zeros(len(chunk), np.int64)) for chunk in chunks)
    with closing(LlamaCppProbe(model, tmp_path / artifact.files[0].path)) as probe:
        for inside in probe.rows(Case("", rows)):
            for point, [values] in inside.values.items():
                weight = rename(f"{point.module}.weight", GGUF)
                if point.side == "in" and weight in theirs:
                    theirs[weight] = theirs[weight] + np.square(values, dtype=np.float64).sum(0)
    for weight, (total, count) in ours.items():
        assert count == 48
        np.testing.assert_allclose(total, theirs[weight], rtol=relative, atol=1e-6 * total.max(), err_msg=weight)


def test_chunks_are_cut_as_llama_cpp_does() -> None:
    assert list(chunks_of([1, 5, 6, 7, 8, 9, 10], [1], 3, decoder=True)) == [[1, 5, 6], [1, 8, 9]]
    assert list(chunks_of([5, 6, 7, 8], [], 2, decoder=True)) == [[5, 6], [7, 8]]
    assert list(chunks_of([5, 6, 7, 8], [1, 2], 4, decoder=False)) == [[1, 5, 6, 2], [1, 7, 8, 2]]


@pytest.mark.parametrize(
    ("text", "context", "limit", "words"),
    [
        ("short", 32, None, "a chunk takes 32; give a longer text, or --context"),
        (TEXT, 10**6, None, "--context 1000000 is not between 2 and the model's"),
        (TEXT, 32, 0, "--chunks 0 measures nothing"),
        (None, 32, None, "is no readable text"),
    ],
)
def test_texts_that_cannot_be_measured_are_refused(
    tiny: Tiny, tmp_path: Path, text: str | None, context: int, limit: int | None, words: str
) -> None:
    model, path = open_model(tiny("llama")), tmp_path / "text.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        make_importance(model, encoder(model), path, tmp_path / "m.gguf", context=context, limit=limit)
    assert not (tmp_path / "m.gguf").exists()
