"""Write depth_goldens.safetensors: what transformers' pipelines answer about depths, and the pixels that go in.

    python -m tests.oracle.depth_goldens

DepthPro's processor needs torchvision, which the tests do not install (0.28.0 wrote these files). Of each picture the
predicted depths and their gray picture, and of pixel values the hashes, because they must be equal bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from isoform.validators.cases.media import drawn
from tests.oracle import tiny

FILE = Path(__file__).with_name("depth_goldens.safetensors")
HASHES = FILE.with_suffix(".json")
MODELS = ("depth_anything", "depth_anything_b", "depth_pro", "depth_pro_b")
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "not square": {"size": {"height": 96, "width": 64}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    "scaled only": {"size": {"height": 100, "width": 128}, "do_normalize": False},
    "normalised only": {"size": {"height": 33, "width": 500}, "do_rescale": False},
    "as large as it is": {"do_resize": False},
}


def pictures() -> dict[str, Any]:
    """Smaller and larger than the model's, not square, of one row."""
    from PIL import Image

    row = np.random.default_rng(0).integers(0, 256, (1, 300, 3), dtype=np.uint8)
    return {
        "drawn": drawn(),
        "thumbnail": drawn().resize((64, 48)),
        "small": drawn().resize((31, 47)),
        "row": Image.fromarray(row),
    }


def digest(array: Any) -> str:
    """Of the values as float32."""
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()


def main() -> None:
    import transformers

    torch.set_num_threads(1)
    hashes = {
        f"{name}, {picture}": digest(
            transformers.DepthProImageProcessor(**settings)(image, return_tensors="np")["pixel_values"][0]
        )
        for name, settings in SETTINGS.items()
        for picture, image in pictures().items()
    }
    HASHES.write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name in MODELS:
        folder = str(tiny(name))
        options = {}
        if not name.startswith("depth_pro"):  # of which there are Pillow processors, the truth where there are
            options["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        pipe = transformers.pipeline("depth-estimation", model=folder, device="cpu", **options)
        for picture in ("thumbnail", "small"):
            answer = pipe(pictures()[picture])
            found[f"{name}.{picture}.predicted_depth"] = answer["predicted_depth"].numpy()
            found[f"{name}.{picture}.depth"] = np.asarray(answer["depth"])
    save_file(found, FILE)


if __name__ == "__main__":
    main()
