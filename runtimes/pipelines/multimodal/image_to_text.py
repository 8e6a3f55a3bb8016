"""image-to-text: captions of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.multimodal.pictures_told import TOGETHER, PicturesTold
from isoform.runtimes.preprocess.image.source import is_image


class ImageToText(PicturesTold):
    """`pipe("cats.png")` -> [{"generated_text": "two cats sleeping on a couch"}]; a list gives one such list each.

    A picture is a path, an address, base64, a file's bytes or a PIL picture.
    """

    task: ClassVar[str] = "image-to-text"

    def _is_one(self, inputs: Any) -> bool:
        return is_image(inputs)

    def _takes(self) -> str:
        return "a picture (a path, an address, base64, bytes or a PIL picture), or a list of pictures"

    @classmethod
    def _own(cls) -> frozenset[str]:
        return frozenset(("prompt", "timeout", "generate_kwargs"))

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        prompt: str | None = None,
        timeout: float | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> list[Any]:
        """`prompt`: how every caption begins, kept in its text. `timeout`: seconds for a picture from the network.

        The others are generation's settings: max_new_tokens, num_beams, …
        """
        if prompt is not None and not isinstance(prompt, str):
            raise InputError(f"prompt={prompt!r:.60} is no text")
        config = self._settings(generate_kwargs, generation)
        before = [self.start, *(self._encode([prompt])[0].ids[1:-1] if prompt else ())]
        answers: list[Any] = []
        size = batch_size or TOGETHER
        for first in range(0, len(items), size):
            group = items[first : first + size]
            told = self._told({"pixel_values": self._pixels(group, timeout)}, [before] * len(group), config, first)
            answers += [[{"generated_text": self._text([*before, *ids])} for ids in texts] for texts in told]
        return answers
