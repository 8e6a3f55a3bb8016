"""What a bundle serves: each pipeline of its task is opened as a user would open it, and asked one thing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from isoform.errors import IsoformError
from isoform.manifest import Manifest


def served(folder: Path) -> dict[str, str]:
    """Pipeline task -> "" where the bundle answers, else the reason why it does not; kept in the manifest as well.

    A model whose task no pipeline serves gives its own task with that reason.
    """
    from isoform.runtimes.pipelines import OF_PAGES, TASKS
    from isoform.validators.cases.requests import BESIDES

    manifest = Manifest.read(folder)
    tasks = [name for name, (_, _, served) in TASKS.items() if served == manifest.task]
    if any(artifact.signature.takes("tokens", "boxes") for artifact in manifest.artifacts):
        tasks = [name for name in tasks if name in OF_PAGES]  # the others are about texts
    found = {task: _reason(folder, manifest, task) for task in tasks}
    found = {task: reason for task, reason in found.items() if not reason or task not in BESIDES}
    manifest.serves = found or {manifest.task: f"isoform has no pipeline for {manifest.task} yet; use the session"}
    with suppress(OSError):  # the check's own result says that nothing can be kept there
        manifest.write(folder)
    return manifest.serves


def _reason(folder: Path, manifest: Manifest, task: str) -> str:
    """Why the bundle does not answer a request of the task, or ""."""
    from isoform.reference.facts import exported_facts
    from isoform.runtimes.open import open_path
    from isoform.runtimes.pipelines import build_pipeline
    from isoform.validators.cases.requests import answer

    try:
        facts = exported_facts(folder, folder, manifest.task)
        session, _ = open_path(folder, task=manifest.task)
        with build_pipeline(task, session, folder, facts=facts) as pipe:
            answer(pipe, task)
    except IsoformError as error:
        return " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  a pipeline that breaks serves nothing, and the export still stands
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""
