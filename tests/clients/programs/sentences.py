"""sentence-transformers over ONNX Runtime. Standard input: {"folder", "texts"}."""

import json
import sys

from sentence_transformers import SentenceTransformer


def main() -> None:
    request = json.load(sys.stdin)
    files = {"file_name": "onnx/model.onnx", "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(request["folder"], backend="onnx", model_kwargs=files)
    print(json.dumps(model.encode(request["texts"]).tolist()))


main()
