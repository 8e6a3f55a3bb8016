"""TAPAS: BERT over a question and the cells of a table, with an embedding for each fact about a token's cell.

Herzig et al. 2020, https://arxiv.org/abs/2004.02349. A token has seven types: which text it is from, its column and row
(0 outside the table), whether its cell answered the question before, its rank in the column from below and from above,
and how the numbers of its cell compare with those of the question. Positions begin again in each cell.

The head of cells scores each token, takes the mean over each cell, and keeps one column: the logits of all others are
so low that no cell of theirs is chosen. A second head chooses what is done with the cells (sum, average, count).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, where, with_labels
from isoform.reference.modules.encoder import MaskedHead, encoder_layer
from isoform.reference.modules.layers import Embedding, Linear, first_token, head_size, padding_bias, true_positions
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.sections import short
from isoform.reference.text.bidirectional import layer_rules
from isoform.signature import BATCH, LENGTH, Port, Signature

TYPES = ("segment", "column", "row", "answered", "rank", "rank_from_above", "relation")
"""What the seven types of a token say, in their order."""
COLUMN, ROW = TYPES.index("column"), TYPES.index("row")

FAR = 2**30  # tokens; more than a text has
NEVER = -10000.0  # added to the logits of what may not be chosen
NO_CELLS = 1e-10  # added to a count of cells that may be 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TapasConfig(Config):
    reads = frozenset(("aggregation_labels",))
    harmless = frozenset(
        (
            *("aggregation_loss_weight", "aggregation_temperature", "answer_loss_cutoff", "answer_loss_importance"),
            *("average_approximation_function", "average_logits_per_cell", "cell_selection_preference"),
            *("disable_per_token_loss", "huber_loss_delta", "init_cell_selection_weights_to_zero"),
            *("positive_label_weight", "use_answer_as_supervision", "use_gumbel_for_aggregation"),
            *("use_gumbel_for_cells", "use_normalized_answer_loss"),  # how it is trained
            *("softmax_temperature", "type_vocab_size"),  # which no version of transformers reads
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"select_one_column": (True, None)}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 1024
    type_vocab_sizes: tuple[int, ...] = (3, 256, 256, 2, 256, 256, 10)
    layer_norm_eps: float = 1e-12
    reset_position_index_per_cell: bool = True
    max_num_rows: int = 64
    max_num_columns: int = 32
    temperature: float = 1.0
    allow_empty_column_selection: bool = False
    num_aggregation_labels: int = 0
    aggregations: tuple[str, ...] = ()
    no_aggregation_label_index: int | None = None
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TapasConfig:
        c = super(TapasConfig, cls).from_dict(with_labels({**data, "aggregations": _aggregations(data)}))
        if len(c.type_vocab_sizes) != len(TYPES):
            file, path = where(data, "type_vocab_sizes")
            raise CheckpointError(
                f"{file}: {path} has {len(c.type_vocab_sizes)} sizes; a token of a table has {len(TYPES)} types"
            )
        if c.aggregations and len(c.aggregations) < c.num_aggregation_labels:
            file, path = where(data, "aggregation_labels")
            raise CheckpointError(f"{file}: {path} does not name all {c.num_aggregation_labels} aggregations")
        return c

    @property
    def context(self) -> int | None:
        """No limit where positions begin again in each cell: those of a longer cell repeat the last."""
        return None if self.reset_position_index_per_cell else self.max_position_embeddings


def _aggregations(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of `aggregation_labels` in the order of their numbers: {"0": "NONE", "1": "SUM"}."""
    labels = data.get("aggregation_labels")
    names = {str(number): name for number, name in labels.items()} if isinstance(labels, Mapping) else {}
    found = tuple(names.get(str(number)) for number in range(len(names)))
    if labels is not None and (not isinstance(labels, Mapping) or not all(isinstance(name, str) for name in found)):
        file, path = where(data, "aggregation_labels")
        raise CheckpointError(f"{file}: {path} is {short(labels)}, not an object of names by number from 0")
    return tuple(str(name) for name in found)


def same_cell(column: Tensor, row: Tensor, mask: Tensor) -> Tensor:
    """Whether a real token (the last axis) is in the cell of another: all (B, T) -> bool (B, T, T)."""
    columns, rows = (index.unsqueeze(2) == index.unsqueeze(1) for index in (column, row))
    return columns & rows & (mask != 0).unsqueeze(1)


