"""Makes a pipeline: finds the model, its task and its components, opens a session, and puts them together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError
from isoform.formats import FORMAT_OF
from isoform.json_files import read_object
from isoform.progress import Progress
from isoform.sources import Kept, Source, default_model, find_source, for_task, task_of

if TYPE_CHECKING:
    from torch import nn

    from isoform.reference.model import Model
    from isoform.runtimes.pipelines.arguments import Request
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.runtimes.pipelines.components import StagedFolder
    from isoform.runtimes.session import Session

COMPONENTS = ("processor", "tokenizer", "feature_extractor", "image_processor")
"""In the order in which they are put in: a part of a processor may be replaced."""


def make_pipeline(
    task: str | None,
    model: Any,
    *,
    config: Any,
    components: Mapping[str, Any],
    backend: str,
    threads: int | None,
    progress: Progress | None,
    request: Callable[[Callable[[], int]], Request],
    parameters: dict[str, Any],
    cached: Callable[[Model, str, str, Progress | None], Path],
) -> Pipeline:
    """See `isoform.pipeline`. `request` reads the arguments of opening, given a count of GPUs.

    `parameters` are what is left for the pipeline, and `cached` gives the bundle of one form of a model.
    """
    from isoform.runtimes import open as backends
    from isoform.runtimes import pipelines
    from isoform.runtimes.pipelines.components import StagedFolder

    if task is not None:
        if not isinstance(task, str):
            raise InputError(f"task={task!r:.60} is not the name of a task")
        pipelines.model_task(task)  # an unknown one is refused before anything is fetched
    kept = Kept()
    try:
        asked = request(lambda: backends.usable_gpus(_runner(model, backend)))
        for note in asked.notes:
            warnings.warn(note, stacklevel=3)
        if model is None:
            model, asked = default_model(task, components, asked)
        source = find_source(model, asked, kept)
        chosen = task_of(source, asked) if task is None else task
        source = for_task(source, pipelines.model_task(chosen))
        _check_config(config, source, asked)
        facts = _facts(source, pipelines.model_task(chosen))
        given = {name: value for name, value in components.items() if value is not None}
        folder = source.folder
        if given:
            staged = StagedFolder(folder)
            kept.things.append(staged)
            facts = {**facts, **_stage(staged, given, chosen, source.name, asked)}
            folder = staged.folder
        session, form = _session(source, pipelines.model_task(chosen), asked, backend, threads, progress, cached)
        kept.things.append(source.opened)
        origin = _origin(source, asked, form, facts, given, folder)
        return pipelines.build_pipeline(chosen, session, folder, facts=facts, keep=kept, origin=origin, **parameters)
    except BaseException:
        kept.close()
        raise


def _runner(model: Any, backend: str) -> str:
    """The backend that will run a model, as far as its name tells."""
    if backend != "auto" or not isinstance(model, str | PathLike):
        return "torch" if backend == "auto" else backend
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return "llamacpp"
    return "auto" if path.suffix == ".onnx" or (path / "isoform.json").is_file() else "torch"


def _facts(source: Source, served: str) -> dict[str, Any]:
    from isoform.reference.facts import exported_facts, facts_of

    if source.opened is None:
        return exported_facts(source.path, source.folder, served)
    return facts_of(source.opened)


# ------------------------------------------------------------------ configuration and components
def _check_config(given: Any, source: Source, asked: Request) -> None:
    """InputError where `config` says something else than the model's own config.json.

    transformers reads the architecture from it and nothing more; a difference would be lost in silence.
    """
    from isoform.reference.families import load_family

    if given is None:
        return
    if isinstance(given, str | PathLike):
        path = Path(given).expanduser()
        data = read_object(
            (path if path.is_dir() else _config_folder(fspath(given), source.name, asked)) / "config.json"
        )
        if not data:
            raise InputError(f"config={fspath(given)!r} has no config.json")
    elif callable(getattr(given, "to_dict", None)):
        data = given.to_dict()
    elif isinstance(given, Mapping):
        data = dict(given)
    else:
        raise InputError(f"config={given!r:.60} is not a folder, a Hub id, a dict or a configuration")
    own = read_object(source.folder / "config.json")
    if data.get("model_type") != own.get("model_type"):
        raise InputError(
            f"config= is of {data.get('model_type')!r}, and {source.name} is of {own.get('model_type')!r}; leave it out"
        )
    try:
        kind = load_family(str(own.get("model_type"))).config
        theirs, mine = kind.from_dict(data), kind.from_dict(own)
    except IsoformError as error:
        raise type(error)(f"config=: {error}") from None
    changed = [name for name in kind.__dataclass_fields__ if getattr(theirs, name) != getattr(mine, name)]
    labels = {str(key): value for key, value in (data.get("id2label") or {}).items()}
    if labels and labels != _labels(own, len(labels)):
        changed.append("id2label")
    if changed:
        raise InputError(
            f"config= has another {changed[0]} than the config.json of {source.name}, and a pipeline runs the model "
            "as it was stored; change that file instead"
        )


def _labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {str(n): f"LABEL_{n}" for n in range(count)} | {
        str(key): value for key, value in (config.get("id2label") or {}).items()
    }


def _settings_folder(name: str, model: str, asked: Request) -> Path:
    """The small files of a Hub id; the revision that was asked for is that of the model's repository alone."""
    from isoform.reference.checkpoints.hub import download_settings

    hub = {key: value for key, value in asked.hub.items() if key != "revision" or name == model}
    return download_settings(name, **hub)


