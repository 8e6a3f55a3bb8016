"""torch, TorchScript and ONNX Runtime behind one protocol: each row comes out as the reference gives it alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from isoform.errors import BackendUnavailable, CheckpointError, InputError, IsoformError
from isoform.exporters.bundle import export
from isoform.formats import BACKENDS, FORMAT_OF
from isoform.manifest import Manifest
from isoform.reference.model import Model, open_model
from isoform.runtimes import open as backends
from isoform.runtimes.backends import decoder as stepping
from isoform.runtimes.backends.onnxruntime.decoder import OnnxRuntimeDecoder
from isoform.runtimes.backends.onnxruntime.graph_file import with_input
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from isoform.runtimes.backends.torch import decoder as torch_decoder
from isoform.runtimes.open import available, open_artifact, open_path, open_session
from isoform.runtimes.session import Session
from isoform.signature import Signature
from tests.exports import exported, portable

Tiny = Callable[[str], Path]
Arrays = dict[str, NDArray[Any]]

GRAPHS = ("torch", "torchscript", "onnxruntime")
ALL_GRAPHS = (*GRAPHS, "openvino")  # where one model tells enough: the conformance tests have all of them
# The largest error as a share of the largest value, which is what rounding scales with; depth 5 at most.
FLOAT32 = 2e-5  # 24 bits of mantissa, sums of up to 160 terms in another order
HALF = {"f16": 0.03, "bf16": 0.2, "f64": FLOAT32}  # 11 and 8 bits; random weights amplify more than trained ones


def bundle(name: str, dtype: str = "f32") -> Path:
    """The exported ONNX and TorchScript of a tiny checkpoint."""
    return exported(name, ["torchscript"] if dtype == "bf16" else ["onnx", "torchscript"], dtype)


@pytest.fixture
def opened(tiny: Tiny) -> Iterator[Callable[..., Session]]:
    """`opened("qwen2", "onnxruntime")` is a session, closed after the test."""
    sessions: list[Session] = []

    def open_(name: str, backend: str, dtype: str = "f32", **options: Any) -> Session:
        if backend == "torch":
            session = open_session(open_model(tiny(name)), "torch", dtype=dtype, **options)
        else:
            folder = portable(name) if backend == "openvino" else bundle(name, dtype)
            session, _ = open_path(folder, backend, **options)
        sessions.append(session)
        return session

    yield open_
    for session in sessions:
        session.close()


def padded(signature: Signature, lengths: list[int], side: str, seed: int = 0) -> Arrays:
    """Random rows of these lengths in one batch, what the signature asks for and an empty cache."""
    rng = np.random.default_rng(seed)
    batch, length = len(lengths), max(lengths)
    mask = np.zeros((batch, length), np.int64)
    for row, count in zip(mask, lengths, strict=True):
        row[length - count if side == "left" else 0 :][:count] = 1
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    ids = np.where(mask == 1, rng.integers(5, 200, mask.shape), 0)
    types = np.where(mask == 1, rng.integers(0, 2, mask.shape), 0)
    known = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "token_type_ids": types}
    known |= {state.input: np.zeros(state.shape(batch), np.float32) for state in signature.states}
    return {port.name: known[port.name] for port in signature.inputs}


def alone(model: Model, inputs: Arrays) -> list[list[NDArray[Any]]]:
    """What the reference gives for each row by itself, unpadded: [row][output], each without its batch axis."""
    module, results = model.module(), []
    for n, mask in enumerate(inputs["attention_mask"]):
        row = [
            torch.from_numpy(array[n : n + 1] if name.startswith("past") else array[n : n + 1, mask == 1])
            for name, array in inputs.items()
        ]
        with torch.inference_mode():
            results.append([out[0].numpy() for out in module(*row)])
    return results


def assert_close(got: NDArray[Any], want: NDArray[Any], tolerance: float, what: str = "") -> None:
    assert got.shape == want.shape, what
    if want.size:
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error <= tolerance, f"{what}: {error:.2g}"


def compare(
    signature: Signature, got: Arrays, want: list[list[NDArray[Any]]], mask: NDArray[Any], tolerance: float
) -> None:
    for n, row in enumerate(mask == 1):
        for port, expected in zip(signature.outputs, want[n], strict=True):
            value = got[port.name][n]
            assert value.dtype == np.float32
            if port.name.startswith("present."):
                value = value[:, row]
            elif value.ndim and len(port.axes) > 1 and port.axes[1] == "sequence_length":
                value = value[row]
            assert_close(value, expected, tolerance, f"{port.name} of row {n}")


NAMES = ("bert", "bert_ner", "bert_qa", "bert_seqcls", "gemma2", "gemma3_b", "llama", "mistral_b", "qwen2", "qwen3_b")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", GRAPHS)
def test_every_row_comes_out_as_it_does_alone(
    name: str, backend: str, tiny: Tiny, opened: Callable[..., Session]
) -> None:
    model, session = open_model(tiny(name)), opened(name, backend)
    assert (session.backend, session.signature) == (backend, model.signature)
    for lengths, side in (([1], "left"), ([7], "left"), ([20], "left"), ([20, 1, 7], "left"), ([7, 20, 1], "right")):
        inputs = padded(session.signature, lengths, side)
        outputs = session.run(inputs)
        assert list(outputs) == [port.name for port in session.signature.outputs]
        assert all(np.isfinite(output).all() for output in outputs.values()), "padding may be odd, but not NaN"
        compare(session.signature, outputs, alone(model, inputs), inputs["attention_mask"], FLOAT32)


@pytest.mark.parametrize("name", ["bert", "gemma3_b", "qwen3_b"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*((backend, dtype) for backend in GRAPHS for dtype in ("f16", "bf16")), ("torch", "f64")],
)
def test_half_precision_is_cast_at_the_border(
    name: str, backend: str, dtype: str, tiny: Tiny, opened: Callable[..., Session]
) -> None:
    if (backend, dtype) == ("onnxruntime", "bf16"):
        pytest.skip("ONNX Runtime's CPU provider has no bfloat16 kernels; the exporter refuses it")
    model, session = open_model(tiny(name)), opened(name, backend, dtype)
    inputs = padded(session.signature, [9, 4], "left")
    compare(session.signature, session.run(inputs), alone(model, inputs), inputs["attention_mask"], HALF[dtype])
    if session.signature.states:
        logits = decoded(session, inputs, [6, 2, 1], all_logits=True)
        assert_close(logits[0], alone(model, inputs)[0][0], HALF[dtype])


def decoded(session: Session, inputs: Arrays, parts: list[int], all_logits: bool) -> NDArray[Any]:
    """The logits of a decoder fed in parts: (B, T, V), or those of the last slots of the parts (B, parts, V)."""
    decoder = session.decoder(len(inputs["input_ids"]))
    results, start = [], 0
    for part in parts:
        end = start + part
        results.append(
            decoder.step(
                inputs["input_ids"][:, start:end],
                mask=inputs["attention_mask"][:, start:end],
                positions=inputs["position_ids"][:, start:end],
                last=None if all_logits else 1,
            )
        )
        start = end
    assert start == inputs["input_ids"].shape[1]
    assert all(result.dtype == np.float32 for result in results)
    return np.concatenate(results, 1) if all_logits else np.stack(results, 1)


@pytest.mark.parametrize("name", ["gemma2_b", "gemma3_b", "llama", "mistral_full", "qwen2", "qwen3_b"])
@pytest.mark.parametrize("backend", GRAPHS)
def test_decoding_in_parts_equals_one_pass(name: str, backend: str, tiny: Tiny, opened: Callable[..., Session]) -> None:
    model, session = open_model(tiny(name)), opened(name, backend)
    for lengths, parts in (([20], [1] * 20), ([20, 12, 3], [17, 1, 1, 1]), ([20, 1], [5, 7, 8])):
        inputs = padded(session.signature, lengths, "left")
        logits = decoded(session, inputs, parts, all_logits=True)
        want = alone(model, inputs)
        for n, row in enumerate(inputs["attention_mask"] == 1):
            assert_close(logits[n, row], want[n][0], FLOAT32)
        last = decoded(session, inputs, parts, all_logits=False)
        ends = np.cumsum(parts) - 1
        assert_close(last[:1], logits[:1, ends], FLOAT32)


@pytest.mark.parametrize("backend", ALL_GRAPHS)
def test_padding_may_also_stand_between_prompt_and_answer(
    backend: str, tiny: Tiny, opened: Callable[..., Session]
) -> None:
    """A batch of prompts padded on the right, then a token for each row: the hole stays hidden."""
    model, session = open_model(tiny("gemma3_b")), opened("gemma3_b", backend)
    prompt = padded(session.signature, [9, 4], "right")
    mask = np.concatenate((prompt["attention_mask"], np.ones((2, 2), np.int64)), 1)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    ids = np.concatenate((prompt["input_ids"], np.array([[11, 12], [13, 14]])), 1)
    inputs = {**prompt, "input_ids": ids, "attention_mask": mask, "position_ids": positions}
    logits = decoded(session, inputs, [9, 1, 1], all_logits=True)
    for n, want in enumerate(alone(model, inputs)):
        assert_close(logits[n, mask[n] == 1], want[0], FLOAT32)


@pytest.mark.parametrize("backend", ALL_GRAPHS)
def test_a_cache_grows_past_its_first_room(
    backend: str, tiny: Tiny, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_decoder, "FIRST_CAPACITY", 4)
    monkeypatch.setattr("isoform.runtimes.backends.onnxruntime.decoder.FIRST_CAPACITY", 4)
    model, session = open_model(tiny("llama")), opened("llama", backend)
    inputs = padded(session.signature, [40, 23], "left")
    logits = decoded(session, inputs, [3, 1, 1, 20, 1, 1, 13], all_logits=True)
    for n, row in enumerate(inputs["attention_mask"] == 1):
        assert_close(logits[n, row], alone(model, inputs)[n][0], FLOAT32)


@pytest.mark.parametrize("backend", ALL_GRAPHS)
def test_a_long_prompt_goes_in_by_pieces(
    backend: str, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened("qwen2", backend)
    inputs = padded(session.signature, [20, 9], "left")
    whole = decoded(session, inputs, [20], all_logits=False)
    monkeypatch.setattr(stepping, "LOGITS", 1)  # one slot at a time
    pieces = decoded(session, inputs, [20], all_logits=False)
    assert_close(pieces, whole, FLOAT32)


@pytest.mark.parametrize("backend", ALL_GRAPHS)
def test_decoders_of_one_session_do_not_meet(backend: str, opened: Callable[..., Session]) -> None:
    session = opened("qwen2", backend)
    inputs = [padded(session.signature, [8], "left", seed) for seed in (1, 2)]
    want = [decoded(session, given, [4, 4], all_logits=False) for given in inputs]
    decoders = [session.decoder(1) for _ in inputs]
    for n, (start, end) in enumerate(((0, 4), (4, 8))):
        for decoder, given, expected in zip(decoders, inputs, want, strict=True):
            logits = decoder.step(
                given["input_ids"][:, start:end],
                mask=given["attention_mask"][:, start:end],
                positions=given["position_ids"][:, start:end],
            )
            np.testing.assert_array_equal(logits, expected[:, n])


def test_onnx_runtime_appends_in_place_where_the_graph_says_so(
    tiny: Tiny, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened("mistral_full", "onnxruntime")  # heads of 16 channels: the fused kernel takes them
    decoder: Any = session.decoder(1)
    assert isinstance(decoder, OnnxRuntimeDecoder)
    assert decoder._in_place
    first = next(iter(decoder._bound.past.values())).data_ptr()
    decoder.step(np.array([[5, 6]]))
    assert next(iter(decoder._bound.past.values())).data_ptr() == first
    narrow: Any = opened("qwen2", "onnxruntime").decoder(1)  # 4 channels: a standard node, which makes a new tensor
    assert not narrow._in_place


@pytest.mark.parametrize("name", ["gemma3_b", "mistral_full", "qwen2"])
def test_prompts_of_a_batch_go_in_by_pieces_while_its_cache_grows(
    name: str, tiny: Tiny, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several rows, several new slots and a past: the fused kernel takes the rows one by one."""
    monkeypatch.setattr("isoform.runtimes.backends.onnxruntime.decoder.FIRST_CAPACITY", 2)
    model, session = open_model(tiny(name)), opened(name, "onnxruntime")
    inputs = padded(session.signature, [14, 9, 3], "left")
    want = alone(model, inputs)
    for all_logits in (True, False):
        logits = decoded(session, inputs, [3, 4, 1, 5, 1], all_logits)
        for n, row in enumerate(inputs["attention_mask"] == 1):
            slots = np.flatnonzero(row) if all_logits else np.array([2, 6, 7, 12, 13])
            first = 14 - row.sum()
            kept = slots[slots >= first]
            got = logits[n, kept] if all_logits else logits[n, slots >= first]
            assert_close(got, want[n][0][kept - first], FLOAT32)


