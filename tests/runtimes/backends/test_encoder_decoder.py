"""Encoder-decoder sessions: the same on every backend, rows that are chosen and repeated, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.reference.model import open_model
from isoform.runtimes.open import open_path, open_session
from tests.exports import exported, portable
from tests.oracle import tiny

BACKENDS = ("onnxruntime", "openvino", "torch", "torchscript")
SPREAD = 2e-5  # float32 logits of some units, through a few layers


@pytest.fixture(scope="module")
def opener() -> Any:
    def open_it(name: str, backend: str) -> Any:
        if backend == "torch":
            return open_session(open_model(tiny(name)), "torch")
        return open_path(portable(name) if backend == "openvino" else exported(name), backend)[0]

    return open_it


def features(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((rows, 80, 100)).astype(np.float32)


def tokens(rows: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(2).integers(3, 290, (rows, length))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_can_be_chosen_before_and_between_steps(backend: str, opener: Any) -> None:
    ids, orders = tokens(3, 9), ([0, 2, 2], [2, 0, 1, 1], [1, 1, 0], [3, 2])
    with opener("whisper_b", backend) as session:
        memory = session.encode({"input_features": features(3)})
        assert session.feeds("decoder", memory)["encoder_hidden_states"].shape == (3, 50, 48)
        decoder = session.decoder(memory)
        rows, row_ids, start = np.arange(3), ids, 0
        for order, size in zip(orders, (4, 1, 3, 1), strict=False):
            if len(order) and max(order) < len(rows):
                decoder.select(np.array(order))
                rows, row_ids = rows[order], row_ids[order]
            got = decoder.step(row_ids[:, start : start + size], last=None)
            alone = session.decoder(memory.select(rows)).step(row_ids[:, : start + size], last=None)
            assert np.abs(got - alone[:, start:]).max() < SPREAD
            start += size


def test_all_backends_give_the_same(opener: Any) -> None:
    found = []
    for backend in BACKENDS:
        with opener("whisper_b", backend) as session:
            assert session.backend == backend
            memory = session.encode({"input_features": features(2)})
            decoder = session.decoder(memory)
            first, second = decoder.step(tokens(2, 5)), decoder.step(tokens(2, 1))
            aligned = session.run_part("alignment", memory, {"input_ids": tokens(2, 5)})
            found.append((first, second, aligned["cross_attentions"]))
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            assert mine.dtype == np.float32
            assert np.abs(mine - theirs).max() < SPREAD
    assert np.allclose(found[0][2].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoders_beside_each_other_do_not_mix(backend: str, opener: Any) -> None:
    sound = np.random.default_rng(3).standard_normal((1, 4000)).astype(np.float32)
    with opener("moonshine_b", backend) as session:
        memories = [session.encode({"input_values": x}) for x in (sound, sound[:, :2000])]
        assert [m.values["encoder.last_hidden_state"].shape[1] for m in memories] == [9, 3]
        alone = [session.decoder(memory).step(tokens(1, 6) % 200) for memory in memories]
        pair = [session.decoder(memory) for memory in memories]
        for n in range(6):
            last = [decoder.step(tokens(1, 6)[:, n : n + 1] % 200) for decoder in pair]
        assert all(np.abs(a - b).max() < SPREAD for a, b in zip(alone, last, strict=True))


def test_what_does_not_fit_is_refused_by_name(opener: Any) -> None:
    with opener("moonshine_b", "onnxruntime") as session:
        assert session.parts == ("encoder", "decoder")
        with pytest.raises(InputError, match="too small"):
            session.encode({"input_values": np.zeros((1, 100), np.float32)})
        with pytest.raises(InputError, match="attention_mask unknown"):
            session.encode({"input_values": np.zeros((1, 3000), np.float32), "attention_mask": np.ones((1, 3000))})
        memory = session.encode({"input_values": np.zeros((2, 3000), np.float32)})
        with pytest.raises(InputError, match="no part 'alignment'"):
            session.run_part("alignment", memory, {"input_ids": tokens(2, 3)})
        decoder = session.decoder(memory)
        with pytest.raises(InputError, match=r"shape \(1, 3\); this decoder takes \(2, T\)"):
            decoder.step(tokens(1, 3))
        for rows in ([], [2], [-1], [[0]], [0.5]):
            with pytest.raises(InputError, match="rows 0 to 1"):
                decoder.select(np.array(rows))
    with pytest.raises(InputError, match="closed"):
        session.encode({"input_values": np.zeros((1, 3000), np.float32)})


def test_parts_of_the_same_weights_share_them_in_torch(opener: Any) -> None:
    with opener("whisper_b", "torch") as session:
        memory = session.encode({"input_features": features(1)})
        session.run_part("alignment", memory, {"input_ids": tokens(1, 4)})
        own, other = (dict(session.part(name).module.named_parameters()) for name in ("decoder", "alignment"))
        assert all(parameter is own[name] for name, parameter in other.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plain_decoder_goes_on_with_chosen_rows(backend: str, opener: Any) -> None:
    """Rows of other lengths, padded on the left, in buffers that grow in between."""
    ids, mask = tokens(3, 300) % 90, np.ones((3, 300), np.int64)
    mask[1, :3] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with opener("llama", backend) as session:
        decoder = session.decoder(3)
        decoder.step(ids[:, :200], mask=mask[:, :200], positions=positions[:, :200])
        order = np.array([1, 1, 2, 0])
        decoder.select(order)
        ids, mask, positions = ids[order], mask[order], positions[order]
        got = decoder.step(ids[:, 200:299], mask=mask[:, 200:299], positions=positions[:, 200:299])
        got = decoder.step(ids[:, 299:], positions=positions[:, 299:])
        whole = session.decoder(4).step(ids, mask=mask, positions=positions)
        assert np.abs(got - whole).max() < SPREAD
        with pytest.raises(InputError, match="rows 0 to 3"):
            decoder.select(np.array([4]))
