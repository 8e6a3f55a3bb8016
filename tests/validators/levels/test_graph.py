"""The judge is judged: honest backends pass, and every planted fault fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from isoform.errors import InputError
from isoform.reference.model import Model, open_model
from isoform.reference.modules.attention import Attention
from isoform.reference.modules.rotary import Rope, inverse_frequencies
from isoform.validators.cases.case import Case, Row
from isoform.validators.cases.text import token_cases
from isoform.validators.levels.graph import check_graph
from isoform.validators.report.records import Report
from isoform.validators.truth.deviations import deviation
from isoform.validators.truth.reference import Truth
from tests import oracle
from tests.validators.torch_session import Inputs, TorchDecoder, TorchSession

ENCODER, CLASSIFIER, PLAIN, WINDOWED, CAPPED = "bert", "bert_seqcls", "llama_b", "mistral_b", "gemma2_b"


@cache
def truth(name: str, seed: int = 0) -> Truth:
    model = open_model(oracle.tiny(name))
    return Truth(model, token_cases(model, seed))


def check(name: str, artifact: str = "f32", **session: Any) -> Report:
    known = truth(name)
    return check_graph(known.model, TorchSession(known.model, **session), artifact, truth=known)


def failures(report: Report) -> set[str]:
    return {result.metric for result in report.results if not result.passed}


# ---------------------------------------------------------------- honest backends


@pytest.mark.parametrize("name", [*oracle.ENCODERS, *oracle.DECODERS])
def test_the_reference_agrees_with_itself(name: str) -> None:
    report = check(name)
    assert report.same, [r for r in report.results if not r.passed]
    assert report.skipped == []


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", [ENCODER, CLASSIFIER, PLAIN, WINDOWED, CAPPED])
def test_no_false_alarm_for_another_order_of_summation(name: str, seed: int) -> None:
    """Weights and activations of the linear layers are summed in reverse: other roundings, the same function."""
    known = truth(name, seed)
    module = known.model.module()
    for linear in [m for m in module.modules() if isinstance(m, nn.Linear)]:
        linear.weight = nn.Parameter(linear.weight.flip(1), requires_grad=False)
        linear.register_forward_pre_hook(lambda _, inputs: (inputs[0].flip(-1),))
    report = check_graph(known.model, TorchSession(known.model, module), truth=known)
    assert report.same, [r for r in report.results if not r.passed]
    assert any(result.value > 0 for result in report.results)


@pytest.mark.parametrize(("dtype", "kind"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("name", [ENCODER, PLAIN, CAPPED])
def test_narrow_artifacts_are_held_to_their_own_dtype(name: str, dtype: str, kind: torch.dtype) -> None:
    assert check(name, dtype, dtype=kind).same
    assert not check(name, "f32", dtype=kind).same


def test_a_known_deviation_is_allowed_to_the_backend_that_has_it_only() -> None:
    class Deviating(TorchSession):
        def run(self, inputs: Any) -> Inputs:
            mode = deviation("llamacpp")
            assert mode is not None
            with mode:
                return super().run(inputs)

    known = truth(ENCODER)
    assert check_graph(known.model, Deviating(known.model, backend="llamacpp"), truth=known).same
    assert not check_graph(known.model, Deviating(known.model, backend="onnxruntime"), truth=known).same
    assert "rms" in failures(
        check_graph(known.model, Deviating(known.model, backend="llamacpp", result=lambda x: x * 1.01), truth=known)
    )


# ---------------------------------------------------------------- faults in the module


def square_weight_transposed(module: nn.Module) -> None:
    linear = next(m for m in module.modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features)
    linear.weight = nn.Parameter(linear.weight.T.contiguous(), requires_grad=False)


def bias_dropped(module: nn.Module) -> None:
    linear = next(m for m in module.modules() if isinstance(m, nn.Linear) and m.bias is not None)
    linear.register_parameter("bias", None)


def query_and_key_swapped(module: nn.Module) -> None:
    attention = next(m for m in module.modules() if isinstance(m, Attention))
    attention.q, attention.k = attention.k, attention.q


def one_row_of_a_weight_scaled(module: nn.Module) -> None:
    weight = next(p for n, p in module.named_parameters() if n.endswith("mlp.up.weight"))
    weight.data = weight.clone()
    weight[0] *= 1.001


def norms_epsilon_is_one_part_in_100_000(module: nn.Module) -> None:
    for norm in [m for m in module.modules() if hasattr(m, "eps")]:
        norm.eps = 1e-6 if norm.eps == 1e-5 else 1e-5  # type: ignore[assignment]


def first_position_is_one(module: nn.Module) -> None:
    table = module.get_parameter("position_embed.weight")
    table.data = table.roll(1, 0)


def gelu_by_tanh(module: nn.Module) -> None:
    for mlp in [m for m in module.modules() if getattr(m, "act", None) is F.gelu]:
        mlp.act = lambda x: F.gelu(x, approximate="tanh")  # type: ignore[assignment]


def rotary_base_off_by_a_thousandth(module: nn.Module) -> None:
    for rope in [m for m in module.modules() if isinstance(m, Rope)]:
        head_dim, settings = rope.rotated, rope.settings
        rope.frequencies = inverse_frequencies(head_dim, dataclasses.replace(settings, theta=settings.theta * 1.001))


def rotary_scaling_forgotten(module: nn.Module) -> None:
    for rope in [m for m in module.modules() if isinstance(m, Rope)]:
        head_dim, settings = rope.rotated, rope.settings
        rope.frequencies = inverse_frequencies(head_dim, dataclasses.replace(settings, kind="default"))


def window_one_too_long(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(dataclasses.replace(k, window=k.window and k.window + 1) for k in kinds)  # type: ignore[assignment]


def window_forgotten(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(dataclasses.replace(k, window=None) for k in kinds)  # type: ignore[assignment]


def logits_uncapped(module: nn.Module) -> None:
    module.logit_softcap = 0.0  # type: ignore[assignment]


def scores_uncapped(module: nn.Module) -> None:
    for attention in [m for m in module.modules() if isinstance(m, Attention)]:
        attention.heads = dataclasses.replace(attention.heads, softcap=0.0)


def scores_scaled_wrongly(module: nn.Module) -> None:
    attention = next(m for m in module.modules() if isinstance(m, Attention))
    scale = attention.heads.settings[2] * 1.001
    attention.heads = dataclasses.replace(attention.heads, scale=scale)


ANY = (square_weight_transposed, query_and_key_swapped, one_row_of_a_weight_scaled, scores_scaled_wrongly)
MODULE_FAULTS: dict[str, tuple[Callable[[nn.Module], None], ...]] = {
    ENCODER: (*ANY, bias_dropped, norms_epsilon_is_one_part_in_100_000, first_position_is_one, gelu_by_tanh),
    CLASSIFIER: (*ANY, bias_dropped, norms_epsilon_is_one_part_in_100_000, first_position_is_one),
    PLAIN: (
        *(query_and_key_swapped, one_row_of_a_weight_scaled, scores_scaled_wrongly, bias_dropped),
        *(norms_epsilon_is_one_part_in_100_000, rotary_base_off_by_a_thousandth, rotary_scaling_forgotten),
    ),
    WINDOWED: (one_row_of_a_weight_scaled, window_one_too_long, window_forgotten, rotary_base_off_by_a_thousandth),
    CAPPED: (one_row_of_a_weight_scaled, window_one_too_long, window_forgotten, logits_uncapped, scores_uncapped),
}


def planted() -> Iterator[Any]:
    for name, faults in MODULE_FAULTS.items():
        for fault in faults:
            if fault is query_and_key_swapped and name == PLAIN:
                continue  # grouped heads: the shapes differ
            yield pytest.param(name, fault, id=f"{name}-{fault.__name__}")


@pytest.mark.parametrize(("name", "fault"), list(planted()))
def test_a_fault_in_the_module_is_seen(name: str, fault: Callable[[nn.Module], None]) -> None:
    module = truth(name).model.module()
    fault(module)
    report = check(name, module=module)
    assert not report.same
    assert failures(report) & {"max_abs", "rms"}


# ---------------------------------------------------------------- faults on the way in and out


def padding_mask_ignored(inputs: Inputs) -> Inputs:
    return inputs | {"attention_mask": np.ones_like(inputs["attention_mask"])}


def positions_count_the_padding(inputs: Inputs) -> Inputs:
    total, new = inputs["attention_mask"].shape[1], inputs["input_ids"].shape[1]
    return inputs | {"position_ids": np.broadcast_to(np.arange(total)[-new:], inputs["input_ids"].shape).copy()}


def positions_off_by_one(inputs: Inputs) -> Inputs:
    return inputs | {"position_ids": inputs["position_ids"] + 1}


def token_types_ignored(inputs: Inputs) -> Inputs:
    return inputs | {"token_type_ids": np.zeros_like(inputs["token_type_ids"])}


def positions_restart_with_every_step(inputs: Inputs) -> Inputs:
    return inputs | {"position_ids": inputs["position_ids"] - inputs["position_ids"][:, :1]}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (ENCODER, padding_mask_ignored),
        (ENCODER, token_types_ignored),
        (CLASSIFIER, padding_mask_ignored),
        (PLAIN, padding_mask_ignored),
        (PLAIN, positions_count_the_padding),
        (PLAIN, positions_off_by_one),
        (PLAIN, positions_restart_with_every_step),
        (CAPPED, padding_mask_ignored),
        (WINDOWED, positions_off_by_one),
    ],
)
def test_a_wrong_input_is_seen(name: str, fault: Callable[[Inputs], Inputs]) -> None:
    assert not check(name, feed=fault).same


def test_a_graph_that_forgets_left_padding_fails_there_and_nowhere_else() -> None:
    """What fused graphs of other exporters do: lengths from the mask's sum, so that padding must be on the right."""

    def pushed_right(inputs: Inputs) -> Inputs:
        return inputs | {"attention_mask": -np.sort(-inputs["attention_mask"], axis=1)}

    report = check(ENCODER, feed=pushed_right)
    wrong = {result.group for result in report.results if not result.passed}
    assert wrong == {"left padding", "text", "token types"}
    assert all("left" in r.case for r in report.results if not r.passed and r.group == "text")


