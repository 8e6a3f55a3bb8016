"""The classifiers of decoders: a card has every head that transformers has, and computes what that computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from isoform.reference.families import load_family
from isoform.reference.model import open_model

Tiny = Callable[[str], Path]
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
DECODERS = {
    "gemma": ("Gemma", "gemma_b"),
    "gemma2": ("Gemma2", "gemma2_b"),
    "gemma3_text": ("Gemma3Text", "gemma3_b"),
    "granite": ("Granite", "granite_b"),
    "gpt2": ("GPT2", "gpt2_b"),
    "llama": ("Llama", "llama_b"),
    "mistral": ("Mistral", "mistral_b"),
    "olmo2": ("Olmo2", "olmo2_b"),
    "phi3": ("Phi3", "phi3_b"),
    "qwen2": ("Qwen2", "qwen2_b"),
    "qwen3": ("Qwen3", "qwen3_b"),
    "qwen3_moe": ("Qwen3Moe", "qwen3_moe_b"),
    "smollm3": ("SmolLM3", "smollm3_b"),
}
"""model_type -> how its classes begin, and a tiny checkpoint."""
CLASSES = [
    (model_type, f"{name}{head}")
    for model_type, (name, _) in DECODERS.items()
    for head in HEADS
    if hasattr(transformers, f"{name}{head}")
]


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_card_has_the_heads_that_transformers_has(model_type: str) -> None:
    name, _ = DECODERS[model_type]
    found = {one for task in load_family(model_type).tasks for one in task.architectures}
    for head in HEADS:
        assert (f"{name}{head}" in found) is hasattr(transformers, f"{name}{head}"), head


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        pytest.param(*one, marks=[pytest.mark.nightly] if n % len(HEADS) else [], id=one[1])
        for n, one in enumerate(CLASSES)
    ],
)
def test_a_head_computes_what_transformers_does(model_type: str, name: str, tiny: Tiny, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny(DECODERS[model_type][1]))
    config.num_labels, config.pad_token_id = 2 if "Question" in name else 3, 0
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(5, 100, (2, 9))
    mask = torch.ones_like(ids)
    ids[1, 6:] = mask[1, 6:] = 0
    with torch.inference_mode():
        out = theirs(input_ids=ids, attention_mask=mask)
        found = open_model(tmp_path).module()(ids, mask)
    expected = [out.start_logits, out.end_logits] if "Question" in name else [out.logits]
    real = mask != 0 if "Sequence" not in name else slice(None)
    for one, other in zip(found, expected, strict=True):
        assert (one - other)[real].abs().max() < 1e-5 * max(1.0, float(other.abs().max()))
