"""A decoder over embeddings inside another family: the same logits as over ids, in torch, ONNX and TorchScript."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.exporters import onnx, torchscript
from isoform.reference.card import Family, Part, Task
from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.config import Config
from isoform.reference.families import load_family, tower
from isoform.reference.model import Model, open_model
from isoform.reference.rules import below
from isoform.reference.weights import find
from tests import oracle

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")

EXACT = 1e-4  # absolute, on logits of up to 30 in float32: the same operations in another engine


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterConfig(Config):
    inner: Any

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OuterConfig:
        return cls(inner=tower(data, "text_config", "llama").config)


def _placed(part: Part) -> Part:
    """A part of the language model, under the root `text`."""
    return replace(
        part,
        build=lambda c: part.build(c.inner),
        signature=lambda c: part.signature(c.inner),
        roots={"": "text"},
    )


def outer(inner: Family) -> Family:
    """A family that is nothing but a language model inside, as a multimodal one has it, without its name."""
    parts = {name: _placed(part) for name, part in inner.parts.items()}
    return Family(
        name="outer",
        title="Outer",
        model_types=("outer",),
        config=OuterConfig,
        rules=below(inner.rules, "language_model", "text"),
        tasks=(
            Task(
                name="text-generation",
                architectures=("Outer",),
                parts=parts,
                wires={"decoder.inputs_embeds": "embed_tokens.inputs_embeds"},
            ),
        ),
        prefix="outer",
        tied=lambda c: {f"text.{a}": f"text.{b}" for a, b in inner.tied(c.inner).items()},
        no_gguf="a toy",
    )


def composed(name: str, folder: Path) -> tuple[Model, Model]:
    """The tiny checkpoint itself, and the same weights inside a family that composes it."""
    source = oracle.tiny(name)
    text = json.loads((source / "config.json").read_text(encoding="utf-8"))
    inner = load_family(text["model_type"])
    tensors: dict[str, Tensor] = {}
    for file in source.glob("model*.safetensors"):
        for key, tensor in load_file(file).items():
            found = find(key, inner.rules, inner.prefix)
            assert found is not None
            tensors[f"language_model.{found.key}"] = tensor
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "outer", "text_config": text}), encoding="utf-8")
    family, checkpoint = outer(inner), open_checkpoint(folder)
    model = Model(checkpoint, family, OuterConfig.from_dict(checkpoint.config), family.tasks[0])
    return open_model(source, "text-generation"), model


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Ids (2, 7), their mask with padding on the left of the second row, and positions."""
    ids = torch.randint(0, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", oracle.DECODERS)
def test_a_decoder_over_embeddings_gives_the_logits_over_ids(name: str, tmp_path: Path) -> None:
    whole, model = composed(name, tmp_path)
    given = inputs()
    with torch.inference_mode():
        expected = whole.module(torch.float64)(*given)[0]
        assert torch.equal(model.module(torch.float64)(*given)[0], expected)
        embed, decoder = (part.module(torch.float64) for part in model.parts)
        (embeddings,) = embed(given[0])
        assert torch.equal(decoder(embeddings, *given[1:])[0], expected)
        # Prefill, then a step of one token.
        first, *past = decoder(embeddings[:, :6], given[1][:, :6], given[2][:, :6])
        last, *_ = decoder(embeddings[:, 6:], given[1], given[2][:, 6:], *past)
        torch.testing.assert_close(torch.cat((first, last), 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_b"])
def test_a_table_is_kept_for_a_head_that_shares_it_and_for_no_other(name: str, tmp_path: Path) -> None:
    _, model = composed(name, tmp_path)
    decoder = model.parts[1]
    names = set(decoder.weights)
    tied = bool(model.tied)
    assert ("embed.weight" in names, "head.weight" in names) == (tied, not tied)
    assert model.parts[0].weights.keys() == {"embed.weight"}
    assert decoder.signature.takes("embeddings", "mask", "positions")
    assert not decoder.signature.takes("tokens")


@pytest.mark.parametrize("portable", [False, True], ids=["runtime", "portable"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_both_graphs_in_onnx_runtime_give_the_logits(name: str, portable: bool, tmp_path: Path) -> None:
    whole, model = composed(name, tmp_path)
    artifacts = onnx.write(model, tmp_path, "f32", lambda *_: None, portable=portable)
    embed, decoder = (InferenceSession(tmp_path / artifact.files[0].path) for artifact in artifacts)
    ids, mask, positions = inputs()
    (embeddings,) = embed.run(None, {"input_ids": ids.numpy()})
    with torch.inference_mode():
        expected = whole.module()(ids, mask, positions)[0].numpy()
    states = model.parts[1].signature.states
    past: dict[str, NDArray[Any]] = {state.input: np.zeros(state.shape(2), np.float32) for state in states}
    for new in (slice(0, 6), slice(6, 7)):
        feeds = {"inputs_embeds": embeddings[:, new], "attention_mask": mask[:, : new.stop].numpy()}
        logits, *present = decoder.run(None, {**feeds, "position_ids": positions[:, new].numpy(), **past})
        real = mask[:, new].numpy() == 1  # what padding computes has no meaning
        np.testing.assert_allclose(logits[real], expected[:, new][real], rtol=0, atol=EXACT)
        past = dict(zip(past, present, strict=True))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_both_torchscript_files_give_the_logits(name: str, tmp_path: Path) -> None:
    whole, model = composed(name, tmp_path)
    artifacts = torchscript.write(model, tmp_path, "f32")
    embed, decoder = (torch.jit.load(tmp_path / artifact.files[0].path) for artifact in artifacts)
    ids, mask, positions = inputs()
    past = [torch.zeros(state.shape(2)) for state in model.parts[1].signature.states]
    with torch.inference_mode():
        logits = decoder(*embed(ids), mask, positions, *past)[0]
        torch.testing.assert_close(logits, whole.module()(ids, mask, positions)[0], rtol=0, atol=EXACT)
