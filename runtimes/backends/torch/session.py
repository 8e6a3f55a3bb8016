"""The reference itself behind `Session`: eager torch, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import BackendUnavailable, InputError
from isoform.runtimes.backends.decoder import MemoryDecoder, SteppingDecoder
from isoform.runtimes.backends.inputs import checked
from isoform.runtimes.devices import parse_device
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from isoform.reference.model import Model
    from isoform.runtimes.backends.parts import PartsSession

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}
FIRST_CAPACITY = 256  # slots of a new cache; it doubles when it is full


class TorchSession:
    """A model's module in `dtype` (f32, f16, bf16; f64 to measure the others by). Outputs are float32 in any case.

    `threads` sets torch's for the whole process.
    """

    backend: str = "torch"

    def __init__(
        self,
        model: Model,
        *,
        dtype: str = "f32",
        device: str = "cpu",
        threads: int | None = None,
        like: nn.Module | None = None,
    ) -> None:
        """`like` is a loaded module with parameters of the same names, which are then used and not loaded again."""
        import torch

        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; choose from {', '.join(DTYPES)}")
        self.signature: Signature = model.signature
        self._device = torch_device(device)
        set_threads(threads)
        self._dtype: torch.dtype = getattr(torch, DTYPES[dtype])
        module = model.module(self._dtype, self._device) if like is None else shared(model, like, self._dtype)
        self._module: nn.Module | None = module

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
        with torch.inference_mode():
            outputs = self.module(*tensors(arrays, self._device, self._dtype))
        return arrays_of(self.signature, outputs)

    def decoder(self, batch: int) -> TorchDecoder:
        """See `Session.decoder`; any number of decoders may be alive."""
        return TorchDecoder(self.module, self.signature, batch, self._device, self._dtype)

    def memory_decoder(self, memory: Mapping[str, NDArray[Any]]) -> TensorMemoryDecoder:
        """Decode the rows of a memory; see `PartsSession.decoder`."""
        return TensorMemoryDecoder(self.module, self.signature, memory, self._device, self._dtype)

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TorchDecoder(SteppingDecoder):
    """Keys and values lie in buffers with room to spare: attention appends to them in place and reads views.

    A copy of the whole cache per token, which the plain operation makes, costs more than the model at long lengths.
    """

    def __init__(
        self, module: nn.Module, signature: Signature, batch: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        import torch

        super().__init__(signature, batch)
        self._module, self._device, self._dtype = module, device, dtype
        self._buffers = [
            torch.zeros(state.shape(batch, FIRST_CAPACITY), dtype=dtype, device=device).transpose(1, 2).contiguous()
            for state in self.states
        ]

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, all_logits: bool, needed: bool
    ) -> NDArray[np.float32]:
        import torch

        from isoform.reference import ops

        with torch.inference_mode(), ops.lowered_by({**ops.OPS, "attention": _attend_in_place}):
            if past + length > self._buffers[0].shape[1]:
                self._grow(past, past + length)
            views = [buffer[:, :past].transpose(1, 2) for buffer in self._buffers]
            logits = self._module(*tensors(feeds, self._device, self._dtype), *views)[0]
            return to_numpy(logits if all_logits else logits[:, -1])

    def _grow(self, past: int, needed: int) -> None:
        capacity = self._buffers[0].shape[1]
        while capacity < needed:
            capacity *= 2
        for n, old in enumerate(self._buffers):
            self._buffers[n] = old.new_zeros(old.shape[0], capacity, *old.shape[2:])
            self._buffers[n][:, :past] = old[:, :past]

    def _reorder(self, rows: NDArray[np.int64], past: int) -> None:
        import torch

        order = torch.from_numpy(rows).to(self._device)
        for n, old in enumerate(self._buffers):
            self._buffers[n] = old.new_zeros(len(rows), *old.shape[1:])
            self._buffers[n][:, :past] = old[:, :past].index_select(0, order)


class TensorMemoryDecoder(MemoryDecoder):
    """Over anything that takes and gives tensors as the signature says: a module, a TorchScript file."""

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, ...]],
        signature: Signature,
        memory: Mapping[str, NDArray[Any]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        import torch

        super().__init__(signature, memory)
        self._forward, self._device, self._dtype = forward, device, dtype
        self._held = tensors(self._memory, device, dtype)
        self._present = [torch.zeros(state.shape(self._rows), dtype=dtype, device=device) for state in self.states]
        self._once = [state.kind == "once" for state in self.states]
        self._filled = torch.zeros(1, dtype=torch.bool, device=device)

    def _pass(self, ids: NDArray[np.int64], *, all_logits: bool) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(ids).to(self._device)
            logits, *present = self._forward(given, *self._held, *self._present, self._filled)
            for n, new in enumerate(present):
                if not self._past or not self._once[n]:  # those of the encoder states are the first pass's
                    self._present[n] = new
            self._filled = torch.ones_like(self._filled)
            return to_numpy(logits if all_logits else logits[:, -1])

    def _reorder(self, rows: NDArray[np.int64], shared: NDArray[np.int64] | None) -> None:
        import torch

        order = torch.from_numpy(rows).to(self._device)
        with torch.inference_mode():
            for n, tensor in enumerate(self._present):
                if not self._once[n]:
                    self._present[n] = tensor.index_select(0, order)
            if shared is not None:
                order = torch.from_numpy(shared).to(self._device)
                self._held = [tensor.index_select(0, order) for tensor in self._held]
                for n, tensor in enumerate(self._present):
                    if self._once[n]:
                        self._present[n] = tensor.index_select(0, order)


def _attend_in_place(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.attention` whose growing past is a view (B, kv_heads, P, D) of a buffer (B, capacity, kv_heads, D)."""
    from isoform.reference import ops

    a: ops.AttentionArguments[Tensor] = ops.AttentionArguments(*arguments)
    if a.past_k is None or a.past_v is None or a.switch is not None:
        result: tuple[Tensor, Tensor, Tensor] = ops.OPS["attention"](*arguments)
        return result
    k, v = _append(a.past_k, a.k), _append(a.past_v, a.v)
    out, _, _ = ops.OPS["attention"](*a._replace(k=k, v=v, past_k=None, past_v=None))
    return out, a.past_k, a.past_v


