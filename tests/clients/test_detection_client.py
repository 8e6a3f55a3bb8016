"""Transformers.js opens a bundle of a detector unchanged, and gives the logits and boxes that isoform gives.

Its answers are not compared: it resizes pictures in another way.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import api
from isoform.validators.cases.media import drawn
from tests.clients.environments import HOME, environment
from tests.clients.test_clients import PROGRAMS, client
from tests.oracle import tiny

pytestmark = pytest.mark.clients

OUTPUTS = 1e-4  # of the largest value: its ONNX Runtime is another version, and boxes are refined


@pytest.mark.parametrize("name", ["rt_detr_v2", "yolos", "detr"])
def test_transformers_js_gives_the_same_logits_and_boxes(name: str, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js 20 or later with npm; it is not on the PATH")
    folder = tmp_path / name
    api.export(tiny(name), folder, to="onnx", check=False)
    pipe: Any
    with api.pipeline("object-detection", folder) as pipe:
        pixels = np.stack(pipe.pictures([drawn(), drawn().rotate(180)]))
        masked = pipe.session.signature.takes("pixel_mask")
        masks = {"pixel_mask": np.ones((len(pixels), *pixels.shape[2:]), np.int64)} if masked else {}
        ours = pipe.session.run({"pixel_values": pixels, **masks})
    node = environment("node")
    program = HOME / "node" / "detection.mjs"  # beside node_modules, where node looks for packages
    shutil.copyfile(PROGRAMS / "transformers_js_detection.mjs", program)
    request = {"folder": str(folder), "dims": list(pixels.shape), "data": pixels.ravel().tolist(), "masked": masked}
    found = client([node, program], request)
    assert list(found) == list(ours) == ["logits", "pred_boxes"]
    for port, expected in ours.items():
        assert found[port]["dims"] == list(expected.shape)
        values = np.reshape(found[port]["data"], expected.shape)
        np.testing.assert_allclose(values, expected, rtol=0, atol=OUTPUTS * np.abs(expected).max())
