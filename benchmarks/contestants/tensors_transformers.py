"""transformers' model on torch: CLASS FOLDER DTYPE THREADS METHOD ("-": forward) INPUTS (.npz)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rounds import begin

answers = begin()

import torch  # noqa: E402
import transformers  # noqa: E402
from tensors import run  # noqa: E402

kind, folder, dtype, threads, method = sys.argv[1:6]
torch.set_num_threads(int(threads))
number = getattr(torch, dtype)
model = getattr(transformers, kind).from_pretrained(folder, dtype=number).eval()
called = model if method == "-" else getattr(model, method)


def forward(inputs: Mapping[str, Any]) -> Any:
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    given = {name: x.to(number) if x.is_floating_point() else x for name, x in given.items()}
    with torch.inference_mode():
        made = called(**given)
    first = made if isinstance(made, torch.Tensor) else next(iter(made.values()))
    return (first[0] if isinstance(first, tuple) else first).float().numpy()


run(forward, answers)
