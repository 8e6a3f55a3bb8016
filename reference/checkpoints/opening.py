"""Opens a checkpoint: chooses the reader for a folder, a `.gguf` file or a Hub id."""

from __future__ import annotations

import re
import shutil
import weakref
from pathlib import Path, PurePosixPath, PureWindowsPath

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import Checkpoint, first_line, read_json
from isoform.reference.checkpoints.ctranslate2_checkpoint import CTranslate2Checkpoint, is_ctranslate2
from isoform.reference.checkpoints.linked_folder import linked
from isoform.reference.checkpoints.pickle_file import PickleCheckpoint
from isoform.reference.checkpoints.safetensors_file import SafetensorsCheckpoint, read_header
from isoform.reference.tokenizers.sources import rebuilt
from isoform.sentence_modules import transformer_folder

HUB_OPTIONS = ("revision", "token", "cache_dir", "offline")
"""The keyword arguments of `open_checkpoint`."""


def _read_index(path: Path) -> dict[str, str] | None:
    """The weight map of an index (None without one), every file name checked to stay in the folder."""
    index = read_json(path)
    if index is None:
        return None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files; fetch the checkpoint again")
    for file in sorted(set(shards.values())):
        pure = PurePosixPath(file)
        inside = pure.parts and not pure.is_absolute() and ".." not in pure.parts and file.isprintable()
        if not inside or "\\" in file or PureWindowsPath(file).drive:
            raise CheckpointError(f"{path} points outside its folder ({file!r}); the checkpoint is not to be trusted")
    return shards


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Open a folder, a `.gguf` file or a Hub id; the keyword arguments are for Hub ids.

    Raises CheckpointError when there is nothing to open, or a file is truncated, malformed or unsafe.
    """
    if not str(source):
        raise CheckpointError("the name of the checkpoint is empty; give a folder, a .gguf file or a Hub id")
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that nobody has
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{source} cannot be opened ({reason})") from None
    if (is_file or is_folder) and revision not in (None, "main"):
        raise CheckpointError(f"{source} is on this machine and has no revision {revision!r}; leave it out")
    if is_file:
        if path.suffix == ".gguf":
            from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint

            return GgufCheckpoint(path)
        raise CheckpointError(f"{path} is not a checkpoint; give its folder, a .gguf file or a Hub id")
    if is_folder:
        return _open_folder(path, str(source))
    from isoform.reference.checkpoints.hub import download

    folder = download(str(source), revision=revision, token=token, cache_dir=cache_dir, offline=offline)
    return _open_folder(folder, str(source))


def _open_folder(folder: Path, name: str) -> Checkpoint:
    checkpoint = _weights(folder, name)
    where = checkpoint.folder  # below `folder` where sentence-transformers stored the model so
    if (files := rebuilt(where)) is not None:
        inner = where.relative_to(folder)
        made = linked(folder, inner, files)
        checkpoint.folder, checkpoint.opened = made / inner, where
        weakref.finalize(checkpoint, shutil.rmtree, made, ignore_errors=True)
    return checkpoint


def _weights(folder: Path, name: str) -> Checkpoint:
    weights = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if not weights and (folder / "adapter_config.json").is_file():
        raise CheckpointError(_adapter(folder, name))
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    hint = f"it holds {ggufs[0]}: open that file" if ggufs else "give a checkpoint in the Hub's layout"
    if inner := transformer_folder(folder):  # how sentence-transformers stored its models once
        folder = folder / inner
    config = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{name} has no config.json; {hint}")
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: config.json holds a {type(config).__name__}, not an object; fetch it again")
    if is_ctranslate2(folder):
        return CTranslate2Checkpoint(folder, name)
    if (folder / "model.safetensors").is_file():
        return SafetensorsCheckpoint(folder, name, config, None)
    if (shards := _read_index(folder / "model.safetensors.index.json")) is not None:
        return SafetensorsCheckpoint(folder, name, config, shards)
    if (folder / "pytorch_model.bin").is_file():
        return PickleCheckpoint(folder, name, config, None)
    if (shards := _read_index(folder / "pytorch_model.bin.index.json")) is not None:
        return PickleCheckpoint(folder, name, config, shards)
    if (shards := _unindexed(folder, name)) is not None:
        return SafetensorsCheckpoint(folder, name, config, shards)
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        hint = f"it holds {others[0]}: if that is the whole model, call it model.safetensors"
    raise CheckpointError(f"{name} holds no weights (model.safetensors, its index, or pytorch_model.bin); {hint}")


SHARD = re.compile(r"(?:model|pytorch_model)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
"""The name of a shard, with its number and their count."""


def _unindexed(folder: Path, name: str) -> dict[str, str] | None:
    """The map from tensors to files of shards without an index, if all are there; None where there are none.

    Raises CheckpointError for some of the shards, and for pickled ones.
    """
    found = {path.name: match for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    if not found:
        return None
    first = min(found)
    names = [first.replace(f"-{found[first][1]}-", f"-{n + 1:05}-") for n in range(int(found[first][2]))]
    missing = [one for one in names if one not in found]
    if missing or found[first][3] == "bin":
        lacks = f"without {missing[0]} and their index" if missing else "without their index"
        raise CheckpointError(
            f"{name} holds {first}, one of {len(names)} shards of a model, {lacks}; fetch the whole checkpoint"
        )
    return {key: file for file in names for key in read_header(folder / file)}


def _adapter(folder: Path, name: str) -> str:
    """What to do with the folder of a PEFT adapter."""
    data = read_json(folder / "adapter_config.json")
    base = data.get("base_model_name_or_path") if isinstance(data, dict) else None
    of = f" of {base}" if isinstance(base, str) and base.isprintable() else ""
    return (
        f"{name} is a PEFT adapter{of}, not a model: write it for llama.cpp with `isoform lora {name} --base MODEL`, "
        "or merge it into its model (merge_and_unload) and open that"
    )
