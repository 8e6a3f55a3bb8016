"""The family card: what the other rooms must know about an architecture, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isoform.reference.names import GGUF
from isoform.signature import Port, Signature

if TYPE_CHECKING:
    from torch import nn

    from isoform.reference.config import Config
    from isoform.reference.rules import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """How llama.cpp names the family: `general.architecture` and the metadata under it.

    `fields` gives keys without the leading `{arch}.`, e.g. {"block_count": 12}; keys of the tokenizer are whole.
    `interleaved_rope`: q and k rows are stored so that rotary pairs sit side by side (llama.cpp's NORM rope), permuted
    from the Hub's two halves.
    `config` turns metadata (with `{arch}.` removed, the tokenizer's ids whole) and tensor shapes back into a
    config.json; it raises KeyError for what is missing. `extra` are tensors that llama.cpp wants and the checkpoint
    does not hold, by GGUF name (`rope_freqs.weight`); `config` finds their values in the metadata, under the same name.
    `refuse` gives the reason why llama.cpp would not compute what this configuration says, or "".
    `holds`: tensors that every file of this family has. They tell apart the families that llama.cpp runs as one
    architecture; the last of these holds none that another lacks. `vocabularies`: so do the kinds of vocabulary
    (`tokenizer.ggml.model`) that its files may have; without any, all.
    `large`: llama.cpp takes this configuration for a 70B model, whose values it quantizes with more bits.
    `names`: canonical modules that this architecture calls otherwise than `names.GGUF` has them.
    `scales`: parameters that the model multiplies by a number and llama.cpp's graph does not, which are written as the
    product; one that is tied gets a tensor of its own.
    `file`: how the file's name begins: "model", or "mmproj" for a tower that llama.cpp opens beside a language model.
    """

    arch: str
    fields: Callable[[Any], dict[str, Any]]
    config: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], dict[str, Any]]
    interleaved_rope: bool = False
    holds: tuple[str, ...] = ()
    vocabularies: tuple[str, ...] = ()
    extra: Callable[[Any], dict[str, Sequence[float]]] = lambda config: {}
    refuse: Callable[[Any], str] = lambda config: ""
    large: Callable[[Any], bool] = lambda config: False
    scales: Callable[[Any], Mapping[str, float]] = lambda config: {}
    tasks: tuple[str, ...] = ()  # the tasks that llama.cpp can serve
    names: Mapping[str, str] = field(default_factory=dict)
    file: str = "model"

    @property
    def tensors(self) -> dict[str, str]:
        """Canonical module -> the tensor's name in a file of this architecture, as in `names.GGUF`."""
        return {**GGUF, **self.names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One graph of a model of several: a module that is built alone, and what goes in and out.

    `roots` says where its parameters are in the whole model: prefix in the part -> prefix in the whole. Without it,
    all of them are below the part's own name. Two parts may have one root: the same weights, run in another way.
    `gguf`: how llama.cpp stores this part in a file of its own. `file` is what clients call its graph, where that is
    not the part's name and "_model".
    """

    build: Callable[[Any], nn.Module]
    signature: Callable[[Any], Signature]
    roots: Mapping[str, str] = field(default_factory=dict)
    gguf: Gguf | None = None
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One way to run a family: the pipeline's name, the Hub's classes, and the module with its signature, or parts.

    `architectures` begins with the class of each of the family's `model_types`, in their order; more may follow.
    `carried`: canonical modules that those classes hold and ours has no use for, at any depth, by the config where it
    says which (the layers of a tower after the one whose state is read). They are accounted for without a parameter,
    and saved all the same.
    `parts` run in their order. `wires` connects them: "part.input" -> "part.output", or another part's input, which is
    then given once ("decoder.encoder_hidden_states": "encoder.last_hidden_state"). The whole model is generated from
    both, so such a task has neither `build` nor `signature`.
    `steps`: host steps between graphs by name (`isoform.steps`), each with its settings. `facts`: what preprocessing
    and pipelines must know. Both are copied into the manifest. `loop` names the loop that decodes.
    `rules`: more weight rules, those of modules that only this task has.
    `shapes` gives the parameters that `build` makes, in their order, without torch; without it the module is built.
    `bare`: its classes hold the trunk without the family's prefix, as the headless one does.
    `gguf`: how llama.cpp names the model of this task, where that is not an architecture of the whole family's.
    """

    name: str
    architectures: tuple[str, ...]
    build: Callable[[Any], nn.Module] | None = None
    signature: Callable[[Any], Signature] | None = None
    carried: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    wires: Mapping[str, str] = field(default_factory=dict)
    steps: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda config: {}
    facts: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    loop: str = "tokens"
    rules: tuple[Rule, ...] = ()
    shapes: Callable[[Any], Mapping[str, tuple[int, ...]]] | None = None
    bare: bool = False
    gguf: Gguf | None = None

    def carries(self, config: Any, name: str) -> bool:
        """Whether a canonical parameter is in a module that is carried."""
        modules = self.carried(config) if callable(self.carried) else self.carried
        return any(name == module or name.startswith(f"{module}.") for module in modules)

    def built(self, config: Any) -> nn.Module:
        """The module, which of a task of several parts is generated from them."""
        if self.build is not None:
            return self.build(config)
        from isoform.reference.modules.wired import Wired

        return Wired(
            {name: part.build(config) for name, part in self.parts.items()},
            {name: part.signature(config) for name, part in self.parts.items()},
            {name: part.roots or {"": name} for name, part in self.parts.items()},
            self.wires,
            self.steps(config),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """A tower whose states another family reads, after any layer as the Hub counts them (0: before the first).

    `build` makes the tower up to a state: `pixels` -> (B, slots, channels). `shape` gives slots and channels, of which
    the first `special` slots are no patches. `left_out`: canonical modules that the tower up to a state does not have.
    """

    build: Callable[[Any, int], nn.Module]
    pixels: Callable[[Any], Port]
    shape: Callable[[Any], tuple[int, int]]
    special: int
    left_out: Callable[[Any, int], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A transformer over a picture's cells of which another family reads several states at once, as `States` counts.

    `build` makes it up to the last of them: `pixels` -> (B, slots, `width`) for each state of `raw`, as the layer gives
    it, then for each of `normed`, after the final norm. `layers` counts them all; `cell` is the height and width of a
    cell in pixels, and the first `special` slots are no cells. `left_out`: canonical modules that it does not have.
    `rules`: the trunk's weight rules, with the names that another model has below a prefix of its own.
    """

    build: Callable[[Any, tuple[int, ...], tuple[int, ...]], nn.Module]
    pixels: Callable[[Any], Port]
    width: Callable[[Any], int]
    layers: Callable[[Any], int]
    cell: Callable[[Any], tuple[int, int]]
    special: Callable[[Any], int]
    left_out: Callable[[Any, tuple[int, ...], tuple[int, ...]], tuple[str, ...]]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """A backbone whose maps another family reads, from several stages by the Hub's names ("stem", "stage1", …).

    `build` makes the backbone up to the last of the stages: `pixels` -> a map (B, C, H, W) for each. `channels` and
    `strides` (pixels to a cell) are those of each stage. `left_out`: canonical modules that it does not have then.
    """

    build: Callable[[Any, tuple[str, ...]], nn.Module]
    pixels: Callable[[Any], Port]
    channels: Callable[[Any, tuple[str, ...]], tuple[int, ...]]
    strides: Callable[[Any, tuple[str, ...]], tuple[int, ...]]
    left_out: Callable[[Any, tuple[str, ...]], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture. `prefix` is the Hub's name of the trunk inside a model with a head ("bert", "model").

    `other_prefix`: what some of the Hub's classes call the trunk instead ("transformer"), for question answering.
    `heads`: top-level canonical modules that only some tasks have; a task leaves those of the others unread. `tasks`
    ends with the headless one, which is the default of a checkpoint that names no architecture; one of several parts
    has its head all the same. `towers`: more rules, those of the models inside this one, which its config names.
    `parts`: how another family builds this one inside itself, under roots of its own: a language model has
    "embed_tokens" (ids to embeddings) and "decoder" (embeddings to logits). `states`: how it reads a tower's states;
    `levels`: several of them at once; `pyramid`: how it reads the maps of a backbone's stages.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    config: type[Config]
    rules: tuple[Rule, ...]
    towers: Callable[[Any], tuple[Rule, ...]] = field(default=lambda config: ())
    tasks: tuple[Task, ...]
    parts: Mapping[str, Part] = field(default_factory=dict)
    states: States | None = None
    levels: Levels | None = None
    pyramid: Pyramid | None = None
    prefix: str
    other_prefix: str = ""
    heads: tuple[str, ...] = ()
    tied: Callable[[Any], Mapping[str, str]] = field(default=lambda config: {})  # parameter -> the one it shares
    gguf: Gguf | None = None
    no_gguf: str = ""  # the reason, when gguf is None

    def gguf_of(self, task: Task) -> Gguf | None:
        """How llama.cpp names the model of a task; None where it has no such architecture."""
        return task.gguf or self.gguf

    @property
    def ggufs(self) -> tuple[Gguf, ...]:
        """Every architecture of llama.cpp that the family is."""
        return tuple(card for card in (self.gguf, *(task.gguf for task in self.tasks)) if card is not None)

    def rules_of(self, config: Any) -> tuple[Rule, ...]:
        """Every rule, with the sizes of this config."""
        return tuple(rule.at(config) for rule in (*self.rules, *self.towers(config)))
