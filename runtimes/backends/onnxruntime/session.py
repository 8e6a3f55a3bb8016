"""An ONNX graph as a `Session`, through ONNX Runtime's CPU or CUDA provider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.runtimes.backends.inputs import checked
from isoform.runtimes.backends.onnxruntime.decoder import OnnxRuntimeDecoder
from isoform.runtimes.backends.onnxruntime.graph_file import (
    FOLDER_KEY,
    LARGEST,
    complaint,
    is_larger,
)
from isoform.runtimes.backends.onnxruntime.library import (
    GROWS,
    MASK_END,
    ROW_GAPS,
    SETTINGS,
    START,
    errors,
    failed,
    library,
)
from isoform.runtimes.backends.onnxruntime.prepare import huge_pages
from isoform.runtimes.backends.onnxruntime.prepare.prepared_graph import CACHE, PreparedGraph, prepare, prepare_deep
from isoform.runtimes.backends.parallel_runs import in_turn
from isoform.runtimes.devices import cpus, gpus, parse_device
from isoform.signature import Axis, Port, Signature, with_states

if TYPE_CHECKING:
    from numpy.typing import NDArray


PACKAGES = (
    "pip install onnxruntime-gpu[cuda,cudnn] (and remove onnxruntime), with an NVIDIA driver for that CUDA version"
)
_TYPES = {
    "tensor(bool)": "bool",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
_QUIET = 3  # errors only
SPINNING = "session.intra_op.allow_spinning"
COPYING = 0.5  # seconds that the kernel may take to move weights into huge pages, before a decoder, until it has
ENOUGH = 4  # runs per CPU from which on they go side by side
TWICE = 2**30  # bytes of weights that may be held twice for that


class OnnxRuntimeSession:
    """A graph with its weights beside it; `signature` is read from the graph when there is none.

    `threads` defaults to the CPUs this process may use. `strict` keeps TF32 off on a GPU, and quantized layers from
    quantizing their input. Threads that `spin` while they wait are ready sooner, and keep a CPU from others. A session
    that is `like` an open one of the same file, device and strictness shares the weights that were laid out for it.
    """

    backend: str = "onnxruntime"

    def __init__(
        self,
        path: Path,
        signature: Signature | None = None,
        *,
        device: str = "cpu",
        strict: bool = False,
        threads: int | None = None,
        spin: bool = True,
        like: OnnxRuntimeSession | None = None,
        deep: tuple[PreparedGraph, str] | None = None,
    ) -> None:
        """`deep`: run this graph of the file, whose output of that name is no port: the hidden states."""
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; export the model again")
        ort = library()
        if path.stat().st_size > LARGEST:
            raise CheckpointError(complaint(path, "", ort.__version__))
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.enable_mem_pattern = False  # every length of the mask would leave one, and cost more than it saves
        self.threads = options.intra_op_num_threads = cpus() if threads is None else threads
        if self.threads < 1:
            raise InputError(f"threads={threads}: at least one is needed")
        if not spin:
            options.add_session_config_entry(SPINNING, "0")
        index = parse_device(device)
        self.device = ("cpu", 0) if index is None else ("cuda", index)
        providers: list[Any] = ["CPUExecutionProvider"]
        if index is not None:
            _need_cuda(ort, index)
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": int(not strict)}))
        self.hidden = None if deep is None else deep[1]
        if deep is not None:
            self._graph: PreparedGraph = deep[0]
        else:
            self._graph = prepare(path, SETTINGS, strict=strict, on_cpu=index is None) if like is None else like._graph
        for name, value in self._graph.values.items():
            options.add_initializer(name, value)
        source = self._graph.source
        if source != path:
            options.add_session_config_entry(FOLDER_KEY, str(path.parent))
        if index is None:
            huge_pages.gather()
        before = huge_pages.regions() if index is None else set()
        try:
            session = ort.InferenceSession(source, options, providers=providers)
        except errors() as error:
            raise CheckpointError(complaint(path, str(error), ort.__version__)) from None
        if index is not None and session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendUnavailable(f"ONNX Runtime's CUDA provider does not start here; {PACKAGES}")
        self._session: Any = session
        self._path = path
        self._single: OnnxRuntimeSession | None = None
        self._deep: OnnxRuntimeSession | None = None
        self._opened = {"device": device, "strict": strict, "threads": threads, "spin": spin}
        self._weights = huge_pages.regions() - before if index is None else set()
        self.types = {port.name: _type(path, port) for port in session.get_inputs()}
        self.types |= {port.name: _TYPES[port.type] for port in session.get_outputs() if port.type in _TYPES}
        self.settings = {name: np.array([value]) for name, value in SETTINGS.items() if name in self.types}
        self.trims, self.follows = START in self.settings, MASK_END in self.settings
        self.types |= {port.name: _TYPES[port.type] for port in session.get_overridable_initializers()}
        self.ragged = ROW_GAPS in self.types
        self.cache = session.get_modelmeta().custom_metadata_map.get(CACHE)
        inputs = [port for port in session.get_inputs() if port.name not in SETTINGS]
        outputs = [port for port in session.get_outputs() if port.name != self.hidden]
        self.signature = signature or graph_signature(path, inputs, outputs)
        for kind, ports, found in (
            ("inputs", self.signature.inputs, inputs),
            ("outputs", self.signature.outputs, outputs),
        ):
            names = {port.name for port in found}
            if {port.name for port in ports} != names:
                raise CheckpointError(
                    f"{path} has the {kind} {', '.join(sorted(names))}, not those of its signature; export it again"
                )

    @property
    def native(self) -> Any:
        """The onnxruntime.InferenceSession. Raises InputError when the session is closed."""
        if self._session is None:
            raise InputError("this onnxruntime session is closed; open a new one")
        return self._session

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        arrays = checked(self.signature, inputs)
        feeds = {name: array.astype(self.types[name], copy=False) for name, array in arrays.items()}
        feeds |= self.settings
        names = [port.name for port in self.signature.outputs]
        try:
            if self.extends_rows_alone and self._appends(arrays):
                rows = [self.native.run(names, self._row(feeds, n)) for n in range(len(arrays["input_ids"]))]
                outputs = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
            else:
                outputs = self.native.run(names, feeds)
        except errors() as error:
            raise failed(error) from None
        return {name: np.asarray(output, np.float32) for name, output in zip(names, outputs, strict=True)}

    def run_each(
        self, feeds: Iterable[Mapping[str, NDArray[Any]]], count: int
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """See `SideBySide.run_each`: on several CPUs each run has one, which wastes less than sharing every product.

        Kernels that keep a copy of their weights keep a second one for that, and take the time to make it: so not for
        few runs, or a large model.
        """
        many = self.device[0] == "cpu" and self.threads > 1 and count >= ENOUGH * self.threads
        single = self._alone() if many else None
        yield from map(self.run, feeds) if single is None else in_turn(single.run, feeds, self.threads)

    def _alone(self) -> OnnxRuntimeSession | None:
        """The same graph with one thread, opened when it is asked for first; None when it is too large for that."""
        once = sum(array.nbytes for array in self._graph.arrays.values())
        if self._single is None and self.native is not None and not is_larger(self._path, TWICE + once):
            self._single = OnnxRuntimeSession(self._path, self.signature, threads=1, like=self)
        return self._single

    def deep(self) -> OnnxRuntimeSession:
        """The same graph with its hidden states as an output besides, opened when it is asked for first.

        Its weights are in memory a second time. Raises InputError where the hidden states cannot be told.
        """
        if self._deep is None:
            logits = self.signature.results[0].name
            found = prepare_deep(self._path, SETTINGS, logits) if self.native is not None else None
            if found is None:
                raise InputError(
                    f"contrastive search (penalty_alpha) compares hidden states, and {self._path} does not tell where "
                    "it has them; use the torch backend, or pass penalty_alpha=None"
                )
            options: dict[str, Any] = {**self._opened, "deep": found}
            self._deep = OnnxRuntimeSession(self._path, self.signature, **options)
        return self._deep

    @property
    def extends_rows_alone(self) -> bool:
        """Whether several new slots after a past are for a batch of one only: so is grouped-query attention."""
        return bool(self.signature.states) and self.cache != GROWS

    def _appends(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Whether these are several new slots after a past, of several rows."""
        first = arrays[self.signature.states[0].input]
        return 0 not in first.shape and 1 not in arrays["input_ids"].shape

    @staticmethod
    def _row(feeds: Mapping[str, NDArray[Any]], n: int) -> dict[str, NDArray[Any]]:
        return {name: array if name in SETTINGS else array[n : n + 1] for name, array in feeds.items()}

    def value(self, array: NDArray[Any]) -> Any:
        """An OrtValue on the session's device: on the CPU the array itself, which must outlive it."""
        return library().OrtValue.ortvalue_from_numpy(array, *self.device)

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> OnnxRuntimeDecoder:
        """See `Session.decoder`."""
        self._weights = huge_pages.ask(self._weights, COPYING)
        return OnnxRuntimeDecoder(self, rows)

    def close(self) -> None:
        self._session = self._single = self._deep = None
        self._graph = PreparedGraph(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def graph_signature(path: Path, found_inputs: Sequence[Any], found_outputs: Sequence[Any]) -> Signature:
    """The signature of a graph that came without one: its ports by name, a cache by `past_key_values.N.key`."""

    def port(value: Any) -> Port:
        axes: tuple[Axis, ...] = tuple(
            size if isinstance(size, int) else size or f"{value.name}_{n}" for n, size in enumerate(value.shape)
        )
        return Port(value.name, "bool" if "bool" in value.type else "int64" if "int" in value.type else "float", axes)

    inputs, outputs = tuple(map(port, found_inputs)), tuple(map(port, found_outputs))
    try:
        inputs, outputs, states, sizes = with_states(inputs, outputs)
    except KeyError as error:
        raise CheckpointError(
            f"{path} has a cache but no output {error.args[0]}; export the model with `isoform export`"
        ) from None
    if any(isinstance(axis, str) for state in states for axis in (state.axes[1:2] + state.axes[3:])):
        raise CheckpointError(
            f"{path}: its cache input {states[0].input} has no fixed number of heads and channels; export the model "
            "with `isoform export`"
        )
    # States come last, in the order of the inputs.
    taken, given = (state.taken() for state in states), (state.given() for state in states)
    return Signature(
        (*(port for port in inputs if port.role != "state"), *taken),
        (*(port for port in outputs if port.role != "state"), *given),
        states,
        sizes,
    )


def _type(path: Path, port: Any) -> str:
    if port.type not in _TYPES:
        raise CheckpointError(
            f"{path}: input {port.name} is a {port.type}, which isoform does not feed ({', '.join(_TYPES)})"
        )
    return _TYPES[port.type]


def _need_cuda(ort: Any, index: int) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BackendUnavailable(f"the installed onnxruntime {ort.__version__} has no CUDA provider; {PACKAGES}")
    count = gpus()
    if index >= count:
        raise BackendUnavailable(
            f"the NVIDIA driver shows {count} devices, so cuda:{index} is not there; use device='cpu'"
        )
    ort.preload_dlls()  # from torch or the nvidia packages, wherever they are
