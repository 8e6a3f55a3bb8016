"""One of the two things that `compare` and `diff` compare: `PATH`, `PATH::BACKEND` or `PATH::BACKEND:TYPE`.

PATH is a bundle, a checkpoint folder, a Hub id, or a file: .gguf, .onnx, .pt, .safetensors. BACKEND may be the name of
a format too. Of a bundle with several forms it says which one, and TYPE which of its types.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isoform.errors import InputError
from isoform.formats import BACKENDS, CHECKED_ON, FORMAT_OF, readable
from isoform.manifest import NAME, Artifact, Manifest
from isoform.quality import plain_dtype
from isoform.validators.check.settings import nearest

SUFFIXES = {".gguf": "gguf", ".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript"}
"""The ending of a file -> its format."""


@dataclass(frozen=True, slots=True)
class Side:
    """`path` is what to open: a file of `format`, or a checkpoint where that is "". It may be an `artifact` of the
    bundle `folder`. `runner` is the backend that was named, if one was."""

    text: str
    path: Path
    format: str
    dtype: str
    folder: Path | None = None
    artifact: Artifact | None = None
    runner: str = ""

    @property
    def source(self) -> Path | str:
        """What to open: the path, or what may be a Hub id where there is no such path."""
        return self.path if self.path.exists() else self.path.as_posix()

    @property
    def backend(self) -> str:
        return self.runner or CHECKED_ON.get(self.format, "torch")


def find_side(text: str) -> Side:
    """Raises InputError for what is not there, and for a backend that does not read it."""
    place, mark, asked = text.partition("::")
    backend, _, dtype = asked.partition(":")
    if not place or (mark and not backend):
        raise InputError(f"{text!r} is not PATH, PATH::BACKEND or PATH::BACKEND:TYPE")
    known = ("torch", *FORMAT_OF, *BACKENDS)
    if backend and backend not in known:
        raise InputError(f"{text}: backend {backend!r} is not known; {nearest(backend, known)}")
    form = backend if backend in BACKENDS else FORMAT_OF.get(backend, "")
    path = Path(place).expanduser()
    if (path / NAME).is_file() and backend != "torch":
        return _of_bundle(text, path, form, dtype, backend if backend in FORMAT_OF else "")
    if (path / NAME).is_file():
        source = Manifest.read(path).source.get("path") or ""
        if not Path(source).exists():
            raise InputError(f"the source of {path}, {source}, is not there any more; name the checkpoint itself")
        return Side(text, Path(source), "", dtype or "f32")
    if (path.suffix in SUFFIXES or path.suffix == ".safetensors") and not path.is_file():
        raise InputError(f"{path} is not there; give the path of a file, folder or bundle")
    own = SUFFIXES.get(path.suffix, "")
    if own == "gguf" and backend == "torch":
        return Side(text, path, "", dtype or "f32")
    if form and form != own:
        what = f"a {own} file" if own else "a checkpoint; export it first"
        raise InputError(f"{text}: {backend} reads {form}, {path} is {what}")
    if not own and path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path} is neither a bundle ({NAME}) nor a checkpoint (config.json)")
    artifact, folder = _owner(path) if own else (None, None)
    kind, runner = (
        dtype or (artifact.dtype if artifact else _type_of(path, own)),
        backend if backend in FORMAT_OF else "",
    )
    return Side(text, path, own, kind, folder, artifact, runner)


def _of_bundle(text: str, folder: Path, form: str, dtype: str, runner: str) -> Side:
    artifacts = Manifest.read(folder).artifacts
    fitting = [a for a in artifacts if form in ("", a.format) and dtype in ("", a.dtype, plain_dtype(a.dtype))]
    if not fitting:
        held = ", ".join(f"{a.format}:{a.dtype}" for a in artifacts) or "nothing"
        raise InputError(f"{text}: {folder} holds {held}")
    mine = [a for a in fitting if a.format == fitting[0].format]
    best = readable(runner or CHECKED_ON[mine[0].format], (a.dtype for a in mine), dtype or None)[0]
    first = next(a for a in mine if a.dtype == best)
    return Side(text, folder / first.files[0].path, first.format, first.dtype, folder, first, runner)


def _owner(path: Path) -> tuple[Artifact | None, Path | None]:
    """The artifact that a file is, and its bundle, when it lies in one."""
    for folder in list(path.resolve().parents)[:2]:
        if (folder / NAME).is_file():
            for artifact in Manifest.read(folder).artifacts:
                if (folder / artifact.files[0].path).resolve() == path.resolve():
                    return artifact, folder
    return None, None


def _type_of(path: Path, form: str) -> str:
    """What a GGUF file says that it is; other files are taken for float32."""
    if form != "gguf":
        return "f32"
    from isoform.exporters.gguf.mixes import MIXES
    from isoform.reference.checkpoints.gguf_file import read_gguf

    number = read_gguf(path).metadata.get("general.file_type")
    return next((name for name, mix in MIXES.items() if mix.file_type == number), "f32")
