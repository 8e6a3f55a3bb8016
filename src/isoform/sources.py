"""Finds the model of a pipeline: what was given, or the default, as an opened checkpoint or an exported file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from isoform.reference.checkpoints.checkpoint import Checkpoint
    from isoform.reference.model import Model
    from isoform.runtimes.pipelines.arguments import Request


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was found: a bundle or a bare graph at `path`, or a `checkpoint`, which is `opened` for a task.

    `folder` holds its config.json; `module` is the torch module to run, if one was given. `as_stored`: its dtype is
    the stored one, unless another is asked for.
    """

    name: str
    path: Path
    folder: Path
    checkpoint: Checkpoint | None = None
    opened: Model | None = None
    module: nn.Module | None = None
    as_stored: bool = False

    @property
    def again(self) -> Any:
        """What opens the same model another time; None for a temporary folder."""
        if self.module is not None or self.as_stored:
            return self.module
        return self.path if self.path.exists() else self.folder  # that of a Hub id, at its revision

    @property
    def native(self) -> bool:
        """Whether the source is a file of llama.cpp's own format."""
        return self.path.suffix == ".gguf"


@dataclass(slots=True)
class Kept:
    """What a pipeline holds on to until it closes."""

    things: list[Any] = field(default_factory=list)

    def close(self) -> None:
        for thing in self.things:
            if callable(close := getattr(thing, "close", None)):
                close()
        self.things.clear()


def default_model(task: str | None, components: Mapping[str, Any], asked: Request) -> tuple[str, Request]:
    """transformers' checkpoint for a task, when no model is given."""
    from isoform.reference.default_models import DEFAULT_MODELS
    from isoform.runtimes.pipelines import known

    if task is None:
        raise InputError("a pipeline needs a task or a model; give one of them, or both")
    for name, value in components.items():
        if value is not None:
            raise InputError(f"{name}= comes without a model, and may not fit the default one; give model= as well")
    name = known(task)
    if name not in DEFAULT_MODELS:
        raise InputError(f"there is no default model for {task}; give model=")
    found, revision = DEFAULT_MODELS[name]
    revision = asked.hub.get("revision", revision)
    warnings.warn(
        f"no model was given, so {task} takes {found} at revision {revision}; name a model and a revision in "
        "production",
        stacklevel=4,
    )
    return found, replace(asked, hub={**asked.hub, "revision": revision})


def find_source(model: Any, asked: Request, kept: Kept) -> Source:
    """The model that was given: a path, a Hub id, a module of isoform, or a model of transformers."""
    from isoform.reference.checkpoints.opening import open_checkpoint
    from isoform.runtimes import open as backends
    from isoform.runtimes.pipelines.model_view import ModelView

    if isinstance(model, ModelView):
        if model.origin.again is None:
            raise InputError(
                f"the model of that pipeline ({model.origin.name}) cannot be opened again; give its folder"
            )
        model = model.origin.again
    if not isinstance(model, str | PathLike):
        if callable(getattr(model, "named_parameters", None)):
            return _module(model, kept)
        raise InputError(
            f"model={model!r:.60} is not a folder, a Hub id, a .gguf or .onnx file, or a torch module of isoform"
        )
    name = fspath(model)
    path = Path(name).expanduser()
    try:
        exported = bool(name) and ((path / "isoform.json").is_file() or path.suffix == ".onnx")
    except OSError as error:
        raise InputError(f"model={name!r:.60} cannot be opened ({error.strerror})") from None
    if exported:
        return Source(name, path, backends.folder_of(path))
    checkpoint = open_checkpoint(name, **asked.hub)
    return Source(name, path, checkpoint.folder, checkpoint)


def _module(module: Any, kept: Kept) -> Source:
    """A torch module: one that `isoform.load` gave, or a model of transformers, which is saved and opened."""
    from tempfile import TemporaryDirectory

    from isoform.reference.checkpoints.opening import open_checkpoint
    from isoform.reference.model import model_of

    if (model := model_of(module)) is not None:
        return Source(model.name, Path(model.name), model.checkpoint.folder, model.checkpoint, model, module)
    kind = type(module).__name__
    if not callable(getattr(module, "save_pretrained", None)):
        raise InputError(
            f"model= is a {kind} that isoform.load did not give, so its checkpoint is not known; save it and give the "
            "folder"
        )
    staging = TemporaryDirectory(prefix="isoform-")
    kept.things.append(_Closing(staging.cleanup))
    try:
        module.save_pretrained(staging.name)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model= is a {kind} that cannot be saved ({reason:.120}); give its folder") from error
    name = str(getattr(module, "name_or_path", "") or kind)
    checkpoint = open_checkpoint(staging.name)
    return Source(name, Path(staging.name), checkpoint.folder, checkpoint, as_stored=True)


@dataclass(frozen=True, slots=True)
class _Closing:
    close: Callable[[], None]


# ------------------------------------------------------------------ the task
def task_of(source: Source, asked: Request) -> str:
    """The task of a model that was given without one."""
    from isoform.manifest import NAME, Manifest
    from isoform.reference.checkpoints.hub import pipeline_tag
    from isoform.reference.model import open_model
    from isoform.runtimes.pipelines import TASKS

    if source.checkpoint is None:
        if not (source.path / NAME).is_file():
            raise InputError(f"{source.name} does not say what it is for; give task=, one of {', '.join(TASKS)}")
        found = Manifest.read(source.path).task
    elif source.opened is not None:
        found = source.opened.task.name
    else:
        on_hub = not source.path.exists()
        if on_hub and not source.checkpoint.config.get("architectures"):
            if asked.hub.get("offline"):
                raise InputError(f"{source.name} does not say what it is for, and the Hub may not be asked; give task=")
            tag = pipeline_tag(source.name, token=asked.hub.get("token"), revision=asked.hub.get("revision"))
            found = tag or open_model(source.checkpoint).task.name
        else:
            found = open_model(source.checkpoint).task.name
    if found not in TASKS:
        raise InputError(f"{source.name} is for {found}, for which there is no pipeline; there are {', '.join(TASKS)}")
    return found


def own_task(source: Source) -> str | None:
    """The task that a model itself is for; None for a bare graph."""
    from isoform.manifest import NAME, Manifest
    from isoform.reference.model import open_model

    if source.checkpoint is None:
        return Manifest.read(source.path).task if (source.path / NAME).is_file() else None
    return (source.opened or open_model(source.checkpoint)).task.name


def for_task(source: Source, served: str) -> Source:
    """The source, opened for a task. Raises UnsupportedModel where it has none of that name."""
    from isoform.reference.model import open_model

    if source.checkpoint is None:
        return source
    if source.opened is not None:
        if source.opened.task.name != served:
            raise InputError(
                f"the module is one for {source.opened.task.name}, not {served}; load it with task={served!r}"
            )
        return source
    return replace(source, opened=open_model(source.checkpoint, served))
