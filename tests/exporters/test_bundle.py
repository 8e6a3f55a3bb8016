"""What an export leaves on the disk: a whole bundle, or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isoform import whole
from isoform.errors import InputError, IsoformError, UnsupportedExport
from isoform.exporters import bundle as bundles
from isoform.exporters import gguf
from isoform.exporters.bundle import FORMATS, export
from isoform.manifest import NAME, Artifact, File, Manifest, describe
from isoform.progress import Progress
from isoform.reference.model import Model, open_model

Tiny = Callable[[str], Path]


def writes(name: str, **behaviour: Any) -> Any:
    """A format that writes a few bytes; `raises` is raised after writing half of it."""

    def write(model: Model, folder: Path, options: Any, progress: Progress) -> list[Artifact]:
        path = folder / name / "model.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
        progress(name, 1, 2)
        if "raises" in behaviour:
            (folder / f"{name}_config.json").write_text("{}")
            raise behaviour["raises"]
        path.write_bytes(b"the whole")
        return [Artifact(format=name, dtype="f32", files=(describe(path, folder),), signature=model.signature)]

    real = FORMATS[name]
    return SimpleNamespace(name=name, options=real.options, bytes_needed=real.bytes_needed, write=write)


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Quick stand-ins for the writers; a test may put others."""
    table: dict[str, Any] = {name: writes(name) for name in FORMATS}
    monkeypatch.setattr(bundles, "FORMATS", table)
    return table


