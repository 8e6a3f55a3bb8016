"""The parameters of a call: which hold, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoform.errors import InputError
from isoform.runtimes.pipelines.scores import whole


def check_call(batch_size: Any, num_workers: Any, on_error: Any, progress: Any) -> None:
    """InputError for what is no value of a parameter that every task has."""
    if batch_size is not None:
        whole("batch_size", batch_size)
    whole("num_workers", num_workers, 0, none="none")
    if on_error not in ("raise", "return"):
        raise InputError(f"on_error={on_error!r} is neither 'raise' nor 'return'")
    if not callable(progress) and progress not in (None, True, False):
        raise InputError(f"progress={progress!r} is neither True, False nor a function of (text, done, total)")


def merged(own: Mapping[str, Any], call: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parameters of a call over a pipeline's `own`.

    A generation_config of the call replaces the pipeline's settings of generation, which are all but `names`.
    """
    own = dict(own)
    if call.get("generation_config") is not None:
        own = {name: value for name, value in own.items() if name in names and name != "generation_config"}
    more = call.get("generate_kwargs")
    if isinstance(more, Mapping):
        own = {name: value for name, value in own.items() if name not in more}
    return {**own, **call}


def beyond(token: str | None, index: int, rows: int) -> str:
    """What to say of a token that the model's embedding has no row for."""
    return (
        f"the tokenizer gives {token!r:.60} the id {index}, and the model's embedding has {rows} rows; leave that "
        "token out, or take the model's own tokenizer"
    )
