"""The types an ONNX graph can be written in: by name the file, the dtype of activations, and how layers are lowered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from isoform.errors import InputError
from isoform.quality import PORTABLE, plain_dtype

if TYPE_CHECKING:
    import torch

    from isoform.exporters.onnx.operators.operands import Lowering

FILES = {
    "f32": "model.onnx",
    "f16": "model_fp16.onnx",
    "bf16": "model_bf16.onnx",
    "int8": "model_quantized.onnx",
    "q4_0": "model_q4.onnx",
    "q4f16": "model_q4f16.onnx",
    "q8_0": "model_q8_0.onnx",
}
"""File names that Transformers.js looks for where it has the notion (its dtypes fp32, fp16, q8, q4 and q4f16)."""

CHOICES = (
    "f32, f16, int8, q8_0, q4_0, q4f16, or 4 and 8 bits in other blocks: q4-64, q4a-128 (a: asymmetric), q8-16, "
    "q4w, q4w-128 (w: the head in 4 bits as well); f32-portable, f16-portable, bf16-portable or int8-portable keep to "
    "standard ONNX"
)


@dataclass(frozen=True, slots=True)
class OnnxType:
    """`activations` is a dtype's short name; weights in blocks have `bits`, weights and activations in bytes `int8`.

    The head, and a table of tokens that is the head, has 8 bits unless `whole`. `portable`: the graph keeps to standard
    operators.
    """

    name: str
    file: str
    activations: str = "f32"
    int8: bool = False
    bits: int = 0
    block: int = 32
    asymmetric: bool = False
    whole: bool = False
    portable: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        import torch

        return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[self.activations]

    @property
    def bytes_per_weight(self) -> float:
        """About, of the matrices."""
        if self.bits:
            return (self.bits + 8 * self.dtype.itemsize / self.block) / 8
        return 1.0 if self.int8 else float(self.dtype.itemsize)

    def lowerings(self, head: str) -> Mapping[str, Lowering]:
        """What goes before the plain operators. `head` is the name of the weight that makes logits.

        It takes 8 bits, as llama-quantize keeps it at more bits than the rest: Q6_K where rows are a multiple of 256,
        which MatMulNBits does not have, and Q8_0 elsewhere.
        """
        from isoform.exporters.onnx.forms import Blocks
        from isoform.exporters.onnx.operators.attention import attention
        from isoform.exporters.onnx.operators.registry import PORTABLE as STANDARD
        from isoform.exporters.onnx.operators.registry import RUNTIME
        from isoform.exporters.onnx.quantized import block_tables, byte_tables

        table = base = STANDARD if self.portable else RUNTIME
        if self.int8:
            table = byte_tables(head, base, not self.portable)
        elif self.bits:
            body = Blocks(self.bits, self.block, self.asymmetric, self.dtype)
            table = block_tables(body, body if self.whole else replace(body, bits=8), head, base)
        return {**table, "isoform::attention": attention(table["aten::linear"], self.portable)}


def part_file(part: str, file: str) -> str:
    """The name of a part's graph: decoder_model_merged, model_fp16.onnx -> decoder_model_merged_fp16.onnx."""
    return part + file.removeprefix("model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of an ONNX export: its types, whether to keep to standard ONNX, and whether to link to the checkpoint's
    files instead of copying what they hold."""

    types: tuple[str, ...] = ("f32",)
    portable: bool = False
    link: bool = False


def onnx_type(name: str, portable: bool = False) -> OnnxType:
    """The type of this name; with the suffix -portable, or with `portable`, one that keeps to standard ONNX.

    Raises InputError for a name that is none, or a form that standard ONNX does not have.
    """
    plain, suffix = plain_dtype(name), name.endswith(PORTABLE)
    portable = portable or suffix
    if plain in ("f32", "f16", "bf16", "int8"):
        file = FILES[plain].replace(".onnx", "_portable.onnx") if suffix else FILES[plain]
        return OnnxType(name, file, "f32" if plain == "int8" else plain, int8=plain == "int8", portable=portable)
    match = re.fullmatch(r"q(?P<bits>[48])(_0|f16|(?P<form>a?w?)(-(?P<block>16|32|64|128))?)", plain)
    if match is None or match[2] == "":
        raise InputError(f"ONNX type {name!r} is not known; choose from {CHOICES}")
    if portable:
        raise InputError(f"{name} needs ONNX Runtime's own kernels; in standard ONNX there are f32, f16, bf16 and int8")
    return OnnxType(
        name,
        FILES.get(name, f"model_{name}.onnx"),
        "f16" if name.endswith("f16") else "f32",
        bits=int(match["bits"]),
        block=int(match["block"] or 32),
        asymmetric="a" in (match["form"] or ""),
        whole="w" in (match["form"] or ""),
    )
