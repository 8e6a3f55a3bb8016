"""Which processor prepares the pictures of a model: the kind that the facts of its class name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

KINDS = {
    "cropped_share": ("cropped_share", "CroppedShareProcessor"),
    "detection": ("detection", "DetectionProcessor"),
    "document": ("document", "DocumentProcessor"),
    "gray": ("gray", "GrayProcessor"),
    "longest_edge": ("longest_edge", "LongestEdgeProcessor"),
    "multiples": ("multiples", "MultiplesProcessor"),
    "normalized_first": ("normalized_first", "NormalizedFirst"),
    "person": ("person_crops", "PersonCrops"),
    "plain": ("processor", "ImageProcessor"),
    "segmentation": ("segmentation", "SegmentationProcessor"),
}
"""Kind -> its module and class in this package."""


def open_processor(folder: Path, facts: Mapping[str, Any]) -> Any:
    """The processor of a model's folder, made of (folder, facts).

    Each takes a list of pictures and gives an array for each, and has `load(sources, timeout)`.
    """
    kind = facts.get("image_processor", {}).get("kind", "plain")
    module, name = KINDS[kind]
    return getattr(import_module(f"{__package__}.{module}"), name)(folder, facts)
