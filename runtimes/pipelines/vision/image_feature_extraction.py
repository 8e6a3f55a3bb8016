"""image-feature-extraction: the last hidden state of a picture's patches, or one vector per picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.nested_lists import nested
from isoform.runtimes.pipelines.vision.pictures import Pictures

POOLED = "pooler_output"


class ImageFeatureExtraction(Pictures):
    """`pipe("cat.jpg")` -> a nested list of floats [1, tokens, width], as transformers gives it."""

    task: ClassVar[str] = "image-feature-extraction"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        pool: bool | None = None,
        return_tensors: bool | str = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """`pool` gives the model's own vector of the picture, [1, width]; `return_tensors` float32 arrays instead of
        lists."""
        if pool and POOLED not in [port.name for port in self.session.signature.outputs]:
            raise InputError("pool=True needs a model with a pooler, and this one has none; leave pool out")
        name = POOLED if pool else "last_hidden_state"
        states = (out[name][None] for out in self._outputs(items, batch_size, timeout))
        return [state if return_tensors else nested(state) for state in states]  # while the next ones are computed
