"""Write checkpoints; stop at the first that does not survive a reload."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

from tests.oracle.checkpoints import (  # noqa: F401  their cases register themselves
    audio,
    bart,
    beit,
    convolutions,
    decoders,
    depth,
    detection,
    embedding_gemma,
    encoders,
    experts,
    gpt2,
    keypoints,
    layoutlmv3,
    mixtral,
    modernbert,
    multimodal,
    poses,
    relatives,
    rotary,
    segmentation,
    t5,
    tables,
    text,
    translation,
    vision,
)
from tests.oracle.checkpoints.case import CASES, Case

RELOADED = 1e-6  # relative: a mapped file's weights may be aligned otherwise, and take another kernel


def main(out: str | None = None, *names: str) -> None:
    if out is None:
        print(*CASES, sep="\n")
        return
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name in names or CASES:
        make = CASES.get(name.partition("@")[0])  # "bert@2" is a copy of "bert" under another name
        if make is None:
            raise SystemExit(f"no tiny checkpoint is called {name}")
        case = Case(name, Path(out))
        make(case)
        info = case.info
        if info["reload_maxdiff"] > RELOADED or "load_issues" in info or "nan" in info:
            raise SystemExit(f"{name} is not a sound checkpoint: {info}")
        print(f"{name:18s} {info['arch']:32s} {info['params']:>8d} parameters", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
