"""Tiny models of several modalities."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T
from tokenizers import AddedToken

from tests.oracle.checkpoints.case import CLIPN, HALF, Case, case, labels, normal
from tests.oracle.checkpoints.tokenizers import (
    bert_tok,
    byte_level,
    clip_tok,
    llama_tok,
    qwen_tok,
    roberta_tok,
    t5_tok,
    unigram,
)


# ------------------------------------------------------------------ clip
def towers(case: Case, tokenizer: Any, size: int, **padding: Any) -> None:
    texts = ["The small cat reads a book.", "a red house"]
    case.golden({**tokenizer(texts, return_tensors="pt", **padding), "pixel_values": normal(3, 3, size, size)})


@case
def clip(c: Case) -> None:
    """openai/clip-vit-base-patch32, with the eos_token_id 2 of its config."""
    t = c.tok(clip_tok())
    c.model(
        "CLIPModel",
        T.CLIPConfig(
            text_config={
                "vocab_size": len(t),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": 77,
                "bos_token_id": 0,
                "eos_token_id": 2,
            },
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            },
            projection_dim=24,
        ),
    )
    c.image_processor(
        "CLIPImageProcessor",
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        resample=3,
        do_center_crop=True,
        do_convert_rgb=True,
        **CLIPN,
    )
    towers(c, t, 32, padding=True)


@case
def clip_b(c: Case) -> None:
    """Laion's: gelu, the tokenizer's own end of text, other depths."""
    t = c.tok(clip_tok())
    c.model(
        "CLIPModel",
        T.CLIPConfig(
            text_config={
                "vocab_size": len(t) + 3,
                "hidden_size": 40,
                "intermediate_size": 56,
                "num_hidden_layers": 2,
                "num_attention_heads": 5,
                "max_position_embeddings": 40,
                "hidden_act": "gelu",
                "bos_token_id": t.bos_token_id,
                "eos_token_id": t.eos_token_id,
            },
            vision_config={
                "hidden_size": 36,
                "intermediate_size": 80,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "image_size": 42,
                "patch_size": 14,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
            },
            projection_dim=28,
        ),
    )
    c.pre(
        feature_extractor_type="CLIPFeatureExtractor",
        do_resize=True,
        do_normalize=True,
        size=42,
        crop_size=42,
        resample=3,
        do_center_crop=True,
        **CLIPN,
    )
    towers(c, t, 42, padding=True)


# ------------------------------------------------------------------ siglip
def siglip_case(c: Case, size: int, patch: int, width: int, depths: tuple[int, int], act: str) -> None:
    t = t5_tok(model_input_names=["input_ids"])  # as SigLIP's tokenizer, which gives no mask
    t.model_max_length = 64
    c.tok(t)
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "hidden_act": act}
    c.model(
        "SiglipModel",
        T.SiglipConfig(
            text_config={**tower, "vocab_size": len(t), "max_position_embeddings": 64, "num_hidden_layers": depths[0]},
            vision_config={**tower, "image_size": size, "patch_size": patch, "num_hidden_layers": depths[1]},
        ),
    )
    c.image_processor("SiglipImageProcessor", size={"height": size, "width": size}, resample=3, **HALF)
    texts = t(["The small cat.", "a red house"], padding="max_length", max_length=64, return_tensors="pt")
    c.golden({"input_ids": texts["input_ids"], "pixel_values": normal(3, 3, size, size)})


@case
def siglip(c: Case) -> None:
    """google/siglip-base-patch16-224."""
    siglip_case(c, 32, 8, 32, (2, 3), "gelu_pytorch_tanh")


@case
def siglip_b(c: Case) -> None:
    siglip_case(c, 42, 14, 48, (3, 2), "gelu")


# ------------------------------------------------------------------ blip
def _blip(c: Case, head: str, sz: int) -> tuple[Any, int]:
    t = c.tok(bert_tok())
    i = t.convert_tokens_to_ids
    n = len(t)
    cfg = T.BlipConfig(
        text_config={
            "vocab_size": n + 2,
            "hidden_size": 48,
            "encoder_hidden_size": 48,
            "intermediate_size": 96,
            "projection_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "bos_token_id": n,
            "sep_token_id": i("[SEP]"),
            "eos_token_id": i("[SEP]"),
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": sz,
            "patch_size": 16,
            "projection_dim": 16,
        },
        projection_dim=16,
        image_text_hidden_size=16,
    )
    c.model(head, cfg)
    c.pre(
        image_processor_type="BlipImageProcessor",
        processor_class="BlipProcessor",
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        resample=3,
        rescale_factor=1 / 255,
        size={"height": sz, "width": sz},
        **CLIPN,
    )
    return t, n


def _blip_b(c: Case, head: str, width: int = 36) -> tuple[Any, int]:
    t = c.tok(bert_tok())
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
        **HALF,
    )
    return t, n


@case
def blip_vqa(c: Case) -> None:
    """Salesforce/blip-vqa-base."""
    t, n = _blip(c, "BlipForQuestionAnswering", 48)
    e = dict(t("what is in the picture?", return_tensors="pt", return_token_type_ids=False))
    x = {**e, "pixel_values": normal(1, 3, 48, 48)}
    c.golden(
        {**x, "decoder_input_ids": torch.tensor([[n, 30, 40]])}, {"max_new_tokens": 5, "do_sample": False}, gen_inputs=x
    )


@case
def blip_caption(c: Case) -> None:
    """Salesforce/blip-image-captioning-base."""
    t, _n = _blip(c, "BlipForConditionalGeneration", 48)
    x = {"pixel_values": normal(1, 3, 48, 48), "input_ids": t("a picture of", return_tensors="pt")["input_ids"]}
    c.golden(x, {"max_new_tokens": 5, "do_sample": False})


@case
def blip_vqa_b(c: Case) -> None:
    t, n = _blip_b(c, "BlipForQuestionAnswering")
    question = t("how many houses are on the mountain?", return_tensors="pt", return_token_type_ids=False)
    inputs = {**question, "pixel_values": normal(1, 3, 32, 32)}
    ids = {"decoder_input_ids": torch.tensor([[n, 7, 40, 41]])}
    c.golden({**inputs, **ids}, {"max_new_tokens": 7, "do_sample": False}, gen_inputs=inputs)


@case
def blip_caption_b(c: Case) -> None:
    t, _ = _blip_b(c, "BlipForConditionalGeneration", width=40)
    ids = t("a house by the river", return_tensors="pt")["input_ids"]
    c.golden(
        {"pixel_values": normal(2, 3, 32, 32), "input_ids": ids.repeat(2, 1)}, {"max_new_tokens": 7, "do_sample": False}
    )


# ------------------------------------------------------------------ blip2
@case
def blip2(c: Case) -> None:
    """Salesforce/blip2-opt-2.7b."""
    v, m = byte_level(480, ("<s>", "<pad>", "</s>", "<unk>"))
    t = T.GPT2Tokenizer(
        vocab=v,
        merges=m,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=2048,
    )
    t.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    c.tok(t, "GPT2Tokenizer")
    im = t.convert_tokens_to_ids("<image>")
    cfg = T.Blip2Config(
        vision_config={
            "model_type": "blip_2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "qkv_bias": True,
        },
        qformer_config={
            "model_type": "blip_2_qformer",
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "encoder_hidden_size": 32,
            "cross_attention_frequency": 2,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(t),
            "hidden_size": 48,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 48,
            "max_position_embeddings": 256,
            "do_layer_norm_before": True,
            "activation_function": "relu",
            "bos_token_id": 2,
            "eos_token_id": t.convert_tokens_to_ids("Ċ"),
            "pad_token_id": 1,
        },
        num_query_tokens=8,
        image_token_index=im,
    )
    c.model(
        "Blip2ForConditionalGeneration", cfg, bos_token_id=2, eos_token_id=t.convert_tokens_to_ids("Ċ"), pad_token_id=1
    )
    c.pre(
        image_processor_type="BlipImageProcessor",
        processor_class="Blip2Processor",
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        resample=3,
        rescale_factor=1 / 255,
        size={"height": 56, "width": 56},
        **CLIPN,
    )
    c.proc(processor_class="Blip2Processor", num_query_tokens=8)
    ids = torch.cat([torch.full((1, 8), im), t("Question: what? Answer:", return_tensors="pt")["input_ids"]], 1)
    c.golden(
        {"pixel_values": normal(1, 3, 56, 56), "input_ids": ids, "attention_mask": torch.ones_like(ids)},
        {"max_new_tokens": 5, "do_sample": False},
    )


# ------------------------------------------------------------------ layoutlmv3
def _llm3(c: Case, head: str) -> None:
    t = c.tok(roberta_tok(T.LayoutLMv3Tokenizer, add_prefix_space=True), "LayoutLMv3Tokenizer")
    cfg = T.LayoutLMv3Config(
        vocab_size=len(t),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=514,
        type_vocab_size=1,
        coordinate_size=8,
        shape_size=8,
        input_size=64,
        patch_size=16,
        rel_pos_bins=32,
        rel_2d_pos_bins=64,
        layer_norm_eps=1e-5,
        **({} if head == "LayoutLMv3Model" else labels(2 if head.endswith("QuestionAnswering") else 3)),
    )
    c.model(head, cfg)
    c.pre(
        image_processor_type="LayoutLMv3ImageProcessor",
        processor_class="LayoutLMv3Processor",
        apply_ocr=False,
        ocr_lang=None,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        resample=2,
        rescale_value=1 / 255,
        size={"height": 64, "width": 64},
        **HALF,
    )
    e = t(
        "what is the total?",
        ["Invoice", "total:", "42.50"],
        boxes=[[10, 20, 200, 40], [10, 60, 150, 80], [160, 60, 300, 80]],
        return_tensors="pt",
    )
    c.golden({**dict(e), "pixel_values": normal(1, 3, 64, 64)})


@case
def layoutlmv3(c: Case) -> None:
    """microsoft/layoutlmv3-base."""
    _llm3(c, "LayoutLMv3Model")


@case
def layoutlmv3_qa(c: Case) -> None:
    """Document-question-answering."""
    _llm3(c, "LayoutLMv3ForQuestionAnswering")


@case
def layoutlmv3_tokcls(c: Case) -> None:
    _llm3(c, "LayoutLMv3ForTokenClassification")


# ------------------------------------------------------------------ qwen2_5_vl
@case
def qwen2_5_vl(c: Case) -> None:
    """Qwen/Qwen2.5-VL-3B-Instruct: window-attention ViT, 2-D rope, mRoPE, tied."""
    ex = (
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    media = (
        "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
        "{% elif c['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% endif %}"
    )
    t = c.tok(qwen_tok(ex, media=media))
    i = t.convert_tokens_to_ids
    cfg = T.Qwen2_5_VLConfig(
        text_config={
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(t),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": True,
            "bos_token_id": i("<|endoftext|>"),
            "eos_token_id": i("<|im_end|>"),
        },
        vision_config={
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 60,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 56,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=i("<|image_pad|>"),
        video_token_id=i("<|video_pad|>"),
        vision_start_token_id=i("<|vision_start|>"),
        vision_end_token_id=i("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    c.model(
        "Qwen2_5_VLForConditionalGeneration",
        cfg,
        eos_token_id=[i("<|im_end|>"), i("<|endoftext|>")],
        pad_token_id=i("<|endoftext|>"),
        do_sample=True,
        temperature=1e-6,
        repetition_penalty=1.05,
    )
    c.pre(
        image_processor_type="Qwen2VLImageProcessor",
        processor_class="Qwen2_5_VLProcessor",
        min_pixels=3136,
        max_pixels=50176,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        **CLIPN,
    )
    c.vproc(
        video_processor_type="Qwen2VLVideoProcessor",
        processor_class="Qwen2_5_VLProcessor",
        min_pixels=3136,
        max_pixels=50176,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        **CLIPN,
    )
    g = torch.tensor([[1, 6, 10]])
    n = 60  # 6x10 patches -> 3x5 = 15 tokens, ragged windows
    ids = torch.cat(
        [
            t("Describe ", return_tensors="pt")["input_ids"],
            torch.tensor([[i("<|vision_start|>")] + [i("<|image_pad|>")] * 15 + [i("<|vision_end|>")]]),
            t(" the cat.", return_tensors="pt")["input_ids"],
        ],
        1,
    )
    x = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": normal(n, 1176),
        "image_grid_thw": g,
        "mm_token_type_ids": (ids == i("<|image_pad|>")).long(),
    }
    c.golden(x, {"max_new_tokens": 5, "do_sample": False})


# ------------------------------------------------------------------ got_ocr2
@case
def got_ocr2(c: Case) -> None:
    """stepfun-ai/GOT-OCR-2.0-hf: SAM-style ViTDet + 2 convs + linear + Qwen2-0.5B."""
    t = qwen_tok(("<img>", "</img>", "<imgpad>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"))
    t = T.PreTrainedTokenizerFast(
        tokenizer_object=t.backend_tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=8000,
        model_input_names=["input_ids", "attention_mask"],
    )
    c.tok(t)
    i = t.convert_tokens_to_ids
    cfg = T.GotOcr2Config(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 2,
            "window_size": 14,
            "global_attn_indexes": [1],
            "mlp_dim": 32,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(t),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
            "use_cache": True,
            "max_position_embeddings": 32768,
        },
        image_token_index=i("<imgpad>"),
        image_seq_length=256,
        pad_token_id=-1,
    )  # the processor always makes 256 image tokens: keep the real 64 x 64 grid
    c.model("GotOcr2ForConditionalGeneration", cfg, eos_token_id=i("<|im_end|>"), pad_token_id=i("<|endoftext|>"))
    c.pre(
        image_processor_type="GotOcr2ImageProcessor",
        processor_class="GotOcr2Processor",
        crop_to_patches=False,
        min_patches=1,
        max_patches=12,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        resample=3,
        rescale_factor=1 / 255,
        size={"height": 128, "width": 128},
        **CLIPN,
    )
    c.proc(processor_class="GotOcr2Processor")
    ids = torch.cat(
        [
            t("<|im_start|>user\n<img>", return_tensors="pt")["input_ids"],
            torch.full((1, 256), i("<imgpad>")),
            t("</img>\nOCR: <|im_end|>", return_tensors="pt")["input_ids"],
        ],
        1,
    )
    c.golden(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": normal(1, 3, 128, 128)},
        {"max_new_tokens": 5, "do_sample": False},
    )


# ------------------------------------------------------------------ emu3
@case
def emu3(c: Case) -> None:
    """BAAI/Emu3-Gen(-hf): Llama-like LM over text + VQ image tokens, VQ-VAE with 3-D convs."""
    cb = 32
    vt = [f"<|visual token {i:06d}|>" for i in range(cb)]
    v, m = byte_level(450, end="<|endoftext|>")
    sp = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    t = T.GPT2Tokenizer(
        vocab=v,
        merges=m,
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={**sp, "eol_token": "<|extra_200|>"},
        model_max_length=9216,
    )
    t.add_tokens([AddedToken(x, special=True, normalized=False) for x in vt], special_tokens=True)
    t.padding_side = "left"
    c.tok(t, "GPT2Tokenizer")
    i = t.convert_tokens_to_ids
    t.chat_template = None
    need = [*vt, "<image>", "<|extra_200|>"]
    cfg = T.Emu3Config(
        vq_config={
            "model_type": "emu3_vqgan",
            "codebook_size": cb,
            "embed_dim": 4,
            "latent_channels": 4,
            "double_latent": False,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [3],
            "hidden_size": 64,
            "num_attention_heads": 1,
            "temporal_downsample_factor": 4,
        },
        text_config={
            "model_type": "emu3_text_model",
            "vocab_size": len(t),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 9216,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "pad_token_id": i("<|endoftext|>"),
            "bos_token_id": i("<|extra_203|>"),
            "eos_token_id": i("<|extra_204|>"),
        },
        vocabulary_map={x: i(x) for x in need},
    )
    c.model(
        "Emu3ForConditionalGeneration",
        cfg,
        eos_token_id=i("<|extra_204|>"),
        pad_token_id=i("<|endoftext|>"),
        bos_token_id=i("<|extra_203|>"),
    )
    c.pre(
        image_processor_type="Emu3ImageProcessor",
        processor_class="Emu3Processor",
        do_convert_rgb=True,
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        min_pixels=32 * 32,
        max_pixels=64 * 64,
        spatial_factor=8,
        resample=3,
        rescale_factor=1 / 255,
        **HALF,
    )
    c.proc(processor_class="Emu3Processor")
    h, w = 4, 6
    n = h * (w + 1)
    ids = torch.cat(
        [
            t("Look: ", return_tensors="pt")["input_ids"],
            torch.full((1, n), i("<image>")),
            t(" what?", return_tensors="pt")["input_ids"],
        ],
        1,
    )
    c.golden(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": normal(1, 3, 32, 48),
            "image_sizes": torch.tensor([[32, 48]]),
        },
        {"max_new_tokens": 5, "do_sample": False},
    )


# ------------------------------------------------------------------ llava_onevision
@case
def llava_onevision(c: Case) -> None:
    """llava-hf/llava-onevision-qwen2-0.5b-ov-hf: SigLIP + anyres-9 + Qwen2, tied."""
    media = "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% elif c['type'] == 'video' %}{{ '<video>\n' }}{% endif %}"
    t = c.tok(qwen_tok(("<image>", "<video>"), media=media, pad_token="<|endoftext|>"))
    i = t.convert_tokens_to_ids
    sz, ps = 56, 14
    pins = [[sz * a, sz * b] for a in (1, 2, 3) for b in (1, 2, 3)]
    cfg = T.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 60,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": sz,
            "patch_size": ps,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(t),
            "hidden_size": 56,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
        image_token_index=i("<image>"),
        video_token_index=i("<video>"),
        image_grid_pinpoints=pins,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    c.model(
        "LlavaOnevisionForConditionalGeneration", cfg, eos_token_id=i("<|im_end|>"), pad_token_id=i("<|endoftext|>")
    )
    c.pre(
        image_processor_type="LlavaOnevisionImageProcessor",
        processor_class="LlavaOnevisionProcessor",
        do_convert_rgb=True,
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        image_grid_pinpoints=pins,
        resample=3,
        rescale_factor=1 / 255,
        size={"height": sz, "width": sz},
        **HALF,
    )
    c.vproc(
        video_processor_type="LlavaOnevisionVideoProcessor",
        processor_class="LlavaOnevisionProcessor",
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        resample=3,
        rescale_factor=1 / 255,
        size={"height": sz, "width": sz},
        **HALF,
    )
    c.proc(
        processor_class="LlavaOnevisionProcessor",
        image_token="<image>",
        video_token="<video>",
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    # image 80x100 (h, w) -> best pinpoint 112x112 -> 1 + 4 tiles
    pv = normal(1, 5, 3, sz, sz)
    isz = torch.tensor([[80, 100]])
    with torch.no_grad():
        f = c.m.model.get_image_features(pv, isz)
    f = getattr(f, "pooler_output", f)
    n = f[0].shape[0]
    ids = torch.cat(
        [
            t("Look: ", return_tensors="pt")["input_ids"],
            torch.full((1, n), i("<image>")),
            t(" what?", return_tensors="pt")["input_ids"],
        ],
        1,
    )
    c.golden(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pv, "image_sizes": isz},
        {"max_new_tokens": 5, "do_sample": False},
    )


# ------------------------------------------------------------------ llava
@case
def llava(c: Case) -> None:
    """llava-hf/llava-1.5-7b-hf: CLIP ViT-L/14-336 layer -2, drop CLS, 2-layer MLP, Vicuna."""
    t = llama_tok(("<image>", "<pad>"), pad_token="<pad>")
    t.padding_side = "left"
    t.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    c.tok(t)
    i = t.convert_tokens_to_ids
    cfg = T.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "projection_dim": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(t) + 3,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 12,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
        },
        image_token_index=i("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=i("<pad>"),
    )
    c.model("LlavaForConditionalGeneration", cfg, bos_token_id=1, eos_token_id=2, pad_token_id=i("<pad>"))
    c.pre(
        image_processor_type="CLIPImageProcessor",
        processor_class="LlavaProcessor",
        do_center_crop=True,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        crop_size={"height": 56, "width": 56},
        size={"shortest_edge": 56},
        resample=3,
        rescale_factor=1 / 255,
        **CLIPN,
    )
    c.proc(
        processor_class="LlavaProcessor",
        image_token="<image>",
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )
    ids = torch.cat(
        [
            t("USER: ", return_tensors="pt")["input_ids"],
            torch.full((1, 16), i("<image>")),
            t("\nWhat? ASSISTANT:", return_tensors="pt", add_special_tokens=False)["input_ids"],
        ],
        1,
    )
    c.golden(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": normal(1, 3, 56, 56)},
        {"max_new_tokens": 5, "do_sample": False},
    )


@case
def llava_b(c: Case) -> None:
    """Qwen2 with a tied head, every slot of the tower with its class token, the states of the first layer."""
    t = c.tok(qwen_tok(("<image>",), pad_token="<|endoftext|>"))
    i = t.convert_tokens_to_ids
    cfg = T.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 80,
            "projection_dim": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "image_size": 24,
            "patch_size": 8,
            "hidden_act": "gelu",
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(t),
            "hidden_size": 64,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
        image_token_index=i("<image>"),
        image_seq_length=10,
        projector_hidden_act="relu",
        vision_feature_layer=1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=False,
        tie_word_embeddings=True,
    )
    c.model("LlavaForConditionalGeneration", cfg, eos_token_id=i("<|im_end|>"), pad_token_id=i("<|endoftext|>"))
    c.image_processor(
        "CLIPImageProcessor",
        size={"shortest_edge": 24},
        crop_size={"height": 24, "width": 24},
        resample=3,
        do_center_crop=True,
        do_convert_rgb=True,
        **CLIPN,
    )
    ids = torch.cat([t("What is ", return_tensors="pt")["input_ids"], torch.full((1, 10), i("<image>"))], 1)
    c.golden(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": normal(1, 3, 24, 24)},
        {"max_new_tokens": 5, "do_sample": False},
    )


# ------------------------------------------------------------------ clip's vision tower
def _clip_vision(c: Case, **config: Any) -> None:
    size = config["image_size"]
    c.model("CLIPVisionModel", T.CLIPVisionConfig(**config))
    c.image_processor(
        "CLIPImageProcessor",
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=3,
        do_center_crop=True,
        do_convert_rgb=True,
        **CLIPN,
    )
    c.golden({"pixel_values": normal(2, 3, size, size)})


@case
def clip_vision(c: Case) -> None:
    """The tower of openai/clip-vit-base-patch32."""
    _clip_vision(
        c, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )


@case
def clip_vision_b(c: Case) -> None:
    """Another size and activation, patches that leave an edge over."""
    _clip_vision(
        c,
        hidden_size=40,
        intermediate_size=60,
        num_hidden_layers=3,
        num_attention_heads=5,
        image_size=30,
        patch_size=7,
        hidden_act="gelu",
    )


# ------------------------------------------------------------------ kosmos2
@case
def kosmos2(c: Case) -> None:
    """microsoft/kosmos-2-patch14-224: CLIP ViT, latent-query resampler, pre-norm decoder, sinusoidal positions."""
    npi = 16
    tags = [
        "</doc>",
        "<image>",
        "</image>",
        "</chunk>",
        "</line>",
        "<grounding>",
        "<phrase>",
        "</phrase>",
        "<object>",
        "</object>",
        "</delimiter_of_multi_objects/>",
    ]
    v = unigram(420, ("<s>", "<pad>", "</s>", "<unk>"))
    t = T.XLMRobertaTokenizer(vocab=[*v, ("<mask>", 0.0)], model_max_length=2048)
    t.add_tokens(
        [AddedToken(x, special=True, normalized=False) for x in tags + [f"<patch_index_{k:04d}>" for k in range(npi)]],
        special_tokens=True,
    )
    c.tok(t, "XLMRobertaTokenizer")
    i = t.convert_tokens_to_ids
    c.model(
        "Kosmos2ForConditionalGeneration",
        T.Kosmos2Config(
            text_config={
                "vocab_size": len(t),
                "max_position_embeddings": 256,
                "embed_dim": 48,
                "layers": 2,
                "ffn_dim": 96,
                "attention_heads": 4,
                "scale_embedding": True,
            },
            latent_query_num=64,
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 56,
                "patch_size": 14,
            },
        ),
    )
    c.pre(
        image_processor_type="CLIPImageProcessor",
        processor_class="Kosmos2Processor",
        do_center_crop=True,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        crop_size={"height": 56, "width": 56},
        size={"shortest_edge": 56},
        resample=3,
        rescale_factor=1 / 255,
        use_square_size=True,
        **CLIPN,
    )
    c.proc(processor_class="Kosmos2Processor", num_patch_index_tokens=npi)
    ids = torch.cat(
        [
            torch.tensor([[0, i("<image>"), *list(range(4, 68)), i("</image>")]]),
            t("<grounding> a picture of", return_tensors="pt", add_special_tokens=False)["input_ids"],
        ],
        1,
    )
    msk = torch.zeros_like(ids)
    msk[:, 2:66] = 1
    c.golden(
        {
            "pixel_values": normal(1, 3, 56, 56),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "image_embeds_position_mask": msk,
        },
        {"max_new_tokens": 5, "do_sample": False},
    )
