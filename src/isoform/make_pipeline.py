"""Makes a pipeline: finds the model, its task and its components, opens a session, and puts them together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError
from isoform.json_files import read_object
from isoform.open_candidate import Cached
from isoform.open_chosen import Opener, Wish
from isoform.progress import Progress
from isoform.sources import Kept, Source, default_model, find_source, for_task, own_task, task_of

if TYPE_CHECKING:
    from isoform.runtimes.choose.records import Candidate
    from isoform.runtimes.pipelines.arguments import Request
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.runtimes.pipelines.components import StagedFolder

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
    cached: Cached,
    quality: str | None = None,
    candidate: Candidate | None = None,
) -> Pipeline:
    """See `isoform.pipeline`. `request` reads the arguments of opening, given a count of GPUs.

    `parameters` are what is left for the pipeline, and `cached` gives the bundle of one form of a model. A `candidate`
    is what runs the model, whatever else might.
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
        served = pipelines.model_task(chosen, partial(own_task, source))
        source = for_task(source, served)
        _check_config(config, source, asked)
        facts = _facts(source, served)
        given = {name: value for name, value in components.items() if value is not None}
        folder = source.folder
        if given:
            staged = StagedFolder(folder)
            kept.things.append(staged)
            facts = {**facts, **_stage(staged, given, chosen, source.name, asked)}
            folder = staged.folder
        wish = Wish(
            task=chosen,
            served=served,
            asked=asked,
            backend=backend,
            quality=quality,
            threads=threads,
            several=(parameters.get("batch_size") or 1) != 1,
            candidate=candidate,
        )
        opened = Opener(source, wish, cached, progress, parameters.get("progress")).open()
        kept.things.append(source.opened)

        def beside(other: Any, tokenizer: Any, task: str = chosen) -> Pipeline:
            return make_pipeline(
                task,
                other,
                config=None,
                components={"tokenizer": tokenizer},
                backend=backend,
                threads=threads,
                progress=progress,
                request=request,
                parameters={},
                cached=cached,
                quality=quality,
            )

        origin = replace(_origin(source, asked, opened.dtype, facts, given, folder), beside=beside)
        pipe = pipelines.build_pipeline(
            chosen, opened.session, folder, facts=facts, served=served, keep=kept, origin=origin, **parameters
        )
        pipe.chosen = opened.choice
        if opened.spent is not None:
            opened.spent.follow(pipe)
            kept.things.append(opened.spent)
        return pipe
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

        source.opened.save(
            target, source.module, None if dtype is None or dtype not in FLOATS else getattr(torch, FLOATS[dtype])
        )
    elif source.path.is_dir():
        shutil.copytree(source.path, target, dirs_exist_ok=True)
    else:
        raise InputError(f"{source.name} is a single graph; copy the file itself")
    for name in {file for component in given for file in FILES[component]}:
        if (target / name).is_file():
            (target / name).unlink()
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
