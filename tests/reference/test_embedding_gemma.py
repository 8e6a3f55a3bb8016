"""EmbeddingGemma: what its tokens see, and the vectors of its texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from isoform import api
from isoform.errors import UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import open_model
from isoform.reference.modules.layers import window_bias
from tests.oracle import tiny
from tests.runtimes.pipelines.text.test_sentence_modules import expected, folder_with, make

TEXTS = ["The small cat reads a large red book.", "a", "naïve café", "every teacher knows this: " * 6]


def test_a_window_reaches_as_far_to_both_sides() -> None:
    """A row whose first slots are padding: distances are those of the real tokens."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    seen = window_bias(mask, 2, torch.float32)[0, 0] == 0
    real = seen[2:, 2:].tolist()
    assert real == [
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, True],
        [False, False, True, True],
    ]
    assert not seen[:, :2].any()


def test_every_token_sees_what_is_behind_it() -> None:
    module = open_model(tiny("embedding_gemma"), "feature-extraction").module()
    ids = torch.arange(10, 50).view(1, -1)
    mask = torch.ones_like(ids)
    other = ids.clone()
    other[0, -1] = 60
    assert not torch.equal(module(ids, mask)[0][0, 0], module(other, mask)[0][0, 0])  # through the layer that sees all


def test_one_model_type_is_two_families() -> None:
    assert load_family("gemma3_text").name == "gemma3"
    assert load_family("gemma3_text", {"use_bidirectional_attention": True}).name == "embedding_gemma"
    with pytest.raises(UnsupportedModel, match="has no task 'text-generation'"):
        open_model(tiny("embedding_gemma"), "text-generation")


@pytest.mark.parametrize("dense", [False, True])
def test_vectors_are_those_of_sentence_transformers(dense: bool, tmp_path: Path) -> None:
    """With prompts, and with two Dense modules as the real model has them."""
    folder, settings = tiny("embedding_gemma"), {"bias": False, "activation_function": torch.nn.Identity()}
    if dense:
        pooling = make("Pooling", embedding_dimension=32, pooling_mode="mean")
        wide, narrow = (make("Dense", in_features=a, out_features=b, **settings) for a, b in ((32, 48), (48, 32)))
        folder = folder_with(tmp_path, folder, pooling, wide, narrow, make("Normalize"))
    for prompt in (None, "query", "document"):
        vectors = expected(folder, TEXTS, prompt_name=prompt)
        with api.pipeline("sentence-similarity", folder) as pipe:
            np.testing.assert_allclose(pipe(TEXTS, prompt_name=prompt), vectors, rtol=1e-4, atol=2e-5)
