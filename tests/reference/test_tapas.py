"""TAPAS's choice of cells under other settings than those of the tiny checkpoints, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from isoform.reference.text.tapas import NEVER, TapasConfig, same_cell
from tests.reference.test_families import copy_of

Tiny = Callable[[str], Path]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-3}  # of logits up to 10,000, of which float32 has the thousandth


def both(folder: Path, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of the tokens, ours and transformers'."""
    from transformers import TapasForQuestionAnswering

    from isoform.reference.model import open_model

    with torch.no_grad():
        theirs = TapasForQuestionAnswering.from_pretrained(folder).eval()(**inputs).logits
        return open_model(folder).module()(**inputs)[0], theirs


def table(seed: int, columns: int, rows: int, length: int = 80, question: int = 8) -> dict[str, Tensor]:
    """Random tokens, some of them in random cells, of which a few are apart from the rest of their cell."""
    chance = torch.Generator().manual_seed(seed)

    def numbers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=chance)

    types = torch.stack([numbers(size, 2, length) for size in (2, 2, 2, 2, 9, 9, 8)], -1)
    cells = numbers(columns * rows, 2, length).sort(-1)[0]
    types[..., 1], types[..., 2] = cells % columns + 1, cells // columns
    types[:, :question, :3] = 0
    types[:, -3:, 1:3] = types[:, question : question + 3, 1:3]
    return {
        "input_ids": numbers(400, 2, length),
        "attention_mask": torch.ones(2, length, dtype=torch.int64),
        "token_type_ids": types,
    }


@pytest.mark.parametrize("name", ["tapas_qa", "tapas_sqa_b"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"allow_empty_column_selection": True},
        {"max_num_rows": 3, "max_num_columns": 2},
        {"max_position_embeddings": 64, "reset_position_index_per_cell": True},
        {"temperature": 0.3, "max_num_columns": 7, "max_num_rows": 40},
    ],
)
def test_the_chosen_cells_are_those_of_transformers(
    name: str, config: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    stored = load_file(tiny(name) / "model.safetensors")
    inputs = table(len(str(config)), 5, 6, 60)
    for sign in (1, -1):
        weight = sign * stored["column_output_weights"]
        folder = copy_of(name, tmp_path / f"{sign}", config, column_output_weights=weight)
        found, expected = both(folder, inputs)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert ((found > NEVER / 2) == (expected > NEVER / 2)).all()


def test_the_column_outside_the_table_may_win_and_chooses_no_cell(tiny: Tiny, tmp_path: Path) -> None:
    config = {"allow_empty_column_selection": True}
    inputs = table(3, 3, 4)
    inputs["input_ids"][:, :8] = 7
    bias = {}
    for sign in (1, -1):
        weight = sign * load_file(tiny("tapas_qa") / "model.safetensors")["column_output_weights"]
        found, expected = both(copy_of("tapas_qa", tmp_path / f"{sign}", config, column_output_weights=weight), inputs)
        assert ((found > NEVER / 2) == (expected > NEVER / 2)).all()
        bias[sign] = (found > NEVER / 2).any(-1).tolist()
    assert not all(bias[1] + bias[-1]), "in one of the two directions it wins"
    assert any(bias[1] + bias[-1])


def test_padding_is_in_no_cell() -> None:
    column, row = torch.tensor([[1, 1, 0, 1]]), torch.tensor([[2, 2, 0, 3]])
    same = same_cell(column, row, torch.tensor([[1, 0, 1, 1]]))
    assert same[0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_positions_have_a_limit_where_they_go_on() -> None:
    assert TapasConfig(reset_position_index_per_cell=False, max_position_embeddings=9).context == 9
    assert TapasConfig().context is None
