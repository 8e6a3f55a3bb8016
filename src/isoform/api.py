"""The public API: it opens, calls the rooms in order, and holds no logic of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.formats import FORMATS
from isoform.progress import Progress

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from isoform.bench_report import BenchReport
    from isoform.exporters import gguf, onnx, torchscript
    from isoform.manifest import Manifest
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.validators.check.settings import Settings
    from isoform.validators.report.records import Report
    from isoform.validators.tools.compare import Comparison
    from isoform.validators.tools.diff import Diff
    from isoform.validators.tools.forecast import Forecast

DTYPES = ("f32", "f16", "bf16")


def load(
    source: str | Path,
    *,
    task: str | None = None,
    dtype: str | torch.dtype = "f32",
    device: str = "cpu",
    **hub: Any,
) -> nn.Module:
    """The torch module of a checkpoint folder, Hub id or `.gguf` file, ready to use.

    `dtype` is "f32", "f16", "bf16" or a floating torch dtype, `device` "cpu", "cuda" or "cuda:N"; `hub` holds revision,
    token, cache_dir and offline.
    """
    from isoform.reference.model import open_model, remember
    from isoform.runtimes.backends.torch.session import torch_device

    if isinstance(dtype, str):
        dtype = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(dtype, dtype)  # torch's names
        _one_of("dtype", dtype, DTYPES)
        dtype = _torch_dtype(dtype)
    elif not dtype.is_floating_point:
        raise InputError(f"dtype {dtype} is not floating; choose from {', '.join(DTYPES)}, or a floating torch dtype")
    place = torch_device(device)
    model = open_model(source, task, **hub)
    module = model.module(dtype, place)
    remember(module, model)
    return module


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]


def export(source: str | Path, out: str | Path, **options: Any) -> Manifest:
    """Write a bundle and check it; raises ParityError when a form differs. Options as in `export_and_check`."""
    from isoform.errors import ParityError

    manifest, report = export_and_check(source, out, **options)
    if report is not None and not report.same:
        raise ParityError(f"{out}: not the same as {source}; `isoform check {out}` shows where", report)
    return manifest


def export_and_check(
    source: str | Path,
    out: str | Path,
    *,
    to: str | Sequence[str] = "all",
    task: str | None = None,
    dtype: str = "f32",
    onnx_types: str | Sequence[str] = (),
    portable: bool = False,
    weights: str = "copy",
    gguf_types: str | Sequence[str] = (),
    override: Sequence[str] = (),
    split_max_size: str | None = None,
    imatrix: str | Path | None = None,
    pre: str | None = None,
    gguf: gguf.Options | None = None,
    onnx: onnx.Options | None = None,
    torchscript: torchscript.Options | None = None,
    check: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    **hub: Any,
) -> tuple[Manifest, Report | None]:
    """Write every asked form of a model into the folder `out`, whole or not at all, and compare each with the source.

    `to` is "all" (what cannot be written is said in the manifest) or formats out of `FORMATS`; `dtype` is that of every
    format whose own types are not given. `onnx_types` are several for ONNX ("f32", "q4_0", "int8", …; "f32-portable" of
    standard operators beside the fused "f32"), `portable` keeps all of them to standard operators, and with `weights`
    "link" they read the checkpoint's own files, linked into the bundle. `gguf_types` are llama-quantize's names ("f16",
    "q4_k_m", …), and the four after it, for GGUF as well: "regex=type" for single tensors, the size of a shard ("2G"),
    an importance matrix, llama.cpp's pre-tokenizer. `gguf`, `onnx` and `torchscript` are the same as objects, each in
    the place of the names of its format.

    The check also opens the pipelines of the model's task and asks each one thing; `about["serves"]` of the report and
    the manifest say which answer, and why the others do not.
    """
    from isoform.exporters import bundle
    from isoform.reference.model import open_model

    formats = _several("--to", to, (*FORMATS, "all"))
    _one_of("--weights", weights, ("copy", "link"))
    _one_of("dtype", dtype, DTYPES)
    kinds, names = _types(gguf_types), _types(onnx_types)
    loose: dict[str, dict[str, Any]] = {
        "gguf": {
            "types": kinds or (dtype,),
            "overrides": tuple(override),
            "split_max_size": split_max_size,
            "imatrix": None if imatrix is None else Path(imatrix).expanduser(),
            "pre": pre,
        },
        "onnx": {
            "types": names or (dtype,),
            "portable": portable,
            "link": weights == "link",
        },
        "torchscript": {"dtype": dtype},
    }
    given: dict[str, Any] = {"gguf": gguf, "onnx": onnx, "torchscript": torchscript}
    options = {name: _options(bundle.FORMATS[name].options, given[name], loose[name], dtype) for name in FORMATS}
    for name in FORMATS:
        if not {name, "all"} & {*formats}:
            _check_unused(name, bundle.FORMATS[name].options, given[name], loose[name], dtype)
        bundle.FORMATS[name].check_request(options[name])
    folder = Path(out).expanduser()
    bundle.check_target(folder, overwrite)
    model = open_model(source, task, **hub)
    narrow = check and set(formats) & {"onnx", "all"} and "f16" in " ".join(options["onnx"].types)
    warning = _overflow(model, progress) if narrow else ""
    manifest = bundle.export(
        model,
        formats,
        folder,
        **options,
        progress=progress,
        overwrite=overwrite,
        hash_source=check or options["onnx"].link,
    )
    if not check:
        return manifest, None
    from isoform.validators.check.bundle import check_bundle

    report = check_bundle(folder, model, progress=progress)
    report.about["serves"] = _served(folder, progress)
    if warning:
        report.about["float16"] = warning
    return type(manifest).read(folder), report


def _served(folder: Path, progress: Progress | None) -> dict[str, str]:
    """What pipelines the bundle serves, and why not the others."""
    from isoform.validators.check.serving import served

    if progress is not None:
        progress("open its pipelines", 0, 0)
    return served(folder)


def _check_unused(name: str, kind: type, given: Any, loose: Mapping[str, Any], dtype: str) -> None:
    """Raise InputError for an option of a format that is not written."""
    spelled = {"types": f"--{name}-type", "overrides": "--override", "link": "--weights link"}
    set_ = [key for key, value in loose.items() if value not in (getattr(kind(), key), dtype, (dtype,))]
    if given is not None or set_:
        option = f"{name}=" if given is not None else spelled.get(set_[0], f"--{set_[0].replace('_', '-')}")
        raise InputError(f"{option} is for {name}, which --to does not name; add {name} to --to, or leave it out")


def _options(kind: type, given: Any, loose: Mapping[str, Any], dtype: str) -> Any:
    """The options of a format: `given` as an object, or `loose` by name. Raises InputError for both.

    What only follows from `dtype` does not count as given.
    """
    named = kind(**loose)
    if given is None:
        return named
    implied = (dtype, (dtype,))
    if both := [name for name, value in loose.items() if value != getattr(kind(), name) and value not in implied]:
        raise InputError(f"{both[0]} of {kind.__module__.split('.')[2]} is given twice; give it in the object alone")
    return given


def _types(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of types, with commas or as a list; none where the dtype decides."""
    return tuple(name for name in (given.split(",") if isinstance(given, str) else given) if name)


