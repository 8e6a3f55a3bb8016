"""The packed forms of the torch backend: what their products are, and that decoding stays what one pass gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from isoform.errors import BackendUnavailable, InputError
from isoform.reference.model import open_model
from isoform.reference.modules import ops
from isoform.reference.modules.experts import RoutedMLP
from isoform.reference.modules.layers import ACTIVATIONS, Linear
from isoform.runtimes.backends.torch import rounding, session, spread
from isoform.runtimes.backends.torch.attention import BlockAttention, in_place
from isoform.runtimes.backends.torch.experts import PackedRoutedMLP
from isoform.runtimes.backends.torch.linear import (
    LAYERS,
    Int4WeightLinear,
    Int8Linear,
    Int8WeightLinear,
    PackedLinear,
    packed_rows,
    unpack,
)
from isoform.runtimes.backends.torch.operations import CURVES, fast_operations, gated
from isoform.runtimes.backends.torch.packing import Column, pack
from isoform.runtimes.backends.torch.session import INTEGERS, TorchSession
from isoform.runtimes.open import open_session
from tests.oracle import tiny

bf16 = pytest.mark.skipif(not session.has_bfloat16(), reason="this CPU has no products in bf16")
DTYPE = torch.bfloat16 if session.has_bfloat16() else torch.float32
ROUNDING = 2**-7  # half a unit in the last place of bf16, twice: of the product, and of the scaled one


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest one as a share of the largest value."""
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("biased", [False, True])
def test_eight_bits_are_the_product_of_the_rounded_numbers(rows: int, biased: bool) -> None:
    weight, x = random(48, 96), random(rows, 96, seed=1).to(DTYPE) * 3
    bias = random(48, seed=2).to(DTYPE) if biased else None
    numbers, scales = rounding.weight_rows(weight)
    taken, steps = rounding.byte_rows(x)
    zero = rounding.zero_point()
    assert int(taken.min()) >= 1 and int(taken.max()) <= 2 * zero - 1
    assert ((taken.double() - zero) * steps.double() - x.double()).abs().le(steps.double() * 0.5001).all()
    want = (taken.double() - zero) @ numbers.double().T * scales.double() * steps.double()
    want = want if bias is None else want + bias.double()
    got = Int8Linear(weight, bias)(x)
    assert got.dtype == x.dtype and error(got, want) <= ROUNDING
    assert error(got, x.double() @ weight.double().T + (0 if bias is None else bias.double())) <= 2.6 / zero


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_eight_bit_weights_take_activations_as_they_are(rows: int) -> None:
    weight, x = random(48, 96), random(rows, 96, seed=1).to(DTYPE)
    numbers, scales = rounding.weight_rows(weight)
    want = x.double() @ (numbers.double() * scales.double().unsqueeze(1)).T
    assert error(Int8WeightLinear(weight, None)(x), want) <= ROUNDING, "activations keep 13 bits at least"


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_four_bit_weights_have_a_scale_and_a_middle_for_each_group(rows: int) -> None:
    weight, x = random(192, 96) + 0.3, random(rows, 96, seed=1).to(torch.bfloat16)
    numbers, scales = rounding.weight_groups(weight)
    assert int(numbers.min()) >= 0 and int(numbers.max()) <= 15
    step, middle = scales.double().transpose(0, 1).unsqueeze(2).unbind(-1)
    held = ((numbers.double().unflatten(1, (-1, rounding.GROUP)) - 8) * step + middle).flatten(1)
    most = step.expand(-1, -1, rounding.GROUP).flatten(1) * 0.6  # half a step, and the rounding of step and middle
    assert (held - weight.double()).abs().le(most).all()
    assert error(Int4WeightLinear(weight, None)(x), x.double() @ held.T) <= ROUNDING


@pytest.mark.parametrize("form", sorted(LAYERS))
def test_a_row_of_zeros_and_a_matrix_of_zeros_give_zeros(form: str) -> None:
    if form == "bf16" and not session.has_bfloat16():
        pytest.skip("this CPU has no products in bf16")
    for weight, x in ((random(64, 64), torch.zeros(2, 64)), (torch.zeros(64, 64), random(2, 64))):
        y = LAYERS[form](weight, None)(x.to(DTYPE))
        assert torch.count_nonzero(y.abs() > 1e-6) == 0