def one_nan(output: NDArray[Any]) -> NDArray[Any]:
    output = output.copy()
    output.flat[-1] = np.nan
    return output


@pytest.mark.parametrize("name", [ENCODER, CLASSIFIER, PLAIN])
@pytest.mark.parametrize(
    ("result", "metric"),
    [
        pytest.param(one_nan, "nonfinite", id="nan"),
        pytest.param(lambda x: x + np.float32(np.inf), "nonfinite", id="inf"),
        pytest.param(lambda x: x * np.float32(1 + 1e-5), "rms", id="scaled"),
        pytest.param(lambda x: x.astype(np.float16).astype(np.float32), "rms", id="through half precision"),
        pytest.param(lambda x: x.astype(np.float64), "mismatch", id="dtype"),
        pytest.param(lambda x: x[..., :-1], "mismatch", id="cut"),
        pytest.param(lambda x: x[:, :0], "mismatch", id="empty"),
        pytest.param(lambda x: np.zeros_like(x), "max_abs", id="zeros"),
        pytest.param(lambda x: x[:0], "error", id="no rows"),
    ],
)
def test_a_wrong_output_is_seen(name: str, result: Callable[[NDArray[Any]], NDArray[Any]], metric: str) -> None:
    if name == CLASSIFIER and metric == "rms":
        metric = "max_abs"  # too few values for a mean
    assert metric in failures(check(name, result=result))