class CellPositions(nn.Module):
    """The place of a token behind the first of its cell; the last row of the table of positions serves all beyond."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.last = positions - 1

    def forward(self, types: Tensor, mask: Tensor) -> Tensor:
        """Shapes: types (B, T, 7), mask (B, T) -> (B, T)."""
        places = true_positions(mask)
        same = same_cell(types[..., COLUMN], types[..., ROW], mask)
        nearest = torch.where(same, -places.unsqueeze(1), -FAR).amax(-1)
        return (places + nearest).clamp(min=0, max=self.last)


class CellSelection(nn.Module):
    """The logits of a table's tokens: the mean over their cell, and those of one column alone.

    `rows`, `columns`: cells beyond so many are taken for one. `empty`: the column outside the table may be chosen,
    which chooses no cell. Means are sums over all pairs of tokens, so that no size depends on the table.
    """

    def __init__(self, dim: int, *, rows: int, columns: int, temperature: float, empty: bool) -> None:
        super().__init__()
        self.cell_weight, self.cell_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(()))
        self.column_weight, self.column_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(()))
        self.rows, self.columns, self.temperature, self.empty = rows, columns, temperature, empty

    def forward(self, x: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        """Shapes: x (B, T, C), types (B, T, 7), mask (B, T) -> (B, T)."""
        row, column = types[..., ROW].clamp(max=self.rows - 1), types[..., COLUMN].clamp(max=self.columns - 1)
        wide = torch.promote_types(x.dtype, torch.float32)  # a cell may have hundreds of tokens
        same = same_cell(column, row, mask).to(wide)
        share = 1 / same.sum(-1).clamp(min=1)  # (B, T): the tokens of a cell are one cell together
        scores = torch.stack(
            (
                self._scores(x, self.cell_weight, self.cell_bias) / self.temperature,
                self._scores(x, self.column_weight, self.column_bias),
            ),
            -1,
        )
        means = (same @ scores.to(wide)) * share.unsqueeze(-1)  # (B, T, 2), the mean over each token's cell
        numbers = torch.arange(self.columns, device=x.device)
        inside = (column.unsqueeze(1) == numbers.unsqueeze(1)).to(wide) * (share * mask.to(wide)).unsqueeze(1)
        cells = inside.sum(-1)  # (B, columns)
        columns = (inside @ means[..., 1:]).squeeze(-1) / (cells + NO_CELLS)
        missing = (cells < 0.5) & (numbers != 0)
        columns = columns + missing.to(wide) * NEVER
        if not self.empty:
            columns = columns + (numbers == 0).to(wide) * NEVER
        chosen = (column == columns.argmax(-1, keepdim=True)) & (column != 0)
        logits = means[..., 0] + (~chosen).to(wide) * NEVER
        return logits.to(x.dtype)

    def _scores(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A number for each token: (B, T, C) -> (B, T)."""
        return (x @ weight.unsqueeze(-1)).squeeze(-1) + bias


class Tapas(nn.Module):
    """Token ids and types of a question and a table in, the outputs of one head out.

    `head`: "none", "mask", "sequence" or "cells".
    """

    def __init__(self, c: TapasConfig, head: str) -> None:
        super().__init__()
        dim, heads = c.hidden_size, c.num_attention_heads
        sizes = dim, heads, head_size(dim, heads), c.intermediate_size
        self.embed = Embedding(c.vocab_size, dim)
        self.position_embed = Embedding(c.max_position_embeddings, dim)
        self.type_embeds = nn.ModuleList(Embedding(size, dim) for size in c.type_vocab_sizes)
        self.embed_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.layers = nn.ModuleList(
            encoder_layer(*sizes, c.hidden_act, c.layer_norm_eps) for _ in range(c.num_hidden_layers)
        )
        self.positions = CellPositions(c.max_position_embeddings) if c.reset_position_index_per_cell else None
        self.head_kind = head
        if head == "mask":
            self.mlm = MaskedHead(dim, dim, c.hidden_act, c.layer_norm_eps)
            self.head = Linear(dim, c.vocab_size)
        elif head == "sequence":
            self.pooler, self.classifier = Linear(dim, dim), Linear(dim, c.num_labels)
        elif head == "cells":
            self.cells = CellSelection(
                dim,
                rows=c.max_num_rows,
                columns=c.max_num_columns,
                temperature=c.temperature,
                empty=c.allow_empty_column_selection,
            )
            if c.num_aggregation_labels:
                self.pooler, self.aggregation = Linear(dim, dim), Linear(dim, c.num_aggregation_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Shapes: ids and mask (B, T), types (B, T, 7); omitted ones mean no padding, and no table.

        Returns the last hidden state (B, T, C), logits (B, T, V), logits (B, labels), or the logits of the tokens
        (B, T) and, where there are aggregations, those (B, aggregations).
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids).unsqueeze(-1).expand(-1, -1, len(TYPES))
        positions = true_positions(mask) if self.positions is None else self.positions(token_type_ids, mask)
        x = self.embed(input_ids) + self.position_embed(positions)
        for n, table in enumerate(self.type_embeds):
            x = x + table(token_type_ids[..., n])
        x = self.embed_norm(x)
        bias = padding_bias(mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        match self.head_kind:
            case "mask":
                return (self.head(self.mlm(x)),)
            case "sequence":
                return (self.classifier(self._pooled(x, mask)),)
            case "cells":
                logits = self.cells(x, token_type_ids, mask)
                return (logits, self.aggregation(self._pooled(x, mask))) if hasattr(self, "aggregation") else (logits,)
        return (x,)

    def _pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.pooler(first_token(x, mask)))


