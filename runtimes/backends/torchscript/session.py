"""A TorchScript file as a `Session`, through torch's interpreter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.backends.inputs import checked
from isoform.runtimes.backends.torch.decoder import TensorDecoder
from isoform.runtimes.backends.torch.session import refused_by, set_threads, torch_device
from isoform.runtimes.backends.torch.tensors import arrays_of, tensors
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class TorchScriptSession:
    """A file whose `forward` takes the signature's inputs by position. `threads` sets torch's for the whole process."""

    backend: str = "torchscript"

    def __init__(self, path: Path, signature: Signature, *, device: str = "cpu", threads: int | None = None) -> None:
        import torch

        from isoform.runtimes.backends.torch.layout import channels_last

        self.signature = signature
        self._device = torch_device(device)
        set_threads(threads)
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; export the model again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # there is no other reader of this format
                module = torch.jit.load(path, map_location=self._device)
        except (RuntimeError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path} is no readable TorchScript file ({line}); export the model again") from None
        arguments = len(module.forward.schema.arguments) - 1
        if arguments != len(signature.inputs):
            raise CheckpointError(
                f"{path} takes {arguments} inputs, its signature has {len(signature.inputs)}; export the model again"
            )
        self._dtype: torch.dtype = next((p.dtype for p in module.parameters()), torch.float32)
        self._module: torch.jit.ScriptModule | None = module.eval()
        if self._device.type == "cpu":
            channels_last(module)

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        import torch
        from torch.jit._fuser import optimized_execution

        if self._module is None:
            raise InputError("this torchscript session is closed; open a new one")
        # The profiling executor would compile on the first two passes (300 ms for 12 layers) and gain nothing after.
        with torch.inference_mode(), optimized_execution(False):
            outputs: tuple[Tensor, ...] = self._module(*inputs)
        return outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        arrays = checked(self.signature, inputs)
        try:
            outputs = self.forward(tensors(arrays, self._device, self._dtype))
        except RuntimeError as error:  # sizes that the signature leaves free, and the model does not
            raise refused_by("TorchScript", error) from error
        return arrays_of(self.signature, outputs)

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> TensorDecoder:
        """See `Session.decoder`."""

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            return self.forward(list(inputs))

        return TensorDecoder(forward, self.signature, rows, self._device, self._dtype)

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
