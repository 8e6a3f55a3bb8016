"""torch.onnx.export of transformers' model with its cache, through torch.export: FOLDER OUT."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
config = model.config
heads, dim = config.num_key_value_heads, config.head_dim


class Step(torch.nn.Module):
    """One step with the cache as a flat list of tensors, as a graph has it."""

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
        cache = DynamicCache(zip(past[::2], past[1::2], strict=True))
        made = model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache
        )
        present = [tensor for layer in made.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return made.logits, *present


free = torch.export.Dim.DYNAMIC
past = [torch.zeros(2, heads, 5, dim) for _ in range(2 * config.num_hidden_layers)]
ids, mask, positions = (torch.ones(2, size, dtype=torch.int64) for size in (3, 8, 3))
axes = {0: free, 1: free}
with torch.no_grad():
    torch.onnx.export(
        Step(),
        (ids, mask, positions, past),
        f"{out}/model.onnx",
        dynamo=True,
        dynamic_shapes=(axes, axes, axes, [{0: free, 2: free}] * len(past)),
        external_data=True,
    )
