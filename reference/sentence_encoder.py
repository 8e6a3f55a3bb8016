"""A model with the modules of sentence-transformers after it: its task, its rules, and the checkpoint of both.

The modules' weights are in folders of their own ("2_Dense/model.safetensors"); here they are tensors of the checkpoint
under the folder's name, "2_Dense.linear.weight", and parameters below `sentence`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.json_files import read_list
from isoform.reference.card import Task
from isoform.reference.checkpoints.checkpoint import Checkpoint, TensorInfo
from isoform.reference.checkpoints.pickle_file import PickleCheckpoint
from isoform.reference.checkpoints.safetensors_file import SafetensorsCheckpoint
from isoform.reference.checkpoints.safetensors_writer import WEIGHTS, HubTensor, write_safetensors
from isoform.reference.rules import Rename, Rule
from isoform.sentence_modules import NAME, SENTENCE, Dense, LayerNorm, LayerPooling, SentenceModules, modules_root
from isoform.signature import BATCH, Port, Signature

if TYPE_CHECKING:
    from torch import Tensor, nn

PART = "sentence"
"""The module below which the parameters of the modules are."""

Weighted = Dense | LayerNorm | LayerPooling


def sentence_task(task: Task, modules: SentenceModules) -> Task:
    """The headless task with the vector of each text as a second output."""
    from isoform.reference.modules.sentence import name_of

    steps = modules.steps

    def build(config: Any) -> nn.Module:
        from isoform.reference.modules.sentence import SentenceEncoder

        return SentenceEncoder(task.built(config), steps)

    def signature(config: Any) -> Signature:
        assert task.signature is not None, "a headless task of several parts"
        plain = task.signature(config)
        states, *others = plain.outputs
        width = states.axes[-1]
        assert isinstance(width, int), "states of no fixed width"
        vector = Port(SENTENCE, "float", (BATCH, modules.size(width)), "pooled")
        return replace(plain, outputs=(states, vector, *others))

    rules: tuple[Rule, ...] = tuple(
        Rename(f"{step.folder}.{leaf}", f"{PART}.{name_of(n, step)}.{leaf}")
        for n, step in enumerate(steps)
        if isinstance(step, Weighted)
        for leaf in _modules_of(step)
    )
    return replace(task, build=build, signature=signature, shapes=None, rules=rules)


def _modules_of(step: Weighted) -> tuple[str, ...]:
    """The modules of a step with weights, as the Hub and we name them; "" is the step itself."""
    if isinstance(step, Dense):
        return ("linear", "residual")
    return ("norm",) if isinstance(step, LayerNorm) else ("layer_weights",)


class SentenceCheckpoint(Checkpoint):
    """A checkpoint and the weights of the modules after it."""

    def __init__(self, model: Checkpoint, modules: SentenceModules) -> None:
        self.name, self.folder, self.config = model.name, model.folder, model.config
        self.canonical, self.opened, self._model, self._modules = model.canonical, model.opened, model, modules
        # Not the folder that links to it: what the manifest says of files is relative to the real one.
        self._real = (modules_root(model.opened) if model.opened is not None else None) or modules.root
        self._folders = {
            step.folder: _open(self._real / step.folder, model.name)
            for step in modules.steps
            if isinstance(step, Weighted)
        }

    def _find(self, key: str) -> tuple[Checkpoint, str]:
        folder = self.folder_of(key)
        return (self._folders[folder], key[len(folder) + 1 :]) if folder else (self._model, key)

    def __getitem__(self, key: str) -> Tensor:
        checkpoint, own = self._find(key)
        return checkpoint[own]

    def __iter__(self) -> Iterator[str]:
        yield from self._model
        for folder, held in self._folders.items():
            yield from (f"{folder}.{leaf}" for leaf in held)

    def __len__(self) -> int:
        return len(self._model) + sum(len(held) for held in self._folders.values())

    def info(self, key: str) -> TensorInfo:
        checkpoint, own = self._find(key)
        return checkpoint.info(own)

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        checkpoint, own = self._find(key)
        return checkpoint.rows(own, start, stop)

    def release(self, key: str) -> None:
        checkpoint, own = self._find(key)
        checkpoint.release(own)

    def files(self) -> list[Path]:
        return [*self._model.files(), *(path for held in self._folders.values() for path in held.files())]

    @property
    def root(self) -> Path:
        """See `Checkpoint.root`."""
        return self._real if self._modules.transformer else self._model.root

    def folder_of(self, key: str) -> str:
        """See `Checkpoint.folder_of`."""
        return next((folder for folder in self._folders if key.startswith(f"{folder}.")), "")

    def copy_sidecars(self, target: Path) -> None:
        """See `Checkpoint.copy_sidecars`: with the model's folder as the root, and every module's."""
        super().copy_sidecars(target)
        root = self._modules.root
        listed = [dict(module) for module in read_list(root / NAME)]
        for module in listed:
            place = str(module.get("path") or "")
            if place == self._modules.transformer:
                module["path"] = ""
                continue
            if (root / place / "config.json").is_file():
                (target / place).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / place / "config.json", target / place / "config.json")
        (target / NAME).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        settings = root / "config_sentence_transformers.json"
        if settings.is_file():
            shutil.copyfile(settings, target / settings.name)
        for folder, held in self._folders.items():
            (target / folder).mkdir(parents=True, exist_ok=True)
            write_safetensors(target / folder, [_entry(held, leaf) for leaf in held])


def _entry(held: Checkpoint, leaf: str) -> HubTensor:
    from isoform.reference.checkpoints.dtypes import DTYPES

    info = held.info(leaf)
    rows, release = partial(held.rows, leaf), partial(held.release, leaf)
    return HubTensor(leaf, info.shape, DTYPES[info.dtype], rows, release, False)


def _open(folder: Path, name: str) -> Checkpoint:
    """The weights of one module."""
    if (folder / WEIGHTS).is_file():
        return SafetensorsCheckpoint(folder, name, {}, None)
    if (folder / "pytorch_model.bin").is_file():
        return PickleCheckpoint(folder, name, {}, None)
    raise CheckpointError(f"{folder} holds no {WEIGHTS} and no pytorch_model.bin; fetch the whole repository")