@pytest.mark.parametrize(("name", "alone_"), [("gemma3_b", True), ("mistral_full", True), ("qwen2", False)])
def test_a_batch_may_be_run_in_two_parts_with_the_cache_between(
    name: str, alone_: bool, tiny: Tiny, opened: Callable[..., Session]
) -> None:
    model, session = open_model(tiny(name)), opened(name, "onnxruntime")
    assert isinstance(session, OnnxRuntimeSession)
    assert session.extends_rows_alone is alone_  # the fused kernel; ONNX' Attention takes a whole batch
    inputs = padded(session.signature, [14, 9, 3], "left")
    first = {key: array[:, :8] if array.ndim == 2 else array for key, array in inputs.items()}
    made = session.run(first)
    pasts = [port.name for port in session.signature.inputs if port.name.startswith("past")]
    presents = {past: made[past.replace("past_key_values", "present")] for past in pasts}
    rest = {key: array[:, 8:] for key, array in inputs.items() if array.ndim == 2}
    logits = session.run({**inputs, **rest, "attention_mask": inputs["attention_mask"], **presents})["logits"]
    for n, row in enumerate(inputs["attention_mask"] == 1):
        count = min(row.sum(), 6)
        assert_close(logits[n, -count:], alone(model, inputs)[n][0][-count:], FLOAT32)