def _overflow(model: Any, progress: Progress | None) -> str:
    """What float16 does not hold of the model, or holds only just."""
    from isoform.validators.tools.forecast import float16

    if progress is not None:
        progress("float16 forecast", 0, 0)
    found = float16(model)
    return str(found) if found.overflows or found.near else ""


def import_gguf(
    source: str | Path, out: str | Path, *, dtype: str = "f32", progress: Progress | None = None
) -> dict[str, Any]:
    """Rebuild a Hub checkpoint from a `.gguf` file in the new folder `out`, whole or not at all.

    The folder holds config.json, safetensors in `dtype` ("f32", "f16" or "bf16"), the tokenizer and its chat template;
    the tensors are read back and compared before it gets its name.
    Returns what was written: folder, family, task, dtype, parameters, files (path and size).
    """
    from math import prod

    from isoform.reference.model import open_model

    _one_of("dtype", dtype, DTYPES)
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix != ".gguf":
        raise InputError(f"{source} is no .gguf file; `isoform export` takes checkpoints and Hub ids")
    if not path.is_file():
        raise InputError(f"{source} is not there; give the path of a .gguf file")
    model, folder = open_model(path), Path(out).expanduser()
    model.save(folder, dtype=_torch_dtype(dtype), verify=True, progress=progress)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        "folder": str(folder),
        "family": model.family.name,
        "task": model.task.name,
        "dtype": dtype,
        "parameters": sum(prod(weight.shape) for weight in model.weights.values()),
        "files": [{"path": file.relative_to(folder).as_posix(), "size": file.stat().st_size} for file in files],
    }


