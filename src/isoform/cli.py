"""The command line: arguments in, the API called, its answer shown. One line and exit code 2 for what is wrong.

Nothing heavy is imported before a command runs, so that `isoform --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from isoform.errors import InputError, IsoformError, ParityError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One model, every form, proven the same.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]


def _version(asked: bool) -> None:
    if asked:
        from isoform import __version__

        typer.echo(f"isoform {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One model, every form, proven the same."""


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, a .gguf file or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[
        list[str] | None, typer.Option(help="onnx, gguf, torchscript (several with commas, or repeated) or all.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task, when not the checkpoint's own.")] = None,
    dtype: Annotated[str, typer.Option(help="f32, f16 or bf16, of every format without types of its own.")] = "f32",
    onnx_type: Annotated[
        list[str] | None,
        typer.Option(help="ONNX: f32, int8, q4_0, f32-portable, …; several with commas, dtype when none."),
    ] = None,
    portable: Annotated[bool, typer.Option("--portable", help="ONNX: standard operators only.")] = False,
    weights: Annotated[str, typer.Option(help="ONNX: copy them, or link the checkpoint's own files.")] = "copy",
    gguf_type: Annotated[
        list[str] | None,
        typer.Option(help="llama.cpp's: f32, f16, q8_0, q4_k_m, …; several with commas, dtype when none."),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="GGUF: regex=type for the tensors whose names it is found in.")
    ] = None,
    split_max_size: Annotated[str | None, typer.Option(help="GGUF: shards of at most 500M, 2G, …")] = None,
    imatrix: Annotated[Path | None, typer.Option(help="GGUF: an importance matrix, llama.cpp's or ours.")] = None,
    pre: Annotated[str | None, typer.Option(help="GGUF: llama.cpp's pre-tokenizer, when not found out.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not compare the result with the source.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")] = False,
    json: Json = False,
) -> None:
    """Write a model as ONNX, GGUF and TorchScript, and check that each computes the same."""
    from isoform import api, show

    with show.progress() as progress:
        manifest, report = api.export_and_check(
            source,
            out,
            to=",".join(to or ["all"]),
            task=task,
            dtype=dtype,
            onnx_types=",".join(onnx_type or ()),
            portable=portable,
            weights=weights,
            gguf_types=",".join(gguf_type or ()),
            override=override or (),
            split_max_size=split_max_size,
            imatrix=imatrix,
            pre=pre,
            check=not no_check,
            overwrite=overwrite,
            revision=revision,
            progress=progress,
        )
    if json:
        show.json({**manifest.to_json(), "folder": str(out), "report": report and report.to_json()})
    else:
        show.manifest(manifest, out)
        if report is not None:
            show.report(report)
    if report is not None and not report.same:
        raise typer.Exit(1)


