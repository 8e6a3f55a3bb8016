"""A model: a checkpoint with its family, its typed config, its task and its accounted weights.

`open_model` reads no weight; `Model.module` builds the torch module, `Model.skeleton` the same without weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.manifest import WHOLE
from isoform.progress import Progress
from isoform.reference.bounds import check_sizes
from isoform.reference.card import Family, Part, Task
from isoform.reference.checkpoints.checkpoint import Checkpoint, first_line
from isoform.reference.checkpoints.opening import HUB_OPTIONS, open_checkpoint
from isoform.reference.checkpoints.safetensors_writer import SHARD, HubTensor, read_back, write_safetensors
from isoform.reference.config import Config
from isoform.reference.families import family_for
from isoform.reference.rules import Rule
from isoform.reference.weights import Weight, account, map_weights, same, saved, wrapper_notes
from isoform.sentence_modules import (
    EMBEDDING,
    NAME,
    SENTENCE,
    LayerPooling,
    SentenceModules,
    modules_root,
    read_sentence_modules,
)
from isoform.signature import Signature
from isoform.whole import NoSpace, whole_folder
from isoform.wiring import main_part

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Model:
    """What every exporter and validator starts from. `weights` is ordered as the module's parameters are.

    `part` is "model" for a whole one. What runs as one graph is in `parts`: the model itself, or each of its several.
    """

    checkpoint: Checkpoint
    family: Family
    config: Config
    task: Task
    part: str = WHOLE
    remarks: tuple[str, ...] = ()
    """What a person should know of how the checkpoint was opened, one sentence each."""
    sentence: SentenceModules | None = field(default=None, repr=False)
    """The modules of sentence-transformers after it, where their vector is an output."""
    plain: Model | None = field(default=None, repr=False)
    """The model without them."""

    @property
    def trunk(self) -> Model:
        """The model for what holds no module of sentence-transformers: a GGUF file."""
        return self.plain or self

    @property
    def reads_layers(self) -> bool:
        """Whether a module of sentence-transformers reads the states of all layers, which not every form gives."""
        return any(isinstance(step, LayerPooling) for step in (self.sentence.steps if self.sentence else ()))

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def roots(self) -> Mapping[str, str]:
        """Where the parameters of this part are in the whole module: prefix here -> prefix there."""
        return {"": ""}

    @property
    def file(self) -> str:
        """What clients call the file of this graph, without its ending."""
        return "model"

    @cached_property
    def signature(self) -> Signature:
        """What goes in and out; of a model of several parts, that of its decoder, or else of the last part."""
        if self.task.signature is not None:
            return self.task.signature(self.config)
        signatures = {part.part: part.signature for part in self.parts}
        return signatures[main_part(signatures)]

    @cached_property
    def parts(self) -> tuple[Model, ...]:
        """Each graph of the model, itself a model to whoever exports, runs or checks it."""
        names = self.task.parts
        if not names:
            return (self,)
        return tuple(PartOf(self.checkpoint, self.family, self.config, self.task, name, whole=self) for name in names)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Parameters of this task that share another's tensor: name -> the one that is stored.

        A checkpoint that holds both, and differently, does not share them whatever its config.json says; so the Hub's
        own code has it.
        """
        stored = self.all_weights
        return {
            name: source
            for name, source in self.family.tied(self.config).items()
            if name in self._shapes
            and not (name in stored and source in stored and not same(stored[name], stored[source]))
        }

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The weight rules of the family, with the sizes of this config, and of the task."""
        return (*self.family.rules_of(self.config), *self.task.rules)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Wrappers that were taken off the keys of the checkpoint, and tensors that were left out."""
        found = wrapper_notes(self.checkpoint, self.rules, self.family.prefix, self.family.other_prefix)
        return (*self.remarks, *found)

    @cached_property
    def all_weights(self) -> Mapping[str, Weight]:
        """Every canonical parameter of the checkpoint, those of other heads included."""
        return map_weights(self.checkpoint, self.rules, self.family.prefix, self.family.other_prefix)

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """The parameters that this task's module has; tied ones appear once."""
        carried = {name for name in self.all_weights if self.task.carries(self.config, name)}
        return account(self.name, self.all_weights, self._shapes, self.rules, self.family.heads, self.tied, carried)

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter of this task's module, tied ones included, in its order."""
        if self.task.shapes is not None:
            return self.task.shapes(self.config)
        return {name: tuple(p.shape) for name, p in self._shape().named_parameters(remove_duplicate=False)}

    def _shape(self) -> nn.Module:
        """The module, all of it but its buffers on the meta device."""
        import torch

        try:
            with torch.device("meta"):
                return self._build()
        except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{self.name}: no model can be built from its config.json ({reason})") from error

    def _build(self) -> nn.Module:
        return self.task.built(self.config)

    def skeleton(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The module with parameters on the meta device and its buffers real: for tracing; float32 unless said."""
        import torch

        return self._finish(self._shape().to(dtype or torch.float32))

    def whole_name(self, name: str) -> str:
        """The name that a parameter has in the whole model."""
        return name

    def module(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        loaded: dict[str, nn.Parameter] | None = None,
    ) -> nn.Module:
        """The torch module with its weights, float32 unless said, in evaluation mode, without gradients.

        A weight that is stored in `dtype` on the CPU is used where it lies in the memory map. `loaded`: parameters of
        the same dtype and device by their names in the whole model, which parts share; what is missing is added to it.
        """
        import torch
        from torch import nn

        dtype = dtype or torch.float32
        module = self._shape()
        owners = dict(module.named_modules())
        loaded = {} if loaded is None else loaded
        for name, weight in self.weights.items():
            owner, _, leaf = name.rpartition(".")
            if (key := self.whole_name(name)) not in loaded:
                loaded[key] = nn.Parameter(weight.load().to(device=device, dtype=dtype), False)
            owners[owner]._parameters[leaf] = loaded[key]
        for owner in owners.values():
            for leaf, buffer in owner._buffers.items():
                owner._buffers[leaf] = buffer if buffer is None else buffer.to(device)
        return self._finish(module)

    def _finish(self, module: nn.Module) -> nn.Module:
        owners = dict(module.named_modules())
        for name, stored in self.tied.items():
            (owner, _, leaf), (source, _, source_leaf) = name.rpartition("."), stored.rpartition(".")
            owners[owner]._parameters[leaf] = owners[source]._parameters[source_leaf]
        if (share := getattr(module, "share", None)) is not None:
            share()
        return module.eval().requires_grad_(False)

    def save(
        self,
        folder: str | Path,
        module: nn.Module | None = None,
        dtype: torch.dtype | None = None,
        *,
        shard: int = SHARD,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write a checkpoint of this task in the Hub's layout and spelling, whole or not at all.

        `module`'s parameters replace the checkpoint's; heads of other tasks are left out. `dtype` defaults to the
        stored one; with one, values that it cannot hold are refused. No more than a piece of a tensor is in memory,
        and files end at `shard` bytes of tensors. With `verify` they are read back and compared. Raises CheckpointError
        when the folder is not empty or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CheckpointError(f"{folder} is there already and not an empty folder; give a new one")
        entries = self._hub_entries(module, dtype)
        try:
            with whole_folder(folder, needed=sum(entry.nbytes for entry in entries)) as part:
                self.checkpoint.copy_sidecars(part)
                config = self._hub_config(dtype)
                (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                groups = self._by_folder(entries)
                for place, held in groups.items():
                    write_safetensors(part / place, held, shard=shard, progress=progress)
                if verify:
                    read_back(part, groups[""], progress=progress)
        except NoSpace as error:
            sizes = f"{error.needed / 1e6:,.1f} MB are needed, {error.free / 1e6:,.1f} MB are free"
            raise CheckpointError(
                f"{folder} could not be written ({sizes}); free some, or give another folder"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{folder} could not be written ({first_line(error)})") from error

    def _by_folder(self, entries: list[HubTensor]) -> dict[str, list[HubTensor]]:
        """The tensors by the folder that they are written to; "" is the model's."""
        groups: dict[str, list[HubTensor]] = {"": []}
        for entry in entries:
            place = self.checkpoint.folder_of(entry.name)
            held = groups.setdefault(place, [])
            held.append(replace(entry, name=entry.name.removeprefix(f"{place}.")) if place else entry)
        return groups

    def _hub_config(self, dtype: torch.dtype | None) -> dict[str, Any]:
        config = dict(self.checkpoint.config)
        config["architectures"] = [self.task.architectures[self.family.model_types.index(config["model_type"])]]
        if dtype is not None:
            config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
        return config

    def _hub_entries(self, module: nn.Module | None, dtype: torch.dtype | None) -> list[HubTensor]:
        """What `save` writes: the tensors as they are stored, where neither `module` nor `dtype` changes them."""
        changed = dict(module.named_parameters()) if module is not None else {}
        carried = {name: w for name, w in self.all_weights.items() if self.task.carries(self.config, name)}
        weights = {**self.weights, **carried}
        # The headless class holds the trunk without a prefix, and others with one of two.
        headless = self.task.bare or (self.task.name == self.family.tasks[-1].name and not self.task.parts)
        prefix, other = (f"{name}." if name else "" for name in (self.family.prefix, self.family.other_prefix))
        spelled = other if other and any(key.startswith(other) for key in self.checkpoint) else prefix
        trunk = "" if headless else spelled
        # A module's parameters may be the mapped pages themselves: dropped, they would lose what was changed.
        kept = module is not None
        return [
            HubTensor(
                trunk + one.key.removeprefix(prefix) if one.key.startswith(prefix) else one.key,
                one.shape,
                dtype or one.dtype,
                one.rows,
                (lambda: None) if kept else one.release,
                dtype is not None,
            )
            for one in saved(self.checkpoint, weights, self.rules, changed)
        ]


@dataclass(frozen=True)
class PartOf(Model):
    """One graph of a model of several. Its parameters have the names that they have below the part's root.

    A weight that two parts share is in the weights of both.
    """

    whole: Model = field(kw_only=True)

    @property
    def _card(self) -> Part:
        return self.task.parts[self.part]

    @property
    def file(self) -> str:
        return self._card.file or f"{self.part}_model"

    @property
    def roots(self) -> Mapping[str, str]:
        return self._card.roots or {"": self.part}

    @cached_property
    def signature(self) -> Signature:
        return self._card.signature(self.config)

    @cached_property
    def parts(self) -> tuple[Model, ...]:
        return (self,)

    def whole_name(self, name: str) -> str:
        """The name that a parameter of this part has in the whole model."""
        for inner, outer in sorted(self.roots.items(), key=lambda item: -len(item[0])):
            if not inner or name.startswith(f"{inner}."):
                rest = name[len(inner) + 1 :] if inner else name
                return f"{outer}.{rest}" if outer else rest
        raise UnsupportedModel(f"{self.family.name}: the part {self.part} has no root for its parameter {name}")

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Parameters that share another's tensor within this part."""
        below = {self.whole_name(name): name for name in self._shapes}
        return {
            below[name]: below[source] for name, source in self.whole.tied.items() if name in below and source in below
        }

    @cached_property
    def all_weights(self) -> Mapping[str, Weight]:
        return self.weights

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """The parameters that this part's module has, out of the whole model's, all of which are accounted for."""
        found = self.whole.weights
        return {
            name: found[self.whole.tied.get(whole := self.whole_name(name), whole)]
            for name in self._shapes
            if name not in self.tied
        }

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self._shape().named_parameters(remove_duplicate=False)}

    def _build(self) -> nn.Module:
        return self._card.build(self.config)


