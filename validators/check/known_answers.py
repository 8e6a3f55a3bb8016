"""What the reference says about a few inputs of our own, kept so that several processes can prove sessions by it.

A text goes in as padded rows of our prose, and as prompts that are continued token by token; pictures and sound as the
checkpoint's processor makes them of a drawn picture and a made-up voice, each in four variants. The parts of a model
run wired together, as in a pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isoform.errors import InputError
from isoform.validators.cases.case import Case, Row
from isoform.validators.truth.distances import difference
from isoform.validators.truth.reference import Noise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from isoform.reference.model import Model
    from isoform.signature import Signature
    from isoform.validators.cases.wired import WiredModel

VERSION = 1
LENGTHS = (64, 33, 48)  # tokens of the rows of prose
PROMPT, NEW = 24, 12  # tokens of a prompt, and how many continue it
EXACT = 3 * 10**8  # parameters of a model that is run in float64 as well: 2.4 GB
SPEECH = 16  # tokens that follow a sound or a picture


@dataclass(frozen=True)
class Known:
    """The reference's outputs for a case by port, in float32; for a case with chunks the logits of each step's last
    slot, (rows, steps, V).

    `noise`: by port how far torch in float32 is from float64. `spoken`: the tokens are what is said in a sound.
    `encoded`: what the parts before the one that decodes give, by "part.port".
    """

    case: Case
    outputs: Mapping[str, NDArray[np.float32]]
    noise: Mapping[str, Noise] = field(default_factory=dict)
    spoken: bool = False
    encoded: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """The reference's answers for one model."""

    known: tuple[Known, ...]

    def save(self, folder: Path) -> None:
        """Write them to a folder, which is replaced; whole or not at all."""
        import numpy as np

        from isoform.whole import whole_folder

        arrays: dict[str, Any] = {}
        entries = []
        with whole_folder(Path(folder), replace=True) as staging:
            for n, known in enumerate(self.known):
                case = known.case
                for r, row in enumerate(case.rows):
                    arrays |= {f"{n}.{r}.tokens": row.tokens, f"{n}.{r}.types": row.types}
                    arrays |= {f"{n}.{r}.media.{name}": array for name, array in row.media.items()}
                for m, array in enumerate((*known.outputs.values(), *known.encoded.values())):
                    np.save(staging / f"{n}.{m}.npy", array)
                entries.append(
                    {
                        "group": case.group,
                        "detail": case.detail,
                        "side": case.side,
                        "chunks": case.chunks,
                        "last_only": case.last_only,
                        "natural": case.natural,
                        "spoken": known.spoken,
                        "media": [list(row.media) for row in case.rows],
                        "outputs": list(known.outputs),
                        "encoded": list(known.encoded),
                        "noise": {name: [noise.max_abs, noise.rms] for name, noise in known.noise.items()},
                    }
                )
            np.savez(staging / "inputs.npz", **arrays)
            text = json.dumps({"version": VERSION, "known": entries})
            (staging / "answers.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Answers:
        """Read what `save` wrote; the outputs are mapped into memory. Raises InputError for a damaged folder."""
        import zipfile

        import numpy as np

        try:
            data = json.loads((Path(folder) / "answers.json").read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise InputError(f"{folder} is of another version of isoform; remove it")
            with (Path(folder) / "inputs.npz").open("rb") as file, np.load(file) as arrays:
                return cls(tuple(_read(Path(folder), arrays, n, entry) for n, entry in enumerate(data["known"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"the answers in {folder} cannot be read ({reason}); remove the folder") from None


def _read(folder: Path, arrays: Any, n: int, entry: Mapping[str, Any]) -> Known:
    import numpy as np

    rows = tuple(
        Row(
            arrays[f"{n}.{r}.tokens"],
            arrays[f"{n}.{r}.types"],
            {name: arrays[f"{n}.{r}.media.{name}"] for name in media},
        )
        for r, media in enumerate(entry["media"])
    )
    case = Case(
        entry["group"],
        rows,
        entry["side"],
        tuple(entry["chunks"]),
        entry["last_only"],
        detail=entry["detail"],
        natural=entry["natural"],
    )
    noise = {name: Noise(*values) for name, values in entry["noise"].items()}
    names, count = [*entry["outputs"], *entry["encoded"]], len(entry["outputs"])
    stored = [(name, np.load(folder / f"{n}.{m}.npy", mmap_mode="r")) for m, name in enumerate(names)]
    return Known(case, dict(stored[:count]), noise, entry["spoken"], dict(stored[count:]))


def whole(model: Model, signature: Signature | None = None) -> Model:
    """What is run as one: a model of several parts wired together, or the one without the modules of
    sentence-transformers where a session has its `signature`."""
    from isoform.validators.cases.wired import WiredModel

    if len(model.parts) > 1:
        return WiredModel.of(model)
    plain = model.plain is not None and signature == model.plain.signature
    return model.trunk if plain else model


def reference_answers(model: Model, seed: int = 0) -> Answers:
    """Run the reference in float32, and where it is small enough in float64 to see how exact that is.

    Raises IsoformError for a checkpoint that cannot be read.
    """
    import torch

    from isoform.validators.check.plan import count_parameters

    target = whole(model)
    module = target.module()
    cases, encoded = _cases(target, module, seed)
    outputs = [outputs_of(target, module, case) for case in cases]
    noise: list[dict[str, Noise]] = [{} for _ in cases]
    if count_parameters(target) <= EXACT:
        del module
        exact = target.module(torch.float64)
        for n, case in enumerate(cases):
            wide = outputs_of(target, exact, case)
            gaps = {name: difference(outputs[n][name], wide[name]) for name in wide}
            noise[n] = {name: Noise(gap.max_abs, gap.rms) for name, gap in gaps.items()}
            outputs[n] = {name: _single(array) for name, array in wide.items()}
    sound = any(port.role in ("features", "sound") for port in target.signature.inputs)
    return Answers(
        tuple(
            Known(case, found, own, bool(sound and case.chunks), encoded)
            for case, found, own in zip(cases, outputs, noise, strict=True)
        )
    )


def _single(array: NDArray[Any]) -> NDArray[np.float32]:
    import numpy as np

    return array.astype(np.float32)


def outputs_of(model: Model, module: nn.Module, case: Case) -> dict[str, NDArray[Any]]:
    """The module's results for a case, by port; for one with chunks the logits of each step's last slot."""
    import numpy as np
    import torch

    inputs = [torch.from_numpy(array) for array in case.inputs(model.signature).values()]
    kind = next((p.dtype for p in module.parameters()), torch.float32)
    inputs = [tensor.to(kind) if tensor.is_floating_point() else tensor for tensor in inputs]
    with torch.inference_mode():
        outputs = module(*inputs)
    ports = model.signature.outputs
    found = {p.name: out.numpy() for p, out in zip(ports, outputs, strict=True) if p.role != "state"}
    if not case.chunks:
        return found
    first = model.signature.results[0].name
    return {first: found[first][:, np.cumsum(case.chunks) - 1]}


def _cases(target: Model, module: nn.Module, seed: int) -> tuple[list[Case], Mapping[str, NDArray[np.float32]]]:
    """The cases of a model, and what the parts before the one that decodes give for them."""
    from isoform.validators.cases.lengths import as_alone
    from isoform.validators.cases.wired import WiredModel

    if isinstance(target, WiredModel):
        return _wired(target, module, seed)
    if any(port.dtype == "float" and port.role != "embeddings" for port in target.signature.given):
        return _media(target, seed), {}
    return as_alone(target, _texts(target, module, seed)), {}


def _texts(model: Model, module: nn.Module, seed: int) -> list[Case]:
    """Rows of different lengths in one pass, and rows of one length that the reference continues."""
    import numpy as np

    from isoform.validators.cases.prose import prose_rows
    from isoform.validators.cases.tables import real_tables, type_sizes
    from isoform.validators.cases.text import positions
    from isoform.validators.truth.answers import greedy

    if tables := real_tables(model) if type_sizes(model) else ():
        lengths = f"rows of {' '.join(str(len(row)) for row in tables)}"
        return [Case("table", tables, detail=lengths, natural=True)]
    limit, random = positions(model), np.random.default_rng(seed)
    prose = [row.tokens for row in prose_rows(model)]
    long = [tokens for tokens in prose if len(tokens) >= max(LENGTHS)] or prose
    natural = bool(long)
    while len(long) < len(LENGTHS):
        long.append(random.integers(0, model.config.vocabulary or 1, max(LENGTHS)))
    rows = [tokens[: min(length, limit)] for tokens, length in zip(long, LENGTHS, strict=False)]
    lengths = f"rows of {' '.join(str(len(row)) for row in rows)}"
    side: Literal["left", "right"] = "left" if model.signature.states else "right"
    cases = [Case("text", tuple(map(_tokens, rows)), side, detail=lengths, natural=natural)]
    if not model.signature.states:
        return cases
    prompt = max(1, min(PROMPT, limit - NEW))
    prompts = np.stack([tokens[:prompt] for tokens in long[: len(LENGTHS)] if len(tokens) >= prompt])
    continued = [tokens for tokens, _ in greedy(model, module, prompts, NEW)]
    chunks = (prompt, *(1,) * (NEW - 1))
    detail = f"{len(continued)} prompts of {prompt}, {NEW} steps"
    cases.append(Case("decoding", tuple(map(_tokens, continued)), chunks=chunks, last_only=True, detail=detail))
    return cases


def _tokens(tokens: NDArray[np.int64]) -> Row:
    import numpy as np

    return Row(tokens, np.zeros_like(tokens))


def _media(model: Model, seed: int) -> list[Case]:
    """Four variants of a real picture or sound; noise where the checkpoint has no processor that makes one."""
    from isoform.validators.cases.media import media_cases

    cases = media_cases(model, seed)
    natural = next((case.rows[0] for case in cases if case.natural), None)
    if natural is None:
        return [next(case for case in cases if len(case.rows) == 3)]
    rows = tuple(Row(natural.tokens, natural.types, media) for media in variants(natural.media, _shown(model)))
    kind = "pictures" if model.signature.takes("pixels") else "sound"
    return [Case(kind, rows, detail=f"{len(rows)} of them", natural=True)]


def variants(media: Mapping[str, NDArray[Any]], ports: Collection[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """A row whose arrays at these ports are as they are, from right to left, moved by a third, and half as strong."""
    import numpy as np

    changes: tuple[Callable[[NDArray[Any]], NDArray[Any]], ...] = (
        lambda x: x,
        lambda x: np.ascontiguousarray(x[..., ::-1]),
        lambda x: np.roll(x, x.shape[-1] // 3, -1),
        lambda x: (0.5 * x).astype(x.dtype),
    )
    for change in changes:
        yield {name: change(array) if name in ports else array for name, array in media.items()}


def _wired(model: WiredModel, module: nn.Module, seed: int) -> tuple[list[Case], Mapping[str, NDArray[np.float32]]]:
    """Three rows in one pass, or of a model that decodes token by token."""
    import numpy as np

    from isoform.validators.cases.registry import cases_of
    from isoform.validators.cases.wired import row_inputs

    before = model.order[:-1] if model.decodes else model.order
    cases = {part.part: cases_of(part, seed) for part in model.whole.parts if part.part in before}
    natural = any(case.natural for found in cases.values() for case in found)
    if natural:
        media = list(variants(row_inputs(model, cases, None), _shown(model)))[:3]
    else:
        media = [row_inputs(model, cases, n) for n in range(3)]
    kind = "sound" if model.signature.takes("features") or model.signature.takes("sound") else "pictures"
    none = np.zeros(0, np.int64)
    if not model.decodes:
        rows = tuple(Row(none, none, one) for one in media)
        return [Case(kind, rows, detail=f"{len(rows)} of them", natural=natural)], {}
    token, count = model.placeholders
    start = model.checkpoint.config.get("decoder_start_token_id")
    random = np.random.default_rng(seed).integers(0, model.config.vocabulary or 1)
    prompt = np.array([start if isinstance(start, int) else random, *[token] * count], np.int64)
    found, encoded = _followed(model, module, media, prompt)
    rows = tuple(Row(tokens, np.zeros_like(tokens), one) for tokens, one in zip(found, media, strict=True))
    chunks = (len(prompt), *(1,) * (SPEECH - 1))
    detail = f"{len(rows)} of them, {SPEECH} steps"
    return [Case(kind, rows, chunks=chunks, last_only=True, detail=detail, natural=natural)], encoded


def _shown(model: Model) -> set[str]:
    """The ports of pictures and sound."""
    return {port.name for port in model.signature.inputs if port.role in ("pixels", "features", "sound")}


def _followed(
    model: WiredModel, module: nn.Module, media: Sequence[Mapping[str, NDArray[Any]]], prompt: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """The prompt for each row and the tokens that the reference chooses after it, (B, T); and what was encoded."""
    import numpy as np

    from isoform.runtimes.open import open_session
    from isoform.validators.levels.wired import WiredSession

    session: Any = open_session(model.whole, "torch", module=module.get_submodule("inner"))
    tokens = np.stack([prompt] * len(media))
    case = Case("", tuple(Row(prompt, np.zeros_like(prompt), one) for one in media))
    wired = WiredSession(session, model)
    decoder = wired.decoder_of(case.inputs(model.signature))
    ids = tokens
    for _ in range(SPEECH - 1):
        ids = decoder.step(ids).argmax(-1)[:, None]
        tokens = np.concatenate((tokens, ids), 1)
    return tokens, {
        name: array
        for name, array in wired.encoded.values.items()
        if name in wired.encoded.each and array.dtype.kind == "f" and not _follows_tokens(model, name)
    }


def _follows_tokens(model: WiredModel, name: str) -> bool:
    """Whether what a node gives ("part.port") has a slot for each token, of which the case has more than its prompt."""
    node = name.partition(".")[0]
    return node in model.steps or model.signatures[node].output("embeddings") is not None