def imatrix(
    source: str | Path,
    text: str | Path,
    out: str | Path,
    *,
    context: int = 512,
    chunks: int | None = None,
    progress: Progress | None = None,
    **hub: Any,
) -> dict[str, Any]:
    """Measure over a text file how much each column of a model's weights matters, and write llama.cpp's `out`.

    The text is cut into chunks of `context` tokens, of which at most `chunks` are run through the reference.
    Returns what was measured: file, tensors, chunks, context.
    """
    from isoform.exporters.gguf.imatrix import make_importance
    from isoform.reference.classes import class_facts
    from isoform.reference.model import open_model
    from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

    model = open_model(source, **hub)
    tokenizer = TextTokenizer(model.checkpoint.folder, class_facts(model.checkpoint.folder))
    made = make_importance(
        model,
        lambda content, special: tokenizer.encode([content], add_special_tokens=special)[0].ids,
        Path(text).expanduser(),
        Path(out),
        context=context,
        limit=chunks,
        progress=progress,
    )
    return {"file": str(out), "tensors": len(made.values), "chunks": made.chunks, "context": context}


def lora(adapter: str | Path, base: str | Path, out: str | Path, *, dtype: str = "f32", **hub: Any) -> dict[str, Any]:
    """Write a PEFT adapter (a folder), made for the model `base`, as llama.cpp's GGUF adapter `out`.

    `dtype` is f32, f16, bf16 or q8_0. Returns what was written: file, weights, dtype.
    """
    from isoform.exporters.gguf.lora import write_adapter
    from isoform.reference.model import open_model

    weights = write_adapter(open_model(base, **hub), Path(adapter).expanduser(), Path(out), dtype)
    return {"file": str(out), "weights": weights, "dtype": dtype}


