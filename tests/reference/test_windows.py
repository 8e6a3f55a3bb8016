"""Attention to what is near: the blocks of a long text give what all scores at once give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isoform.reference.model import open_model
from isoform.reference.modules import ops
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from tests.exports import exported

Tiny = Callable[[str], Path]
SUMS = 2e-6  # float32, added in another order


@pytest.mark.parametrize(("window", "length"), [(1, 70), (5, 64), (5, 65), (5, 200), (17, 129), (40, 400)])
def test_blocks_see_what_is_near_and_no_padding(window: int, length: int) -> None:
    torch.manual_seed(0)
    heads, dim = 3, 8
    q, k, v = (torch.randn(2, length, heads * dim) for _ in range(3))
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[0, :20] = 0
    mask[1, length - 45 :] = 0  # more than a window, and whole blocks
    slots = torch.arange(length)
    hidden = ((slots[:, None] - slots[None]).abs() >= window) | (mask == 0)[:, None, None]
    bias = torch.zeros(hidden.shape).masked_fill(hidden, -1e30)
    nothing = [None] * 7
    expected = ops.attention(q, k, v, bias, *nothing, heads, heads, 0.4, 0.0)[0]
    found = ops.local_attention(q, k, v, ops.local_bias(mask, q, window), window, heads, 0.4)
    assert torch.isfinite(found).all()
    assert (found - expected)[mask != 0].abs().max() < SUMS


@pytest.mark.parametrize("name", ["modernbert_b", "modernbert_ner"])
def test_long_texts_are_those_of_transformers_in_every_form(name: str, tiny: Tiny) -> None:
    """Of 150 tokens, where the golden texts are shorter than four blocks."""
    from transformers import AutoModel, AutoModelForTokenClassification

    loader = AutoModelForTokenClassification if name.endswith("ner") else AutoModel
    theirs = loader.from_pretrained(tiny(name), dtype=torch.float32).eval()
    model = open_model(tiny(name))
    ids = torch.randint(0, 450, (2, 150), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 90:] = 0
    real = mask != 0
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask)[0][real]
        (ours,) = model.module()(ids, mask)
    largest = float(expected.abs().max())
    assert (ours[real] - expected).abs().max() < 1e-5 * largest
    graph = next(exported(name).rglob("model.onnx"))
    with OnnxRuntimeSession(graph) as session:
        (found,) = session.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()}).values()
    assert (torch.from_numpy(found)[real] - expected).abs().max() < 1e-5 * largest