@pytest.mark.parametrize("name", ["gemma2_b", "llama", "qwen2"])
def test_a_prompt_gets_the_logits_of_its_last_slot_alone(
    name: str, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(name, "onnxruntime")
    assert isinstance(session, OnnxRuntimeSession)
    assert session.trims
    assert "logits_start" not in {port.name for port in session.signature.inputs}
    inputs = padded(session.signature, [11, 6], "left")
    want = session.run(inputs)["logits"][:, -1:]
    assert_close(decoded(session, inputs, [11], all_logits=False), want, FLOAT32)
    monkeypatch.setattr("isoform.runtimes.backends.onnxruntime.decoder.SCORES", 2 * 11 * 4)  # four slots at a time
    assert_close(decoded(session, inputs, [11], all_logits=False), want, FLOAT32)


@pytest.mark.parametrize(("name", "ends"), [("mistral_full", True), ("qwen2", False), ("bert", False)])
def test_the_mask_of_a_cache_that_grows_in_place_may_be_longer_than_what_counts(
    name: str, ends: bool, opened: Callable[..., Session]
) -> None:
    path, session = bundle(name) / "onnx/model.onnx", opened(name, "onnxruntime")
    assert isinstance(session, OnnxRuntimeSession)
    assert session.follows is ends
    assert (b"mask_end" in path.read_bytes()) is ends
    assert "mask_end" not in {port.name for port in session.signature.inputs}
    if ends:
        inputs = padded(session.signature, [7, 4], "left")
        want = session.run(inputs)
        longer = np.concatenate((inputs["attention_mask"], np.ones((2, 20), np.int64)), 1)
        feeds = {**inputs, "attention_mask": longer, "mask_end": np.array([7]), "logits_start": np.array([0])}
        got = session.native.run([*want], feeds)
        for one, expected in zip(got, want.values(), strict=True):
            np.testing.assert_array_equal(one, expected)


def test_a_constant_becomes_an_input() -> None:
    path = bundle("llama") / "onnx/model.onnx"
    plain = onnx.load(path, load_external_data=False)
    content = with_input(path.read_bytes(), "logits_start")
    assert content is not None
    changed = onnx.ModelProto.FromString(content)
    assert [i.name for i in changed.graph.input] == [*(i.name for i in plain.graph.input), "logits_start"]
    added = onnx.helper.make_tensor_value_info("logits_start", onnx.TensorProto.INT64, [1])
    assert changed.graph.input[-1] == added
    assert changed.graph.node == plain.graph.node
    names = [{tensor.name for tensor in model.graph.initializer} for model in (plain, changed)]
    assert names[0] - names[1] == {"logits_start"}
    assert with_input(path.read_bytes(), "logits_end") is None


def test_logits_that_are_kept_are_not_overwritten(opened: Callable[..., Session]) -> None:
    session = opened("mistral_full", "onnxruntime")
    decoder = session.decoder(1)
    ones = np.ones((1, 9), np.int64)
    steps = [decoder.step(ones[:, :1] * n) for n in range(6)]
    copies = [logits.copy() for logits in steps]
    part = steps.pop()[0, :3]
    for n in range(6, 9):
        decoder.step(ones[:, :1] * n)
    for logits, copy in zip(steps, copies[:-1], strict=True):
        np.testing.assert_array_equal(logits, copy)
    np.testing.assert_array_equal(part, copies[-1][0, :3])


def test_logits_that_nobody_holds_leave_their_room_to_the_next(opened: Callable[..., Session]) -> None:
    session = opened("mistral_full", "onnxruntime")
    decoder = session.decoder(1)
    ones = np.ones((1, 9), np.int64)
    places = set()
    logits = None
    for n in range(9):  # one array is held while the next is made, as a loop does it
        logits = decoder.step(ones[:, :1] * n)
        places.add(logits.ctypes.data)
    assert len(places) == 2


@pytest.mark.parametrize("backend", GRAPHS)
@pytest.mark.parametrize("name", ["gemma3_b", "mistral_full", "qwen2"])
def test_tokens_alone_go_on_where_the_step_before_has_ended(
    backend: str, name: str, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_decoder, "FIRST_CAPACITY", 4)
    monkeypatch.setattr("isoform.runtimes.backends.onnxruntime.decoder.FIRST_CAPACITY", 4)
    session: Any = opened(name, backend)
    total = 30
    inputs = padded(session.signature, [total, total - 4], "left")
    ids, mask, positions = (inputs[key] for key in ("input_ids", "attention_mask", "position_ids"))
    want, got = session.decoder(2), session.decoder(2)
    token = np.zeros((2, 1), np.int64)

    def check(size: int, how: str) -> None:
        start = want._mask.shape[1]
        new, all_logits = slice(start, start + size), how == "all"
        token[:] = ids[:, start : start + 1]
        given = token if how in ("follows", "with mask") else ids[:, new].copy()
        more = {"mask": mask[:, new], "positions": positions[:, new]} if how == "with mask" else {}
        last = None if all_logits else 1
        expected = want.step(ids[:, new], mask=mask[:, new], positions=positions[:, new], last=last)
        kept.append((got.step(given, **more, last=last), expected))

    kept: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for decoder in (got, want):
        decoder.step(ids[:, :6], mask=mask[:, :6], positions=positions[:, :6])
    for how in (*["follows"] * 5, "with mask", *["follows"] * 3, "all", "other array", *["follows"] * 4):
        check(2 if how == "all" else 1, how)
    order = np.array([1, 0])
    ids, mask, positions = ids[order], mask[order], positions[order]
    got.select(order)
    want.select(order)
    for _ in range(4):
        check(1, "follows")
    for one, expected in kept:  # compared last: nothing that was given is written into
        assert_close(one, expected, FLOAT32)


@pytest.mark.parametrize("kept", ["in_place", "grows", "sideways", None])
def test_what_a_file_says_of_its_cache_changes_no_number(
    kept: str | None, opened: Callable[..., Session], tmp_path: Path
) -> None:
    whole = bundle("mistral_full") / "onnx"
    model = onnx.load(whole / "model.onnx", load_external_data=False)
    (entry,) = model.metadata_props
    entry.value = kept or ""
    if kept is None:
        del model.metadata_props[:]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "model.onnx_data").write_bytes((whole / "model.onnx_data").read_bytes())
    token = np.array([[7]])
    want = opened("mistral_full", "onnxruntime").decoder(1)
    with OnnxRuntimeSession(tmp_path / "model.onnx") as session:
        got = session.decoder(1)
        for _ in range(5):
            assert_close(got.step(token), want.step(token), FLOAT32)


