"""LoRA adapters: a PEFT folder as the GGUF adapter that llama.cpp puts on the base model's file.

llama.cpp adds alpha / rank * lora_b @ lora_a to a weight, alpha being one number of the file. Where PEFT scales a layer
by another factor (rank-stabilised adapters, patterns of ranks and alphas), lora_b takes the difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, InputError, UnsupportedExport
from isoform.exporters.gguf.mixes import MIXES
from isoform.reference.checkpoints.checkpoint import first_line, read_json
from isoform.reference.checkpoints.gguf_file import interleaved, is_rotary
from isoform.reference.names import rename
from isoform.reference.weights import find

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from isoform.reference.model import Model

TYPES = ("f32", "f16", "bf16", "q8_0")
MERGE = "merge the adapter into the model, and export that"

_KEY = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")


@dataclass(slots=True)
class _Pair:
    """What is added to one weight: `scale` * b (out, rank) @ a (rank, in); `module` is its name in the adapter."""

    module: str
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0


def write_adapter(model: Model, adapter: Path, out: Path, kind: str = "f32") -> int:
    """Write the PEFT adapter in the folder `adapter`, made for `model`, to the file `out`; returns how many weights.

    Raises CheckpointError for an adapter that is damaged or made for another model, UnsupportedExport for one that does
    more than add a product of two matrices.
    """
    from isoform.exporters.gguf import card_of
    from isoform.exporters.gguf.conversion import Buffers, convert
    from isoform.exporters.gguf.metadata import QUANTIZATION_VERSION, facts_of
    from isoform.exporters.gguf.tensors import head_size
    from isoform.exporters.gguf.writer import write_arrays

    if kind not in TYPES:
        raise InputError(f"an adapter is not written as {kind!r}; choose from {', '.join(TYPES)}")
    gguf = card_of(model)
    head_dim = head_size(model) if gguf.interleaved_rope else 0
    tensors: dict[str, tuple[str, tuple[int, ...], NDArray[Any]]] = {}
    alpha, matrices = _in_one_scale(_pairs(model, adapter, _config(adapter)))
    total = 0
    for key, (a, b) in matrices.items():
        name = rename(key, gguf.tensors)
        if name is None:
            raise UnsupportedExport(f"{adapter} changes {key}, which llama.cpp has no tensor for; {MERGE}")
        total += a.shape[1] * b.shape[0]
        if gguf.interleaved_rope and is_rotary(key):
            b = b[interleaved(len(b), head_dim)]
        if name == "token_embd.weight":  # llama.cpp looks its rows up
            a = a.T
        for suffix, matrix in (("lora_a", a), ("lora_b", b)):
            stored = "F16" if kind == "q8_0" and matrix.shape[1] % 32 else MIXES[kind].base
            raw = convert(f"{name}.{suffix}", matrix.contiguous().numpy(), [stored], None, Buffers())[stored]
            tensors[f"{name}.{suffix}"] = stored, tuple(matrix.shape), raw
    metadata = {
        "general.architecture": gguf.arch,
        "general.type": "adapter",
        "adapter.type": "lora",
        **facts_of(adapter, adapter.resolve(), -total, gguf.arch),
        "adapter.lora.alpha": alpha,
        "general.file_type": MIXES[kind].file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    write_arrays(out, metadata, tensors)
    return len(matrices)


def _config(adapter: Path) -> dict[str, Any]:
    config = read_json(adapter / "adapter_config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{adapter} has no adapter_config.json; give the folder of a PEFT adapter")
    if (kind := config.get("peft_type")) != "LORA":
        raise UnsupportedExport(f"{adapter} is a {kind} adapter, and llama.cpp knows LORA only; {MERGE}")
    if config.get("use_dora"):
        raise UnsupportedExport(f"{adapter} scales each column (use_dora), which llama.cpp does not; {MERGE}")
    return config


def _pairs(model: Model, adapter: Path, config: Mapping[str, Any]) -> dict[str, _Pair]:
    """Canonical name of a weight -> its pair, checked for shape."""
    found: dict[str, _Pair] = {}
    for key, tensor in _tensors(adapter):
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnsupportedExport(
                f"{adapter} holds {key}, which is no LoRA matrix, and llama.cpp adds no other; {MERGE}"
            )
        module, letter = match[1], match[3]
        rule = find(f"{module}.weight", model.rules, model.family.prefix, model.family.other_prefix)
        name = rule.names[0] if rule is not None and rule.rule.identity else None
        if name in model.tied or name in model.tied.values():
            raise UnsupportedExport(f"{adapter} changes {module}, whose weight {model.name} uses twice; {MERGE}")
        if name is None or name not in model.weights:
            raise CheckpointError(f"{adapter} changes {module}, which {model.name} has not; it is for another model")
        pair = found.setdefault(name, _Pair(module))
        if letter == "A":
            pair.a = tensor
        else:
            pair.b = tensor
    if not found:
        raise CheckpointError(f"{adapter} holds no LoRA matrices; give the folder of a PEFT adapter")
    for name, pair in found.items():
        shape = model.weights[name].shape
        if pair.a is None or pair.b is None:
            raise CheckpointError(f"{adapter} has one of the two matrices on {pair.module}; fetch the adapter again")
        # An embedding is stored with a row per token, and PEFT's pair for it with a column per token.
        wanted = shape[::-1] if name == "embed.weight" else shape
        if (pair.b.shape[0], pair.a.shape[1]) != wanted or pair.a.shape[0] != pair.b.shape[1]:
            shapes = f"{list(pair.b.shape)} @ {list(pair.a.shape)}"
            raise CheckpointError(
                f"{adapter}: {shapes} on {pair.module} do not make {list(wanted)}; it is for another model"
            )
        pair.scale = _scale(config, pair.module, pair.a.shape[0])
    return found


def _tensors(adapter: Path) -> Iterator[tuple[str, Tensor]]:
    """The adapter's matrices in float32."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = adapter / "adapter_model.safetensors"
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118  (it is no mapping)
                    yield key, file.get_tensor(key).float()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({first_line(error)}); fetch it again") from None
        return
    path = adapter / "adapter_model.bin"
    if not path.is_file():
        raise CheckpointError(f"{adapter} has no adapter_model.safetensors; give the folder of a PEFT adapter")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); fetch it again") from error
    for key, tensor in stored.items():
        yield key, tensor.float()


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the product of a module's matrices with."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _in_one_scale(pairs: Mapping[str, _Pair]) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The alpha of the file, and for each weight the two matrices that llama.cpp scales with alpha / rank."""
    alphas = {}
    for name, pair in pairs.items():
        assert pair.a is not None  # _pairs says so
        alphas[name] = pair.scale * pair.a.shape[0]
    alpha = next((value for value in alphas.values() if value), 1.0)  # llama.cpp takes an alpha of 0 for none
    result = {}
    for name, pair in pairs.items():
        assert pair.a is not None and pair.b is not None
        factor = alphas[name] / alpha
        result[name] = pair.a, pair.b if math.isclose(factor, 1.0, rel_tol=1e-12) else pair.b * factor
    return alpha, result
