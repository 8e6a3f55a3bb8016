"""Encoder-decoders here and elsewhere: the shapes of t5-base and of bart-large-cnn with random weights.

    python -m benchmarks.seq2seq [--models t5-base,bart-large-cnn] [--threads 1,2] [--rounds 3] [--quality exact,high]
                                 [--forms BACKEND:DTYPE,…] [--folder DIR] [--install] [--write]

t5-base         8 texts of 24 to 128 tokens, 64 new tokens each, greedily: a batch of translations
bart-large-cnn  one text of 512 tokens, 64 new tokens from 4 beams: a summary

Costs are CPU seconds for one thread and wall seconds for more. Ratios are those of the best form of isoform at a
quality to each peer: transformers' generate, CTranslate2, Optimum. --write keeps the table in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.engines import admits_quality, quality_of_form
from benchmarks.harness import CONTESTANTS, Contestant, Outcome, apart, brief, compete, installed, ours, peer, prepare
from benchmarks.harness import ratio as faster
from benchmarks.machine import conditions, machine
from benchmarks.peers import Engine
from benchmarks.tables import RESULTS

FORMS = ("onnxruntime:f32", "onnxruntime:int8", "onnxruntime:q8_0", "torch:f32", "torch:bf16", "torch:int8")
PACKAGES = ("isoform", "torch", "onnxruntime-gpu", "onnxruntime", "transformers")
ENVIRONMENTS = ("ctranslate2", "optimum")
WORK = {"t5-base": ((24, 40, 56, 64, 80, 96, 112, 128), 1, 64), "bart-large-cnn": ((512,), 4, 64)}
"""Model -> the lengths of the texts, beams, new tokens."""
AIMS = {"transformers": 2.0, "CTranslate2, float32": 1.0, "CTranslate2, int8": 0.9, "Optimum": 1.5}
SPECIAL = {"t5-base": ("<pad>", "</s>", "<unk>"), "bart-large-cnn": ("<s>", "<pad>", "</s>", "<unk>")}


def checkpoint(name: str, folder: Path) -> Path:
    """Write the checkpoint with its tokenizer of invented words, unless it is there."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = folder / name
    if (path / "tokenizer_config.json").is_file():
        return path
    torch.manual_seed(0)
    if name == "t5-base":
        sizes = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
        config: Any = transformers.T5Config(**sizes, decoder_start_token_id=0)
        model: Any = transformers.T5ForConditionalGeneration(config)
    else:
        # As the Hub's config.json has them, and CTranslate2 reads them.
        norms = {"normalize_before": False, "normalize_embedding": True, "add_final_layer_norm": False}
        config = transformers.BartConfig(vocab_size=50264, forced_eos_token_id=None, **norms)
        model = transformers.BartForConditionalGeneration(config)
    model.save_pretrained(path)
    words = [*SPECIAL[name], *(f"word{n}" for n in range(config.vocab_size - len(SPECIAL[name])))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    if "<s>" in words:
        named["bos_token"] = "<s>"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024, **named}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def texts(name: str, folder: Path) -> Path:
    """The ids of its texts, random words with an end."""
    import random

    made, end = folder / f"{name}-texts.json", SPECIAL[name].index("</s>")
    if not made.exists():
        draw = random.Random(0)
        ids = [[*(draw.randrange(10, 30000) for _ in range(length - 1)), end] for length in WORK[name][0]]
        made.write_text(json.dumps(ids), encoding="utf-8")
    return made


def peers(source: Path, folder: Path, work: str, qualities: set[str], install: bool) -> Iterator[Engine]:
    if installed("transformers"):
        for kind, quality in (("float32", "exact"), ("bfloat16", "high")):
            if quality in qualities:
                command = ours("sequences_transformers", work, source, kind)
                yield Engine(Contestant(f"transformers, {kind}", command, {"PYTHONPATH": ""}), "peer", quality)
    if python := peer("ctranslate2", install):
        for kind, quality in (("float32", "exact"), ("int8", "high")):
            if quality in qualities and (made := models.ctranslate2(source, folder, kind)):
                yield _peer(f"CTranslate2, {kind}", quality, python, "sequences_ctranslate2", work, made, kind)
    if "exact" in qualities and (python := peer("optimum", install)):
        made = folder / f"{source.name}-optimum"
        export = (Path(python).with_name("optimum-cli"), "export", "onnx", "--model", source)
        if prepare(made, *export, "--task", "text2text-generation-with-past", "--no-post-process", made):
            yield _peer("Optimum", "exact", python, "sequences_transformers", work, made, "onnx")


def _peer(name: str, quality: str, python: str, script: str, *arguments: object) -> Engine:
    command = (python, str(CONTESTANTS / f"{script}.py"), *map(str, arguments))
    return Engine(Contestant(name, command, {"PYTHONPATH": ""}), "peer", quality)


def race(name: str, threads: int, asked: argparse.Namespace, folder: Path) -> list[list[str]]:
    """The rows of one model on so many threads."""
    source: Path = apart(checkpoint, name, folder)
    _, beams, new = WORK[name]
    work = f"{threads}:{beams}:{new}:{texts(name, folder)}"
    forms = asked.forms.split(",")
    engines = []
    if made := models.bundle(source, folder, forms):
        for form in forms:
            command = ours("sequences_isoform", work, made, form)
            engines.append(Engine(Contestant(f"isoform, {form}", command), "form", quality_of_form(form)))
    qualities = asked.quality.split(",")
    reached = {"exact", *qualities}
    engines = [engine for engine in engines if engine.quality in reached]
    engines += peers(source, folder, work, reached, asked.install)
    found = {one.name: one for one in compete([engine.contestant for engine in engines], asked.rounds, threads)}
    part = "tokens" if threads == 1 else "wall"
    rows = []
    for engine in engines:
        if engine.name in found:
            mine = found[engine.name]
            best = _best(engines, found, engine.quality, part)
            against = f"{faster(best, mine, part):.2f}" if engine.kind == "peer" and best else ""
            aim = next((f"{AIMS[aim]:.1f}" for aim in AIMS if mine.name.startswith(aim)), "") if against else ""
            rate = f"{brief(mine.rate(part))} ({mine.spread(part):.2f})"
            beaten = best.name.removeprefix("isoform, ") if against and best else ""
            rows.append([name, str(threads), engine.quality, mine.name, rate, against, beaten, aim])
            print(" | ".join(rows[-1]), flush=True)
    return rows


def _best(engines: Sequence[Engine], found: dict[str, Outcome], quality: str, part: str) -> Outcome | None:
    """The fastest of isoform's forms that a quality admits."""
    mine = [engine for engine in engines if engine.kind == "form" and admits_quality(quality, engine)]
    return max((found[one.name] for one in mine if one.name in found), key=lambda one: one.rate(part), default=None)


COLUMNS = ["model", "threads", "quality", "engine", "tokens per second", "isoform ÷ it", "isoform's form", "aim"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(WORK))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--quality", default="exact,high")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--install", action="store_true", help="install the peers that are missing, into .clients/")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isoform-seq2seq-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "command": "python -m benchmarks.seq2seq",
            "machine": machine(),
            "date": date.today().isoformat(),
            "conditions": conditions(PACKAGES, ENVIRONMENTS, ("ctranslate2", "optimum", "optimum-onnx")),
        }
        rows = [
            row
            for name in given.models.split(",")
            for threads in map(int, given.threads.split(","))
            for row in race(name, threads, given, folder)
        ]
    if given.write:
        made = {**about, "columns": COLUMNS, "rows": rows}
        (RESULTS / "seq2seq.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
