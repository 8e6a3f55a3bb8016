"""What the encoder families share: tasks with their signatures, and the names of BERT's layers on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isoform.reference.card import Task
from isoform.reference.rules import Rename, Rule, below
from isoform.signature import BATCH, LENGTH, Port, Signature

if TYPE_CHECKING:
    from torch import nn

Axes = Callable[[Any], tuple[str | int, ...]]

OUTPUTS: dict[str, tuple[str, dict[str, Axes]]] = {
    "mask": ("fill-mask", {"logits": lambda c: (BATCH, LENGTH, c.vocab_size)}),
    "token": ("token-classification", {"logits": lambda c: (BATCH, LENGTH, c.num_labels)}),
    "sequence": ("text-classification", {"logits": lambda c: (BATCH, c.num_labels)}),
    "span": (
        "question-answering",
        {"start_logits": lambda c: (BATCH, LENGTH), "end_logits": lambda c: (BATCH, LENGTH)},
    ),
    "none": ("feature-extraction", {"last_hidden_state": lambda c: (BATCH, LENGTH, c.hidden_size)}),
}
"""Kind of head -> its task, and the axes of its outputs."""


def encoder_tasks(
    build: Callable[[Any, str], nn.Module],
    architectures: Mapping[str, tuple[str, ...]],
    *,
    types: Callable[[Any], bool] = lambda config: True,
    carried: tuple[str, ...] = (),
    facts: Callable[[Any], Mapping[str, Any]] | None = None,
) -> tuple[Task, ...]:
    """A task for each kind of head, of the Hub's classes that have it; "none" comes last.

    `build` makes the model of a config with that head. `types`: whether the model reads segments (token_type_ids).
    `carried`: modules that the headless class holds and this one has no use for. `facts`: those of every task
    ("context": the most tokens that a text may have, where config.json's number is another).
    """

    def signature(c: Any, outputs: Mapping[str, Axes]) -> Signature:
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if types(c) else ()))
        return Signature(
            tuple(Port(name, "int64", (BATCH, LENGTH)) for name in names),
            tuple(Port(name, "float", axes(c)) for name, axes in outputs.items()),
        )

    def task(kind: str) -> Task:
        name, outputs = OUTPUTS[kind]
        made = Task(
            name=name,
            architectures=architectures[kind],
            build=lambda c: build(c, kind),
            signature=lambda c: signature(c, outputs),
            carried=carried if kind == "none" else (),
        )
        return made if facts is None else replace(made, facts=facts)

    return tuple(task(kind) for kind in OUTPUTS)


_LAYER: tuple[Rule, ...] = (
    Rename("attention.self.query", "attn.q"),
    Rename("attention.self.key", "attn.k"),
    Rename("attention.self.value", "attn.v"),
    Rename("attention.output.dense", "attn.out"),
    Rename("attention.output.LayerNorm", "attn_out_norm"),
    Rename("intermediate.dense", "mlp.up"),
    Rename("output.dense", "mlp.down"),
    Rename("output.LayerNorm", "out_norm"),
)


def layer_rules(trunk: str) -> tuple[Rule, ...]:
    """The rules of BERT's layers under the Hub's name of the trunk."""
    return below(_LAYER, f"{trunk}.encoder.layer.*", "layers.*")


def encoder_fields(
    *, layers: int, context: int, dim: int, hidden: int, heads: int, eps: float, types: int, act: str
) -> dict[str, Any]:
    """llama.cpp's metadata of its architecture `bert`, without the prefix.

    It wants at least one segment (`types`), though there may be no tensor of them.
    """
    return {
        "block_count": layers,
        "context_length": context,
        "embedding_length": dim,
        "feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.layer_norm_epsilon": eps,
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": types,
        **({} if act == "gelu" else {"hidden_activation": act}),
    }


def encoder_refusal(act: str) -> str:
    """Why llama.cpp would compute something else with this activation."""
    if act in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        return ""
    return f"llama.cpp has only the activation gelu for this architecture, not {act}"