@app.command("import")
def import_gguf(
    source: Annotated[str, typer.Argument(help="A .gguf file.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    dtype: Annotated[str, typer.Option(help="f32, f16 or bf16, of the safetensors.")] = "f32",
    json: Json = False,
) -> None:
    """Rebuild a Hub checkpoint from a GGUF file, quantized or not."""
    from isoform import api, show

    with show.progress() as progress:
        written = api.import_gguf(source, out, dtype=dtype, progress=progress)
    show.json(written) if json else show.checkpoint(written)


@app.command()
def imatrix(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, a .gguf file or a Hub id.")],
    text: Annotated[Path, typer.Argument(help="A text file, like what the model will read.")],
    out: Annotated[Path, typer.Option(help="The .gguf file to write.")],
    context: Annotated[int, typer.Option(help="Tokens of a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(help="At most so many chunks; all when not said.")] = None,
    json: Json = False,
) -> None:
    """Measure an importance matrix, for `export --imatrix` and for llama.cpp."""
    from isoform import api, show

    with show.progress() as progress:
        made = api.imatrix(source, text, out, context=context, chunks=chunks, progress=progress)
    show.json(made) if json else show.facts(made)


@app.command()
def lora(
    adapter: Annotated[Path, typer.Argument(help="The folder of a PEFT adapter.")],
    base: Annotated[str, typer.Option(help="The model it is for: a checkpoint folder, a .gguf file or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The .gguf file to write.")],
    dtype: Annotated[str, typer.Option(help="f32, f16, bf16 or q8_0.")] = "f32",
    json: Json = False,
) -> None:
    """Write a LoRA adapter as GGUF, for llama.cpp's --lora."""
    from isoform import api, show

    made = api.lora(adapter, base, out, dtype=dtype)
    show.json(made) if json else show.facts(made)


@app.command()
def check(
    bundle: Annotated[
        Path | None, typer.Argument(help="A folder that `isoform export` wrote; none: what isoform.toml lists.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="The checkpoint, when it is not where it was.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit's XML there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown there, for a CI step's summary.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts there.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="A stored report: what got worse fails.")] = None,
    write_baseline: Annotated[Path | None, typer.Option(help="Store this report there.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for each bundle or cell: 90s, 10m, 1h.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory for all that runs at once: 500M, 4G.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time; the cores when not said.")] = None,
    config: Annotated[Path | None, typer.Option(help="An isoform.toml; the one here when not said.")] = None,
    cells: Annotated[Path | None, typer.Option(help="Keep the cells of a matrix and their reports there.")] = None,
    cell: Annotated[Path | None, typer.Option(help="Run one cell of a matrix, and nothing else.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Measure every module of float forms; --html does.")] = False,
    oracle: Annotated[bool, typer.Option(help="Ask transformers about the tokenizer, where installed.")] = True,
    text: Annotated[Path | None, typer.Option(help="Measure quantized forms on this text instead of our own.")] = None,
    json: Json = False,
) -> None:
    """Compare every form of a bundle with its source. Exit code 0: the same, 1: not the same, 2: wrong input."""
    from isoform import api, show

    with show.progress() as progress:
        report = api.check(
            bundle,
            against=against,
            baseline=baseline,
            write_baseline=write_baseline,
            budget=budget,
            memory=memory,
            jobs=jobs,
            config=config,
            cells=cells,
            cell=cell,
            oracle=oracle,
            layers=layers or html is not None,
            text=text,
            progress=progress,
            announce=lambda text: print(text, file=sys.stderr),
        )
    for kind, path in (("junit", junit), ("markdown", markdown), ("html", html)):
        if path is not None:
            api.write_report(report, kind, path)
    if json:
        show.json(report.to_json())
    else:
        show.report(report)
    if not report.same:
        raise typer.Exit(1)


@app.command("check-changed", hidden=True)
def check_changed(files: Annotated[list[str], typer.Argument(help="Files of bundles.")]) -> None:
    """Check the bundles that files belong to. For commit hooks: prints only what is not the same."""
    from isoform import api, show

    wrong = [(folder, report) for folder, report in api.check_changed(files) if not report.same]
    for folder, report in wrong:
        show.out.print(str(folder))
        show.report(report)
    if wrong:
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="PATH, PATH::BACKEND or PATH::BACKEND:TYPE; see b.")],
    b: Annotated[str, typer.Argument(help="A bundle, checkpoint folder, Hub id, .gguf, .onnx or .pt file.")],
    json: Json = False,
) -> None:
    """Put two artifacts or backends side by side. Exit code 0: the same within tolerance, 1: not, 2: wrong input."""
    from isoform import api, show

    with show.progress() as progress:
        found = api.compare(a, b, progress=progress)
    show.json(found.to_json()) if json else show.comparison(found)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="PATH, or PATH::FORMAT:TYPE for a form of a bundle; see b.")],
    b: Annotated[str, typer.Argument(help="A bundle, checkpoint folder, Hub id or file of weights.")],
    raw: Annotated[bool, typer.Option("--raw", help="The files' own names of tensors.")] = False,
    json: Json = False,
) -> None:
    """Say which tensors and metadata differ. Exit code 0: none, 1: some, 2: wrong input."""
    from isoform import api, show

    with show.progress() as progress:
        found = api.diff(a, b, raw=raw, progress=progress)
    show.json(found.to_json()) if json else show.diff(found)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of `check --json`."""
    from isoform import show
    from isoform.validators.report.formats import schema as published

    show.json(published())


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="text-generation, fill-mask, feature-extraction, sentence-similarity, …")],
    model: Annotated[str, typer.Argument(help="A bundle, checkpoint folder, Hub id, .gguf or .onnx file.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help='Texts, files, folders, patterns ("*.png"), .jsonl files, or - for a line of standard input each.'
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, torchscript, onnxruntime, openvino or llamacpp.")] = "auto",
    device: Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help="f32, bf16, int8, q4w, …: the form to run.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="exact, high (16-bit floats, 8 bits) or small (4 bits); the model's own.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Inputs that run together.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A parameter of the pipeline: max_new_tokens=20.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print generated text as it comes.")] = False,
    form: Annotated[str, typer.Option("--format", help="Of a transcript: text, srt or vtt.")] = "text",
    draw: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Draw the answer over its picture: a .png, .svg or .json (COCO).")
    ] = None,
    json: Json = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print a line of JSON for each answer, at once.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what runs the model, and why.")] = False,
) -> None:
    """Run a pipeline over texts, recordings or pictures. Exit code 2 when an input has no answer."""
    from isoform import api, run_inputs, show
    from isoform.runtimes.pipelines import WRITING, known

    if form != "text" and (json or jsonl or task != "automatic-speech-recognition" or len(inputs or []) != 1):
        raise InputError(f"--format {form} is for the speech of one recording, and without --json")
    if stream and (json or jsonl or known(task) not in WRITING):
        raise InputError(f"--stream shows text as it comes: for {', '.join(WRITING)}, and without --json")
    if json and jsonl:
        raise InputError("--json prints one document and --jsonl a line for each answer; pass one of them")
    kind, arguments = run_inputs.kind_of(task), list(inputs or ["-"])
    parameters = dict(_setting(text) for text in option or [])
    total = run_inputs.count_inputs(arguments, kind)
    if draw is not None:
        run_inputs.check_drawing(draw, task, total)
    with (
        show.progress() as progress,
        api.pipeline(
            task, model, backend=backend, device=device, dtype=dtype, quality=quality, progress=progress
        ) as pipe,
    ):
        if verbose:
            print(pipe.chosen, file=sys.stderr)
        if form != "text":
            text = api.subtitles(pipe, arguments[0], form, parameters, progress=progress)
            print(text)
            return
        items = run_inputs.read_inputs(arguments, kind, run_inputs.keywords_of(pipe), sys.stdin)
        first = next(items, None)
        if first is None:
            raise InputError("nothing to run on; give inputs as arguments or on standard input")
        several, items = total != 1, chain([first], items)
        if stream:
            parameters["streamer"] = lambda text: print(text, end="", flush=True)
            batch_size = 1
        told = None if stream else progress
        answers = run_inputs.run(pipe, items, kind, parameters, batch_size=batch_size, total=total, progress=told)
        if draw is not None:
            answers = run_inputs.drawn(answers, draw, task, pipe, parameters)
        how: run_inputs.Manner = "stream" if stream else "jsonl" if jsonl else "json" if json else "text"
        good = run_inputs.show_answers(answers, how, several=several, complain=_fail)
    if not good:
        raise typer.Exit(2)


def _setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value read as JSON where it is JSON and as text elsewhere."""
    from json import loads

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--set takes name=value, not {text!r}")
    try:
        return name, loads(value)
    except ValueError:
        return name, value


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A bundle, checkpoint folder, Hub id or .gguf file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Generation settings: temperature=0.2 max_new_tokens=100 …")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, torchscript, onnxruntime, openvino or llamacpp.")] = "auto",
    device: Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help="f32, bf16, int8, q4w, …: the form to run.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="exact, high (16-bit floats, 8 bits) or small (4 bits); the model's own.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores when not said.")] = None,
    tools: Annotated[Path | None, typer.Option(help="A JSON file: a list of tools for the chat template.")] = None,
    documents: Annotated[Path | None, typer.Option(help="A JSON file: a list of documents for it.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="A file, or the name of one of the model's.")] = None,
    save_folder: Annotated[Path, typer.Option(help="Where !save writes and !load reads.")] = Path("chat_history"),
    once: Annotated[str | None, typer.Option(help="Answer this message and leave.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one answer with its figures as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what runs the model, and why.")] = False,
) -> None:
    """Talk with a model in the terminal. What is piped in is one message, and the answer is printed."""
    from isoform.chat.start import chat as start

    start(
        model,
        settings or [],
        system=system,
        tools=tools,
        documents=documents,
        template=chat_template,
        save_folder=save_folder,
        once=once,
        as_json=json,
        verbose=verbose,
        opening={"backend": backend, "device": device, "dtype": dtype, "quality": quality, "threads": threads},
    )


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="A bundle, checkpoint folder, Hub id or .gguf file.")],
    task: Annotated[str | None, typer.Option(help="The task, when not the model's own.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="exact, high (16-bit floats, 8 bits) or small (4 bits); the model's own.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Measure only these: several with commas, or repeated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of every candidate; all cores when not said.")] = None,
    seconds: Annotated[float, typer.Option(help="For all candidates together.")] = 300.0,
    why: Annotated[bool, typer.Option("--why", help="Say what is chosen and why, and why not the others.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure even where measurements are kept.")] = False,
    json: Json = False,
    png: Annotated[Path | None, typer.Option(help="Draw bars there, with the machine's limits.")] = None,
) -> None:
    """Measure what runs a model fastest here, as a share of what the machine can do."""
    from isoform import api, bench_chart, show, show_bench

    if why and json:
        raise InputError("--why prints sentences and --json prints everything; pass one of them")
    if png is not None:
        bench_chart.check_chart(png)
    names = [name for text in backend or () for name in text.split(",")]
    with show.progress() as progress:
        report = api.bench_model(
            model,
            task,
            quality=quality,
            backends=names or None,
            threads=threads,
            seconds=seconds,
            again=again,
            whole=not why,
            progress=progress,
        )
    if png is not None:
        bench_chart.draw(report, png)
    if json:
        show.json(report.to_json())
    elif why:
        show_bench.why(report)
    else:
        show_bench.bench(report)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint, bundle, .gguf or .onnx.")], json: Json = False
) -> None:
    """Show what a checkpoint, bundle, GGUF or ONNX file holds, without loading its weights."""
    from isoform import show, show_inspection
    from isoform.validators.tools.inspection import inspect as look

    facts = look(path)
    show.json(facts) if json else show_inspection.inspection(facts)