def _config_folder(name: str, model: str, asked: Request) -> Path:
    try:
        return _settings_folder(name, model, asked)
    except IsoformError as error:
        raise type(error)(f"config: {error}") from error.__cause__


def _stage(staged: StagedFolder, given: Mapping[str, Any], task: str, model: str, asked: Request) -> dict[str, Any]:
    """Put components into the folder of a pipeline; returns the facts of their classes."""
    from isoform.reference.classes import class_facts
    from isoform.reference.tokenizers.sources import rebuilt
    from isoform.runtimes.pipelines import hears
    from isoform.runtimes.pipelines.components import open_component

    facts: dict[str, Any] = {}
    for name in COMPONENTS:
        if name not in given or (name == "feature_extractor" and "image_processor" in given and not hears(task)):
            continue
        component = open_component(
            name, given[name], staged.space, lambda repo: _settings_folder(repo, model, asked), class_facts, rebuilt
        )
        staged.put(name, component.folder)
        facts |= component.facts
    return facts


# ------------------------------------------------------------------ the session
def _session(
    source: Source,
    served: str,
    asked: Request,
    backend: str,
    threads: int | None,
    progress: Progress | None,
    cached: Callable[[Model, str, str, Progress | None], Path],
) -> tuple[Session, str]:
    """A session of the model, and the name of its form's dtype."""
    from isoform.runtimes import open as backends

    place: dict[str, Any] = {"device": asked.device, "threads": threads}
    opened, dtype = source.opened, asked.dtype
    if opened is None:
        wanted = None if dtype == "auto" else dtype
        if wanted is not None and source.path.suffix == ".onnx":
            raise InputError(f"{source.name} runs in the dtype that it was written in; leave dtype={wanted} out")
        session, _ = backends.open_path(source.path, backend, task=served, dtype=wanted, **place)
        return session, wanted or _form(source.path, session.backend)
    if source.module is not None:
        return _module_session(source.module, opened, asked, backend, threads)
    if source.native and backend in ("auto", "llamacpp"):
        if dtype not in (None, "auto"):
            raise InputError(f"{source.name} runs in the dtype that it was written in, not {dtype}; leave dtype out")
        session = backends.open_session(source.path, "llamacpp", signature=opened.trunk.signature, **place)
        return session, "f32"
    if dtype == "auto" or (dtype is None and source.as_stored):
        dtype = stored_dtype(opened)
    dtype = dtype or "f32"
    if backend in ("auto", "torch"):
        return backends.open_session(opened, "torch", dtype=dtype, **place), dtype
    folder = cached(opened, FORMAT_OF[backend], dtype, progress)
    session, _ = backends.open_path(folder, backend, task=served, **place)
    return session, dtype


