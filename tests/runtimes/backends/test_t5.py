"""T5 on every backend, and in llama.cpp, whose decoder reads only what its encoder gave last: as in transformers."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from isoform.errors import BackendUnavailable, InputError
from isoform.exporters import gguf, onnx
from isoform.exporters.bundle import export
from isoform.manifest import Manifest
from isoform.open_candidate import STORED, open_candidate
from isoform.reference.model import open_model
from isoform.runtimes.choose.records import Candidate
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import GenerationConfig
from isoform.runtimes.open import open_bundle, open_path, open_session
from isoform.sources import Source
from tests.exports import exported
from tests.oracle import tiny
from tests.oracle.convert_gguf import oracle_convert

BACKENDS = ("llamacpp", "onnxruntime", "torch", "torchscript")
CLOSE = 2e-5  # of the largest value: float32 sums in another order, through four layers
GELU = 1e-2  # of the largest value: llama.cpp's activation comes from a table of half-precision numbers


@cache
def opened(name: str, backend: str) -> Any:
    if backend == "torch":
        return open_session(open_model(tiny(name)), "torch", threads=1)
    folder = exported(name)
    manifest = Manifest.read(folder)
    kind = {"llamacpp": "gguf", "onnxruntime": "onnx"}.get(backend, backend)
    artifacts = [artifact for artifact in manifest.artifacts if artifact.format == kind]
    return open_bundle(folder, manifest, artifacts, backend, strict=backend == "llamacpp", threads=1)


@cache
def theirs(path: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()


def texts(lengths: tuple[int, ...] = (20, 13, 9), left: bool = False) -> dict[str, NDArray[np.int64]]:
    random = np.random.default_rng(0)
    ids = random.integers(3, 400, (len(lengths), max(lengths)))
    slots = np.arange(max(lengths))
    mask = np.array([slots >= max(lengths) - n if left else slots < n for n in lengths], np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def logits_of(name: str, inputs: dict[str, NDArray[np.int64]], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    given = {key: torch.from_numpy(array) for key, array in inputs.items()}
    with torch.no_grad():
        found: NDArray[np.float32] = theirs(tiny(name))(**given, decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    return found


def written(rows: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(3, 400, (rows, length))


def same(found: NDArray[Any], expected: NDArray[Any], allowed: float = CLOSE) -> None:
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= allowed * float(np.abs(expected).max())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_texts_give_transformers_logits_with_rows_chosen_and_forgotten(
    backend: str, name: str, left: bool
) -> None:
    allowed = GELU if (backend, name) == ("llamacpp", "t5_v1_1") else CLOSE
    inputs, ids = texts(left=left), written(3, 30)
    want = logits_of(name, inputs, ids)
    session = opened(name, backend)
    decoder = session.decoder(session.encode(inputs))
    same(decoder.step(ids[:, :9], last=None), want[:, :9], allowed)
    same(decoder.step(ids[:, 9:10]), want[:, 9], allowed)
    order = np.array([2, 0, 0, 1])
    decoder.select(order)
    same(decoder.step(ids[order][:, 10:25], last=None), want[order][:, 10:25], allowed)
    decoder.rewind(12)
    decoder.select(np.array([3, 3, 1]))
    order = order[[3, 3, 1]]
    same(decoder.step(ids[order][:, 13:30], last=None), want[order][:, 13:], allowed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_and_beams_give_transformers_tokens(backend: str) -> None:
    session = opened("t5", backend)
    inputs = texts()
    given = {key: torch.from_numpy(array) for key, array in inputs.items()}
    for beams in (1, 4):
        config = GenerationConfig(
            max_new_tokens=10, num_beams=beams, eos_token_id=(1,), pad_token_id=0, do_sample=False
        )
        rows = generate(session.decoder(session.encode(inputs)), [[0]] * 3, config)
        with torch.no_grad():
            known = theirs(tiny("t5")).generate(**given, max_new_tokens=10, num_beams=beams, do_sample=False)
        for row, expected in zip(rows, known.tolist(), strict=True):
            tokens = row.made
            assert tokens == expected[1 : 1 + len(tokens)] and not any(expected[1 + len(tokens) :])


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampled_tokens_are_drawn_from_transformers_distributions(backend: str) -> None:
    session, inputs, rules = opened("t5", backend), texts(), {"temperature": 0.05, "top_k": 20}
    config = GenerationConfig(max_new_tokens=9, do_sample=True, seed=3, eos_token_id=(1,), pad_token_id=0, **rules)  # type: ignore[arg-type]
    rows = generate(session.decoder(session.encode(inputs)), [[0]] * 3, config, keep_chances=True)
    for n, row in enumerate(rows):
        logits = logits_of("t5", {key: array[n : n + 1] for key, array in inputs.items()}, np.array([[0, *row.made]]))
        scores = torch.from_numpy(logits[0, :-1])
        for warp in (transformers.TemperatureLogitsWarper(0.05), transformers.TopKLogitsWarper(20)):
            scores = warp(None, scores)
        chances = torch.log_softmax(scores, -1)[torch.arange(len(row.made)), row.made]
        assert np.abs(np.array(row.chances) - chances.numpy()).max() < 1e-3  # the temperature makes 20 of 1
    assert len({tuple(row.made) for row in rows}) == 3


def test_llamacpp_decoders_that_step_in_turn_read_their_own_texts_while_the_context_grows() -> None:
    session, inputs, ids = opened("t5", "llamacpp"), texts(), written(3, 400)
    want = logits_of("t5", inputs, ids)
    encoded = session.encode(inputs)
    one, two = session.decoder(encoded.select([1])), session.decoder(encoded.select([0, 2]))
    many: list[Any] = []
    for start in range(0, 400, 40):
        same(one.step(ids[1:2, start : start + 40], last=None), want[1:2, start : start + 40])
        same(two.step(ids[[0, 2], start : start + 40], last=None), want[[0, 2], start : start + 40])
        many.append(session.decoder(session.encode(texts((30, 31)))))  # which encodes others, and takes sequences
        many[-1].step(written(2, 60))
    two.join(one)
    two.rewind(395)
    same(two.step(ids[[0, 2, 1], 5:9], last=None), want[[0, 2, 1], 5:9])


def test_what_llamacpp_cannot_read_is_refused_by_name() -> None:
    session, inputs = opened("t5", "llamacpp"), texts()
    encoded = session.encode(inputs)
    feeds = session.feeds("decoder", encoded)
    with pytest.raises(InputError, match="encoder states are not of this session"):
        session.decoder({**feeds, "encoder_hidden_states": 2 * feeds["encoder_hidden_states"]})
    with pytest.raises(InputError, match="give decoder\\(\\) these arrays by name"):
        session.decoder(3)
    with pytest.raises(InputError, match="row 1 has no token"):
        session.encode({**inputs, "attention_mask": np.array([[1], [0], [1]]).repeat(20, 1)})
    with pytest.raises(InputError, match="token id 900 is outside the vocabulary"):
        session.encode({**inputs, "input_ids": np.full((3, 20), 900)})
    decoder = session.decoder(encoded)
    for options, words in (
        ({"mask": np.zeros((3, 2))}, "no port for a mask"),
        ({"last": 0}, "last=0"),
    ):
        with pytest.raises(InputError, match=words):
            decoder.step(written(3, 2), **options)
    decoder.step(written(3, 2))
    with pytest.raises(InputError, match="forget equally many"):
        decoder.rewind([1, 0, 0])
    with pytest.raises(InputError, match="cannot forget 9"):
        decoder.rewind(9)
    other = session.decoder(encoded)
    with pytest.raises(InputError, match="rows of 0 tokens cannot join rows of 2"):
        decoder.join(other)


def test_float16_graphs_hold_states_beyond_float16(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("t5"), tmp_path / "m"))
    tensors, times = load_file(folder / "model.safetensors"), {"wi": 100, "wo": 2000}
    grown = {key: times.get(key.split(".")[-2], 1) * x if "block.0." in key else x for key, x in tensors.items()}
    save_file(grown, folder / "model.safetensors", metadata={"format": "pt"})
    model = open_model(folder)
    export(model, ["onnx"], tmp_path / "b", onnx=onnx.Options(types=("f16",)))
    inputs, ids = texts(), written(3, 6)
    sessions: list[Any] = [open_path(tmp_path / "b", "onnxruntime", dtype="f16")[0], open_session(model, "torch")]
    found, expected = (one.decoder(one.encode(inputs)).step(ids, last=None) for one in sessions)
    same(found, expected, GELU)  # 11-bit mantissa


def test_a_bare_file_runs_unless_llamacpp_would_leave_its_head_unscaled(tmp_path: Path) -> None:
    candidate = Candidate(backend="llamacpp", dtype=STORED, threads=1)

    def bare(path: Path) -> Any:
        source = Source("m", path, path.parent, opened=open_model(path))
        return open_candidate(source, "text2text-generation", candidate, lambda *_: path, threads=1)

    gguf.write(open_model(tiny("t5")), tmp_path, ["f32"])
    inputs, ids = texts(), written(3, 5)
    with bare(tmp_path / gguf.path_of("f32")) as session:
        found = session.decoder(session.encode(inputs)).step(ids, last=None)
    same(found, logits_of("t5", inputs, ids), GELU)  # a float16 cache
    theirs_file = oracle_convert(tiny("t5"), tmp_path / "theirs.gguf", "f32", None, sentencepiece=True)
    with pytest.raises(BackendUnavailable, match=r"head\.weight times 0\.1443, and"):
        bare(theirs_file)
    with pytest.raises(InputError, match="holds an encoder and a decoder"):
        open_session(theirs_file, "llamacpp", signature=open_model(tiny("t5")).signature)


def test_llamacpp_gives_the_states_of_an_encoder_alone() -> None:
    folder = exported("mt5_encoder")
    with open_path(folder, "llamacpp", strict=True, threads=1)[0] as session:
        inputs = texts(left=True)
        found = session.run(inputs)["last_hidden_state"]
    given = {key: torch.from_numpy(array) for key, array in inputs.items()}
    with torch.no_grad():
        known = transformers.MT5EncoderModel.from_pretrained(tiny("mt5_encoder"), dtype=torch.float32).eval()(**given)
    real = inputs["attention_mask"] != 0
    same(found[real], known.last_hidden_state.numpy()[real], GELU)
