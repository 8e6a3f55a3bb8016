"""The parts of a form wired together, as a pipeline runs them, against the reference wired in the same way.

A float form is held to the limits of the graph level, a quantized one to its budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.formats import DIGITS
from isoform.manifest import WHOLE
from isoform.quality import plain_dtype
from isoform.reference.model import open_model
from isoform.validators.cases.wired import GROUP, WiredModel
from isoform.validators.levels.deployment import Imitation, check_deployment
from isoform.validators.levels.graph import check_graph
from isoform.validators.levels.packed import held_weights, imitate_held
from isoform.validators.truth.answers import imitation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.runtimes.backends.parts import PartsSession
    from isoform.runtimes.session import Decoder
    from isoform.signature import Signature
    from isoform.validators.report.records import Report
    from isoform.validators.truth.reference import Truth


class WiredSession:
    """A session over all parts whose ports are those of a `WiredModel`, "part.port"."""

    def __init__(self, parts: PartsSession, model: WiredModel) -> None:
        self._parts, self._model = parts, model
        self.backend: str = parts.backend
        self.signature: Signature = model.signature
        self.encoded: Any = None
        """What the parts before the main one gave last."""
        self._own = {f"{model.main}.{port.name}": port.name for port in model.unwired(model.main)}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """One pass of all parts, with empty states."""
        import numpy as np

        main = self._model.signatures[self._model.main]
        if not main.states:
            return self._parts.run(inputs)
        encoded = self._encoded(inputs)
        fed = {own: inputs[name] for name, own in self._own.items()}
        fed |= {state.input: np.zeros(state.shape(len(encoded)), np.float32) for state in main.states}
        fed |= {port.name: np.zeros(1, bool) for port in main.inputs if port.role == "switch"}
        outputs = self._parts.run_part(self._model.main, encoded, fed)
        return {port.name: outputs[port.name] for port in self.signature.outputs}

    def decoder_of(self, inputs: Mapping[str, NDArray[Any]]) -> Decoder:
        """A decoder over what the parts before it give for these inputs."""
        return self._parts.decoder(self._encoded(inputs))

    def _encoded(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        self.encoded = self._parts.encode({name: array for name, array in inputs.items() if name not in self._own})
        return self.encoded

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> Decoder:
        raise NotImplementedError("a decoder of wired parts needs their inputs: decoder_of")

    def close(self) -> None:
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_wired(
    session: WiredSession, model: WiredModel, paths: Mapping[str, Path], dtype: str, truth: Truth
) -> Report:
    """Run the wired cases; `paths` are the files of the parts, or that of the whole model."""
    if plain_dtype(dtype) in DIGITS:
        return check_graph(model, session, dtype, truth=truth)
    if WHOLE in paths:
        imitated = imitation(WiredModel.of(open_model(paths[WHOLE])), paths[WHOLE])
        return _deployed(session, paths[WHOLE], dtype, truth, imitated)
    held = {
        f"inner.{whole_name}": weight
        for part in model.whole.parts
        if part.part in paths
        for whole_name, weight in _whole_weights(part, paths[part.part]).items()
    }
    imitated = imitate_held(model, model.module(), held)
    return _deployed(session, paths[model.main], dtype, truth, imitated)


def _deployed(session: WiredSession, path: Path, dtype: str, truth: Truth, imitated: Imitation) -> Report:
    report = check_deployment(session, path, dtype, truth, imitated)
    report.skipped = []  # that it has no graph level is said for each part
    found = report.labelled(group=GROUP)
    found.results = [_named(result) for result in found.results]
    found.evidence = [_named(evidence) for evidence in found.evidence]
    return found


def _named(entry: Any) -> Any:
    return replace(entry, case=f"{GROUP}, {entry.case}" if entry.case else GROUP)


def _whole_weights(part: Any, path: Path) -> dict[str, Any]:
    """The weights in a part's graph by their names in the whole model."""
    return {part.whole_name(name): weight for name, weight in held_weights(path).items() if name in part.weights}