def test_a_first_step_without_mask_is_of_tokens_only(opened: Callable[..., Session]) -> None:
    for backend in ALL_GRAPHS:
        session = opened("qwen2", backend)
        inputs = padded(session.signature, [5], "left")
        ids, mask, positions = (inputs[key] for key in ("input_ids", "attention_mask", "position_ids"))
        want = session.decoder(1).step(ids, mask=mask, positions=positions)
        np.testing.assert_array_equal(session.decoder(1).step(ids), want)
        with pytest.raises(InputError, match="takes"):
            session.decoder(2).step(ids)


def test_integers_of_any_width_are_taken(opened: Callable[..., Session]) -> None:
    for backend in ALL_GRAPHS:
        session = opened("bert", backend)
        inputs = padded(session.signature, [5], "left")
        narrow = {name: array.astype(np.int32) for name, array in inputs.items()}
        (want,), (got,) = session.run(inputs).values(), session.run(narrow).values()
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", ALL_GRAPHS)
def test_a_closed_session_says_so(backend: str, opened: Callable[..., Session]) -> None:
    with opened("qwen2", backend) as session:
        inputs = padded(session.signature, [3], "left")
        session.run(inputs)
        decoder = session.decoder(1)
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.run(inputs)
    if backend != "torch":
        with pytest.raises(InputError, match="closed"):
            decoder.step(inputs["input_ids"])


