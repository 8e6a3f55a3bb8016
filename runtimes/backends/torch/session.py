"""The reference itself behind `Session`: eager torch on the CPU or a GPU, with packed linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import BackendUnavailable, InputError
from isoform.formats import FLOATS
from isoform.runtimes.backends.decoder import GraphDecoder
from isoform.runtimes.backends.inputs import checked
from isoform.runtimes.backends.torch.decoder import BufferDecoder, TensorDecoder
from isoform.runtimes.backends.torch.tensors import arrays_of, tensors
from isoform.runtimes.devices import parse_device
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from isoform.reference.model import Model
    from isoform.runtimes.backends.parts import PartsSession

DTYPES = {**FLOATS, "f64": "float64"}
INTEGERS = ("int4w", "int8", "int8w")
"""Forms whose matrices are integers: of 4 or 8 bits alone ("w"), or under activations of 8 bits as well."""


class TorchSession:
    """A model's module in `dtype` (f32, f16, bf16; f64 to measure the others by). Outputs are float32 in any case.

    On the CPU the linear layers of bf16, int8, int8w and int4w are packed for oneDNN and torch's kernels, and what is
    between them is bf16, or float32 on a CPU without products in bf16. `threads` sets torch's for the whole process.
    """

    backend: str = "torch"

    def __init__(
        self,
        model: Model,
        *,
        dtype: str = "f32",
        device: str = "cpu",
        threads: int | None = None,
        strict: bool = False,
        loaded: dict[str, nn.Parameter] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        """`loaded`: parameters that other parts of the model have, see `Model.module`. `module`: run this one.

        `strict`: bf16 is computed by the plain module.
        """
        check_form(dtype, device, given=module is not None)
        self.signature: Signature = model.signature
        self._device = torch_device(device)
        set_threads(threads)
        packed = module is None and self._device.type == "cpu" and packs(dtype, strict)
        self._dtype = float_dtype(dtype)
        self._fast = packed  # the operations between the products are the kernels', too
        if packed:
            self._module: nn.Module | None = self._packed(model, dtype, {} if loaded is None else loaded)
        else:
            self._module = module or model.module(self._dtype, self._device, loaded)
        if module is None and self._device.type == "cpu":
            from isoform.runtimes.backends.torch.layout import channels_last

            channels_last(self._module)

    def _packed(self, model: Model, form: str, loaded: dict[str, nn.Parameter]) -> nn.Module:
        import torch

        from isoform.runtimes.backends.torch.linear import check_kernels
        from isoform.runtimes.backends.torch.packing import pack

        check_kernels(form)
        module = model.module(self._dtype, self._device, loaded)
        with torch.inference_mode():
            for name in pack(module, form):
                loaded.pop(model.whole_name(name), None)  # a part that has it too reads it again
        return module

    @property
    def module(self) -> nn.Module:
        """Raises InputError when the session is closed."""
        if self._module is None:
            raise InputError("this torch session is closed; open a new one")
        return self._module

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        import torch

        arrays = checked(self.signature, inputs)
        try:
            with torch.inference_mode():
                outputs = self._forward(*tensors(arrays, self._device, self._dtype))
        except RuntimeError as error:  # sizes that the signature leaves free, and the model does not
            raise refused_by("torch", error) from error
        return arrays_of(self.signature, outputs)

    def _forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self._fast:
            plain: tuple[Tensor, ...] = self.module(*inputs)
            return plain
        from isoform.reference.modules import ops
        from isoform.runtimes.backends.torch.attention import BlockAttention
        from isoform.runtimes.backends.torch.operations import fast_operations

        with ops.lowered_by(fast_operations(BlockAttention())):
            outputs: tuple[Tensor, ...] = self.module(*inputs)
        return outputs

    def _appending(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module over states that are views of buffers, which it extends in place."""
        from isoform.reference.modules import ops
        from isoform.runtimes.backends.torch.attention import BlockAttention, in_place
        from isoform.runtimes.backends.torch.operations import PLAIN, fast_operations

        if self._fast:
            table = fast_operations(in_place(BlockAttention()))
        else:
            table = {**PLAIN, "attention": in_place(PLAIN["attention"])}
        with ops.lowered_by(table):
            outputs: tuple[Tensor, ...] = self.module(*inputs)
        return outputs

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> GraphDecoder:
        """See `Session.decoder`."""
        if self._module is None:
            raise InputError("this torch session is closed; open a new one")
        if all(state.kind == "append" for state in self.signature.states) and self.signature.takes("mask"):
            return BufferDecoder(self._appending, self.signature, rows, self._device, self._dtype, self._head())
        return TensorDecoder(self._forward, self.signature, rows, self._device, self._dtype, self._head())

    def _head(self) -> nn.Module | None:
        """The module that turns hidden states into logits."""
        return dict(self.module.named_children()).get("head")

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refused_by(name: str, error: RuntimeError) -> InputError:
    """What torch says last is the cause; before it a script says where it was."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    reason = said[-1] if "TorchScript" in said[0] else said[0]
    return InputError(f"{name} could not run the model on these inputs: {reason.removeprefix('RuntimeError: ')}")


def check_form(dtype: str, device: str, given: bool) -> None:
    """InputError for a form that no session has, or that has none on this device or for a given module."""
    if dtype not in DTYPES and dtype not in INTEGERS:
        raise InputError(f"dtype {dtype!r} is not known; choose from {', '.join([*DTYPES, *INTEGERS])}")
    if dtype in INTEGERS and parse_device(device) is not None:
        raise InputError(f"the torch backend computes {dtype} on the CPU only; on {device} take bf16 or f16")
    if dtype in INTEGERS and given:
        raise InputError(f"a module that is given runs as it is, not in {dtype}; save it, and open its folder")


def packs(form: str, strict: bool) -> bool:
    """Whether a form's linear layers are packed on this CPU."""
    return form in INTEGERS or (form == "bf16" and not strict and has_bfloat16())


