"""Prefill in one form of a model, decode in another: the first reads long prompts, and hands its KV cache over.

A form with 8-bit products reads a prompt about twice as fast as one with 4-bit weights, which decodes faster because it
reads fewer bytes for each token. All graph backends keep one layout of the cache, so that what one form has computed is
the other's past.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import InputError
from isoform.formats import FORMAT_OF
from isoform.manifest import Manifest
from isoform.runtimes.backends.decoder import GraphDecoder
from isoform.runtimes.devices import memory
from isoform.runtimes.open import open_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder, Rewinds, Session
    from isoform.signature import Signature

FROM_SLOTS = 256  # slots of a batch of prompts from which on they are read by the other form
COPIES = 2  # bytes of memory for a byte of a file: the weights as read, and as laid out for the kernels


class HandoverSession:
    """A `Session` that decodes, and has long prompts read by a second session of the same model.

    The second one is opened for the first prompts of at least `from_slots` slots (of all rows together), and closed
    with this one. Where `needs` bytes for it are not free, a warning says so once and this session reads all prompts.
    """

    def __init__(
        self,
        decode: Session,
        open_prefill: Callable[[], Session],
        from_slots: int = FROM_SLOTS,
        *,
        needs: int = 0,
    ) -> None:
        """Raises InputError for a session whose decoder takes no states of another."""
        need_cache(decode)
        if from_slots < 1:
            raise InputError(f"from_slots={from_slots}: prompts of at least one slot are handed over")
        self.backend: str = decode.backend
        self.signature: Signature = decode.signature
        self.from_slots = from_slots
        self._decode, self._open_prefill, self._needs = decode, open_prefill, needs
        self._prefill: Session | None = None
        self._refused = False  # whether there is no room for the second session

    @property
    def prefill(self) -> Session | None:
        """The session that reads long prompts, opened now if it was not; None where memory is short.

        Raises InputError when it is of another model.
        """
        if self._prefill is None and not self._refused:
            free = memory()["free"]
            if free is not None and free < self._needs:
                self._refused = True
                warnings.warn(
                    f"a second form of the model, which reads long prompts, needs {self._needs / 1e9:.1f} GB and "
                    f"{free / 1e9:.1f} GB are free; going on without it, so that prompts take longer",
                    stacklevel=4,
                )
                return None
            opened = self._open_prefill()
            try:
                need_cache(opened)
                need_same(opened.signature, self.signature)
            except InputError:
                opened.close()
                raise
            self._prefill = opened
        return self._prefill

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`; the decoding form computes it."""
        return self._decode.run(inputs)

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> HandoverDecoder:
        """See `Session.decoder`."""
        decoder = self._decode.decoder(rows)
        assert isinstance(decoder, GraphDecoder)  # `need_cache` has looked
        return HandoverDecoder(self, decoder)

    def close(self) -> None:
        self._decode.close()
        if self._prefill is not None:
            self._prefill.close()
        self._prefill, self._refused = None, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HandoverDecoder:
    """A `Decoder` of a `HandoverSession`: its first step goes to the other session where it is long enough."""

    reads_prompts_whole = True  # a prompt in pieces would be handed over for its first piece alone

    def __init__(self, session: HandoverSession, decoder: GraphDecoder) -> None:
        self._session, self._decoder = session, decoder

    def __len__(self) -> int:
        return len(self._decoder)

    @property
    def rewinds(self) -> Rewinds:
        """See `session.rewinds`."""
        return self._decoder.rewinds

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`; a step with positions of its own is the decoding form's."""
        if not self._decoder.slots and positions is None and last == 1:
            slots = max((a.shape[0] * a.shape[1] for a in _arrays(tokens) if a.ndim > 1), default=0)
            if slots >= self._session.from_slots and (session := self._session.prefill) is not None:
                reader = session.decoder(len(self._decoder))
                assert isinstance(reader, GraphDecoder)  # `need_cache` has looked
                logits = reader.step(tokens, mask=mask)
                self._decoder.take(reader.filled())
                return logits
        return self._decoder.step(tokens, mask=mask, positions=positions, last=last)

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        self._decoder.select(rows)

    def join(self, other: Decoder) -> None:
        """See `Decoder.join`."""
        if not isinstance(other, HandoverDecoder):
            raise InputError("only the rows of another decoder of the same session can join")
        self._decoder.join(other._decoder)

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        self._decoder.rewind(counts)


def need_cache(session: Session) -> None:
    """Raises InputError unless all that a session's decoder keeps is a cache of all slots, which can be handed over."""
    if not session.signature.states:
        raise InputError("this model keeps no cache, so that there is nothing to hand over; open one form alone")
    for state in session.signature.states:
        if state.kind != "append":
            raise InputError(
                f"{state.input} is no cache of all slots ({state.kind}), so that it cannot be handed over; open one "
                "form alone"
            )
    decoder = session.decoder(1)
    if not isinstance(decoder, GraphDecoder) or not decoder.hands_over:
        raise InputError(f"the {session.backend} backend keeps its cache to itself; hand over between ONNX forms")


def need_same(prefill: Signature, decode: Signature) -> None:
    """Raises InputError unless both have the same states, and logits of one width."""
    ours, theirs = ({s.input: s.axes for s in signature.states} for signature in (decode, prefill))
    for name, axes in ours.items():
        if theirs.get(name) != axes:
            found = f"{theirs[name]}" if name in theirs else "none of that name"
            raise InputError(f"{name} has the axes {axes}, and the prefill form {found}; it is another model's")
    if (extra := sorted(set(theirs) - set(ours))) or prefill.results[0].axes != decode.results[0].axes:
        raise InputError(f"the prefill form gives {extra[0] if extra else 'other logits'}; it is another model's")


def needed(folder: Path, backend: str, dtype: str) -> int:
    """Bytes of memory that the form `dtype` of a bundle needs. Raises InputError where it is not one graph."""
    artifacts = [one for one in Manifest.read(folder).artifacts if one.format == FORMAT_OF.get(backend)]
    found = [one for one in artifacts if one.dtype == dtype]
    if len(found) != 1:
        held = ", ".join(dict.fromkeys(one.dtype for one in artifacts))
        raise InputError(
            f"{folder} has no form {dtype} of one graph for the {backend} backend (it has {held or 'none'}); export it "
            f"with {dtype} as well, or open one form alone"
        )
    return COPIES * sum(file.size for file in found[0].files)


def open_with_handover(
    path: Path,
    backend: str = "onnxruntime",
    *,
    dtype: str,
    prefill: str,
    task: str | None = None,
    from_slots: int = FROM_SLOTS,
    **options: Any,
) -> tuple[Session, Path]:
    """The form `dtype` of a bundle, whose long prompts the form `prefill` reads; see `open_path`."""
    needs = needed(path, backend, prefill)
    session, folder = open_path(path, backend, task=task, dtype=dtype, **options)

    def reader() -> Session:
        return open_path(path, backend, task=task, dtype=prefill, **options)[0]

    return handing_over(session, reader, from_slots, needs=needs), folder


def handing_over(decode: Session, open_prefill: Callable[[], Session], from_slots: int, *, needs: int) -> Session:
    """A `HandoverSession`; `decode` is closed where there can be none."""
    try:
        return HandoverSession(decode, open_prefill, from_slots, needs=needs)
    except InputError:
        decode.close()
        raise


def _arrays(tokens: Any) -> list[Any]:
    """The arrays of a step."""
    return list(tokens.values()) if isinstance(tokens, Mapping) else [tokens]
