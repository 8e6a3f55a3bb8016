"""Whether it pays to have one form read a long prompt for another, and what that does to the text behind it.

    python -m benchmarks.handover BUNDLE [--decode q4w] [--prefill int8] [--tokens 1000]

BUNDLE holds both ONNX forms and f32. Each contestant reads a prompt of the documentation of Python's standard library
and is fed the 64 tokens after it: the divergence (KL, nats) of its next-token distribution from that of float32, which
with hand-over may be at most the decoding form's own. Seconds to the first token are CPU seconds of one thread, the
best of three: in a new process with its imports and the opening of what it needs, and in one that is open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESULT = Path(__file__).parent / "results" / "handover.json"
STEPS, ROUNDS = 64, 3


def opened(bundle: Path, decode: str, prefill: str) -> Any:
    """A session of one form, or of two."""
    from isoform.runtimes.backends.handover import open_with_handover
    from isoform.runtimes.open import open_path

    if prefill:
        return open_with_handover(bundle, dtype=decode, prefill=prefill, threads=1)[0]
    return open_path(bundle, "onnxruntime", dtype=decode, threads=1)[0]


def distributions(session: Any, ids: NDArray[np.int64], tokens: int) -> NDArray[np.float64]:
    """Log-probabilities (1 + STEPS, V) after the prompt and after each token behind it."""
    from benchmarks.onnx_quantized import log_softmax

    decoder = session.decoder(1)
    logits = [decoder.step(ids[:, :tokens])[0].copy()]
    logits += [decoder.step(ids[:, n : n + 1])[0].copy() for n in range(tokens, tokens + STEPS)]
    return log_softmax(np.array(logits))


def first_token(session: Any, ids: NDArray[np.int64]) -> float:
    begin = time.process_time()
    session.decoder(1).step(ids)
    return time.process_time() - begin


def new_process(arguments: argparse.Namespace, prefill: str) -> float:
    """CPU seconds of a process that imports, opens and reads the prompt."""
    command = [sys.executable, "-m", "benchmarks.handover", arguments.bundle, "--decode", arguments.decode]
    command += ["--prefill", prefill, "--tokens", str(arguments.tokens), "--alone"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def passages(bundle: Path, tokens: int) -> list[NDArray[np.int64]]:
    """Texts of so many tokens (1, N)."""
    from benchmarks.onnx_quantized import passages as texts

    from isoform.reference.classes import class_facts
    from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(bundle, class_facts(bundle))
    ids = [n for row in tokenizer.encode(texts()) for n in row.ids]
    return [np.array([ids[n : n + tokens]]) for n in range(0, len(ids) - tokens, tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--decode", default="q4w")
    parser.add_argument("--prefill", default="int8", help="several with commas")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--machine", default="")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle, tokens = Path(arguments.bundle), arguments.tokens
    if arguments.alone:
        session = opened(bundle, arguments.decode, arguments.prefill)
        session.decoder(1).step(np.random.default_rng(0).integers(100, 1000, (1, tokens)))
        print(time.process_time())
        return
    texts = passages(bundle, tokens + STEPS)[: arguments.texts]
    with opened(bundle, "f32", "") as session:
        truth = [distributions(session, ids, tokens) for ids in texts]
    forms = [("", arguments.decode), *((name, arguments.decode) for name in arguments.prefill.split(","))]
    sessions = {prefill: opened(bundle, decode, prefill) for prefill, decode in forms}
    loss, same, seconds, fresh = {}, {}, {}, {}
    for prefill, session in sessions.items():
        pairs = [(want, distributions(session, ids, tokens)) for want, ids in zip(truth, texts, strict=True)]
        loss[prefill] = np.mean([(np.exp(want) * (want - got)).sum(-1).mean() for want, got in pairs])
        same[prefill] = np.mean([(want.argmax(-1) == got.argmax(-1)).mean() for want, got in pairs])
    for _ in range(ROUNDS):  # in turn, so that what else the machine does strikes all alike
        for prefill, session in sessions.items():
            seconds[prefill] = min(first_token(session, texts[0][:, :tokens]), seconds.get(prefill, np.inf))
            fresh[prefill] = min(new_process(arguments, prefill), fresh.get(prefill, np.inf))
    rows = []
    for prefill, session in sessions.items():
        session.close()
        name = f"{prefill} → {arguments.decode}" if prefill else arguments.decode
        cells = (fresh[prefill], fresh[""] / fresh[prefill], seconds[prefill], seconds[""] / seconds[prefill])
        rows.append([name, *(f"{cell:.2f}" for cell in cells), f"{loss[prefill]:.4f}", f"{same[prefill]:.3f}"])
    columns = ["reads → decodes", "new process, s", "gain", "open, s", "gain", "KL (nats)", "same choice"]
    print(f"| {' | '.join(columns)} |", *(f"| {' | '.join(row)} |" for row in rows), sep="\n")
    if arguments.machine:
        options = f"--decode {arguments.decode} --prefill {arguments.prefill}"
        found = {
            "command": f"python -m benchmarks.handover BUNDLE {options}",
            "machine": arguments.machine,
            "date": datetime.now(UTC).date().isoformat(),
            "columns": columns,
            "rows": rows,
        }
        RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
