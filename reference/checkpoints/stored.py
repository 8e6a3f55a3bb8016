"""The float dtype that a checkpoint is stored in."""

from __future__ import annotations

from isoform.formats import FLOATS
from isoform.reference.checkpoints.checkpoint import Checkpoint


def stored_dtype(checkpoint: Checkpoint) -> str:
    """f32, f16 or bf16: what config.json states, else that of the first tensor of floats."""
    names = {name: short for short, name in FLOATS.items()}
    stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if (found := names.get(str(stated).removeprefix("torch."))) is not None:
        return found
    kinds = (checkpoint.info(key).dtype.lower() for key in checkpoint)
    return next((kind for kind in kinds if kind in FLOATS), "f32")
