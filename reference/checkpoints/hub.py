"""Hub ids: the files a model needs, through huggingface_hub (its cache, token, offline switch and progress bars)."""

from __future__ import annotations

import re
from pathlib import Path

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import SIDECARS, first_line
from isoform.sentence_modules import WEIGHTED, module_folders, transformer_folder

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")

_MODULES = ("[0-9]*_*/config.json", "sentence_*_config.json")  # of sentence-transformers: small files


def download(
    repo: str, *, revision: str | None, token: str | None, cache_dir: str | Path | None, offline: bool
) -> Path:
    """The local folder of a Hub repository: configuration, tokenizer and weights (`.bin` only without safetensors).

    Raises CheckpointError when the repository, the revision or the Hub is out of reach; what came so far stays in the
    cache, and the next call goes on from there.
    """
    from huggingface_hub import snapshot_download

    def fetch(patterns: tuple[str, ...], revision: str | None) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=[*SIDECARS, *_MODULES, "README.md", *patterns],  # the model card holds licence and tags
            )
        )

    if repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise CheckpointError(f"{repo} does not exist; give a folder, a .gguf file or a Hub id such as org/name")
    try:
        folder = fetch(_SAFETENSORS, revision)
        model, modules = transformer_folder(folder), module_folders(folder)
        heavy = [place for place, kind in modules.items() if kind in WEIGHTED or not re.match(r"\d+_", place)]
        if heavy:  # by commit, so that every fetch sees the same files
            folder = fetch(_below(heavy, (*(SIDECARS if model else ("config.json",)), *_SAFETENSORS)), folder.name)
        bare = [place for place in dict.fromkeys((model, *heavy)) if not _found(folder / place, _SAFETENSORS)]
        if bare:
            folder = fetch(_below(bare, _PICKLES), folder.name)
        weightless = not _found(folder / model, _PICKLES + _SAFETENSORS)
        ggufs = _ggufs(repo, folder.name, token) if weightless and not offline else []
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub lets those of its HTTP library through
        raise CheckpointError(f"{repo} {_reason(error, revision)}") from error
    if ggufs:
        shown = ", ".join(ggufs[:4]) + (f" and {len(ggufs) - 4} more" if len(ggufs) > 4 else "")
        raise CheckpointError(
            f"{repo} holds its weights as GGUF only ({shown}); fetch one file (hf download {repo} {ggufs[0]}) and give "
            "its path"
        )
    return folder


def _below(places: list[str], patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{place}/{pattern}" if place else pattern for place in places for pattern in patterns)


def _found(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(path for pattern in patterns for path in folder.glob(pattern))


def _ggufs(repo: str, commit: str, token: str | None) -> list[str]:
    """The GGUF files of a repository, later shards left out."""
    from huggingface_hub import HfApi

    names = HfApi().list_repo_files(repo, revision=commit, token=token)
    return sorted(name for name in names if re.search(r"(?<!-of-\d{5})\.gguf$|-00001-of-\d{5}\.gguf$", name))


def _reason(error: Exception, revision: str | None) -> str:
    """What went wrong and what to do, to follow the repository's name."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return "is neither a file nor a Hub id; give a folder, a .gguf file or org/name"
    if isinstance(error, GatedRepoError):
        return "is gated; accept its terms on the Hub and pass a token (HF_TOKEN)"
    if isinstance(error, RepositoryNotFoundError):
        return "is no folder here and not on the Hub (or private: pass a token, HF_TOKEN)"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}; see its branches and tags on the Hub"
    if isinstance(error, LocalEntryNotFoundError) and not isinstance(error.__cause__, OfflineModeIsEnabled | None):
        return f"is no folder here, not whole in the cache, and the Hub is out of reach ({first_line(error.__cause__)})"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "is no folder here, not whole in the cache, and the Hub is off (offline, or HF_HUB_OFFLINE)"
    return f"could not be fetched ({first_line(error)}); try again"


def download_settings(
    repo: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Path:
    """The local folder of a Hub repository's configuration, tokenizer and processor, without its weights.

    Raises CheckpointError like `download`.
    """
    from huggingface_hub import snapshot_download

    if repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise CheckpointError(f"{repo} does not exist; give a folder, or a Hub id such as org/name")
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=list(SIDECARS),
            )
        )
    except Exception as error:  # huggingface_hub lets those of its HTTP library through
        raise CheckpointError(f"{repo} {_reason(error, revision)}") from error


def pipeline_tag(repo: str, *, token: str | bool | None = None, revision: str | None = None) -> str | None:
    """The task that the Hub states for a repository, or None. Raises CheckpointError when it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(repo, revision=revision, token=token).pipeline_tag
    except Exception as error:  # huggingface_hub lets those of its HTTP library through
        raise CheckpointError(f"{repo} {_reason(error, revision)}") from error
