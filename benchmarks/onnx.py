"""ONNX: isoform and its peers in one run.

    python -m benchmarks.onnx [--sections export,decode,embedding] [--rounds N] [--json FILE] [--install]

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
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import memory, models
from benchmarks.harness import (
    CONTESTANTS,
    OURS,
    Contestant,
    Table,
    apart,
    compete,
    installed,
    ours,
    peer,
    prepare,
    ratio,
    variables,
    write_tables,
)

SECTIONS = ("export", "decode", "embedding")
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
BUILDER = "onnxruntime_genai.models.builder"


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
    if installed("transformers", "onnxscript"):
        found.append(Contestant("torch.onnx (dynamo)", ours("export_torch", "{source}", "{out}")))
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


# ------------------------------------------------------------------ decode
def decode(folder: Path, rounds: int, install: bool) -> Iterator[Table]:
    source = checkpoint(folder, LLAMA)
    bundle = folder / "bundle"
    types = ("--onnx-type", "f32,q4w,q4_0")
    prepare(bundle, *OURS, "export", source, "--to", "onnx", *types, "--out", bundle, "--no-check")
    builder = peer("genai-builder", install)
    for kind, precision, files in (
        ("float32", "fp32", {"f32": "model.onnx"}),
        ("4 bits in blocks of 32", "int4", {"q4w (head in 4 bits)": "model_q4w.onnx", "q4_0 (in 8)": "model_q4.onnx"}),
    ):
        contestants = [
            Contestant(f"isoform, {name}", ours("decode_isoform", bundle / "onnx" / file))
            for name, file in files.items()
        ]
        if builder:
            out = folder / f"genai-{precision}"
            prepare(
                out, builder, "-m", BUILDER, "-i", source, "-o", out, "-p", precision, "-e", "cpu", "-c", folder / "c"
            )
            command = (builder, str(CONTESTANTS / "text_genai.py"), "decode:1", str(out))
            contestants.append(Contestant(f"onnxruntime-genai, {precision}", command))
        if kind == "float32" and installed("transformers"):
            command = ours("text_transformers", "decode:1", source, "float32")
            contestants.append(Contestant("transformers' generate (torch)", command))
        outcomes = compete(contestants, rounds)
        table = Table(
            f"Llama of 125M parameters, {kind}: 128 tokens, then 64 one by one (tokens per CPU second)",
            *("prefill", "isoform's / this", "decode", "isoform's / this ", "peak MB"),
        )
        for one in outcomes:
            cells = []
            for part in ("prefill 128", "decode"):
                cells += [one.rate(part), ratio(outcomes[0], one, part)]
            table.add(one.name, *cells, one.peak)
        yield table
        table = Table(f"Between two passes of ONNX Runtime, {kind}", "microseconds per token")
        for one in outcomes:
            if "between" in one:
                table.add(one.name, 1e6 / one.rate("between"))
        yield table


# ------------------------------------------------------------------ embedding
def embedding(folder: Path, rounds: int, install: bool) -> Iterator[Table]:
    if (source := models.minilm(folder)) is None:
        return
    bundle, texts = folder / "minilm", models.sentences(folder)
    prepare(bundle, *OURS, "export", source, "--to", "onnx", "--out", bundle, "--no-check")
    contestants = [Contestant("isoform, pipeline", ours("embed_isoform", bundle, texts, "onnxruntime:f32"))]
    script = "embed_sentence_transformers"
    if installed("sentence_transformers"):
        for size in ("32", "8"):
            command = ours(script, "torch", source, texts, size)
            contestants.append(Contestant(f"sentence-transformers (torch), batches of {size}", command))
    if python := peer("optimum", install):
        graph = folder / "O3"
        if not graph.exists():
            shutil.copytree(source, graph)
        prepare(graph / "onnx" / "model_O3.onnx", python, CONTESTANTS / "optimize_optimum.py", graph)
        for size in ("32", "8"):
            command = (python, *ours(script, "onnx", graph, texts, size)[1:])
            contestants.append(Contestant(f"Optimum's O3 graph in sentence-transformers, batches of {size}", command))
    outcomes = compete(contestants, rounds)
    table = Table(
        "all-MiniLM-L6-v2, 400 sentences of mixed length (sentences per CPU second)",
        *("sentences/s", "isoform's / this", "peak MB"),
    )
    for one in outcomes:
        table.add(one.name, one.rate("embedding"), ratio(outcomes[0], one, "embedding"), one.peak)
    yield table


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
        write_tables(arguments.json, tables)


if __name__ == "__main__":
    main()