def check(
    bundle: str | Path | None = None,
    against: str | Path | None = None,
    *,
    baseline: str | Path | None = None,
    write_baseline: str | Path | None = None,
    budget: str | None = None,
    memory: str | None = None,
    jobs: int | None = None,
    config: str | Path | None = None,
    cells: str | Path | None = None,
    cell: str | Path | None = None,
    oracle: bool = False,
    layers: bool = False,
    text: str | Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Report:
    """Compare every form of a bundle with its source, or with `against`; the manifest keeps the result.

    Without a bundle, what `config` (or isoform.toml in the working directory) lists is checked, each cell of its matrix
    in a process of its own. `baseline` is a stored report to compare with, `write_baseline` where to store this one.
    `budget` ("10m") bounds the time of a bundle or cell, `memory` ("4G") that of all at once, `jobs` their number.
    `cells` keeps the matrix's files, `cell` runs one of them. With `oracle`, transformers is asked about the tokenizer
    if it is installed. `layers` measures how far off every module of the bundle's float forms is. `text` is a file that
    the quantized forms of the bundle are measured on instead of our own text. `announce` is told the estimated cost.
    """
    from isoform.validators.cases.prose import read_text
    from isoform.validators.check import matrix, settings
    from isoform.validators.check.baseline import compare_with_baseline
    from isoform.validators.check.bundle import Limits, check_bundle
    from isoform.validators.report import formats as reports

    chosen = _check_settings(config, here=bundle is None and cell is None)
    stored = baseline or (None if write_baseline else chosen.baseline)
    before = None if stored is None else reports.read(Path(stored))
    seconds = chosen.seconds if budget is None else settings.duration(budget)
    most = chosen.bytes if memory is None else settings.size(memory)
    say = announce or (lambda text: None)
    if cell is not None:
        report = matrix.run_cell(Path(cell))
    elif bundle is not None:
        limits = Limits(
            seconds=seconds,
            bytes=most,
            tolerances=chosen.tolerances,
            oracle=oracle,
            layers=layers,
            text="" if text is None else read_text(Path(text).expanduser()),
            announce=say,
        )
        report = check_bundle(Path(bundle), against, progress=progress, limits=limits)
        report.about["serves"] = _served(Path(bundle), progress)
    else:
        made, left_out = matrix.make_cells(replace(chosen, seconds=seconds))
        count = f"{len(made)} cell{'' if len(made) == 1 else 's'}"
        say(f"{count}, up to {max(one.bytes for one in made) / 1e9:.1f} GB of memory each")
        folder = None if cells is None else Path(cells)
        report = matrix.run_cells(made, jobs=jobs or chosen.jobs, memory=most, folder=folder, progress=progress)
        report.skipped += left_out
        report.about = {"config": str(config or settings.NAME)}
    if before is not None:
        report.add(compare_with_baseline(report, before))
    if write_baseline is not None:
        reports.save(replace(report, evidence=[]), "json", Path(write_baseline))
    return report


def check_changed(files: Sequence[str | Path]) -> list[tuple[Path, Report]]:
    """Check every bundle that one of the files is part of, and leave its manifest as it is: for commit hooks."""
    from isoform.manifest import NAME
    from isoform.validators.check.bundle import Limits, check_bundle

    folders = (parent for file in files for parent in list(Path(file).parents)[:3] if (parent / NAME).is_file())
    return [(folder, check_bundle(folder, limits=Limits(keep=False))) for folder in dict.fromkeys(folders)]


def _check_settings(config: str | Path | None, *, here: bool) -> Settings:
    """What `config` says, or the isoform.toml in the working directory (`here`)."""
    from isoform.validators.check.settings import NAME, Settings, read_settings

    if config is None and not here:
        return Settings()
    return read_settings(Path(config or NAME))


def compare(a: str, b: str, *, progress: Progress | None = None) -> Comparison:
    """Two artifacts or backends on the same inputs; each is "PATH", "PATH::BACKEND" or "PATH::BACKEND:TYPE"."""
    from isoform.validators.tools import compare as comparing

    return comparing.compare(a, b, progress=progress)


def diff(a: str, b: str, *, raw: bool = False, progress: Progress | None = None) -> Diff:
    """The tensors and metadata in which two checkpoints or artifacts differ; `raw` keeps the files' own names."""
    from isoform.validators.tools import diff as differing

    return differing.diff(a, b, raw=raw, progress=progress)


def write_report(report: Report, kind: str, path: str | Path) -> None:
    """Write a report as "html", "json", "junit" or "markdown"."""
    from isoform.validators.report import formats as reports

    _one_of("kind", kind, tuple(reports.KINDS))
    reports.save(report, kind, Path(path))


def forecast(source: str | Path, task: str | None = None, **hub: Any) -> Forecast:
    """The largest activations of a model, and whether half precision holds them: before an export to f16."""
    from isoform.reference.model import open_model
    from isoform.validators.tools.forecast import float16

    return float16(open_model(source, task, **hub))


def pipeline(
    task: str | None = None,
    model: str | PathLike[str] | nn.Module | None = None,
    config: str | PathLike[str] | Mapping[str, Any] | object | None = None,
    tokenizer: str | PathLike[str] | object | None = None,
    feature_extractor: str | PathLike[str] | object | None = None,
    image_processor: str | PathLike[str] | object | None = None,
    video_processor: None = None,
    processor: str | PathLike[str] | object | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: str | int | Mapping[str, Any] | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pipeline_class: None = None,
    *,
    framework: str | None = None,
    backend: str = "auto",
    quality: str | None = None,
    threads: int | None = None,
    progress: bool | Progress | None = None,
    **parameters: Any,
) -> Pipeline:
    """A pipeline over a bundle, a checkpoint folder, a Hub id, a `.gguf` or `.onnx` file, or a torch module.

    The arguments are those of transformers' `pipeline()`, in its order. What has no meaning here is accepted where it
    changes no answer, and refused by name where it would.

    * `task`: a name or an alias ("ner", "sentiment-analysis"). Without one, the model says it: the bundle's
      manifest, the checkpoint's architecture or modules.json, or the Hub's pipeline_tag.
    * `model`: without one, transformers' default checkpoint of the task. A module is one that `isoform.load` gave,
      and runs as it is; a model object of transformers is saved into a temporary folder first.
    * `tokenizer`, `feature_extractor`, `image_processor`, `processor`: a folder, a Hub id, an object of
      transformers, or the attribute of another pipeline, instead of the model's own.
    * `config`: accepted where it says the same as the model's config.json.
    * `device`: "cpu" unless given; a number is a GPU, or the CPU where there is none at all. device_map: one
      device, or "auto" (a GPU where there is one).
    * `dtype`: what runs whatever was measured: a float dtype, the name of a form ("int8", "q4w"), or "auto", the stored
      one, which transformers takes unless told otherwise. A bundle has the form of that dtype, or it is an error.
      Without one, the quality decides.
    * `quality`: how close to float32 the answers are. "exact" is float32; "high" admits 16-bit floats and 8-bit
      integers as well, "small" also 4 bits, and "auto" chooses nothing whose cost is not known to be within the
      budget of its quality. Without it: "high" for a model that is stored in 16 bits, "exact" for others.
    * `backend`: "auto" or one of torch, torchscript, onnxruntime, openvino, llamacpp; a checkpoint is exported into
      isoform's cache first when the backend needs a form of it. "auto" is the fastest that was measured on this machine
      (below), and torch or the bundle's first form until then. `threads`: of the session, all cores by default.
    * `revision`, `token`, `cache_dir`, `offline` (or `local_files_only`): for Hub ids.
    * `progress`: True for a bar on the terminal, False for none, or a function; a terminal shows one after two
      seconds.
    * `parameters`: batch_size, on_error, and what else holds for every call (max_new_tokens, top_k, …).

    `pipe.chosen` says what runs the model and why. A device, a dtype or a backend that is asked for is what runs. Of
    others, the candidates (backend, form, precision, threads) that the quality admits are measured, each in a process
    of its own, for up to a minute: when `isoform bench` is run, or when a pipeline is made of a model that has spent
    30 s in calls so far. Measurements are kept in the user's cache folder, for one model, task, quality, machine and
    set of versions. ISOFORM_MEASURE=never measures nothing, =always measures when nothing is kept.
    """
    from isoform.export_cache import cached_form
    from isoform.make_pipeline import make_pipeline
    from isoform.runtimes.open import BACKENDS
    from isoform.runtimes.pipelines.arguments import read_request

    if backend != "auto":
        _one_of("backend", backend, BACKENDS)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r:.40} is not a whole number of at least 1; leave it out for all cores")
    if progress not in (None, True, False) and not callable(progress):
        raise InputError(f"progress={progress!r:.40} is neither True, False nor a function of what, done and total")
    if video_processor is not None:
        raise InputError("video_processor= is for tasks that isoform does not have yet; leave it out")
    parameters["progress"] = progress
    return make_pipeline(
        task,
        model,
        config=config,
        components={
            "processor": processor,
            "tokenizer": tokenizer,
            "feature_extractor": feature_extractor,
            "image_processor": image_processor,
        },
        backend=backend,
        threads=threads,
        progress=progress if callable(progress) else None,
        request=lambda gpus: read_request(
            device=device,
            device_map=device_map,
            dtype=dtype,
            revision=revision,
            token=token,
            framework=framework,
            use_fast=use_fast,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
            pipeline_class=pipeline_class,
            gpus=gpus,
            loose=parameters,
        ),
        parameters=parameters,
        cached=cached_form,
        quality=quality,
    )