def signature(c: TapasConfig, *outputs: Port) -> Signature:
    inputs = (
        Port("input_ids", "int64", (BATCH, LENGTH)),
        Port("attention_mask", "int64", (BATCH, LENGTH)),
        Port("token_type_ids", "int64", (BATCH, LENGTH, len(TYPES))),
    )
    return Signature(inputs, outputs)


def cells_signature(c: TapasConfig) -> Signature:
    actions = Port("logits_aggregation", "float", (BATCH, c.num_aggregation_labels), "logits")
    return signature(
        c, Port("logits", "float", (BATCH, LENGTH), "cells"), *((actions,) if c.num_aggregation_labels else ())
    )


def facts(c: TapasConfig) -> dict[str, Any]:
    """`types`: how many values each type of a token may have. `aggregations`: their names, where the model has some,
    and `no_aggregation`, the number of the one that does nothing."""
    found: dict[str, Any] = {"context": c.context, "types": list(c.type_vocab_sizes)}
    if c.aggregations and c.num_aggregation_labels:
        found |= {"aggregations": list(c.aggregations), "no_aggregation": c.no_aggregation_label_index}
    return found


RULES: tuple[Rule, ...] = (
    Rename("tapas.embeddings.word_embeddings", "embed"),
    Rename("tapas.embeddings.position_embeddings", "position_embed"),
    *(Rename(f"tapas.embeddings.token_type_embeddings_{n}", f"type_embeds.{n}") for n in range(len(TYPES))),
    Rename("tapas.embeddings.LayerNorm", "embed_norm"),
    *layer_rules("tapas"),
    Rename("tapas.pooler.dense", "pooler"),
    Rename("cls.predictions.transform.dense", "mlm.dense"),
    Rename("cls.predictions.transform.LayerNorm", "mlm.norm"),
    Rename("cls.predictions.bias", "head.bias"),
    Rename("cls.predictions.decoder.weight", "head.weight"),
    Drop("cls.predictions.decoder.bias"),  # the same as cls.predictions.bias
    Rename("output_weights", "cells.cell_weight"),
    Rename("output_bias", "cells.cell_bias"),
    Rename("column_output_weights", "cells.column_weight"),
    Rename("column_output_bias", "cells.column_bias"),
    Rename("aggregation_classifier", "aggregation"),
    Rename("classifier", "classifier"),
    Drop("tapas.embeddings.position_ids"),  # 0, 1, 2, ... in files of transformers before 4.31
)

FAMILY = Family(
    name="tapas",
    title="TAPAS",
    model_types=("tapas",),
    config=TapasConfig,
    rules=RULES,
    tasks=(
        Task(
            name="fill-mask",
            architectures=("TapasForMaskedLM",),
            build=lambda c: Tapas(c, "mask"),
            signature=lambda c: signature(c, Port("logits", "float", (BATCH, LENGTH, c.vocab_size))),
            facts=facts,
        ),
        Task(
            name="table-question-answering",
            architectures=("TapasForQuestionAnswering",),
            build=lambda c: Tapas(c, "cells"),
            signature=cells_signature,
            carried=lambda c: () if c.num_aggregation_labels else ("pooler",),
            facts=facts,
        ),
        Task(
            name="text-classification",
            architectures=("TapasForSequenceClassification",),
            build=lambda c: Tapas(c, "sequence"),
            signature=lambda c: signature(c, Port("logits", "float", (BATCH, c.num_labels))),
            facts=facts,
        ),
        Task(
            name="feature-extraction",
            architectures=("TapasModel",),
            build=lambda c: Tapas(c, "none"),
            signature=lambda c: signature(c, Port("last_hidden_state", "float", (BATCH, LENGTH, c.hidden_size))),
            carried=("pooler",),
            facts=facts,
        ),
    ),
    prefix="tapas",
    heads=("pooler", "mlm", "head", "cells", "aggregation", "classifier"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    no_gguf="llama.cpp has no architecture whose tokens have types of rows and columns",
)
