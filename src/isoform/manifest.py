"""`isoform.json`: what an export folder holds, where it came from, and the last parity result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from isoform.errors import InputError
from isoform.signature import Signature
from isoform.whole import whole_file
from isoform.wiring import guessed_wires

NAME = "isoform.json"
FORMAT_VERSION = 2
_READ = (1, 2)
"""The versions that this isoform opens. Version 1 has no roles, states by kind, wires, host steps or facts."""
WHOLE = "model"
"""The part of an artifact that is a whole model."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the folder; `path` is relative to it, with forward slashes.

    A source that nobody asked to hash has no sha256 but the time when it was `modified`, in nanoseconds.
    """

    path: str
    size: int
    sha256: str
    modified: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> File:
        """Raises TypeError or ValueError for what is no file of a folder, such as a path that leaves it."""
        file = cls(**data)
        if not isinstance(file.path, str) or type(file.size) is not int or not isinstance(file.sha256, str):
            raise TypeError(f"a file is {dict(data)!r:.80}")
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"the file {file.path!r} is not in the folder")
        return file

    def difference(self, folder: Path) -> str:
        """What is not as it was, or ""."""
        path = folder / self.path
        if not path.is_file():
            return f"{self.path} is missing"
        state = path.stat()
        if state.st_size != self.size:
            return f"{self.path} has {state.st_size} bytes, {NAME} says {self.size}"
        if not self.sha256:
            return "" if state.st_mtime_ns == self.modified else f"{self.path} was modified since the export"
        same = describe(path, folder).sha256 == self.sha256
        return "" if same else f"{self.path} has another sha256 than {NAME} says"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One graph in one form. `files[0]` is the one to open; `dtype` is f32, f16, bf16 or a quantization (q8_0).

    `part` names the graph in a model of several ("encoder", "decoder", ...); parts may share files.
    `options` are what the export was told besides, for GGUF `exporters.gguf.Options.to_json`.
    """

    format: str
    dtype: str
    files: tuple[File, ...]
    signature: Signature
    part: str = WHOLE
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Manifest:
    """`source` is {"name", "path", "dtype", "files": [File…]} of the weights, the dtype being the stored one (manifests
    of before have none); `missing` says why a format was not written.

    `wires` connect the parts and host `steps` (name -> settings), see `isoform.wiring`; `loop` names the loop that
    decodes; `facts` are what preprocessing and pipelines must know of the model. `serves`: pipeline task -> "", or why
    the bundle does not serve it, as the last check found. `notes` say how the source was opened, where that is not what
    everybody expects.
    """

    family: str
    task: str
    source: dict[str, Any]
    versions: dict[str, str]
    artifacts: list[Artifact] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    wires: dict[str, str] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    loop: str = "tokens"
    facts: dict[str, Any] = field(default_factory=dict)
    serves: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "task": self.task,
            "source": self.source,
            "versions": self.versions,
            "artifacts": [
                {
                    "format": a.format,
                    "dtype": a.dtype,
                    "files": [f.to_json() for f in a.files],
                    "signature": a.signature.to_json(),
                    **({} if a.part == WHOLE else {"part": a.part}),
                    **({"options": dict(a.options)} if a.options else {}),
                }
                for a in self.artifacts
            ],
            **({"wires": self.wires} if self.wires else {}),
            **({"steps": self.steps} if self.steps else {}),
            "loop": self.loop,
            "facts": self.facts,
            **({"serves": self.serves} if self.serves else {}),
            **({"notes": self.notes} if self.notes else {}),
            "missing": self.missing,
            "parity": self.parity,
        }

    def write(self, folder: Path) -> None:
        """Write `isoform.json` whole or not at all."""
        with whole_file(folder / NAME) as part:
            part.write_text(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises InputError when the folder holds no readable manifest of this version."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{folder} holds no {NAME}: not an exported bundle; make one with `isoform export`"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); export the model again") from None
        try:
            if data["format_version"] not in _READ:
                raise InputError(
                    f"{path} has format version {data['format_version']}, this isoform reads 1 and {FORMAT_VERSION}; "
                    "export the model again, or install a newer isoform"
                )
            manifest = cls(
                family=data["family"],
                task=data["task"],
                source=data["source"],
                versions=data["versions"],
                artifacts=[
                    Artifact(
                        format=a["format"],
                        dtype=a["dtype"],
                        files=tuple(File.from_json(f) for f in a["files"]),
                        signature=Signature.from_json(a["signature"]),
                        part=a.get("part", WHOLE),
                        options=a.get("options", {}),
                    )
                    for a in data["artifacts"]
                ],
                missing=data["missing"],
                parity=None if data["parity"] is None else dict(data["parity"]),
                wires=_wires(data.get("wires", {})),
                steps=dict(data.get("steps", {})),
                loop=data.get("loop", "tokens"),
                facts=_facts(data.get("facts", {})),
                serves={str(task): str(reason) for task, reason in dict(data.get("serves", {})).items()},
                notes=[str(note) for note in data.get("notes", ())],
            )
            if data["format_version"] == 1:
                parts = {artifact.part: artifact.signature for artifact in manifest.artifacts}
                manifest.wires = guessed_wires(parts) if len(parts) > 1 else {}
            return manifest
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{path} is not a manifest ({error!r}); export the model again") from None


def _facts(data: Any) -> dict[str, Any]:
    """The facts, but for those of a tokenizer that name a way of rebuilding it, as older bundles have them: the same
    class says it in parts, and it is found from the bundle's own files."""
    facts = dict(data)
    if "rebuild" in facts.get("tokenizer", {}):
        del facts["tokenizer"]
    return facts


def _wires(data: Any) -> dict[str, str]:
    """Raises ValueError for what connects no ports."""
    wires = dict(data)
    for target, source in wires.items():
        if not all(isinstance(end, str) and all(end.partition(".")) for end in (target, source)):
            raise ValueError(f"the wire {target!r}: {source!r} does not connect two ports")
    return wires


def describe(path: Path, folder: Path) -> File:
    """Size and sha256 of a file, named relative to `folder`."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path.relative_to(folder).as_posix(), path.stat().st_size, digest)
