"""Bundles that earlier versions of isoform wrote still open and compute what they did."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.manifest import Manifest
from isoform.runtimes.open import open_path

FROZEN = Path(__file__).parent / "frozen"
WANT = {
    "llama": [-0.6756, -0.54887, 0.58933, -0.14313, -0.6688, -0.47252, 0.38874, -0.83152],
    "moonshine": [0.60316, 0.52129, -1.22668, 0.72219, 1.00512, -1.61102, -1.16513, 0.27764],
}
"""The first logits that the version which wrote a bundle gave for `IDS`."""
IDS = np.array([[3, 7, 11, 20]])
CLOSE = 2e-4  # absolute, on logits near 1 from ONNX Runtime; another processor sums in another order


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(FROZEN / f"version_1_{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"v1_{name}"


def test_a_decoder_of_version_1_decodes(tmp_path: Path) -> None:
    folder = unpacked("llama", tmp_path)
    session, _ = open_path(folder)
    with session:
        assert [state.kind for state in session.signature.states] == ["append"] * 4
        assert session.signature.layout() == (2, 2, 4)
        logits = session.decoder(1).step(IDS)
    assert logits[0, :8].tolist() == pytest.approx(WANT["llama"], abs=CLOSE)


def test_parts_of_version_1_are_wired_as_they_were(tmp_path: Path) -> None:
    folder = unpacked("moonshine", tmp_path)
    assert Manifest.read(folder).wires == {"decoder.encoder_hidden_states": "encoder.last_hidden_state"}
    session: Any = open_path(folder)[0]
    with session:
        sound = np.sin(np.arange(3000, dtype=np.float32) / 7)[None]
        logits = session.decoder(session.encode({"input_values": sound})).step(IDS)
    assert logits[0, :8].tolist() == pytest.approx(WANT["moonshine"], abs=CLOSE)