def test_a_number_that_is_none_stays_visible() -> None:
    x = random(3, 64).to(DTYPE)
    x[1, 5] = float("nan")
    y = Int8Linear(random(32, 64), None)(x)
    assert bool(y[1].isnan().all()) and not bool(y[[0, 2]].isnan().any())


def test_bytes_keep_seven_bits_where_full_ones_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "zero_point", lambda: 64)
    x = random(4, 64).to(DTYPE)
    taken, _ = rounding.byte_rows(x)
    digits, _ = rounding.double_rows(x)
    assert 64 < int(taken.max()) <= 127 and 0 < int(taken.min()) < 64
    assert int(digits.max()) <= 127 and int(digits.min()) >= 1


def test_a_kernel_that_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> Any:
        raise RuntimeError("Could not run 'onednn::qlinear_prepack'")

    monkeypatch.setitem(LAYERS, "int8", lacking)
    with pytest.raises(BackendUnavailable, match=r"int8 on this CPU .*onednn::qlinear_prepack.*take f32"):
        TorchSession(open_model(tiny("llama")), dtype="int8")


def test_forms_that_cannot_be_are_refused_by_name() -> None:
    model = open_model(tiny("llama"))
    with pytest.raises(InputError, match=r"dtype 'q4' is not known; choose from f32, .*int4w, int8, int8w"):
        TorchSession(model, dtype="q4")
    with pytest.raises(InputError, match="int8 on the CPU only; on cuda take bf16 or f16"):
        TorchSession(model, dtype="int8", device="cuda")
    with pytest.raises(InputError, match="a module that is given runs as it is, not in int8"):
        open_session(model, "torch", dtype="int8", module=model.module())


@bf16
def test_layers_that_read_one_input_become_one_product() -> None:
    module = open_model(tiny("qwen2")).module(torch.bfloat16)
    before = [name for name, layer in module.named_modules() if type(layer) is Linear]
    gone = pack(module, "bf16")
    assert {name.removesuffix(".weight") for name in gone if name.endswith(".weight")} == set(before)
    assert not [name for name, layer in module.named_modules() if type(layer) is Linear]
    attention = module.get_submodule("layers.0.attn")
    assert all(type(getattr(attention, name)) is Column for name in "qkv")
    assert not [name for name, p in module.named_parameters() if p.dim() == 2 and name != "embed.weight"]


def test_experts_are_packed_and_the_matrix_that_scores_them_stays() -> None:
    module = open_model(tiny("qwen3_moe")).module(DTYPE)
    before = {name for name, _ in module.named_parameters()}
    gone = pack(module, "int8")
    kept = {name for name, parameter in module.named_parameters() if parameter.dim() >= 2}
    assert kept == {"embed.weight", *(name for name in before if name.endswith("router.weight"))}
    assert gone == {name for name in before if "norm" not in name} - kept


class Counted(PackedLinear):
    """A float layer that notes how many rows it multiplied."""

    seen: ClassVar[list[int]] = []

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self.held = weight.detach().clone()

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return torch.nn.functional.linear(x, self.held, self.added)


@pytest.mark.parametrize("length", [1, 2, 23])
@pytest.mark.parametrize("settings", [{}, {"bias": True, "alpha": 1.702, "shift": 1.0, "limit": 0.5}])
def test_packed_experts_multiply_the_rows_that_take_them(length: int, settings: dict[str, Any]) -> None:
    """The numbers are those of the operation, whose body is compared with transformers'."""
    mlp = RoutedMLP(16, 24, 7, 3, True, **settings).requires_grad_(False)
    for n, parameter in enumerate(mlp.parameters()):
        parameter.copy_(random(*parameter.shape, seed=n) * 0.3)
    x = random(2, length, 16, seed=40) if length > 1 else random(1, 1, 16, seed=40)
    Counted.seen.clear()
    with torch.inference_mode():
        torch.testing.assert_close(PackedRoutedMLP(mlp, Counted)(x), mlp(x), rtol=1e-5, atol=1e-6)
    assert sum(Counted.seen) == 2 * 3 * x.shape[0] * length  # gate with up, and down


@bf16
def test_a_strict_session_and_a_given_module_stay_plain() -> None:
    model = open_model(tiny("llama"))
    given = model.module(torch.bfloat16)
    for one in (TorchSession(model, dtype="bf16", strict=True), TorchSession(model, dtype="bf16", module=given)):
        assert any(type(layer) is Linear for layer in one.module.modules())
    assert any(type(layer) is Linear for layer in given.modules())
    assert not any(isinstance(layer, PackedLinear) for layer in TorchSession(model).module.modules())


