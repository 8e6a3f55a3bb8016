"""How a fault gets into an artifact: by the checkpoint it is exported from, by the definition, or into its files.

Afterwards the bundle looks whole: its manifest has the sizes and hashes of the faulty files, and what lies beside the
model is the honest source's, so that a check has to find the fault in what is computed or stored.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoform.exporters import gguf, onnx, torchscript
from isoform.manifest import Artifact, Manifest, describe
from isoform.reference.model import Model, open_model
from tests.oracle import tiny
from tests.oracle.wide import BASES, wide

FORMS = (
    *("onnx f32", "onnx q8_0", "onnx q4_0", "onnx int8"),
    "torchscript f32",
    *("gguf f32", "gguf q8_0", "gguf q4_k_m"),
)

Tensors = dict[str, Tensor]
Config = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Change the tensors (by their Hub names), the config.json or other files of the checkpoint that is exported."""

    tensors: Callable[[Tensors], None] = lambda tensors: None
    config: Callable[[Config], None] = lambda config: None
    files: Callable[[Path], None] = lambda folder: None
    beside: bool = False  # the changed files stay in the bundle


@dataclass(frozen=True)
class Definition:
    """Change the module that is traced; its weights are honest. `part`: of a model of several, that part's."""

    change: Callable[[nn.Module], None]
    part: str = ""


@dataclass(frozen=True)
class InFile:
    """Change the written file; the model is the honest one."""

    change: Callable[[Path, Artifact, Model], None]


Plant = Checkpoint | Definition | InFile


class Sources:
    """The honest checkpoints, made once in a folder: tiny ones, and wide ones whose rows quantize."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open = cache(self._open)

    def _open(self, name: str) -> Model:
        kind, _, family = name.partition(" ")
        if kind == "tiny":
            return open_model(tiny(family))
        if kind in ("encoder", "decoder"):  # that part alone
            return next(part for part in open_model(tiny(family)).parts if part.part == kind)
        settings: Config = {"num_key_value_heads": 4} if kind == "square" else {}
        folder = wide(family, self.folder / name.replace(" ", "-"), num_hidden_layers=3, **settings)
        template = tiny(BASES[family]) / "chat_template.jinja"
        if template.is_file():
            shutil.copyfile(template, folder / template.name)
        return open_model(folder)


def write(model: Model, form: str, folder: Path) -> list[Artifact]:
    """One artifact under `folder`; of a model of several parts, one for each."""
    kind, dtype = form.split()
    if kind == "onnx":
        return onnx.write(model, folder, dtype, lambda *_: None)
    if kind == "torchscript":
        return torchscript.write(model, folder, dtype)
    return gguf.write(model, folder, [dtype])


def make_bundle(honest: Model, form: str, plant: Plant | None, folder: Path) -> Path:
    """A bundle of one form with the fault in it, or honest without a plant. Raises UnsupportedExport."""
    source, root = honest.checkpoint.folder, honest.checkpoint.root
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    model = honest
    beside = source
    if isinstance(plant, Checkpoint):
        beside = changed_checkpoint(root, plant, folder / "source")
        model = open_model(beside, honest.task.name)
    elif isinstance(plant, Definition):
        model = copy.copy(honest)
        model.__dict__.pop("parts", None)  # which are cached, and honest
        if plant.part:
            others = [_changed(part, plant.change) if part.part == plant.part else part for part in honest.parts]
            model.__dict__["parts"] = tuple(others)
        else:
            object.__setattr__(model, "skeleton", _faulty(honest, plant.change))
    artifacts = write(model, form, bundle)
    if isinstance(plant, InFile):
        [artifact] = artifacts
        plant.change(bundle, artifact, honest)
    whole = {part.part: part for part in (honest.trunk if form.startswith("gguf") else honest).parts}
    artifacts = [
        replace(
            artifact,
            files=tuple(describe(bundle / file.path, bundle) for file in artifact.files),
            signature=whole[artifact.part].signature if artifact.part in whole else artifact.signature,
        )
        for artifact in artifacts
    ]
    for path in honest.checkpoint.sidecars():
        kept = beside if isinstance(plant, Checkpoint) and plant.beside else source
        target = bundle / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept / path.relative_to(source), target)
    files = [asdict(describe(path, root)) for path in honest.checkpoint.files()]
    Manifest(
        family=honest.family.name,
        task=honest.task.name,
        source={"name": honest.name, "path": str(root), "files": files},
        versions={},
        artifacts=artifacts,
        wires=dict(honest.task.wires),
    ).write(bundle)
    return bundle


def changed_checkpoint(source: Path, plant: Checkpoint, folder: Path) -> Path:
    """A copy of a checkpoint folder with the plant's changes."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    plant.tensors(tensors)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    plant.config(config)
    (folder / "config.json").write_text(json.dumps(config))
    plant.files(folder)
    return folder


def _changed(part: Model, change: Callable[[nn.Module], None]) -> Model:
    found = copy.copy(part)
    found.__dict__.pop("parts", None)
    object.__setattr__(found, "skeleton", _faulty(part, change))
    return found


def _faulty(model: Model, change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    def skeleton(dtype: torch.dtype | None = None) -> nn.Module:
        module = model.skeleton(dtype)
        change(module)
        return module

    return skeleton
