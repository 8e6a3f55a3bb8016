"""transformers' model of images on torch: CLASS CHECKPOINT DTYPE PIXELS (.npy)."""

from __future__ import annotations

import sys
from typing import Any

from rounds import begin

answers = begin()

import torch  # noqa: E402
import transformers  # noqa: E402
from pixels import run  # noqa: E402

torch.set_num_threads(1)
dtype = getattr(torch, sys.argv[3])
model = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], dtype=dtype).eval()


def forward(pixels: Any) -> Any:
    with torch.inference_mode():
        return model(pixel_values=torch.from_numpy(pixels).to(dtype))[0].float().numpy()


run(forward, answers)
