"""place_features: puts the features of pictures or sound where a prompt has their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = ("tokens", "embeddings", "features")
OUTPUTS = ("embeddings",)


def run(inputs: Mapping[str, NDArray[Any]], *, token: int) -> dict[str, NDArray[Any]]:
    """`token` stands for one feature vector; they are placed in order, row by row. Nothing is changed in place.

    Shapes: tokens (B, T), embeddings (B, T, C), features (..., C) -> embeddings (B, T, C). Raises InputError when there
    are more or fewer places than features.
    """
    tokens, embeddings, features = (inputs[name] for name in INPUTS)
    flat = features.reshape(-1, features.shape[-1])
    places = tokens == token
    count = int(places.sum())
    if count != len(flat):
        raise InputError(
            f"the prompt has {count} places (token {token}) for {len(flat)} feature vectors of its pictures or sound; "
            "expand each into as many tokens as it has vectors"
        )
    placed = embeddings.copy()
    placed[places] = flat
    return {"embeddings": placed}
