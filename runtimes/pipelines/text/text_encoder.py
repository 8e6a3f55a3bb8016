"""Pipelines over an encoder of texts: rows of similar length run together, padding changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.base import Batches, InputPiece, OneGraph
from isoform.runtimes.pipelines.batching import longest_first
from isoform.runtimes.preprocess.text.tables.reader import TableTokens
from isoform.signature import LENGTH

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding


class TextEncoder(OneGraph):
    """A pipeline whose pieces are `Encoding`s; the output of each is {port: array without batch axis and padding}."""

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        rows = list(pieces)
        groups = list(longest_first([len(piece.value) for piece in rows], size))
        return Batches(len(groups), ([rows[n] for n in group] for group in groups))

    def feed(self, batch: list[Encoding], call: Any) -> dict[str, NDArray[Any]]:
        """The signature's inputs, padded on the right, with empty states where it has some."""
        for row in batch:
            if not len(row.ids):
                raise InputError("a text without a single token cannot be run; give a text that is not empty")
            if (needed := self.facts.get("needs_token")) is not None and needed not in row.ids:
                token = self.text_tokenizer.token(needed) or str(needed)
                raise InputError(
                    f"a text without the token {token!r} cannot be classified by this model, which reads the state "
                    "there; let the tokenizer add it (the post-processor of tokenizer.json)"
                )
        padded, signature = self.text_tokenizer.pad(batch, "right"), self.session.signature
        types = padded.token_type_ids if self.text_tokenizer.segments else np.zeros_like(padded.input_ids)
        if (port := signature.port("token_types")) is not None and len(port.axes) == 3:
            types = np.zeros((*types.shape, int(port.axes[2])), np.int64)
            for line, row in zip(types, batch, strict=True):
                if isinstance(row, TableTokens):  # a text alone has none of these types
                    line[: len(row)] = row.types
        roles: dict[str | None, NDArray[Any]] = {
            "tokens": padded.input_ids,
            "mask": padded.attention_mask,
            "token_types": types,
            "positions": np.maximum(padded.attention_mask.cumsum(1) - 1, 0),
        }
        states = {state.input: np.zeros(state.shape(len(batch)), np.float32) for state in signature.states}
        known = {port.name: roles[port.role] for port in signature.inputs if port.role in roles} | states
        unknown = [port.name for port in signature.inputs if port.name not in known]
        if unknown:
            raise UnsupportedModel(f"{self.task} does not know how to make the model's input {unknown[0]!r}")
        return {port.name: known[port.name] for port in signature.inputs}

    def split(self, batch: list[Encoding], outputs: dict[str, NDArray[np.float32]]) -> Sequence[Any]:
        """See `OneGraph.split`."""
        ports = self.session.signature.results
        return [
            {
                port.name: outputs[port.name][n][: len(row)] if LENGTH in port.axes[1:2] else outputs[port.name][n]
                for port in ports
            }
            for n, row in enumerate(batch)
        ]
