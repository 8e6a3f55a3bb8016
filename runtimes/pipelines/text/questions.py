"""What a question about a text is, for every pipeline that answers one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import BatchPipeline


class Questions(BatchPipeline):
    """A pipeline whose inputs are objects of a question and its context."""

    takes_objects: ClassVar[bool] = True
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "question", "data", "X")

    def __call__(self, inputs: Any = None, context: Any = None, **parameters: Any) -> Any:
        """One question or a list -> one answer or a list; with `top_k` above 1 an answer is a list.

        Questions that are texts come with `context=`, a text for all of them or one each.
        """
        return super().__call__(inputs, **parameters, **({} if context is None else {"context": context}))

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`: objects of a question and its context."""
        question = inputs = super()._inputs(inputs, parameters)
        if isinstance(question, str) or _texts(question):
            if "context" not in parameters:
                raise InputError(f"question-answering takes {self._takes()}; with isoform run, --set context=TEXT")
            context = parameters.pop("context")
            if isinstance(question, str):
                inputs = {"question": question, "context": context}
            else:
                contexts = [context] * len(question) if isinstance(context, str) else context
                if len(contexts) != len(question):
                    raise InputError(f"{len(question)} questions came with {len(contexts)} contexts")
                inputs = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
        return inputs

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _takes(self) -> str:
        return 'question= and context=, {"question": text, "context": text}, or a list of those'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        texts = [item.get(name) for name in ("question", "context")] if isinstance(item, Mapping) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"question-answering takes {self._takes()}, neither empty; this is {item!r:.80}")


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)
