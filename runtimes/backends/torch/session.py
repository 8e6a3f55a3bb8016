"""The reference itself behind `Session`: eager torch, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import BackendUnavailable, InputError
from isoform.formats import FLOATS
from isoform.runtimes.backends.decoder import GraphDecoder, Kept, assembled, fitting, put
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

DTYPES = {**FLOATS, "f64": "float64"}
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
        loaded: dict[str, nn.Parameter] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        """`loaded`: parameters that other parts of the model have, see `Model.module`. `module`: run this one."""
        import torch

        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; choose from {', '.join(DTYPES)}")
        self.signature: Signature = model.signature
        self._device = torch_device(device)
        set_threads(threads)
        self._dtype: torch.dtype = getattr(torch, DTYPES[dtype])
        self._module: nn.Module | None = module or model.module(self._dtype, self._device, loaded)

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

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> GraphDecoder:
        """See `Session.decoder`."""
        grows = all(state.kind == "append" for state in self.signature.states)
        decoder: type[TensorDecoder] = BufferDecoder if grows and self.signature.takes("mask") else TensorDecoder
        return decoder(self.module, self.signature, rows, self._device, self._dtype)

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorDecoder(GraphDecoder):
    """Over anything that takes and gives tensors as the signature says: a module, a TorchScript file.

    The states that a pass gives go into the next one.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, ...]],
        signature: Signature,
        rows: int | Mapping[str, NDArray[Any]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(signature, rows)
        self._forward, self._device, self._dtype = forward, device, dtype
        self._fixed = self._tensors(self._held)
        self._past = {state.input: self._zeros(state.shape(len(self))) for state in self.states}

    def _tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return dict(zip(arrays, tensors(arrays, self._device, self._dtype), strict=True))

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        import torch

        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _run(self, feeds: dict[str, NDArray[Any]], past: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of one pass, by port."""
        import torch

        given = {**self._fixed, **self._tensors(feeds), **states}
        switch = self.signature.port("switch")
        if switch is not None:
            given[switch.name] = torch.full((1,), past > 0, device=self._device)
        outputs = self._forward(*(given[port.name] for port in self.signature.inputs))
        return {port.name: tensor for port, tensor in zip(self.signature.outputs, outputs, strict=True)}

    def _logits(self, outputs: Mapping[str, Tensor], last: int | None) -> NDArray[np.float32]:
        logits = outputs[self.signature.results[0].name]
        return to_numpy(logits if last is None else logits[:, -1] if last == 1 else logits[:, -last:])

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            outputs = self._run(feeds, past, self._past)
            for state in self.states:
                if not past or state.kind != "once":  # the first pass has computed that
                    self._past[state.input] = outputs[state.output]
            return self._logits(outputs, last)

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        import torch

        with torch.inference_mode():
            order = torch.from_numpy(rows).to(self._device)
            kept = None if held is None else torch.from_numpy(held).to(self._device)
            for state in self.states:
                index = kept if state.kind == "once" else order
                if index is not None:
                    self._past[state.input] = self._past[state.input].index_select(0, index)
            if kept is not None:
                self._fixed = {name: tensor.index_select(0, kept) for name, tensor in self._fixed.items()}

    def _truncate(self, slots: int) -> None:
        for state in self.states:
            if state.kind == "append" and state.slots is not None:
                self._past[state.input] = self._past[state.input].narrow(state.slots, 0, slots)

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        import torch

        with torch.inference_mode():
            self._fixed = self._tensors(self._held)
            self._past = {
                state.input: assembled(
                    state,
                    plan,
                    slots,
                    {id(kept.decoder): kept.decoder._past[state.input] for kept in plan},
                    self._zeros,
                )
                for state in self.states
            }


class BufferDecoder(TensorDecoder):
    """Keys and values lie in buffers with room to spare: attention appends to them in place and reads views.

    A copy of the whole cache per token, which the plain operation makes, costs more than the model at long lengths.
    """

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self._past.clear()
        self._make_buffers(len(self), FIRST_CAPACITY)

    def _make_buffers(self, batch: int, capacity: int) -> None:
        shapes = (state.shape(batch, capacity) for state in self.states)
        self._buffers = [self._zeros((rows, slots, heads, dim)) for rows, heads, slots, dim in shapes]

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        import torch

        from isoform.reference.modules import ops

        with torch.inference_mode(), ops.lowered_by({**ops.OPS, "attention": _attend_in_place}):
            if past + length > self._buffers[0].shape[1]:
                self._copy(len(self), past, past + length, slice(None))
            views = {
                state.input: buffer[:, :past].transpose(1, 2)
                for state, buffer in zip(self.states, self._buffers, strict=True)
            }
            return self._logits(self._run(feeds, past, views), last)

    def _copy(self, batch: int, past: int, needed: int, rows: Any) -> None:
        """Move these rows of the first `past` slots to buffers of `needed` slots or some more."""
        old = self._buffers
        self._make_buffers(batch, fitting(needed, FIRST_CAPACITY))
        for n, buffer in enumerate(old):
            self._buffers[n][:, :past] = buffer[:, :past][rows]

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        import torch

        with torch.inference_mode():
            self._copy(len(rows), slots, slots + 1, torch.from_numpy(rows).to(self._device))

    def _truncate(self, slots: int) -> None:
        """Nothing: a pass reads as many slots as there are, and writes behind them."""

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        import torch

        with torch.inference_mode():
            sources = {id(kept.decoder): kept.decoder._buffers for kept in plan}
            self._make_buffers(len(plan), fitting(slots + 1, FIRST_CAPACITY))
            for n, buffer in enumerate(self._buffers):
                for row, kept in enumerate(plan):
                    if kept.slots.size:
                        put(buffer[row], 0, slots, sources[id(kept.decoder)][n][kept.row], kept.slots)


def _attend_in_place(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.attention` whose growing past is a view (B, kv_heads, P, D) of a buffer (B, capacity, kv_heads, D)."""
    from isoform.reference.modules import ops

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


def open_parts(model: Model, *, module: nn.Module | None = None, **options: Any) -> PartsSession:
    """A session per part of the model; those of the same weights share them. `module`: the whole, whose they are."""
    from isoform.runtimes.backends.parts import PartsSession

    parts = {part.part: part for part in model.parts}
    loaded: dict[str, nn.Parameter] = {} if module is None else dict(module.named_parameters())

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