def run(
    pipe: Pipeline, inputs: Sequence[str], parameters: dict[str, Any], *, progress: Progress | None = None
) -> list[Any]:
    """The answers of a pipeline, one per input. `progress` is told how much of a recording has been heard."""
    if hasattr(pipe, "progress"):
        pipe.progress = progress
    if len(inputs) == 1:  # some of transformers' pipelines, and so ours, answer a list of one like its only item
        return [pipe(inputs[0], **parameters)]
    return list(pipe(list(inputs), **parameters))


def draw(task: str, picture: Any, answer: Any) -> Image:
    """An answer of `pipeline(task, …)(picture)` over its picture: boxes, masks, keypoints, matches, depths, poses.

    `picture` is what the pipeline was called with: a path, an address, bytes or a PIL picture, a pair of them for
    keypoint-matching, {"image", "word_boxes"} for document-question-answering. Returns a PIL picture (RGB), which is
    larger than a small one that was given, so that what is written on it can be read. InputError for a task that draws
    nothing, and for an answer that has not its form.
    """
    from isoform.drawing.raster import raster
    from isoform.drawing.scenes import check_task, scene
    from isoform.drawn_inputs import subject_of

    check_task(task)
    return raster(scene(task, subject_of(task, picture), answer))


def subtitles(
    pipe: Pipeline, recording: str, form: str, parameters: dict[str, Any], *, progress: Progress | None = None
) -> str:
    """The transcript of a recording as a subtitle file: `form` is "srt" or "vtt".

    `parameters` are those of speech recognition; times are asked for where they do not say which.
    """
    from isoform.runtimes.pipelines.audio import subtitles as writer
    from isoform.runtimes.pipelines.audio.automatic_speech_recognition import AutomaticSpeechRecognition
    from isoform.runtimes.preprocess.audio.recordings import duration

    _one_of("--format", form, (*writer.FORMATS, "text"))
    if not isinstance(pipe, AutomaticSpeechRecognition):
        raise InputError(f"{pipe.task} makes no transcript; subtitles are for automatic-speech-recognition")
    asked = {"return_timestamps": pipe.timestamps, **parameters}
    (answer,) = run(pipe, [recording], asked, progress=progress)
    words = asked["return_timestamps"] == "word"
    return writer.subtitles(answer, form, words=words, end=duration(recording, 1))  # type: ignore[arg-type]