@app.command()
def forecast(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, a .gguf file or a Hub id.")],
    task: Annotated[str | None, typer.Option(help="The task, when not the checkpoint's own.")] = None,
    json: Json = False,
) -> None:
    """Measure a model's activations: does float16 hold them? Exit code 1 when it does not."""
    from isoform import api, show

    found = api.forecast(source, task)
    show.json(found.to_json()) if json else show.forecast(found)
    if found.overflows:
        raise typer.Exit(1)


@app.command()
def backends(json: Json = False) -> None:
    """List what this machine can run, and what to install for the rest."""
    from dataclasses import asdict

    from isoform import show
    from isoform.runtimes.open import available

    found = [asdict(state) for state in available()]
    show.json(found) if json else show.backends(found)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine has, and what would be faster or is missing."""
    from isoform import show, show_inspection
    from isoform.doctor import examine

    found = examine()
    show.json(found) if json else show_inspection.doctor(found)


@app.command()
def models(json: Json = False) -> None:
    """List the families, and for each the tasks and formats."""
    from isoform import show, show_inspection, support

    show.json(support.rows()) if json else show_inspection.models(support.families())


@app.command()
def demo(json: Json = False) -> None:
    """Take the packaged MiniLM through every room: export, check, and embed sentences on every backend."""
    from isoform import show
    from isoform.demo import run as run_demo

    result = run_demo(show.progress)
    show.json(result.to_json()) if json else show.demo(result)
    if not result.report.same:
        raise typer.Exit(1)


def main() -> None:
    """Run the command; what a user can get wrong, or stop, ends in one line and exit code 2."""
    from typer.exceptions import TyperException

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its warnings of retries: the error says what went wrong
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    stopped = "stopped; nothing half-written is left"
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # what typer makes of Ctrl-C
            code = _fail(stopped, 2)
    except TyperException as error:
        message = error.format_message()  # empty when it has shown the help
        code = _fail(f"{message} Try isoform --help.", 2) if message else 2
    except ParityError as error:
        code = _fail(error, 1)
    except IsoformError as error:
        code = _fail(error, 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(stopped, 2)
    except (BrokenPipeError, SystemExit) as error:  # typer and rich make SystemExit(1) of a broken pipe
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing is left to flush
        code = 141  # what a shell gives a program that SIGPIPE ended
    except OSError as error:
        code = _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    sys.exit(code)


def _fail(message: object, code: int = 2) -> int:
    print(f"isoform: {' '.join(str(message).split())}", file=sys.stderr)
    return code
