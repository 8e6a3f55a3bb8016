"""The facts of a model that preprocessing and pipelines need: those of its card, and of the classes it declares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import UnsupportedModel
from isoform.json_files import read_object
from isoform.manifest import Manifest
from isoform.reference.classes import class_facts
from isoform.reference.families import load_family

if TYPE_CHECKING:
    from isoform.reference.model import Model

STEPS = "steps"
"""The fact that holds the host steps of the card, by name with their settings."""

STATED = (
    "audio-classification",
    "automatic-speech-recognition",
    "document-question-answering",
    "feature-extraction",
    "fill-mask",
    "image-text-to-text",
    "image-to-text",
    "keypoint-detection",
    "keypoint-matching",
    "pose-estimation",
    "pretraining",
    "question-answering",
    "table-question-answering",
    "text2text-generation",
    "text-classification",
    "text-generation",
    "token-classification",
    "visual-question-answering",
    "zero-shot-image-classification",
)
"""The tasks for which cards state facts; for others no family has to be imported."""


def facts_of(model: Model) -> dict[str, Any]:
    """The facts of an opened model."""
    facts = {**class_facts(model.checkpoint.folder), **model.task.facts(model.config)}
    return {**facts, STEPS: model.task.steps(model.config)}


def exported_facts(path: Path, folder: Path, task: str) -> dict[str, Any]:
    """The facts of a bundle, or of a bare graph: those that the manifest stores, the rest from the files in `folder`.

    A manifest of version 1 stores none, and a bare graph has no manifest.
    """
    manifest = Manifest.read(path) if path.is_dir() else None
    stored = {} if manifest is None else manifest.facts
    facts = {**class_facts(folder), **stored, STEPS: {} if manifest is None else manifest.steps}
    return facts if stored or task not in STATED else {**facts, **_of_config(folder, task)}


def _of_config(folder: Path, task: str) -> dict[str, Any]:
    """What the card of the family says about the task of a config.json; nothing where no family knows it."""
    data = read_object(folder / "config.json")
    try:
        family = load_family(data.get("model_type", ""), data)
        config = family.config.from_dict(data)
    except UnsupportedModel:
        return {}
    card = next((one for one in family.tasks if one.name == task), None)
    return {} if card is None else {**card.facts(config), STEPS: dict(card.steps(config))}