def test_a_cache_that_is_stale_fails_in_cached_decoding_only() -> None:
    class Stale(TorchSession):
        def run(self, inputs: Any) -> Inputs:
            fed = dict(inputs)
            for name, past in inputs.items():
                if name.startswith("past_key_values.") and past.shape[2] > 7:
                    fed[name] = past.copy()
                    fed[name][:, :, -1] = past[:, :, -2]
            return super().run(fed)

    known = truth(PLAIN)
    report = check_graph(known.model, Stale(known.model), truth=known)
    assert {result.group for result in report.results if not result.passed} == {"cached decoding"}


def test_a_decoder_that_miscounts_tokens_given_alone_fails_in_cached_decoding_only() -> None:
    class Miscounting(TorchSession):
        def decoder(self, rows: Any) -> TorchDecoder:
            decoder = super().decoder(rows)
            plain = decoder.step

            def step(tokens: NDArray[Any], **options: Any) -> NDArray[Any]:
                if options.get("mask") is None:
                    decoder.mask = np.concatenate((1 - decoder.mask[:, :1], decoder.mask[:, 1:]), 1)
                return plain(tokens, **options)

            decoder.step = step  # type: ignore[method-assign]
            return decoder

    known = truth(PLAIN)
    report = check_graph(known.model, Miscounting(known.model), truth=known)
    assert {result.group for result in report.results if not result.passed} == {"cached decoding"}


