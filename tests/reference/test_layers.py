"""Laws of the layers and of the semantic operations."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.reference.config import RopeConfig
from isoform.reference.modules import ops
from isoform.reference.modules.attention import GrowingCache, Heads, attend
from isoform.reference.modules.layers import FrozenBatchNorm, causal_bias, hidden, padding_bias, true_positions
from isoform.reference.modules.rotary import Rope, inverse_frequencies, llama3_factors

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ROPES = [
    RopeConfig(),
    RopeConfig(theta=1e6, kind="linear", factor=8.0),
    RopeConfig(theta=5e5, kind="llama3", factor=32.0, original_max_position_embeddings=64),
]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------ batch normalization
@pytest.mark.parametrize("sizes", [(3, 5), (3, 5, 7), (3, 5, 7, 2)])
def test_frozen_batch_norm_is_torchs_in_evaluation(sizes: tuple[int, ...]) -> None:
    x, weight, bias, mean, var = random(*sizes), *(random(5, seed=n) for n in range(1, 4)), random(5, seed=4).exp()
    layer = FrozenBatchNorm(5, 1e-3).double()
    layer.load_state_dict({"weight": weight, "bias": bias, "mean": mean, "var": var})
    expected = torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=1e-3)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ rotary positions
@settings(max_examples=50, deadline=None)
@given(
    rope=st.sampled_from(ROPES),
    query=st.integers(0, 4000),
    distance=st.integers(-200, 200),
    shift=st.integers(0, 4000),
    seed=st.integers(0, 99),
)
def test_rotary_scores_depend_on_distance_only(
    rope: RopeConfig, query: int, distance: int, shift: int, seed: int
) -> None:
    q, k = random(1, 1, 2 * 16, seed=seed), random(1, 1, 2 * 16, seed=seed + 1)
    layer = Rope(16, rope)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        cos, sin = layer(torch.tensor([[position]]), torch.float64)
        return ops.rotary(x, cos, sin, 2).unflatten(-1, (2, 16))

    def scores(i: int, j: int) -> torch.Tensor:
        return (at(q, i) * at(k, j)).sum(-1)

    assert torch.allclose(
        scores(query, query + distance), scores(query + shift, query + shift + distance), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("rope", ROPES)
def test_rotating_keeps_lengths_and_leaves_position_zero_alone(rope: RopeConfig) -> None:
    x = random(2, 7, 3 * 8)
    cos, sin = Rope(8, rope)(torch.arange(7).expand(2, 7), torch.float64)
    turned = ops.rotary(x, cos, sin, 3)
    assert torch.equal(turned[:, 0], x[:, 0])
    assert torch.allclose(turned.unflatten(-1, (3, 8)).norm(dim=-1), x.unflatten(-1, (3, 8)).norm(dim=-1))


def test_frequencies_stay_float32_whatever_the_module_becomes() -> None:
    dynamic = RopeConfig(kind="dynamic", factor=2.0, original_max_position_embeddings=8)
    for rope in (ROPES[2], dynamic):
        layer = Rope(16, rope)
        before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
        for dtype in FLOATS:
            layer.to(dtype)
            assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())
            assert layer(torch.tensor([[100000]]), dtype)[0].dtype == dtype


def test_llama3_scaling_keeps_short_waves_and_slows_long_ones() -> None:
    plain = inverse_frequencies(64, RopeConfig(theta=5e5))
    rope = RopeConfig(theta=5e5, kind="llama3", factor=8.0, original_max_position_embeddings=8192)
    factors = llama3_factors(plain, rope)
    assert factors[0] == 1
    assert factors[-1] == 8
    assert bool((factors.diff() >= 0).all())
    assert torch.equal(inverse_frequencies(64, rope), plain / factors)


# ------------------------------------------------------------------ what is hidden
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_hidden_gets_no_weight_and_never_overflows(dtype: torch.dtype) -> None:
    bias = torch.tensor([0.0, hidden(dtype), hidden(dtype)], dtype=dtype)
    for score in (-100.0, 0.0, 100.0):
        weights = torch.softmax(torch.full((3,), score, dtype=dtype) + bias, -1)
        assert weights.tolist() == [1, 0, 0]
    lost = torch.full((3,), hidden(dtype), dtype=dtype) + torch.tensor([-100.0, 0, 100.0], dtype=dtype)
    assert bool(lost.isfinite().all())
    assert bool(torch.softmax(lost, -1).isfinite().all()), "a row that sees nothing is finite"


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
    past=st.integers(0, 8),
    window=st.none() | st.integers(1, 10),
)
def test_the_causal_bias_shows_the_real_tokens_before_and_no_others(
    rows: list[list[bool]], past: int, window: int | None
) -> None:
    mask = torch.tensor(rows).long()
    positions = true_positions(mask)[:, past:]
    bias = causal_bias(mask, positions, window, torch.float32)
    assert bias.shape == (len(rows), 1, 9 - past, 9)
    for row, real in enumerate(rows):
        for slot in range(past, 9):
            if not real[slot]:
                continue  # meaningless
            before = [j for j in range(slot + 1) if real[j]]
            seen = before if window is None else before[-window:]
            assert (bias[row, 0, slot - past] == 0).nonzero().flatten().tolist() == seen
    assert set(bias.unique().tolist()) <= {0.0, hidden(torch.float32)}


def test_the_padding_bias_hides_padding_from_every_query() -> None:
    bias = padding_bias(torch.tensor([[0, 1, 1], [1, 0, 1]]), torch.float32)
    assert bias.shape == (2, 1, 1, 3)
    assert (bias.squeeze() == 0).tolist() == [[False, True, True], [True, False, True]]


# ------------------------------------------------------------------ semantic operations
def test_rms_norm_is_torchs() -> None:
    x, weight = random(2, 3, 8), random(8, seed=1)
    assert torch.allclose(ops.rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x, (8,), weight, 1e-5))


def test_rms_norm_squares_in_float32() -> None:
    large = torch.full((1, 4), 400.0, dtype=torch.float16)  # its square overflows half precision
    assert ops.rms_norm(large, torch.ones(4, dtype=torch.float16), 1e-6).tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_grouped_heads_equal_repeated_ones(softcap: float) -> None:
    q, k, v, bias = random(2, 5, 6 * 4), random(2, 5, 2 * 4, seed=1), random(2, 5, 2 * 4, seed=2), random(2, 1, 5, 5)
    wide_k, wide_v = (x.unflatten(-1, (2, 4)).repeat_interleave(3, 2).flatten(-2) for x in (k, v))
    grouped = attend(q, k, v, bias, Heads(6, 2, 4, 0.5, softcap))
    assert torch.allclose(grouped, attend(q, wide_k, wide_v, bias, Heads(6, 6, 4, 0.5, softcap)))


def test_a_wide_softcap_is_none() -> None:
    q, k, v, bias = random(1, 5, 8), random(1, 5, 8, seed=1), random(1, 5, 8, seed=2), random(1, 1, 5, 5)
    capped = attend(q, k, v, bias, Heads(2, 2, 4, 0.5, 1e6))
    assert torch.allclose(capped, attend(q, k, v, bias, Heads(2, 2, 4, 0.5)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_over_a_cache_is_attention_over_both_parts(softcap: float) -> None:
    q, k, v = (random(2, 7, n * 4, seed=n) for n in (4, 2, 2))
    bias = random(2, 1, 7, 7)
    heads = Heads(4, 2, 4, 0.5, softcap)
    whole = attend(q, k, v, bias, heads)
    past_k, past_v = (x[:, :4].unflatten(-1, (2, 4)).transpose(1, 2) for x in (k, v))
    cache = GrowingCache(past_k, past_v)
    assert torch.allclose(attend(q[:, 4:], k[:, 4:], v[:, 4:], bias[:, :, 4:], heads, cache), whole[:, 4:])
    keys, values = cache.present
    assert torch.equal(keys.transpose(1, 2).flatten(-2), k)
    assert torch.equal(values.transpose(1, 2).flatten(-2), v)


def test_a_lowering_takes_the_calls_of_its_block_and_thread() -> None:
    x, weight = random(1, 4), random(4)
    plain = ops.rms_norm(x, weight, 1e-6)
    calls: list[Any] = []
    elsewhere: list[torch.Tensor] = []

    def other(*arguments: Any) -> str:
        calls.append(arguments)
        return "lowered"

    with pytest.raises(KeyboardInterrupt), ops.lowered_by({"rms_norm": other}):
        assert ops.rms_norm(x, weight, 1e-6) == "lowered"
        thread = threading.Thread(target=lambda: elsewhere.append(ops.rms_norm(x, weight, 1e-6)))
        thread.start()
        thread.join()
        raise KeyboardInterrupt
    assert calls == [(x, weight, 1e-6)]
    assert torch.equal(elsewhere[0], plain)
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), plain)
    assert set(ops.OPS) == {
        *("rms_norm", "rotary", "partial_rotary", "attention", "routed_experts", "local_attention", "local_bias"),
        *("sampled_attention", "transport"),
    }
