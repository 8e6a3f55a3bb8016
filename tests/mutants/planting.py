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
    """Change the module that is traced; its weights are honest."""

    change: Callable[[nn.Module], None]


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


def write(model: Model, form: str, folder: Path) -> Artifact:
    """One artifact under `folder`."""
    kind, dtype = form.split()
    if kind == "onnx":
        [artifact] = onnx.write(model, folder, dtype, lambda *_: None)
    elif kind == "torchscript":
        [artifact] = torchscript.write(model, folder, dtype)
    else:
        [artifact] = gguf.write(model, folder, [dtype])
    return artifact


def make_bundle(honest: Model, form: str, plant: Plant | None, folder: Path) -> Path:
    """A bundle of one artifact with the fault in it, or honest without a plant. Raises UnsupportedExport."""
    source = honest.checkpoint.folder
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    model = honest
    beside = source
    if isinstance(plant, Checkpoint):
        beside = changed_checkpoint(source, plant, folder / "source")
        model = open_model(beside, honest.task.name)
    elif isinstance(plant, Definition):
        model = copy.copy(honest)
        model.__dict__.pop("parts", None)  # which are cached, and honest
        object.__setattr__(model, "skeleton", _faulty(honest, plant.change))
    artifact = write(model, form, bundle)
    if isinstance(plant, InFile):
        plant.change(bundle, artifact, honest)
    artifact = replace(
        artifact,
        files=tuple(describe(bundle / file.path, bundle) for file in artifact.files),
        signature=(honest.trunk if form.startswith("gguf") else honest).signature,
    )
    for path in honest.checkpoint.sidecars():
        kept = beside if isinstance(plant, Checkpoint) and plant.beside else source
        target = bundle / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept / path.relative_to(source), target)
    files = [asdict(describe(path, source)) for path in honest.checkpoint.files()]
    Manifest(
        family=honest.family.name,
        task=honest.task.name,
        source={"name": honest.name, "path": str(source), "files": files},
        versions={},
        artifacts=[artifact],
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


def _faulty(model: Model, change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    def skeleton(dtype: torch.dtype | None = None) -> nn.Module:
        module = model.skeleton(dtype)
        change(module)
        return module

    return skeleton