@pytest.mark.parametrize("backend", ALL_GRAPHS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "input_ids missing"),
        ({"pixel_values": np.zeros(3)}, "pixel_values unknown"),
        ({"input_ids": np.zeros((1, 3))}, "it holds integers"),
        ({"input_ids": np.zeros(3, np.int64)}, r"input_ids has shape \(3,\)"),
        ({"position_ids": np.zeros((1, 2), np.int64)}, r"position_ids has shape \(1, 2\), not \(1, 3\)"),
        ({"attention_mask": np.ones((1, 4), np.int64)}, "total_sequence_length is 4, not 3"),
        ({"past_key_values.0.key": np.zeros((1, 2, 0, 5), np.float32)}, r"past_key_values.0.key has shape"),
    ],
)
def test_wrong_inputs_are_named(
    backend: str, change: dict[str, Any], message: str, opened: Callable[..., Session]
) -> None:
    session = opened("qwen2", backend)
    inputs = {**padded(session.signature, [3], "left"), **change}
    with pytest.raises(InputError, match=message):
        session.run({name: array for name, array in inputs.items() if array is not None})


def test_onnx_runtime_turns_what_a_kernel_refuses_into_one_line(opened: Callable[..., Session]) -> None:
    session = opened("bert", "onnxruntime")
    inputs = padded(session.signature, [3], "left")
    inputs["input_ids"][0, 1] = 10**6
    with pytest.raises(InputError, match="ONNX Runtime could not run the model on these inputs") as caught:
        session.run(inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ALL_GRAPHS)
