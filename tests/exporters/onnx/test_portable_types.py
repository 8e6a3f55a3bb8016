"""Portable types beside the fused ones in one export: their own graphs, and the same weights on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from isoform.errors import InputError
from isoform.exporters import onnx as exporting
from isoform.exporters.onnx.types import onnx_type
from isoform.manifest import Manifest
from isoform.runtimes.open import open_path
from tests.exports import artifact_of, exported

TYPES = ("f32-portable", "f32", "int8-portable", "int8")


def both(name: str) -> Path:
    return exported(name, ["onnx"], onnx=exporting.Options(types=TYPES))


def domains(path: Path) -> set[str]:
    return {node.domain for node in onnx.load(path, load_external_data=False).graph.node}


@pytest.mark.parametrize("name", ["llama", "whisper_b"])
def test_portable_and_fused_forms_share_their_weights(name: str) -> None:
    folder = both(name)
    for artifact in Manifest.read(folder).artifacts:
        if artifact.dtype == "f32-portable":
            (other,) = (a for a in Manifest.read(folder).artifacts if (a.dtype, a.part) == ("f32", artifact.part))
            shared = {file.path for file in other.files if file.path.endswith("_data")}
            assert {file.path for file in artifact.files if file.path.endswith("_data")} == shared
            assert not any("portable" in path for path in shared), "clients look for the fused form's file by name"


def test_each_form_has_the_operators_of_its_kind() -> None:
    folder = both("llama")
    assert [a.dtype for a in Manifest.read(folder).artifacts] == list(TYPES), "in the order of the request"
    for dtype in TYPES:
        path = folder / artifact_of(folder, "onnx", dtype).files[0].path
        assert ("com.microsoft" in domains(path)) == (not dtype.endswith("-portable"))


def test_a_portable_form_is_asked_for_by_either_name() -> None:
    folder, answers = both("llama"), []
    for dtype in ("f32", "f32-portable"):
        with open_path(folder, "onnxruntime", dtype=dtype, threads=1)[0] as session:
            answers.append(session.decoder(1).step(np.array([[5, 6, 7]])))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    with pytest.raises(InputError, match="holds f32-portable, f32, int8-portable, int8, not q4_0"):
        open_path(folder, "onnxruntime", dtype="q4_0")


def test_the_names_of_portable_files_are_their_own() -> None:
    files = {dtype: onnx_type(dtype).file for dtype in (*TYPES, "f16-portable")}
    assert files == {
        "f32-portable": "model_portable.onnx",
        "f32": "model.onnx",
        "int8-portable": "model_quantized_portable.onnx",
        "int8": "model_quantized.onnx",
        "f16-portable": "model_fp16_portable.onnx",
    }
    assert onnx_type("f32", portable=True).file == "model.onnx", "--portable writes the names that it always did"
    with pytest.raises(InputError, match="q4_0-portable needs ONNX Runtime's own kernels"):
        onnx_type("q4_0-portable")
    with pytest.raises(InputError, match="f32-portable"):
        onnx_type("f31-portable")
