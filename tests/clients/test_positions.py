"""Positions as clients count them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isoform.exporters import onnx
from isoform.reference.model import open_model
from isoform.runtimes.open import open_session
from tests.oracle import tiny

SHIFT = 2e-4  # absolute, on logits of about 10: the angles of the rotation are others, and rounded otherwise


@pytest.mark.parametrize("name", ["gemma3_b", "llama", "mistral_b", "qwen2"])
def test_positions_may_count_from_one(tmp_path: Path, name: str) -> None:
    """Transformers.js counts so for some models: attention is relative, and the mask alone says what is hidden."""
    model = open_model(tiny(name))
    (artifact,) = onnx.write(model, tmp_path, "f32", lambda *_: None)
    ids = np.arange(3, 27).reshape(2, 12)
    mask = np.ones((2, 12), np.int64)
    mask[1, :5] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with open_session(tmp_path / artifact.files[0].path, "onnxruntime") as session:
        from_zero, from_one = (
            np.concatenate(
                [
                    decoder.step(ids[:, new], mask=mask[:, new], positions=positions[:, new] + first, last=None)
                    for new in (slice(8), *(slice(n, n + 1) for n in range(8, 12)))
                ],
                1,
            )
            for first in (0, 1)
            for decoder in [session.decoder(2)]
        )
    real = mask.astype(bool)
    np.testing.assert_allclose(from_one[real], from_zero[real], rtol=0, atol=SHIFT)