def bench(pipe: Pipeline, inputs: Sequence[Any], *, seconds: float = 2.0) -> float:
    """Inputs per second of wall time, over whole passes after one to warm up."""
    from time import perf_counter

    pipe(list(inputs))
    passes, start = 0, perf_counter()
    while (spent := perf_counter() - start) < seconds or passes == 0:
        pipe(list(inputs))
        passes += 1
    return passes * len(inputs) / (perf_counter() - start if passes else spent)


def bench_model(
    source: str | Path,
    task: str | None = None,
    *,
    quality: str | None = None,
    backends: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = 300.0,
    again: bool = False,
    whole: bool = True,
    progress: Progress | None = None,
) -> BenchReport:
    """The candidates for a model on this machine (backend, form, precision, threads), their speeds and the choice.

    `source` and `task` are those of `pipeline`, and so is `quality`. Measured are all that the quality admits, or those
    of some `backends`, each in a process of its own, for `seconds` in all. What was measured before is read from the
    user's cache folder, unless `again`, or where workloads that a choice does not need are missing and `whole` is set.
    """
    from isoform.benching import bench_model as measured

    return measured(
        str(source),
        task,
        quality=quality,
        backends=backends,
        threads=threads,
        seconds=seconds,
        again=again,
        whole=whole,
        progress=progress,
    )


def _several(name: str, value: str | Sequence[str], known: Sequence[str]) -> list[str]:
    values = value.split(",") if isinstance(value, str) else list(value)
    for one in values:
        _one_of(name, one, known)
    return values


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name} {value!r} is not known; choose from {', '.join(known)}")