def test_a_decoder_checks_its_steps(backend: str, opened: Callable[..., Session]) -> None:
    session = opened("qwen2", backend)
    ones = np.ones((1, 9), np.int64)
    with pytest.raises(InputError, match="at least one"):
        session.decoder(0)
    decoder = session.decoder(1)
    decoder.step(ones[:, :2])
    with pytest.raises(InputError, match="takes"):
        decoder.step(ones[:, :0])
    with pytest.raises(InputError, match="the new slots alone"):
        decoder.step(ones[:, :1], mask=ones[:, :3])
    with pytest.raises(InputError, match="position_ids has shape"):
        decoder.step(ones[:, :1], positions=ones[:, :3])
    with pytest.raises(InputError, match="at least one slot"):
        decoder.step(ones[:, :1], last=0)
    decoder.step(ones[:, :1], mask=ones[:, :1], positions=np.array([[2]]))
    for counts in (-1, 4, [1, 1], 0.5):
        with pytest.raises(InputError, match="forget"):
            decoder.rewind(counts)
    with pytest.raises(InputError, match="same session"):
        decoder.join(decoder)
    with pytest.raises(InputError, match="decodes nothing"):
        opened("bert", backend).decoder(1)


# ------------------------------------------------------------------ files that are not what they should be
def damaged(bundle: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, tmp_path / "copy"))