def has_bfloat16() -> bool:
    """Whether oneDNN multiplies bf16 on this CPU; otherwise torch is left to it, which is slower than float32."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def float_dtype(form: str) -> torch.dtype:
    """What the floats of a form are in memory."""
    import torch

    if form in INTEGERS:
        return torch.bfloat16 if has_bfloat16() else torch.float32
    dtype: torch.dtype = getattr(torch, DTYPES[form])
    return dtype


def open_parts(model: Model, *, module: nn.Module | None = None, **options: Any) -> PartsSession:
    """A session per part of the model; those of the same weights share them. `module`: the whole, whose they are."""
    from isoform.runtimes.backends.parts import PartsSession

    parts = {part.part: part for part in model.parts}
    loaded: dict[str, nn.Parameter] = {}
    if module is not None:
        check_form(options.get("dtype", "f32"), options.get("device", "cpu"), given=True)
        loaded, options = dict(module.named_parameters()), {**options, "strict": True}

    return PartsSession(
        {name: part.signature for name, part in parts.items()},
        lambda name: TorchSession(parts[name], loaded=loaded, **options),
        model.task.wires,
        model.task.steps(model.config),
    )


def open_source(path: str, task: str) -> Model:
    """The checkpoint that a bundle was made from. Raises InputError when it is not there any more."""
    from isoform.reference.model import open_model

    if not Path(path).exists():
        raise InputError(f"the checkpoint {path} of this bundle is not there any more; open it where it is now")
    return open_model(Path(path), task)


def torch_device(device: str) -> torch.device:
    """Raises BackendUnavailable when torch does not see the device."""
    import torch

    index = parse_device(device)
    if index is None:
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise BackendUnavailable(
            f"the installed torch {torch.__version__} is built for the CPU only; use device='cpu', or install its CUDA "
            "build as https://pytorch.org/get-started/locally shows"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise BackendUnavailable(f"torch sees {count} CUDA devices, so {device} is not there; use device='cpu'")
    return torch.device("cuda", index)


def set_threads(threads: int | None) -> None:
    import torch

    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads={threads}: at least one is needed")
    torch.set_num_threads(threads)