_OPENED: WeakKeyDictionary[nn.Module, Model] = WeakKeyDictionary()


def remember(module: nn.Module, model: Model) -> None:
    """Keep, as long as the module lives, which model it is the module of."""
    _OPENED[module] = model


def model_of(module: nn.Module) -> Model | None:
    """The model of a module that `remember` was told about, or None. Raises InputError where it has changed its shape.

    Values may have changed: a module that was trained is still one of the model.
    """
    if (model := _OPENED.get(module)) is None:
        return None
    found = {name: tuple(weight.shape) for name, weight in module.named_parameters(remove_duplicate=False)}
    if changed := sorted(found.items() ^ dict(model._shapes).items()):
        raise InputError(
            f"the module of {model.name} has changed: {changed[0][0]} is not as it was built; save the model it is now "
            "part of, and give its folder"
        )
    return model


def open_model(source: str | Path | Checkpoint, task: str | None = None, **hub: Any) -> Model:
    """Open a checkpoint and find its family and task; `hub` goes to `open_checkpoint`.

    `task` defaults to the one of the checkpoint's architecture. Raises UnsupportedModel for an architecture or a task
    that no family holds, CheckpointError for a config that lacks a field.
    """
    if unknown := sorted(hub.keys() - set(HUB_OPTIONS)):
        raise InputError(f"there is no option {unknown[0]!r}; a checkpoint is opened with {', '.join(HUB_OPTIONS)}")
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, **hub)
    family = family_for(checkpoint)
    if quantization := checkpoint.config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedModel(
            f"{checkpoint.name} is quantized ({method!r}), which no family can use; take its BF16 or F16 checkpoint"
        )
    config = family.config.from_checkpoint(checkpoint)
    check_sizes(checkpoint.name, config, checkpoint)
    headless, notes = family.tasks[-1], list[str]()
    embeds = not headless.parts and headless.name == EMBEDDING and modules_root(checkpoint.folder) is not None
    embeds = embeds and read_sentence_modules(checkpoint.folder).embeds
    if task is None and embeds:
        stored = _task(checkpoint, family, None)
        task = EMBEDDING
        if stored.name != task:
            notes.append(f"{NAME} makes the task {task}, not {stored.name} (which --task {stored.name} asks for)")
    model = Model(checkpoint, family, config, _task(checkpoint, family, task), remarks=tuple(notes))
    return _with_sentence_modules(model) if embeds and model.task is headless else model