FILES = (
    ("torchscript", "torchscript/model.pt"),
    ("onnxruntime", "onnx/model.onnx"),
    ("onnxruntime", "onnx/model.onnx_data"),
)


@pytest.mark.parametrize(("backend", "file"), FILES)
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "noise"])
def test_a_damaged_file_is_one_clear_error(backend: str, file: str, damage: str, tmp_path: Path) -> None:
    folder = damaged(bundle("qwen2"), tmp_path)
    path, main = folder / file, folder / ("onnx/model.onnx" if backend == "onnxruntime" else file)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"short": content[: len(content) // 2], "empty": b"", "noise": b"\x07" * len(content)}[damage])
    if damage != "noise":
        with pytest.raises(CheckpointError, match=path.name):
            open_path(folder, backend)
    if damage == "noise" and file.endswith("_data"):
        return  # floats like any others: the parity check is what sees them
    signature = Manifest.read(folder).artifacts[0].signature
    with pytest.raises(CheckpointError, match=path.name.removesuffix("_data")) as caught:
        open_session(main, backend, signature=signature)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime"])
def test_a_file_of_another_model_is_refused(backend: str) -> None:
    (other,) = (a for a in Manifest.read(bundle("bert")).artifacts if a.format == FORMAT_OF[backend])
    with pytest.raises(CheckpointError, match="signature"):
        open_session(bundle("qwen2") / other.files[0].path, backend, signature=other.signature)


def test_a_bare_graph_tells_its_own_signature(tmp_path: Path) -> None:
    for name in ("qwen2", "bert_qa"):
        folder = bundle(name)
        want = Manifest.read(folder).artifacts[0].signature
        with OnnxRuntimeSession(folder / "onnx" / "model.onnx") as session:
            assert session.signature == want
        session_, where = open_path(folder / "onnx" / "model.onnx")
        with session_:
            assert where == folder
            inputs = padded(want, [4], "left")
            assert session_.run(inputs).keys() == {port.name for port in want.outputs}


# ------------------------------------------------------------------ choosing a backend
def test_auto_takes_the_first_form_that_is_there(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("qwen2"))
    export(model, ["torchscript"], tmp_path / "b")
    session, folder = open_path(tmp_path / "b")
    with session:
        assert (session.backend, folder) == ("torchscript", tmp_path / "b")
    with pytest.raises(BackendUnavailable, match=r"onnxruntime: no onnx in .* --to onnx"):
        open_path(tmp_path / "b", "onnxruntime")
    with open_path(tmp_path / "b", "torch")[0] as session:
        assert session.backend == "torch"
    with pytest.raises(InputError, match="exported for text-generation, not fill-mask"):
        open_path(tmp_path / "b", task="fill-mask")


def test_an_artifact_opens_on_the_backend_of_its_format() -> None:
    folder = bundle("bert")
    for artifact in Manifest.read(folder).artifacts:
        for backend in BACKENDS[artifact.format]:
            with open_artifact(folder, artifact, backend, threads=1) as session:
                assert session.backend == backend


def test_a_wrong_request_names_the_way_out(tiny: Tiny) -> None:
    model, graph = open_model(tiny("bert")), bundle("bert") / "onnx" / "model.onnx"
    requests: list[tuple[Any, str, dict[str, Any], str]] = [
        (model, "torch", {"device": "tpu"}, "tpu"),
        (model, "torch", {"dtype": "f8"}, "f8"),
        (model, "torch", {"threads": 0}, "threads=0"),
        (model, "tensorrt", {}, "tensorrt"),
        (model, "onnxruntime", {}, "export"),
        (graph, "torch", {}, "checkpoint"),
        (graph, "torchscript", {}, "signature"),
        (graph, "onnxruntime", {"threads": 0}, "threads=0"),
        (graph, "onnxruntime", {"device": "gpu"}, "gpu.*backend='openvino'"),
        (graph, "openvino", {"device": "cuda"}, "cuda.*backend='onnxruntime'"),
        (graph, "openvino", {"device": "gpu:x"}, "gpu:x"),
        (graph, "openvino", {"precision": "f64"}, "f64.*f32, bf16, f16"),
        (graph, "openvino", {"threads": 0}, "threads=0"),
    ]
    for source, backend, options, named in requests:
        with pytest.raises(InputError, match=named):
            open_session(source, backend, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("backend", GRAPHS)
def test_a_missing_gpu_is_said_by_name(backend: str, opened: Callable[..., Session]) -> None:
    with pytest.raises(BackendUnavailable, match=r"CUDA|cuda"):
        opened("bert", backend, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bert", "gemma2_b", "mistral_full", "qwen3_b"])
@pytest.mark.parametrize("backend", GRAPHS)
def test_a_gpu_gives_what_the_cpu_gives(name: str, backend: str, tiny: Tiny, opened: Callable[..., Session]) -> None:
    model, session = open_model(tiny(name)), opened(name, backend, device="cuda", strict=True)
    inputs = padded(session.signature, [20, 1, 7], "left")
    compare(session.signature, session.run(inputs), alone(model, inputs), inputs["attention_mask"], FLOAT32)
    if session.signature.states:
        logits = decoded(session, inputs, [17, 1, 2], all_logits=True)
        assert_close(logits[0], alone(model, inputs)[0][0], FLOAT32)


def test_every_backend_is_ready_here() -> None:
    states = {state.backend: state for state in available()}
    assert states.keys() == set(backends.BACKENDS)
    for state in states.values():
        assert state.ready, state
        assert state.devices[0] == "cpu"


def test_asking_for_the_backends_loads_none_of_them() -> None:
    script = (
        "import sys; from isoform.runtimes.open import available; available()\n"
        "print([m for m in ('torch', 'onnxruntime', 'openvino', 'xllamacpp', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" or torch.cuda.is_available()


def test_an_uninstalled_backend_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(IsoformError, match="pip install onnxruntime"):
        OnnxRuntimeSession(bundle("bert") / "onnx" / "model.onnx")
    monkeypatch.setattr(backends, "_version", lambda package: None)
    assert all("pip install" in state.detail and not state.ready for state in available())