def _form(path: Path, backend: str) -> str:
    """The dtype of the form that a bundle opens on a backend when none is asked for."""
    from isoform.manifest import NAME, Manifest

    if not (path / NAME).is_file() or backend not in FORMAT_OF:
        return "f32"
    forms = [form.dtype for form in Manifest.read(path).artifacts if form.format == FORMAT_OF[backend]]
    return forms[0] if forms else "f32"


def _module_session(
    module: nn.Module, opened: Model, asked: Request, backend: str, threads: int | None
) -> tuple[Session, str]:
    from isoform.runtimes import open as backends
    from isoform.runtimes.pipelines.arguments import dtype_name

    if backend not in ("auto", "torch"):
        raise InputError(f"a torch module runs on the torch backend, not on {backend}; give its folder instead")
    first = next(module.parameters())
    dtype = dtype_name(first.dtype) or "f32"
    if asked.dtype not in (None, "auto", dtype):
        raise InputError(f"the module is in {dtype}, not {asked.dtype}; load it with dtype={asked.dtype!r}")
    device = str(first.device)
    if asked.given_device and asked.device != device:
        from isoform.runtimes.backends.torch.session import torch_device

        module.to(torch_device(asked.device))
        device = asked.device
    session = backends.open_session(opened, "torch", dtype=dtype, device=device, threads=threads, module=module)
    return session, dtype


def stored_dtype(model: Model) -> str:
    """The float dtype of a checkpoint: what config.json states, else that of its first tensor of floats."""
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    checkpoint = model.checkpoint
    stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if (found := names.get(str(stated).removeprefix("torch."))) is not None:
        return found
    kinds = (checkpoint.info(key).dtype.lower() for key in checkpoint)
    return next((kind for kind in kinds if kind in names.values()), "f32")


# ------------------------------------------------------------------ what attributes need
def _origin(
    source: Source, asked: Request, form: str, facts: Mapping[str, Any], given: Mapping[str, Any], folder: Path
) -> Any:
    from isoform.reference.families import load_family
    from isoform.reference.tokenizer_inputs import input_names
    from isoform.runtimes.pipelines.origin import Origin

    opened = source.opened

    def config() -> Any:
        if opened is not None:
            return opened.config
        try:
            data = read_object(source.folder / "config.json")
            return load_family(str(data.get("model_type"))).config.from_dict(data)
        except IsoformError:
            return None

    def count() -> int:
        assert opened is not None
        return sum(prod(weight.shape) for weight in opened.weights.values())

    return Origin(
        name=source.name,
        device=asked.device,
        dtype=form,
        inputs=input_names(folder),
        config=config,
        count=None if opened is None else count,
        again=source.again,
        save=lambda target: _save(source, target, folder, given, None if asked.dtype in (None, "auto") else form),
    )


def _save(source: Source, target: Path, folder: Path, given: Mapping[str, Any], dtype: str | None) -> None:
    """Write a model into the empty folder `target`, with the components that were given."""
    import shutil

    from isoform.runtimes.pipelines.components import FILES
    from isoform.runtimes.pipelines.origin import FLOATS

    if source.opened is not None:
        import torch

        source.opened.save(target, source.module, None if dtype is None else getattr(torch, FLOATS[dtype]))
    elif source.path.is_dir():
        shutil.copytree(source.path, target, dirs_exist_ok=True)
    else:
        raise InputError(f"{source.name} is a single graph; copy the file itself")
    for name in {file for component in given for file in FILES[component]}:
        if (target / name).is_file():
            (target / name).unlink()
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
