"""Second configurations of BLIP, in the manner of make_tiny.py: towers of unlike width, other depths and shapes."""

from __future__ import annotations

from typing import Any

import make_tiny as M
import torch
import transformers as T


def blip(c: Any, head: str, width: int = 36) -> tuple[Any, int]:
    t = c.tok(M.bert_tok())
    separator, n = t.convert_tokens_to_ids("[SEP]"), len(t)
    text = {
        "vocab_size": n + 2,
        "hidden_size": 36,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "bos_token_id": n,
        "sep_token_id": separator,
        "eos_token_id": separator,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 72,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
    }
    c.model(head, T.BlipConfig(text_config=text, vision_config=vision))
    c.pre(
        image_processor_type="BlipImageProcessor",
        processor_class="BlipProcessor",
        size={"height": 32, "width": 32},
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        resample=2,
        rescale_factor=1 / 255,
        **M.HALF,
    )
    return t, n


@M.case
def blip_vqa_b(c: Any) -> None:
    t, n = blip(c, "BlipForQuestionAnswering")
    question = t("how many houses are on the mountain?", return_tensors="pt", return_token_type_ids=False)
    inputs = {**question, "pixel_values": M.R(1, 3, 32, 32)}
    ids = {"decoder_input_ids": torch.tensor([[n, 7, 40, 41]])}
    c.golden({**inputs, **ids}, {"max_new_tokens": 7, "do_sample": False}, gen_inputs=inputs)


@M.case
def blip_caption_b(c: Any) -> None:
    t, _ = blip(c, "BlipForConditionalGeneration", width=40)
    ids = t("a house by the river", return_tensors="pt")["input_ids"]
    c.golden(
        {"pixel_values": M.R(2, 3, 32, 32), "input_ids": ids.repeat(2, 1)}, {"max_new_tokens": 7, "do_sample": False}
    )