def _with_sentence_modules(model: Model) -> Model:
    """The model with a vector for each text as its second output, where its modules.json can be computed."""
    from isoform.reference.sentence_encoder import SentenceCheckpoint, sentence_task

    modules = read_sentence_modules(model.checkpoint.folder)
    if not model.checkpoint.config.get("output_hidden_states"):
        modules = modules.without_layers()
    if modules.refusal:
        note = f"the model gives no {SENTENCE}: {modules.refusal}"
        return replace(model, remarks=(*model.remarks, note))
    checkpoint = SentenceCheckpoint(model.checkpoint, modules)
    return replace(model, checkpoint=checkpoint, task=sentence_task(model.task, modules), sentence=modules, plain=model)


def _task(checkpoint: Checkpoint, family: Family, wanted: str | None) -> Task:
    if wanted is not None:
        for task in family.tasks:
            if task.name == wanted:
                return task
        names = ", ".join(task.name for task in family.tasks)
        raise UnsupportedModel(f"{family.name} has no task {wanted!r}; it has {names}")
    architectures = checkpoint.config.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"{checkpoint.name}: config.json: architectures is {architectures!r}, not a list")
    for task in family.tasks:
        if any(name in task.architectures for name in architectures):
            return task
    if architectures:
        known = ", ".join(name for task in family.tasks for name in task.architectures)
        raise UnsupportedModel(
            f"{checkpoint.name}: {architectures[0]!r} is not supported; of this family isoform knows {known}"
        )
    return family.tasks[-1]
