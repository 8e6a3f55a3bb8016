"""What a token costs of a model of experts: those that it takes, against all of them.

    python -m benchmarks.experts [--forms onnxruntime:f32,onnxruntime:q8_0,...] [--layers 2]

Mixtral's layers in a quarter of its width with random weights, 8 experts of which a token takes two: the same form as
its config.json says, and with all eight for every token, on the same kernel. Rounds alternate between the two, on one
thread; seconds are CPU seconds, a ratio is that of the fastest rounds. A prompt of 64 tokens meets all experts in any
case: what is saved there are products, not weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.machine import conditions, machine

if TYPE_CHECKING:
    from isoform.runtimes.session import Session

RESULT = Path(__file__).parent / "results" / "experts.json"
FORMS = (
    "onnxruntime:f32,onnxruntime:q8_0,onnxruntime:q4_0,onnxruntime:int8,torch:f32,torch:bf16,torch:int8w,torch:int4w"
)
SIZES = {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 4}
COUNT, USED = 8, 2
PROMPT, STEPS, ROUNDS = 64, 8, 3


def checkpoint(folder: Path, layers: int) -> Path:
    """Random weights under Mixtral's names."""
    import torch
    from safetensors.torch import save_file

    from isoform.reference.families import load_family

    family = load_family("mixtral")
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 1024, **SIZES}
    config |= {"num_hidden_layers": layers, "num_local_experts": COUNT, "num_experts_per_tok": USED}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    task, generator = family.tasks[0], torch.Generator().manual_seed(0)
    assert task.shapes is not None
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in task.shapes(family.config.from_dict(config)).items():
        drawn = torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5) if len(shape) > 1 else torch.ones(shape)
        rule = next(rule for rule in family.rules if rule.written and rule.sources(name))
        pieces = [piece.bfloat16().clone() for piece in rule.save(drawn)]
        tensors.update(zip(rule.sources(name, (), shape) or (), pieces, strict=True))
    save_file(tensors, folder / "model.safetensors")
    return folder


@contextmanager
def sessions(folder: Path, backend: str, form: str) -> Iterator[dict[int, Callable[[], Session]]]:
    """By how many experts a token takes, the form on one thread."""
    from isoform.exporters.onnx import write
    from isoform.reference.model import open_model
    from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
    from isoform.runtimes.backends.torch.session import TorchSession

    model = open_model(folder)
    if backend == "torch":
        with TorchSession(model, dtype=form, threads=1) as session:

            def taking(used: int) -> TorchSession:
                for module in session.module.modules():
                    if hasattr(module, "used"):
                        module.used = used  # type: ignore[assignment]
                return session

            yield {used: partial(taking, used) for used in (USED, COUNT)}
        return
    (artifact,) = write(model, folder / "made", form, lambda text, done, total: None)
    path = folder / "made" / artifact.files[0].path
    every = path.with_name("every.onnx")
    every.write_bytes(taking_all(path))
    with (
        OnnxRuntimeSession(path, artifact.signature, threads=1) as few,
        OnnxRuntimeSession(every, artifact.signature, threads=1) as all_,
    ):
        yield {USED: lambda: few, COUNT: lambda: all_}
    shutil.rmtree(folder / "made")


def taking_all(path: Path) -> bytes:
    """The graph with every expert for every token, over the same weights."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False)
    for attribute in (a for node in graph.graph.node if node.op_type in ("MoE", "QMoE") for a in node.attribute):
        if attribute.name == "k":
            attribute.i = COUNT
    return graph.SerializeToString()


def costs(session: Session) -> tuple[float, float]:
    """CPU seconds of a prompt, and of a token after it."""
    draw, decoder = np.random.default_rng(0), session.decoder(1)
    ids = draw.integers(0, 1024, (1, PROMPT + STEPS))
    begin = time.process_time()
    decoder.step(ids[:, :PROMPT])
    prompt = time.process_time() - begin
    each = []
    for n in range(PROMPT, PROMPT + STEPS):
        begin = time.process_time()
        decoder.step(ids[:, n : n + 1])
        each.append(time.process_time() - begin)
    return prompt, float(np.median(each))


def measured(folder: Path, backend: str, form: str) -> list[str]:
    """A row of the table."""
    best: dict[int, list[float]] = {}
    with sessions(folder, backend, form) as opened:
        for number in range(ROUNDS + 1):
            for used, session in opened.items():
                found = costs(session())
                if number:
                    best[used] = [min(pair) for pair in zip(best.get(used, found), found, strict=True)]
    (prompt, step), (all_prompt, all_step) = best[USED], best[COUNT]
    cells = [f"{1 / step:.1f}", f"{1 / all_step:.1f}", f"{all_step / step:.2f}"]
    return [backend, form, *cells, f"{PROMPT / prompt:.0f}", f"{PROMPT / all_prompt:.0f}", f"{all_prompt / prompt:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", default=FORMS, help="backend:dtype, several with commas")
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    columns = ["backend", "form", "tokens/s", "all experts", "ratio", "prompt tokens/s", "all experts", "ratio"]
    rows: list[list[str]] = []
    before = conditions(("onnxruntime", "torch"))
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    with tempfile.TemporaryDirectory() as made:
        folder = checkpoint(Path(made) / "model", arguments.layers)
        for backend, _, form in (name.partition(":") for name in arguments.forms.split(",")):
            rows.append(measured(folder, backend, form))
            print(f"| {' | '.join(rows[-1])} |", flush=True)
    result: dict[str, Any] = {"command": "python -m benchmarks.experts", "machine": f"one thread of an {machine()}"}
    result |= {"date": datetime.now(UTC).date().isoformat(), "conditions": before, "columns": columns, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