def _append(past: Tensor, new: Tensor) -> Tensor:
    """Write new slots (B, T, H*D) behind the past in its buffer -> all slots (B, P+T, H*D), a view."""
    past = past.transpose(1, 2)
    batch, slots, heads, dim = past.shape
    whole = past.as_strided((batch, slots + new.shape[1], heads, dim), past.stride())
    whole[:, slots:] = new.unflatten(-1, (heads, dim))
    return whole.flatten(2)


def open_parts(model: Model, **options: Any) -> PartsSession:
    """A session per part of the model; those of the same weights share them."""
    from isoform.runtimes.backends.parts import PartsSession

    parts = {part.part: part for part in model.parts}
    opened: dict[tuple[tuple[str, str], ...], TorchSession] = {}  # by roots

    def open_part(name: str) -> TorchSession:
        part = parts[name]
        roots = tuple(part.roots.items())
        like = opened[roots].module if roots in opened else None
        session = opened[roots] = TorchSession(part, like=like, **options)
        return session

    return PartsSession(
        {name: part.signature for name, part in parts.items()},
        open_part,
        model.task.wires,
        model.task.steps(model.config),
    )


def shared(model: Model, like: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model's module over the parameters of another one, by name; buffers go to the device of these."""
    module, given = model.skeleton(dtype), dict(like.named_parameters(remove_duplicate=False))
    device = next(iter(given.values())).device
    for path, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[leaf] = given[f"{path}.{leaf}" if path else leaf]
        for leaf, buffer in owner._buffers.items():
            owner._buffers[leaf] = buffer if buffer is None else buffer.to(device)
    return module


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


def tensors(arrays: Mapping[str, NDArray[Any]], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Arrays as tensors on the device, floats in `dtype`."""
    import torch

    given = [torch.from_numpy(array) for array in arrays.values()]
    return [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in given]


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().contiguous().cpu().numpy()
    return array


def arrays_of(signature: Signature, outputs: tuple[Tensor, ...]) -> dict[str, NDArray[np.float32]]:
    """Outputs by port name, float32."""
    return {port.name: to_numpy(tensor) for port, tensor in zip(signature.outputs, outputs, strict=True)}