def test_a_crash_is_a_finding_and_the_other_cases_go_on() -> None:
    def only_one_row(inputs: Inputs) -> Inputs:
        if len(inputs["input_ids"]) != 1:
            raise RuntimeError("Reshape: the batch is 1")
        return inputs

    report = check(ENCODER, feed=only_one_row)
    errors = [result for result in report.results if result.metric == "error"]
    assert errors
    assert not report.same
    assert errors[0].note == "RuntimeError: Reshape: the batch is 1"
    assert all(result.passed for result in report.results if result.group == "one row")


def test_a_refusal_is_listed_with_its_reason_where_it_is_allowed() -> None:
    def no_pairs(inputs: Inputs) -> Inputs:
        if inputs["token_type_ids"].any():
            raise InputError("only the first token type")
        return inputs

    report = check(ENCODER, feed=no_pairs)
    assert report.same
    assert [(skip.dtype, skip.group, skip.reason) for skip in report.skipped] == [
        ("f32", "token types", "only the first token type")
    ]


def test_refusing_everything_is_not_the_same() -> None:
    def nothing(inputs: Inputs) -> Inputs:
        raise InputError("no")

    assert not check(ENCODER, feed=nothing).same
    assert not Report().same


def test_a_reference_that_overflows_in_the_dtype_sets_no_limit(tmp_path: Path) -> None:
    known = truth(ENCODER)
    model = known.model

    class Loud(Model):
        def module(
            self,
            dtype: torch.dtype | None = None,
            device: str | torch.device = "cpu",
            loaded: dict[str, nn.Parameter] | None = None,
        ) -> nn.Module:
            module = super().module(torch.float64, device)
            module.get_parameter("layers.0.mlp.up.weight").data *= 1e6
            return module.to(dtype)

    loud = Loud(model.checkpoint, model.family, model.config, model.task)
    report = check_graph(loud, TorchSession(loud, dtype=torch.float16), "f16")
    assert failures(report) == {"nonfinite"}


# ---------------------------------------------------------------- cases


def row(length: int) -> Row:
    return Row(np.arange(10, 10 + length), np.zeros(length, np.int64))


def test_padding_is_where_the_case_says_and_holds_tokens() -> None:
    case = Case("", (row(3), row(1)), "left")
    assert case.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert case._padded([r.tokens for r in case.rows])[1, 2] == 10
    assert Case("", (row(3), row(1)), "right").mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_steps_after_a_padded_prompt_append_to_every_row() -> None:
    signature = truth(PLAIN).model.signature
    case = Case("", (row(6), row(4)), "right", (4, 1, 1))
    assert case.mask.tolist() == [[1] * 6, [1, 1, 0, 0, 1, 1]]
    steps = list(case.steps(signature))
    assert [slots for slots, _ in steps] == [slice(0, 4), slice(4, 5), slice(5, 6)]
    assert steps[1][1]["position_ids"].tolist() == [[4], [2]]
    assert steps[1][1]["attention_mask"].shape == (2, 5)
    assert steps[2][1]["input_ids"].tolist() == [[15], [13]]


def test_cases_outgrow_the_window_and_stay_within_the_positions() -> None:
    windowed = {len(row) for case in token_cases(truth(WINDOWED).model) for row in case.rows}
    assert 5 + 9 in windowed  # the window of this checkpoint is 5
    model = truth(ENCODER).model
    config = dataclasses.replace(model.config, max_position_embeddings=12)  # type: ignore[call-arg]
    short = Model(model.checkpoint, model.family, config, model.task)
    short.__dict__["weights"] = dict(model.weights) | {
        "position_embed.weight": dataclasses.replace(model.weights["position_embed.weight"], shape=(12, 1))
    }
    assert max(len(row) for case in token_cases(short) for row in case.rows) == 12


def test_the_same_seed_makes_the_same_cases() -> None:
    model = truth(PLAIN).model
    one, two, other = token_cases(model), token_cases(model), token_cases(model, seed=1)
    assert [case.name for case in one] == [case.name for case in two]
    tokens = [[row.tokens.tolist() for case in cases for row in case.rows] for cases in (one, two, other)]
    assert tokens[0] == tokens[1] != tokens[2]
