"""Which backends there are, what this machine can run, and how to open a model on one of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.formats import FORMAT_OF, readable
from isoform.manifest import Artifact, Manifest
from isoform.runtimes.devices import accelerators, check_device, gpus
from isoform.signature import Signature

if TYPE_CHECKING:
    from torch import nn

    from isoform.reference.model import Model
    from isoform.runtimes.session import Session

BACKENDS = ("torch", *sorted(FORMAT_OF))
PREFERENCE = ("onnxruntime", "llamacpp", "torchscript")  # what "auto" tries, in order


@dataclass(frozen=True, slots=True)
class BackendState:
    """Whether a backend runs here: `detail` is its version, or what to install; `devices` are the names to ask for."""

    backend: str
    ready: bool
    detail: str
    devices: list[str]


def available() -> list[BackendState]:
    """The state of every backend. Loads a library only to ask it about a GPU that is there."""
    count = gpus()
    return [_torch("torch", count), _torch("torchscript", count), _onnxruntime(count), _openvino(), _llamacpp()]


def _devices(count: int) -> list[str]:
    return ["cpu", *(["cuda"] if count == 1 else [f"cuda:{n}" for n in range(count)])]


def usable_gpus(backend: str) -> int:
    """How many GPUs a backend can use here; "auto" stands for the first that `open_path` tries."""
    count = gpus()
    if not count or backend == "openvino":
        return 0
    name = PREFERENCE[0] if backend == "auto" else backend
    if name == "llamacpp":
        state = _llamacpp()
    else:
        state = _onnxruntime(count) if name == "onnxruntime" else _torch(name, count)
    return sum(device != "cpu" for device in state.devices)


def _torch(backend: str, count: int) -> BackendState:
    if (found := _version("torch")) is None:
        return BackendState(backend, False, "pip install torch", [])
    if count:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return BackendState(backend, True, f"torch {found}", _devices(count))


def _onnxruntime(count: int) -> BackendState:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        found = _version(package)
        if found is not None and importlib.util.find_spec("onnxruntime") is not None:
            if count:
                import onnxruntime

                count = count if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else 0
            return BackendState("onnxruntime", True, f"{package} {found}", _devices(count))
    return BackendState("onnxruntime", False, "pip install onnxruntime-gpu (or onnxruntime)", [])


def _openvino() -> BackendState:
    if (found := _version("openvino")) is None:
        return BackendState("openvino", False, "pip install isoform[openvino]", [])
    names = ["cpu"]
    if accelerators():
        from isoform.runtimes.backends.openvino.library import devices

        names = devices()
    return BackendState("openvino", bool(names), f"openvino {found}", names)


def _llamacpp() -> BackendState:
    if (found := _version("xllamacpp")) is None:
        return BackendState("llamacpp", False, "pip install xllamacpp", [])
    return BackendState("llamacpp", True, f"xllamacpp {found}", _devices(0))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def open_session(
    source: Path | Model,
    backend: str,
    *,
    signature: Signature | None = None,
    dtype: str = "f32",
    device: str = "cpu",
    strict: bool = False,
    threads: int | None = None,
    alternating: bool = False,
    module: nn.Module | None = None,
    precision: str = "f32",
    wires: Mapping[str, str] | None = None,
) -> Session:
    """One file (or, for torch, an opened model in `dtype`) on one backend.

    A `.onnx` file needs no `signature`, the other files do. `strict` turns off what trades exactness for speed.
    `alternating`: sessions of other parts run in turn with this one, so its idle threads must leave the CPUs to them.
    A model of several parts becomes a `PartsSession`. `module`, for torch: run this whole module of the model.
    `precision`, for openvino: the float type that it computes in and keeps caches in (f32, bf16 or f16).
    `wires`: how the parts of a file that holds an encoder and a decoder are connected; it becomes a `PartsSession`.
    """
    check_device(device)
    if backend == "torch":
        from isoform.runtimes.backends.torch.session import TorchSession, open_parts

        if isinstance(source, Path):
            raise InputError(f"the torch backend runs checkpoints, not the file {source}; open the checkpoint")
        if len(source.parts) > 1:
            return open_parts(source, dtype=dtype, device=device, threads=threads, strict=strict, module=module)
        return TorchSession(source, dtype=dtype, device=device, threads=threads, strict=strict, module=module)
    if backend not in FORMAT_OF:
        raise InputError(f"backend {backend!r} is not known; choose from {', '.join(BACKENDS)}")
    if not isinstance(source, Path):
        raise InputError(f"the {backend} backend reads {FORMAT_OF[backend]} files; export {source.name} first")
    if backend == "onnxruntime":
        from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession

        return OnnxRuntimeSession(
            source, signature, device=device, strict=strict, threads=threads, spin=not alternating
        )
    if backend == "openvino":
        from isoform.runtimes.backends.openvino.session import OpenVinoSession

        return OpenVinoSession(source, signature, device=device, precision=precision, strict=strict, threads=threads)
    if signature is None:
        raise InputError(f"{source} has no signature; open the bundle it belongs to, or the checkpoint")
    if backend == "torchscript":
        from isoform.runtimes.backends.torchscript.session import TorchScriptSession

        return TorchScriptSession(source, signature, device=device, threads=threads)
    if wires is not None:
        from isoform.runtimes.backends.llamacpp.encoder_decoder import open_encoder_decoder

        return open_encoder_decoder(source, signature, wires, device=device, strict=strict, threads=threads)
    if signature.takes("encoder_states"):
        raise InputError(f"{source} holds an encoder and a decoder, which run together; open the bundle it belongs to")
    from isoform.runtimes.backends.llamacpp.session import LlamaCppSession

    return LlamaCppSession(source, signature, device=device, strict=strict, threads=threads)


def open_artifact(folder: Path, artifact: Artifact, backend: str, **options: Any) -> Session:
    """An artifact of the bundle in `folder`, its files checked to be there in full; options as in `open_session`."""
    for file in artifact.files:
        path = folder / file.path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; export the model again")
        if path.stat().st_size != file.size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {file.size}; export the model again"
            )
    return open_session(folder / artifact.files[0].path, backend, signature=artifact.signature, **options)


def open_bundle(
    folder: Path, manifest: Manifest, artifacts: Sequence[Artifact], backend: str, **options: Any
) -> Session:
    """One form of the model in `folder`: its artifact, or those of its parts; options as in `open_session`."""
    from isoform.runtimes.backends.parts import PartsSession

    if len(artifacts) == 1 and artifacts[0].signature.takes("encoder_states"):  # a file of both parts
        return open_artifact(folder, artifacts[0], backend, wires=manifest.wires, **options)
    if len(artifacts) == 1:
        return open_artifact(folder, artifacts[0], backend, **options)
    parts = {artifact.part: artifact for artifact in artifacts}

    def open_part(name: str) -> Session:
        return open_artifact(folder, parts[name], backend, alternating=True, **options)

    signatures = {name: artifact.signature for name, artifact in parts.items()}
    return PartsSession(signatures, open_part, manifest.wires, manifest.steps)


def open_path(
    path: Path, backend: str = "auto", *, task: str | None = None, dtype: str | None = None, **options: Any
) -> tuple[Session, Path]:
    """A bundle or a bare `.onnx` file, and the folder where its configuration and tokenizer lie.

    "auto" takes the first backend of `PREFERENCE` whose form the bundle holds and that runs here. The torch backend
    opens the checkpoint that the bundle was made from. `dtype` chooses among the forms of a bundle; without one, it is
    the first. Raises InputError when the bundle serves another `task`.
    """
    if backend not in (*BACKENDS, "auto"):
        raise InputError(f"backend {backend!r} is not known; choose from {', '.join(BACKENDS)}, or auto")
    check_device(options.get("device", "cpu"))
    if path.suffix == ".onnx":
        if FORMAT_OF.get(backend, "onnx") != "onnx" or backend == "torch":
            raise InputError(f"the {backend} backend does not read {path}; use onnxruntime or openvino")
        return open_session(path, "onnxruntime" if backend == "auto" else backend, **options), folder_of(path)
    manifest = Manifest.read(path)
    if task is not None and manifest.task != task:
        raise InputError(f"{path} was exported for {manifest.task}, not {task}; export the model with --task {task}")
    if backend == "torch":
        from isoform.runtimes.backends.torch.session import open_source

        source = open_source(manifest.source["path"], manifest.task)
        return open_session(source, "torch", dtype=dtype or "f32", **options), path
    tried, refused = PREFERENCE if backend == "auto" else (backend,), []
    held = dict.fromkeys(a.dtype for a in manifest.artifacts if a.format in {FORMAT_OF[name] for name in tried})
    if dtype is not None and held and not any(readable(name, held, dtype) for name in tried):
        raise InputError(
            f"{path} holds {', '.join(held)}, not {dtype}; leave dtype out, or export it with {dtype} as well"
        )
    for name in tried:
        forms = [a for a in manifest.artifacts if a.format == FORMAT_OF[name]]
        if not forms:
            reason = manifest.missing.get(FORMAT_OF[name], f"export it with --to {FORMAT_OF[name]}")
            refused.append(f"{name}: no {FORMAT_OF[name]} in {path} ({reason})")
            continue
        chosen = readable(name, (form.dtype for form in forms), dtype)
        if not chosen:
            refused.append(f"{name}: {path} holds no {FORMAT_OF[name]} in {dtype}")
        for kind in chosen:
            try:
                return open_bundle(path, manifest, [a for a in forms if a.dtype == kind], name, **options), path
            except BackendUnavailable as error:
                refused.append(f"{name}: {error}")
    raise BackendUnavailable("; ".join(refused))


def folder_of(path: Path) -> Path:
    """Where the config.json of a bundle or a graph lies: in it, beside it, or above it as in a bundle."""
    if path.is_dir():
        return path
    for folder in (path.parent, path.parent.parent):
        if (folder / "config.json").is_file():
            return folder
    return path.parent
