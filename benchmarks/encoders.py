"""Vectors of texts by a ModernBERT of base size with random weights, against sentence-transformers at equal precision.

    python -m benchmarks.encoders [--rounds 2] [--threads 1] [--folder DIR] [--write]

Texts of 8 to 1,000 tokens, each length apart; "one by one" is a call for each text. "mixed" are eight texts of 8 to 620
tokens in one call, for which sentence-transformers has batches of 1, as it would pad one of 32 to 4 times the tokens;
"even" are eight texts of equal length with as many tokens as those together: what padding costs is the one over the
other. Rates are tokens per CPU second, in rounds that alternate; ratios are medians within a round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
from benchmarks.harness import OURS, ROOT, Contestant, Outcome, apart, compete, ours, prepare, ratio
from benchmarks.machine import conditions, machine
from benchmarks.tables import RESULTS

MIXED = (8, 12, 20, 40, 70, 130, 300, 620)
PARTS: dict[str, tuple[int, ...]] = {
    "8 tokens, one by one": (8,) * 4,
    "8 tokens, 32 texts": (8,) * 32,
    "32 tokens": (32,) * 16,
    "128 tokens": (128,) * 4,
    "512 tokens": (512,),
    "1,000 tokens": (1000,),
    "mixed": MIXED,
    "even": (sum(MIXED) // len(MIXED),) * len(MIXED),
}
"""By name, the tokens of the texts."""
DTYPES = {"float32": ("onnxruntime:f32", "f32"), "bfloat16": ("torch:bf16", "bf16")}
COLUMNS = ["texts", "precision", "isoform", "sentence-transformers", "ratio"]


def checkpoint(folder: Path) -> None:
    """ModernBERT-base with random weights, the tokenizer of a tiny one, and the mean of the states as the vector."""
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(ROOT))
    from isoform.reference.families import load_family
    from isoform.reference.weights import hub_names
    from tests.oracle import tiny

    family, source = load_family("modernbert"), tiny("modernbert")
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    stated = {key: value for key, value in json.loads((source / "config.json").read_text()).items() if "_id" in key}
    config = {"architectures": ["ModernBertModel"], "model_type": "modernbert", **stated}
    write = {"config.json": config, "modules.json": [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")]}
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8192, "do_lower_case": False}))
    build = family.tasks[-1].build
    assert build is not None
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in build(family.config.from_dict(config)).named_parameters()}
    torch.manual_seed(0)
    tensors = {
        key: torch.ones(shapes[name]) if name.endswith("norm.weight") else torch.randn(shapes[name]) * 0.02
        for name, (key, _) in hub_names(shapes, family.rules).items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _module(number: int, path: str, kind: str) -> dict[str, object]:
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


def texts(source: Path, target: Path) -> None:
    """Texts of exactly so many tokens, by part."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    words = ["the", "small", "cat", "sees", "a", "river", "and", "every", "teacher", "knows", "old", "house"]
    random = np.random.default_rng(0)

    def text(count: int) -> str:
        made = "a"
        while len(tokenizer.encode(made).ids) < count:
            longer = f"{made} {random.choice(words)}"
            made = longer if len(tokenizer.encode(longer).ids) <= count else f"{made} a"
        assert len(tokenizer.encode(made).ids) == count
        return made

    target.write_text(json.dumps({name: [text(count) for count in counts] for name, counts in PARTS.items()}))


def rows(outcomes: list[Outcome], folder: Path) -> list[list[str]]:
    """A row for each precision and kind of text, then what padding costs, and how far the vectors are apart."""
    made: list[list[str]] = []
    by_name = {one.name: one for one in outcomes}
    for precision, (_, short) in DTYPES.items():
        mine, theirs = by_name[f"isoform {short}"], by_name[f"sentence-transformers {short}"]
        for part in PARTS:
            cells = f"{mine.rate(part):,.0f}", f"{theirs.rate(part):,.0f}", f"{ratio(mine, theirs, part):.2f}"
            made.append([part, precision, *cells])
        costs = (np.median(np.array(one.rates("even")) / one.rates("mixed")) for one in (mine, theirs))
        made.append(["cost of a token, mixed over even", precision, *(f"{cost:.2f}" for cost in costs), ""])
    truth = np.load(folder / "sentence-transformers-f32.npy")
    for precision, (_, short) in DTYPES.items():
        gaps = [_gap(truth, np.load(folder / f"{name}-{short}.npy")) for name in ("isoform", "sentence-transformers")]
        made.append(["1 - cosine to float32, the largest", precision, *(f"{gap:.1e}" for gap in gaps), ""])
    return made


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    unit, second = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (one, other))
    return float(max((1 - (unit * second).sum(1)).max(), 0.0))


def measure(folder: Path, rounds: int, threads: int) -> list[list[str]]:
    source, bundle, given = folder / "modernbert-base", folder / "bundle", folder / "texts.json"
    if not source.exists():
        apart(checkpoint, source)
    apart(texts, source, given)
    prepare(bundle, *OURS, "export", source, "--to", "onnx", "--out", bundle, "--no-check")
    contestants = []
    for form, short in DTYPES.values():
        where = bundle if form.startswith("onnx") else source
        mine = ours("lengths_isoform", where, given, form, threads, folder / f"isoform-{short}.npy")
        vectors = folder / f"sentence-transformers-{short}.npy"
        theirs = ours("lengths_sentence_transformers", source, given, short, threads, vectors)
        contestants += [Contestant(f"isoform {short}", mine), Contestant(f"sentence-transformers {short}", theirs)]
    return rows(compete(contestants, rounds, threads), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--write", action="store_true", help="renew the result of the documentation")
    arguments = parser.parse_args()
    options = f" --rounds {arguments.rounds} --threads {arguments.threads}"
    about = {"command": f"python -m benchmarks.encoders{options}", "machine": machine()}
    about |= {"date": date.today().isoformat()}
    state = conditions(("onnxruntime", "sentence-transformers", "torch", "transformers"))
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(arguments.folder or Path(temporary), arguments.rounds, arguments.threads)
    print(f"| {' | '.join(COLUMNS)} |", *(f"| {' | '.join(row)} |" for row in found), sep="\n")
    if arguments.write:
        name = "encoders" if arguments.threads == 1 else f"encoders_{arguments.threads}"
        result = {**about, "conditions": state, "columns": COLUMNS, "rows": found}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
