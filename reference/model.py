"""A model: a checkpoint with its family, its typed config, its task and its accounted weights.

`open_model` reads no weight; `Model.module` builds the torch module, `Model.skeleton` the same without weights.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Task
from isoform.reference.checkpoint import Checkpoint, open_checkpoint
from isoform.reference.config import Config
from isoform.reference.families import family_for
from isoform.reference.weights import Weight, account, hub_names, map_weights
from isoform.signature import Signature


@dataclass(frozen=True)
class Model:
    """What every exporter and validator starts from. `weights` is ordered as the module's parameters are."""

    checkpoint: Checkpoint
    family: Family
    config: Config
    task: Task

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @cached_property
    def signature(self) -> Signature:
        return self.task.signature(self.config)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Parameters of this task that share another's tensor: name -> the one that is stored."""
        names = {name for name, _ in self._shape().named_parameters(remove_duplicate=False)}
        return {name: stored for name, stored in self.family.tied(self.config).items() if name in names}

    @cached_property
    def all_weights(self) -> Mapping[str, Weight]:
        """Every canonical parameter of the checkpoint, those of other heads included."""
        return map_weights(self.checkpoint, self.family.rules, self.family.prefix)

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """The parameters that this task's module has; tied ones appear once."""
        return account(self.name, self.all_weights, self._shape(), self.family.heads, self.tied)

    def _shape(self) -> nn.Module:
        with torch.device("meta"):
            return self.task.build(self.config)

    def skeleton(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module with parameters on the meta device and its buffers real: for tracing."""
        return self._finish(self._shape().to(dtype))

    def module(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> nn.Module:
        """The torch module with its weights, in evaluation mode, without gradients.

        A weight that is stored in `dtype` on the CPU is used where it lies in the memory map.
        """
        module = self._shape()
        owners = dict(module.named_modules())
        for name, weight in self.weights.items():
            owner, _, leaf = name.rpartition(".")
            owners[owner]._parameters[leaf] = nn.Parameter(weight.load().to(device=device, dtype=dtype), False)
        for owner in owners.values():
            for leaf, buffer in owner._buffers.items():
                owner._buffers[leaf] = buffer if buffer is None else buffer.to(device)
        return self._finish(module)

    def _finish(self, module: nn.Module) -> nn.Module:
        owners = dict(module.named_modules())
        for name, stored in self.tied.items():
            (owner, _, leaf), (source, _, source_leaf) = name.rpartition("."), stored.rpartition(".")
            owners[owner]._parameters[leaf] = owners[source]._parameters[source_leaf]
        return module.eval().requires_grad_(False)

    def save(self, folder: str | Path, module: nn.Module | None = None, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint in the Hub's layout and spelling, whole or not at all.

        `module`'s parameters replace the checkpoint's; heads that this task does not have are carried over. `dtype`
        defaults to the stored one. Raises CheckpointError when the folder exists and is not empty.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} is not empty; give a new folder")
        changed: Mapping[str, Tensor] = dict(module.named_parameters()) if module is not None else {}
        tensors: dict[str, Tensor] = {}
        headless = self.task.architectures and not any(self._uses(head) for head in self.family.heads)
        for name, (key, rule) in hub_names(
            [n for n in self.all_weights if n not in self.tied], self.family.rules
        ).items():
            weight = self.all_weights[name]
            tensor = rule.save(changed[name].detach() if name in changed else weight.load())
            if headless and not any(name.startswith(f"{head}.") for head in self.family.heads if head != "pooler"):
                key = key.removeprefix(f"{self.family.prefix}.")
            stored = self.checkpoint[weight.hub].dtype if dtype is None else dtype
            tensors[key] = tensor.to(stored).contiguous().clone()
        parent = folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
        try:
            for path in self.checkpoint.sidecars():
                target = temporary / path.relative_to(self.checkpoint.folder)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
            config = dict(self.checkpoint.config)
            config["architectures"] = [self.task.architectures[0]]
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            if folder.exists():
                folder.rmdir()
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _uses(self, head: str) -> bool:
        return any(name.startswith(f"{head}.") for name in self.weights)


def open_model(source: str | Path | Checkpoint, task: str | None = None, **hub: Any) -> Model:
    """Open a checkpoint and find its family and task; `hub` goes to `open_checkpoint`.

    `task` defaults to the one of the checkpoint's architecture. Raises UnsupportedModel for an architecture or a task
    that no family holds, CheckpointError for a config that lacks a field.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, **hub)
    family = family_for(checkpoint)
    return Model(checkpoint, family, family.config.from_dict(checkpoint.config), _task(checkpoint, family, task))


def _task(checkpoint: Checkpoint, family: Family, wanted: str | None) -> Task:
    if wanted is not None:
        for task in family.tasks:
            if task.name == wanted:
                return task
        names = ", ".join(task.name for task in family.tasks)
        raise UnsupportedModel(f"{family.name} has no task {wanted!r}; it has {names}")
    architectures = checkpoint.config.get("architectures") or []
    for task in family.tasks:
        if any(name in task.architectures for name in architectures):
            return task
    if architectures:
        known = ", ".join(name for task in family.tasks for name in task.architectures)
        raise UnsupportedModel(
            f"{checkpoint.name}: {architectures[0]} is not supported; of this family isoform knows {known}"
        )
    return family.tasks[0]
