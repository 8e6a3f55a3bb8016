"""An ONNX graph as a `Session`, through OpenVINO's CPU, GPU and NPU plugins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.runtimes.backends.decoder import GraphDecoder
from isoform.runtimes.backends.inputs import checked
from isoform.runtimes.backends.openvino.branches import keep_branches
from isoform.runtimes.backends.openvino.decoder import LoopDecoder, StatefulDecoder
from isoform.runtimes.backends.openvino.library import brief, core, library, need, not_taken, refused
from isoform.runtimes.backends.openvino.onnx_file import read_signature, wrong_operators
from isoform.runtimes.backends.openvino.request import Request
from isoform.runtimes.backends.openvino.stateful import ROWS, cut_logits, keep_states
from isoform.runtimes.devices import cpus, openvino_device
from isoform.signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISIONS = ("f32", "bf16", "f16")
"""The float types to compute in, by names that are OpenVINO's as well."""


class OpenVinoSession:
    """A graph with its weights beside it; `signature` is read from the graph when there is none.

    `precision` is the float type of products and of the KV cache: left to itself, OpenVINO takes bfloat16 where a CPU
    has it, quantizes the inputs of quantized layers, and keeps the cache in 8 bits. Here none of that happens unasked,
    so that `strict` changes nothing. `threads` defaults to the CPUs this process may use.
    """

    backend: str = "openvino"

    def __init__(
        self,
        path: Path,
        signature: Signature | None = None,
        *,
        device: str = "cpu",
        precision: str = "f32",
        strict: bool = False,
        threads: int | None = None,
        deep: bool = False,
    ) -> None:
        """`deep`: the graph has the output `HIDDEN` besides. Raises InputError where it cannot be told."""
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not known; choose from {', '.join(PRECISIONS)}")
        self.threads = cpus() if threads is None else threads
        if self.threads < 1:
            raise InputError(f"threads={threads}: at least one is needed")
        self.device, self.precision = openvino_device(device), precision
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; export the model again")
        library()
        need(self.device)
        if wrong := wrong_operators(path):
            raise not_taken(path, ", ".join(wrong))
        self.signature = signature or read_signature(path)
        try:
            model = core().read_model(path)
        except RuntimeError as error:
            raise refused(path, error) from None
        _check_ports(path, model, self.signature)
        self._keeps = bool(self.signature.states) and not self.signature.kept("once")
        try:
            logits = self.signature.results[0].name
            self.cuts_logits = bool(self.signature.states) and cut_logits(model, logits, deep=deep)
            if deep and not self.cuts_logits:
                raise InputError(
                    f"contrastive search (penalty_alpha) compares hidden states, and {path} does not tell where it has "
                    "them; use the torch backend, or pass penalty_alpha=None"
                )
            if self._keeps:
                keep_states(model, self.signature)
            keep_branches(model)
            self._compiled: Any = core().compile_model(_in_float32(model), self.device, self._settings())
        except RuntimeError as error:
            raise BackendUnavailable(f"OpenVINO does not run {path} on {device}: {brief(error)}") from None
        self._check_precision(device)
        self.types: Mapping[str, Any] = {
            n: port.element_type.to_dtype() for port in self._compiled.inputs for n in port.names
        }
        self._request: Request | None = None
        self._deep: OpenVinoSession | None = None
        self._opened = {"device": device, "precision": precision, "threads": threads}
        self._path = path

    def _settings(self) -> dict[str, Any]:
        """Those of OpenVINO's properties that change numbers or take CPUs, as far as the device has them."""
        wanted = {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "KV_CACHE_PRECISION": self.precision,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        known = core().get_property(self.device, "SUPPORTED_PROPERTIES")
        return {name: value for name, value in wanted.items() if name in known}

    def _check_precision(self, device: str) -> None:
        """BackendUnavailable where the device computes in another float type than was asked for."""
        taken = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != self.precision:
            raise BackendUnavailable(
                f"OpenVINO computes in {taken} on this {device} where {self.precision} is asked for; choose another "
                "precision"
            )

    @property
    def native(self) -> Any:
        """The openvino.CompiledModel. Raises InputError when the session is closed."""
        if self._compiled is None:
            raise InputError("this openvino session is closed; open a new one")
        return self._compiled

    def request(self) -> Request:
        """A new infer request, without states."""
        return Request(self)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        arrays = checked(self.signature, inputs)
        if self._request is None:
            self._request = self.request()
        request, states = self._request, self.signature.states if self._keeps else ()
        if states:
            request.put({state.input: arrays.pop(state.input) for state in states})
            arrays[ROWS] = np.arange(len(arrays[self.signature.given[0].name]), dtype=np.int32)
        request.everything(arrays)
        found = request.states() if states else {}
        given = {state.output: found[state.input] for state in states}
        names = (port.name for port in self.signature.outputs)
        return {name: given[name].astype(np.float32) if name in given else request.output(name) for name in names}

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> GraphDecoder:
        """See `Session.decoder`."""
        kind = StatefulDecoder if self._keeps else LoopDecoder
        return kind(self.request(), self.signature, rows, self._deep_request)

    def _deep_request(self) -> Request:
        """A request of the same graph with `HIDDEN` as an output, compiled when it is asked for first."""
        if self._deep is None:
            options: dict[str, Any] = {**self._opened, "deep": True}
            self._deep = OpenVinoSession(self._path, self.signature, **options)
        return self._deep.request()

    def close(self) -> None:
        self._compiled = self._request = self._deep = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _in_float32(model: Any) -> Any:
    """The model with float32 at all its float ports, whatever it computes in."""
    ov = library()
    made, changed = ov.preprocess.PrePostProcessor(model), False
    for ports, place in ((model.inputs, made.input), (model.outputs, made.output)):
        for n, port in enumerate(ports):
            if port.get_element_type().is_real() and port.get_element_type() != ov.Type.f32:
                place(n).tensor().set_element_type(ov.Type.f32)
                changed = True
    return made.build() if changed else model


def _check_ports(path: Path, model: Any, signature: Signature) -> None:
    for kind, ports, found in (
        ("inputs", signature.inputs, model.inputs),
        ("outputs", signature.outputs, model.outputs),
    ):
        names = set().union(*(port.get_names() for port in found))
        if len(ports) != len(found) or not {port.name for port in ports} <= names:
            raise CheckpointError(
                f"{path} has the {kind} {', '.join(sorted(names))}, not those of its signature; export it again"
            )