def test_all_forms_of_a_model_lie_in_one_folder(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"
    seen: list[str] = []
    model = open_model(tiny("bert_embed"))
    manifest = export(
        model, ["all"], out, gguf=gguf.Options(types=("f32", "q8_0")), progress=lambda text, *_: seen.append(text)
    )
    assert [(a.format, a.dtype) for a in manifest.artifacts] == [
        ("onnx", "f32"),
        ("torchscript", "f32"),
        ("gguf", "f32"),
        ("gguf", "q8_0"),
    ]
    read = Manifest.read(out)
    assert read.to_json() == manifest.to_json()
    for artifact in read.artifacts:
        for file in artifact.files:
            assert describe(out / file.path, out) == file
    for name in ("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (out / name).read_bytes() == (tiny("bert_embed") / name).read_bytes()
    assert seen
    assert {"isoform", "torch", "onnx"} <= manifest.versions.keys()
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_the_manifest_says_where_the_weights_came_from(tiny: Tiny, tmp_path: Path, formats: Any) -> None:
    model = open_model(tiny("qwen3_sharded"))
    source = export(model, ["gguf"], tmp_path / "b").source
    assert Path(source["path"]) == tiny("qwen3_sharded")
    assert len(source["files"]) > 1
    for file in source["files"]:
        content = (tiny("qwen3_sharded") / file["path"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_all_leaves_out_what_cannot_hold_the_model(tiny: Tiny, tmp_path: Path, formats: dict[str, Any]) -> None:
    formats["gguf"] = writes("gguf", raises=UnsupportedExport("no such architecture"))
    manifest = export(open_model(tiny("bert")), ["all"], tmp_path / "b")
    assert manifest.missing == {"gguf": "no such architecture"}
    assert {a.format for a in manifest.artifacts} == {"onnx", "torchscript"}
    assert not list((tmp_path / "b").glob("gguf*")), "the half that was written is gone"
    with pytest.raises(UnsupportedExport, match="no such architecture"):
        export(open_model(tiny("bert")), ["onnx", "gguf"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_nothing_is_written_when_no_form_can_hold_the_model(
    tiny: Tiny, tmp_path: Path, formats: dict[str, Any]
) -> None:
    for name in formats:
        formats[name] = writes(name, raises=UnsupportedExport(f"not {name}"))
    with pytest.raises(UnsupportedExport, match="not onnx; not torchscript; not gguf"):
        export(open_model(tiny("bert")), ["all"], tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), SystemExit(1)])
def test_whatever_stops_an_export_leaves_nothing(
    tiny: Tiny, tmp_path: Path, formats: dict[str, Any], error: BaseException
) -> None:
    formats["torchscript"] = writes("torchscript", raises=error)
    with pytest.raises(type(error)):
        export(open_model(tiny("bert")), ["all"], tmp_path / "deep" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_error(tiny: Tiny, tmp_path: Path, formats: dict[str, Any], code: int) -> None:
    formats["onnx"] = writes("onnx", raises=OSError(code, "No space left on device"))
    with pytest.raises(IsoformError, match=r"No space left on device in .*needs about 0\.\d MB, .* MB are free"):
        export(open_model(tiny("bert")), ["onnx"], tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_seen_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, formats: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(IsoformError, match="no space left in"):
        export(open_model(tiny("bert")), ["onnx"], tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_disk_that_fills_up_while_a_form_is_written_leaves_nothing(name: str, tiny: Tiny, tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "from pathlib import Path; from isoform.errors import IsoformError\n"
        "from isoform.exporters.bundle import export\n"
        "from isoform.reference.model import open_model\n"
        f"try: export(open_model({str(tiny('qwen2'))!r}), [{name!r}], Path({str(tmp_path / 'b')!r}))\n"
        "except IsoformError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "File too large" in done.stdout
    assert not list(tmp_path.iterdir())


WAITS = (
    "import sys, time; from pathlib import Path; from isoform.exporters import bundle\n"
    "from isoform.reference.model import open_model\n"
    "def write(model, folder, *rest):\n"
    "    (folder / 'half').write_text('half'); print('under way', flush=True); time.sleep(60)\n"
    "bundle.FORMATS['onnx'].write = write\n"
    "bundle.export(open_model(sys.argv[1]), ['onnx'], Path(sys.argv[2]))"
)


def started(tiny: Tiny, out: Path) -> subprocess.Popen[str]:
    """An export in another process that has begun to write."""
    command = [sys.executable, "-c", WAITS, str(tiny("bert")), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    assert not out.exists()
    assert list(out.parent.iterdir())
    return process


def test_control_c_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    process = started(tiny, tmp_path / "b")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_goes_with_the_next_one(tiny: Tiny, tmp_path: Path, formats: Any) -> None:
    alive, killed = started(tiny, tmp_path / "b"), started(tiny, tmp_path / "b")
    killed.kill()
    killed.communicate(timeout=60)
    assert len(list(tmp_path.iterdir())) == 2
    export(open_model(tiny("bert")), ["onnx"], tmp_path / "b")
    assert len(list(tmp_path.iterdir())) == 2, "the one that still runs keeps its folder"
    alive.send_signal(signal.SIGINT)
    alive.communicate(timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


DIES = """
import os, random, signal, sys, threading
from pathlib import Path
from isoform import api
from isoform.manifest import Manifest

source, out = sys.argv[1], Path(sys.argv[2])
options = dict(to="gguf", gguf_types="f32,q8_0", pre="gpt-2", check=False)

def look(replaced):
    if replaced or out.exists():
        for artifact in Manifest.read(out).artifacts:
            assert not [file for file in artifact.files if file.difference(out)]
    assert all(path == out or path.name.startswith(f".{out.name}.part-") for path in out.parent.iterdir())

def attempt(replaced, stop):
    child = os.fork()
    if child == 0:
        stop()
        api.export_and_check(source, out, overwrite=replaced, **(options | progress))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    look(replaced)
    return os.waitstatus_to_exitcode(status)

events, kills, progress = 0, 0, {}
for replaced in (False, True):
    at = 0
    while True:  # at one event after another, until there are no more
        left = [at]
        def count(text, done, total):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        progress = {"progress": count}
        if attempt(replaced, lambda: None) == 0:
            break
        events, at = events + 1, at + 16
    progress = {}
    for _ in range(4):
        delay = random.uniform(0, 0.15)
        def later():
            threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        kills += attempt(True, later) != 0
api.export_and_check(source, out, overwrite=True, **options)
print(events, kills, [path.name for path in out.parent.iterdir()])
"""


def test_an_export_killed_at_any_time_leaves_the_old_bundle_or_the_new(tiny: Tiny, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIES, str(tiny("qwen2")), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    events, _, names = done.stdout.split(maxsplit=2)
    assert int(events) > 4
    assert names.strip() == "['b']"


def test_a_source_that_is_not_hashed_is_known_by_its_time(tiny: Tiny, tmp_path: Path, formats: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "source"))
    export(open_model(folder), ["onnx"], tmp_path / "b", hash_source=False)
    [entry] = Manifest.read(tmp_path / "b").source["files"]
    weights = File(**entry)
    assert weights.sha256 == ""
    assert weights.difference(folder) == ""
    os.utime(folder / weights.path, ns=(1, 1))
    assert weights.difference(folder) == "model.safetensors was modified since the export"
    # The Hub's cache calls a file by its hash.
    digest = hashlib.sha256((folder / weights.path).read_bytes()).hexdigest()
    (tmp_path / "blobs").mkdir()
    (folder / weights.path).rename(tmp_path / "blobs" / digest)
    (folder / weights.path).symlink_to(tmp_path / "blobs" / digest)
    export(open_model(folder), ["onnx"], tmp_path / "b", hash_source=False, overwrite=True)
    [entry] = Manifest.read(tmp_path / "b").source["files"]
    assert entry == {"path": "model.safetensors", "size": weights.size, "sha256": digest}
    assert File(**entry).difference(folder) == ""


def test_an_existing_bundle_is_replaced_on_request_only(tiny: Tiny, tmp_path: Path, formats: dict[str, Any]) -> None:
    out = tmp_path / "b"
    out.mkdir()
    export(open_model(tiny("bert")), ["all"], out)  # an empty folder is no obstacle
    with pytest.raises(InputError, match="--overwrite"):
        export(open_model(tiny("llama")), ["onnx"], out)
    assert Manifest.read(out).family == "bert"
    formats["onnx"] = writes("onnx", raises=RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        export(open_model(tiny("llama")), ["onnx"], out, overwrite=True)
    assert Manifest.read(out).family == "bert", "the old one stays until the new one is whole"
    export(open_model(tiny("llama")), ["gguf"], out, overwrite=True)
    assert Manifest.read(out).family == "llama"
    assert not (out / "onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    tiny: Tiny, tmp_path: Path, formats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    export(open_model(tiny("bert")), ["onnx"], out)
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if (self / NAME).is_file() and Manifest.read(self).family == "llama":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    monkeypatch.setattr(whole, "_exchange", lambda a, b: False)  # as on a system that cannot swap two folders
    with pytest.raises(PermissionError):
        export(open_model(tiny("llama")), ["onnx"], out, overwrite=True)
    assert Manifest.read(out).family == "bert"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_folder_is_never_replaced(tiny: Tiny, tmp_path: Path, formats: Any, overwrite: bool) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError):
            export(open_model(tiny("bert")), ["onnx"], out, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diary.txt", "file"]


@pytest.mark.parametrize(("formats_", "named"), [(["coreml"], "coreml"), ([], "onnx")])
def test_an_unknown_format_is_named(tiny: Tiny, tmp_path: Path, formats_: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        export(open_model(tiny("bert")), formats_, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(tiny: Tiny, formats: Any) -> None:
    with pytest.raises(InputError, match="/proc"):
        export(open_model(tiny("bert")), ["onnx"], Path("/proc/isoform/bundle"))
