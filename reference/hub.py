"""Hub ids: the files a model needs, through huggingface_hub (its cache, token, offline switch and progress bars)."""

from __future__ import annotations

from pathlib import Path

from isoform.errors import CheckpointError
from isoform.reference.checkpoint import SIDECARS

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def download(
    repo: str, *, revision: str | None, token: str | None, cache_dir: str | Path | None, offline: bool
) -> Path:
    """The local folder of a Hub repository: configuration, tokenizer and weights (`.bin` only without safetensors)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=[*SIDECARS, *patterns],
            )
        )

    if repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise CheckpointError(f"{repo} does not exist; give a folder, a .gguf file or a Hub id such as org/name")
    try:
        folder = fetch(_SAFETENSORS)
        if not any(folder.glob("model*.safetensors*")):
            folder = fetch(_PICKLES)
        return folder
    except HFValidationError:
        raise CheckpointError(
            f"{repo} is neither a file nor a Hub id; give a folder, a .gguf file or org/name"
        ) from None
    except GatedRepoError:
        raise CheckpointError(f"{repo} is gated; accept its terms on the Hub and pass a token (HF_TOKEN)") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{repo} is no folder here and not on the Hub (or private: set HF_TOKEN)") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision!r}; see its branches and tags on the Hub") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise CheckpointError(
            f"{repo} is no folder here, not in the cache, and the Hub is out of reach or off"
        ) from None
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repo}: a file is missing on the Hub ({str(error).splitlines()[0]})") from None
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{repo} could not be fetched ({reason}); try again") from None
