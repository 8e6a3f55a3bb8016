"""Optimum's O3 graph of a sentence-transformers folder, written into it: FOLDER."""

from __future__ import annotations

import sys

from sentence_transformers import SentenceTransformer, export_optimized_onnx_model

folder = sys.argv[1]
model = SentenceTransformer(folder, backend="onnx", device="cpu", model_kwargs={"export": True})
export_optimized_onnx_model(model, "O3", folder)