FORMS = ("bf16", *INTEGERS)
CLOSE = {"bf16": 0.1, "int8": 0.15, "int8w": 0.1, "int4w": 0.6}
"""Of the largest value: random weights of a width of 64 amplify rounding more than trained ones do."""


@pytest.fixture(scope="module", params=FORMS)
def packed(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A session of each form over two layers with grouped heads."""
    with open_session(open_model(tiny("llama")), "torch", dtype=request.param) as opened:
        yield opened, request.param


def tokens(rows: int, length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(5, 200, (rows, length))


def assert_near(got: Any, want: Any, most: float) -> None:
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= most * np.abs(want).max()


STEPS = 0.05
"""Between ways to compute the same: a row is rounded alike in both, and sums of bf16 go in another order."""


def test_a_form_is_near_float32(packed: Any) -> None:
    opened, form = packed
    with open_session(open_model(tiny("llama")), "torch") as exact:
        want = exact.decoder(2).step(tokens(2, 40), last=None)
    got = opened.decoder(2).step(tokens(2, 40), last=None)
    assert_near(got, want, CLOSE[form])
    assert not np.array_equal(got, want)


def test_steps_give_what_one_pass_gives(packed: Any) -> None:
    opened, _ = packed
    given = tokens(2, 24)
    want = opened.decoder(2).step(given, last=None)
    decoder = opened.decoder(2)
    got = [decoder.step(given[:, :9], last=None), *(decoder.step(given[:, n : n + 1]) for n in range(9, 24))]
    assert_near(np.concatenate([array.reshape(2, -1, array.shape[-1]) for array in got], 1), want, STEPS)
    again = opened.decoder(2)
    again.step(given[:, :9])
    assert_near(again.step(given[:, 9:], last=None), want[:, 9:], STEPS)


def test_the_last_logits_alone_are_those_of_all(packed: Any) -> None:
    opened, _ = packed
    given = tokens(2, 20)
    want = opened.decoder(2).step(given, last=None)
    assert_near(opened.decoder(2).step(given), want[:, -1], STEPS)
    assert_near(opened.decoder(2).step(given, last=3), want[:, -3:], STEPS)


def test_rows_join_leave_and_forget(packed: Any) -> None:
    opened, _ = packed
    long, short = tokens(1, 12), tokens(1, 5, seed=1)
    first, second = opened.decoder(1), opened.decoder(1)
    first.step(long)
    second.step(short)
    first.join(second)
    both = first.step(np.array([[7], [9]]))
    for row, (prompt, token) in enumerate(((long, 7), (short, 9))):
        alone = opened.decoder(1).step(np.concatenate((prompt, [[token]]), 1))
        assert_near(both[row], alone[0], STEPS)
    first.rewind([3, 1])
    first.select(np.array([1, 0]))
    again = first.step(np.array([[9], [11]]))
    assert_near(again[0], both[1], STEPS)
    assert_near(again[1], opened.decoder(1).step(np.concatenate((long[:, :10], [[11]]), 1))[0], STEPS)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form: str) -> None:
    with open_session(open_model(tiny("bert")), "torch", dtype=form) as opened:
        ids, mask = tokens(2, 20), np.ones((2, 20), np.int64)
        mask[1, 7:] = 0
        ids[1, 7:] = 0
        types = np.zeros_like(ids)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        names = [port.name for port in opened.signature.inputs]
        both = next(iter(opened.run({name: given[name] for name in names}).values()))
        alone = next(iter(opened.run({name: given[name][1:, :7] for name in names}).values()))
    assert_near(both[1:, :7], alone, STEPS)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_b", "gpt2", "whisper", "mixtral", "deberta"])
@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_other_layers_are_near_float32_too(name: str, form: str) -> None:
    """Softcaps and windows, encoder states, experts, and attention by distance."""
    model = open_model(tiny(name))
    for part in model.parts:
        with TorchSession(part, dtype=form) as opened, TorchSession(part) as exact:
            given = inputs(part)
            for got, want in zip(opened.run(given).values(), exact.run(given).values(), strict=True):
                assert np.isfinite(got).all()
                assert np.linalg.norm(got - want) <= 0.3 * np.linalg.norm(want)


def inputs(part: Any) -> dict[str, Any]:
    """Random ones of a batch of two with twelve positions, and an empty past."""
    rng = np.random.default_rng(0)
    sizes: dict[Any, int] = {"batch_size": 2, "sequence_length": 12, "total_sequence_length": 12}
    made = {}
    for port in part.signature.inputs:
        shape = [axis if isinstance(axis, int) else sizes.get(axis, 0 if "past" in axis else 12) for axis in port.axes]
        if port.dtype.startswith("int"):
            made[port.name] = np.ones(shape, np.int64) if "mask" in port.name else rng.integers(5, 100, shape)
        elif port.dtype == "bool":
            made[port.name] = np.zeros(shape, bool)
        else:
            made[port.name] = rng.standard_normal(shape).astype(np.float32)
    if "position_ids" in made:
        made["position_ids"] = np.broadcast_to(np.arange(12), made["position_ids"].shape).copy()
    return made


def attention_arguments(length: int, slots: int, heads: int, kv: int, bias: torch.Tensor | None, **past: Any) -> Any:
    given: dict[str, Any] = dict.fromkeys(ops.AttentionArguments._fields)
    given |= {"q": random(2, length, heads * 8), "k": random(2, slots, kv * 8, seed=1)}
    given |= {"v": random(2, slots, kv * 8, seed=2), "bias": bias, "heads": heads, "kv_heads": kv}
    given |= {"scale": 0.3, "softcap": 0.0, **past}
    return ops.AttentionArguments(**given)


def future(length: int, slots: int, low: float = -1e30) -> torch.Tensor:
    return (torch.ones(length, slots).triu(slots - length + 1) * low).view(1, 1, length, slots)


BIASES = {
    "none": None,
    "nothing": torch.zeros(2, 1, 1, 40),
    "padding": torch.zeros(2, 1, 1, 40).index_fill(3, torch.arange(5), -1e30),
    "future": future(40, 40),
    "window": future(40, 40) + future(40, 40).transpose(2, 3).roll(-9, 3),
    "heads": random(1, 6, 40, 40, seed=3),
    "weak": future(40, 40, -0.5),
}


@pytest.mark.parametrize(("kv", "scale"), [(6, 0.25), (2, 0.3)])
@pytest.mark.parametrize("bias", BIASES)
def test_attention_in_blocks_is_the_operation(
    bias: str, kv: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoform.runtimes.backends.torch.attention.SCORES", 1)  # blocks of 16 queries
    arguments = attention_arguments(40, 40, 6, kv, BIASES[bias], scale=scale)
    torch.testing.assert_close(BlockAttention()(*arguments), ops.OPS["attention"](*arguments))


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("on", [True, False])
def test_attention_over_every_cache_is_the_operation(length: int, on: bool) -> None:
    past = {"past_k": random(2, 2, 9, 8, seed=4), "past_v": random(2, 2, 9, 8, seed=5)}
    switch = torch.tensor([on])
    weights = {"k_weight": random(16, 16), "v_weight": random(16, 16, seed=6), "k_bias": random(16)}
    softcap = {"softcap": 2.0}
    for given in (
        attention_arguments(length, length, 6, 2, future(length, length + 9), **past),
        attention_arguments(length, length, 6, 2, future(length, length + 9), **past, **softcap),
        attention_arguments(length, length, 6, 2, None, **past, switch=switch),
        attention_arguments(length, length, 6, 2, torch.zeros(1, 6, length, length + 9), **past, switch=switch),
        attention_arguments(length, length, 6, 2, None, **past, **softcap, switch=switch),
        attention_arguments(length, 9, 6, 2, None, **past, **weights, switch=switch),
    ):
        torch.testing.assert_close(BlockAttention()(*given), ops.OPS["attention"](*given))


def test_rows_that_share_encoder_states_are_one_product() -> None:
    past = {"past_k": random(1, 2, 9, 8, seed=4), "past_v": random(1, 2, 9, 8, seed=5), "switch": torch.tensor([True])}
    given = attention_arguments(1, 9, 6, 2, None, **past, k_weight=random(16, 16), v_weight=random(16, 16))
    torch.testing.assert_close(BlockAttention()(*given), ops.OPS["attention"](*given))


@pytest.mark.parametrize("width", [1, 2])
def test_kernels_round_as_the_operations_do(width: int) -> None:
    fast, x = fast_operations(BlockAttention()), random(2, 5, 64 * width).to(torch.bfloat16)[..., : 48 * width]
    weight = random(48 * width, seed=1).to(torch.bfloat16)
    want = ops.OPS["rms_norm"](x, weight, 1e-5)
    torch.testing.assert_close(fast["rms_norm"](x, weight, 1e-5), want, rtol=2**-7, atol=1e-6)
    angles = random(1, 5, 12, seed=2)
    cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    for one in ((cos, sin), (cos.expand(2, -1, -1), sin.expand(2, -1, -1)), (cos[..., :4], sin[..., :4])):
        want = ops.OPS["rotary"](x.double(), *(t.double() for t in one), 2 * width)
        torch.testing.assert_close(fast["rotary"](x, *one, 2 * width).double(), want, rtol=2**-6, atol=2**-6)
    wide = x.float()
    assert torch.equal(fast["rms_norm"](wide, weight.float(), 1e-5), ops.OPS["rms_norm"](wide, weight.float(), 1e-5))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kv", [6, 2])
def test_one_query_extends_the_cache_and_attends_to_it(kv: int, hidden: bool) -> None:
    slots = 39
    bias = torch.zeros(2, 1, 1, slots + 1).index_fill(3, torch.arange(5), -1e30).to(torch.bfloat16)
    buffers = [random(2, 64, kv, 8, seed=n).to(torch.bfloat16) for n in (4, 5)]
    views = [buffer[:, :slots].transpose(1, 2) for buffer in buffers]
    given = attention_arguments(1, 1, 6, kv, bias if hidden else None, past_k=views[0], past_v=views[1])
    wide = random(2, 1, 6 * 8 + 2 * kv * 8, seed=7).to(torch.bfloat16)
    q, k, v = wide.split((48, kv * 8, kv * 8), -1)
    given = given._replace(q=q, k=k, v=v)
    want, keys, values = ops.OPS["attention"](*(t.double() if isinstance(t, torch.Tensor) else t for t in given))
    got, _, _ = in_place(BlockAttention())(*given)
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=2**-9)
    for buffer, whole in zip(buffers, (keys, values), strict=True):
        assert torch.equal(buffer[:, : slots + 1].transpose(1, 2).double(), whole)


@pytest.mark.parametrize("name", ["silu", "gelu_new", "quick_gelu"])
def test_an_activation_and_its_gate_are_one_kernel(name: str) -> None:
    both = (random(2, 3, 96) * 4).to(torch.bfloat16)
    both[0, 0, :2], both[0, 1, :2] = 90.0, -90.0
    gate, up = both.double().chunk(2, -1)
    got = gated(both, CURVES[ACTIVATIONS[name]])
    torch.testing.assert_close(got.double(), ACTIVATIONS[name](gate) * up, rtol=2**-8, atol=1e-5)


def test_many_rows_are_spread_over_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "PIECE", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = random(7, 64).to(torch.bfloat16)
    made = rounding.byte_rows(x), rounding.double_rows(x), fast_operations(BlockAttention())["rms_norm"](x, x[0], 1e-5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    again = rounding.byte_rows(x), rounding.double_rows(x), fast_operations(BlockAttention())["rms_norm"](x, x[0], 1e-5)
    assert torch.equal(made[2], again[2])
    assert all(torch.equal(a, b) for n in (0, 1) for a, b in zip(made[n], again[n], strict=True))


def test_the_kernels_for_bfloat16_round_as_the_plain_operations_do() -> None:
    x = (random(5, 64) * 7).to(torch.bfloat16)
    for bytes_of in (rounding.byte_rows, rounding.double_rows):
        (numbers, scales), (plain, steps) = bytes_of(x), bytes_of(x.float())
        count = len(numbers) // 5
        weights = torch.tensor([1.0]) if count == 1 else torch.tensor([float(rounding.digit_base()), 1.0])
        found = [
            ((n.double() - rounding.zero_point()).unflatten(0, (count, 5)) * weights.view(-1, 1, 1)).sum(0) * s.double()
            for n, s in ((numbers, scales), (plain, steps))
        ]
        assert (found[0] - found[1]).abs().max() <= 1.01 * float(steps.max())


@pytest.mark.skipif(not packed_rows(), reason="torch packs 4 bits in no layout that is known")
def test_four_bit_weights_come_back_as_they_were_rounded() -> None:
    numbers, scales = rounding.weight_groups(random(192, 96))
    step, middle = scales.float().transpose(0, 1).unsqueeze(2).unbind(-1)
    want = ((numbers.unflatten(1, (-1, rounding.GROUP)) - 8) * step + middle).flatten(1).to(torch.bfloat16)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    assert torch.equal(unpack(packed, scales, packed_rows()), want)
