"""Transformers.js opens a bundle of VitPose unchanged, and gives the heatmaps that isoform gives.

Its keypoints are others: it takes the middle of all that is in a heatmap, and refines nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from isoform import api
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn
from tests.clients.environments import HOME, environment
from tests.clients.test_clients import PROGRAMS, client
from tests.oracle import tiny

pytestmark = pytest.mark.clients

OUTPUTS = 1e-5  # of the largest value: its ONNX Runtime is another version


def test_transformers_js_gives_the_same_heatmaps(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js 20 or later with npm; it is not on the PATH")
    folder = tmp_path / "vitpose"
    api.export(tiny("vitpose"), folder, to="onnx", check=False)
    prepare = open_processor(folder, class_facts(folder))
    with api.pipeline("pose-estimation", folder) as pipe:
        pixels = np.stack(prepare([drawn(), drawn().rotate(40)]))
        (ours,) = pipe.session.run({"pixel_values": pixels}).values()
    node = environment("node")
    program = HOME / "node" / "pose.mjs"  # beside node_modules, where node looks for packages
    shutil.copyfile(PROGRAMS / "transformers_js_pose.mjs", program)
    request = {"folder": str(folder), "dims": list(pixels.shape), "data": pixels.ravel().tolist()}
    found = client([node, program], request)
    assert found["dims"] == list(ours.shape)
    np.testing.assert_allclose(np.reshape(found["data"], ours.shape), ours, rtol=0, atol=OUTPUTS * np.abs(ours).max())
