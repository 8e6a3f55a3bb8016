"""What a decoder takes and keeps is said by its signature: embeddings, positions of several axes, kinds of states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoform.errors import InputError
from isoform.runtimes.backends.torch.decoder import TensorDecoder
from isoform.signature import BATCH, LENGTH, PAST, SLOTS, TOTAL, Axis, Kind, Port, Signature, State

WIDTH, WINDOW = 4, 3


def signature(kind: Kind, *first: Port, axes: tuple[Axis, ...] = (BATCH, 1, PAST, WIDTH)) -> Signature:
    state = State("past", "present", axes, kind, (BATCH, 1, TOTAL, WIDTH) if kind == "append" else ())
    ports = (*first, Port("mask", "int64", (BATCH, TOTAL), "mask"))
    logits = Port("logits", "float", (BATCH, LENGTH, WIDTH))
    return Signature((*ports, state.taken()), (logits, state.given()), (state,), SLOTS)


EMBEDDED = signature(
    "append",
    Port("x", "float", (BATCH, LENGTH, WIDTH), "embeddings"),
    Port("places", "int64", (3, BATCH, LENGTH), "positions"),
)


def summed(x: Tensor, places: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a row's vectors so far, plus ten times the sum of the slot's positions."""
    present = torch.cat((past, x[:, None]), 2)
    sums = (present * mask[:, None, :, None]).cumsum(2)[:, 0, -x.shape[1] :]
    return sums + 10 * places.sum(0)[:, :, None], present


def begun(how: Any, kind: Signature, rows: int) -> TensorDecoder:
    return TensorDecoder(how, kind, rows, torch.device("cpu"), torch.float32)


def ones(rows: int, length: int) -> NDArray[np.float32]:
    return np.ones((rows, length, WIDTH), np.float32)


def test_embeddings_step_in_the_place_of_tokens_and_positions_may_have_three_axes() -> None:
    decoder = begun(summed, EMBEDDED, 2)
    first = decoder.step(ones(2, 3), mask=np.array([[1, 1, 1], [0, 1, 1]]), last=None)
    assert first[:, :, 0].tolist() == [[1, 32, 63], [0, 1, 32]]
    places = np.array([[[7], [5]], [[8], [5]], [[9], [5]]])  # (3, B, 1)
    assert decoder.step({"x": ones(2, 1)}, positions=places)[:, 0].tolist() == [4 + 240, 3 + 150]
    assert decoder.step(ones(2, 1))[:, 0].tolist() == [5 + 300, 4 + 180], "they count on from the greatest"
    assert decoder.step(ones(2, 2), last=2).shape == decoder.step(ones(2, 2), last=5).shape == (2, 2, WIDTH)
    decoder.rewind([5, 4])
    assert decoder.step(ones(2, 1))[:, 0].tolist() == [5 + 300, 5 + 210], "the last are left at 9 and 6"


def test_inputs_of_no_port_and_of_another_shape_are_refused() -> None:
    decoder = begun(summed, EMBEDDED, 2)
    with pytest.raises(InputError, match=r"takes \(2, T\)"):
        decoder.step(np.ones((2, 3), np.int64))
    with pytest.raises(InputError, match="y unknown"):
        decoder.step({"x": ones(2, 1), "y": ones(2, 1)})
    with pytest.raises(InputError, match="places has shape"):
        decoder.step(ones(2, 1), positions=np.zeros((2, 2, 1), np.int64))
    with pytest.raises(InputError, match="give decoder\\(\\) the number of rows"):
        begun(summed, EMBEDDED, {"x": ones(2, 1)})  # type: ignore[arg-type]


def windowed(tokens: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the last tokens of a row."""
    new = tokens[:, None, :, None].expand(-1, 1, -1, WIDTH).float()
    present = torch.cat((past, new), 2)[:, :, -WINDOW:]
    seen = mask[:, -present.shape[2] :][:, None, :, None]
    return (present * seen).sum(2).expand(-1, tokens.shape[1], -1), present


def test_a_window_joins_and_is_chosen_but_is_not_rewound() -> None:
    tokens = Port("tokens", "int64", (BATCH, LENGTH), "tokens")
    first, second = (begun(windowed, signature("window", tokens), 1) for _ in range(2))
    assert first.step(np.array([[1, 2, 3, 4, 5]]))[0, 0] == 12
    assert second.step(np.array([[10, 20]]))[0, 0] == 30
    first.join(second)
    assert first.step(np.array([[6], [30]]))[:, 0].tolist() == [15, 60]
    first.select(np.array([1, 0, 1]))
    assert first.step(np.array([[40], [7], [50]]))[:, 0].tolist() == [90, 18, 100]
    with pytest.raises(InputError, match="cannot be rewound"):
        first.rewind(1)
    with pytest.raises(InputError, match="padding before a prompt only"):
        first.step(np.ones((3, 1), np.int64), mask=np.array([[1], [0], [1]]))


def recurrent(tokens: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the state, plus the sum of the new tokens."""
    present = past / 2 + (tokens * mask[:, -tokens.shape[1] :]).sum(1, keepdim=True)
    return present[:, None].expand(-1, tokens.shape[1], -1), present


def test_a_recurrent_state_joins_and_is_chosen_but_is_not_rewound() -> None:
    tokens = Port("tokens", "int64", (BATCH, LENGTH), "tokens")
    kind = signature("replace", tokens, axes=(BATCH, WIDTH))
    first, second = begun(recurrent, kind, 2), begun(recurrent, kind, 1)
    first.step(np.array([[8], [4]]))
    second.step(np.array([[16]]))
    first.join(second)
    first.select(np.array([2, 0]))
    assert first.step(np.array([[1], [1]]))[:, 0].tolist() == [9, 5]
    with pytest.raises(InputError, match="cannot be rewound"):
        first.rewind(1)
