"""What transformers' own code reads of a config is read here too, checked, or known not to change a trained model."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from isoform.errors import IsoformError
from isoform.reference.config import Config, known_keys
from isoform.reference.families import FAMILIES, load_family

HUB = Path(transformers.__file__).parent

# Read by the Hub's code, and without effect on what a trained model computes from the inputs that isoform gives it.
TRAINING = (
    *("activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "dropout"),
    *("drop_path_rate", "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout", "hidden_dropout"),
    *(
        "hidden_dropout_prob",
        "layerdrop",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "qa_dropout",
        "seq_classif_dropout",
    ),
    *("apply_spec_augment", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length"),
    *("mask_time_min_masks", "mask_time_prob", "use_mask_token"),
    *("attn_pdrop", "classifier_dropout_prob", "embd_pdrop", "resid_pdrop", "router_jitter_noise"),
    *("cls_dropout", "pooler_dropout", "embedding_dropout", "mlp_dropout", "dropout_rate"),
    *("box_noise_scale", "freeze_backbone_batch_norms", "label_noise_ratio", "num_denoising"),
)
INITIAL = (
    "initializer_range",
    "initializer_factor",
    "initializer_bias_prior_prob",
    "initializer_cutoff_factor",
    "layerscale_value",
    "logit_scale_init_value",
    "scale",
    "sinusoidal_pos_embds",
    *("init_std", "init_xavier_std"),
)
LOSSES = (
    *("contrastive_logits_temperature", "ctc_loss_reduction", "ctc_zero_infinity", "diversity_loss_weight"),
    *("label_smoothing", "norm_pix_loss", "problem_type", "router_aux_loss_coef"),
    *("auxiliary_loss", "sparse_pred_ignore_index", "sparse_prediction"),
    *("class_weight", "contrastive_temperature", "contrastive_weight", "dice_weight", "importance_sample_ratio"),
    *("mask_weight", "no_object_weight", "oversample_ratio", "train_num_points"),
)
OUTPUTS = (
    *("use_cache", "is_encoder_decoder", "num_labels"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("output_auxiliary_logits", "use_auxiliary_loss"),
)
KERNELS = (
    "chunk_size_feed_forward",
    "deterministic_flash_attn",
    "disable_custom_kernels",
    "gradient_checkpointing",
    "pad_head_dim_to_multiple_of",
    "reorder_and_upcast_attn",
)
TOKENS = (  # the generation loop and the padding of an embedding in training
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
)
SEGMENTATION = (  # BEiT's
    *("add_fpn", "auxiliary_channels", "auxiliary_concat_input", "auxiliary_loss_weight", "auxiliary_num_convs"),
    *("out_indices", "pool_scales", "semantic_loss_ignore_index", "use_auxiliary_head"),
)
OTHER_HEADS = (  # of classes that no family here has
    *("codevector_dim", "num_codevector_groups", "num_codevectors_per_group", "proj_codevector_dim"),
    *("tdnn_dilation", "tdnn_dim", "tdnn_kernel", "xvector_output_dim"),
    *("summary_activation", "summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels"),
    *("summary_type", "summary_use_proj"),  # of ELECTRA's and GPT-2's choice among answers
    *("is_training", "text_encoder_context_length", "text_encoder_n_ctx", "text_encoder_num_layers"),  # a training's
    *("text_encoder_proj_layers", "text_encoder_width"),
    *("apply_layernorm", "reshape_hidden_states", "encoder_stride", "image_text_hidden_size", "projection_dim"),
)
STATED_TWICE = (
    "encoder_hidden_size",  # BLIP's text: always the vision tower's
    "image_embedding_size",  # SAM's prompts: counted from two other keys
    "num_feat_extract_layers",  # wav2vec2: the length of conv_dim
)
ANSWERS = (  # TAPAS: how cells and aggregations are learned from answers
    *("aggregation_loss_weight", "aggregation_temperature", "answer_loss_cutoff", "answer_loss_importance"),
    *("average_approximation_function", "average_logits_per_cell", "cell_selection_preference"),
    *("disable_per_token_loss", "huber_loss_delta", "init_cell_selection_weights_to_zero", "positive_label_weight"),
    *("use_answer_as_supervision", "use_gumbel_for_aggregation", "use_gumbel_for_cells", "use_normalized_answer_loss"),
)
HARMLESS = {
    *ANSWERS,
    *(*TRAINING, *INITIAL, *LOSSES, *OUTPUTS, *KERNELS, *TOKENS, *OTHER_HEADS, *SEGMENTATION, *STATED_TWICE),
    "scale_embedding",  # Whisper's code reads it and does not use it
    "vocab_size",  # of a vision tower: Llava's file repeats the text's
}

# What no key of a file is: attributes that transformers' own classes add, and its methods.
OWN = {
    *("get_text_config", "per_layer_config", "to_dict", "update", "standardize_rope_params", "model_type"),
    *("text_config", "vision_config", "prompt_encoder_config", "mask_decoder_config", "name_or_path"),
}
# Read only to raise, or with a default for files that have the key: such a key is refused, as it is not known.
ABSENT = {
    "embedding_size",  # BERT: an error message
    "head_dim",  # towers: where a file states it, its heads are of another size
    "decoder_pad_token_id",
}
MODULES = {
    "blip": ("models/blip/modeling_blip.py", "models/blip/modeling_blip_text.py"),
    "clip_vision_model": ("models/clip/modeling_clip.py",),
    "gemma3_text": ("models/gemma3/modeling_gemma3.py",),
    "rt_detr_resnet": ("models/rt_detr/modeling_rt_detr_resnet.py",),
}


# Of another model in the same file, or read by the config of another class here.
ELSEWHERE = {
    "clip_vision_model": {"max_position_embeddings"},
    "deformable_detr": {"two_stage_num_proposals"},  # read where two_stage is on, which is refused
    "gemma3_text": {"layer_norm_eps", "image_size", "image_token_id", "mm_tokens_per_image", "patch_size"},
    "llava": {"image_token_id"},  # LlavaSettings
    "modernbert": {"sliding_window"},  # a property: half of local_attention
}


def configs(config: Any) -> Iterator[type[Config]]:
    """The config of a family and those inside it."""
    yield type(config)
    for name in getattr(type(config), "__dataclass_fields__", {}):
        inner = getattr(config, name)
        inner = getattr(inner, "config", inner)
        if isinstance(inner, Config):
            yield from configs(inner)


def defaults(model_type: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(CONFIG_MAPPING[model_type]().to_json_string(use_diff=False))
    return data


def modules(model_type: str) -> tuple[str, ...]:
    """The files of transformers that compute a model."""
    name = model_type.replace("-", "_")
    return MODULES.get(model_type, (f"models/{name}/modeling_{name}.py",))


@cache
def reads(path: Path) -> set[str]:
    """The attributes of anything called a config that a module reads."""

    def is_config(node: ast.expr) -> bool:
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        return name.endswith("config")

    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and is_config(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            owner, name = node.args[:2]
            if is_config(owner) and isinstance(name, ast.Constant):
                found.add(str(name.value))
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_file_of_defaults_opens(model_type: str) -> None:
    load_family(model_type).config.from_dict(defaults(model_type))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_key_that_the_hubs_code_computes_with_is_called_harmless(model_type: str) -> None:
    """A key is a field or has its values checked, is refused, or has a reason above."""
    config = load_family(model_type).config.from_dict(defaults(model_type))
    known = [known_keys(one) for one in configs(config)]
    checked = {key for one in known for key in (*one.read, *one.only)}
    harmless = {key for one in known for key in one.harmless}
    read = {name for path in modules(model_type) for name in reads(HUB / path)} - OWN - ELSEWHERE.get(model_type, set())
    passed_over = read - checked
    assert passed_over <= HARMLESS | ABSENT, sorted(passed_over - HARMLESS - ABSENT)
    assert not passed_over & ABSENT & harmless


def test_what_every_decoder_of_the_hub_reads_beside_its_module_is_checked() -> None:
    """Masks and caches have keys of their own."""
    shared = reads(HUB / "masking_utils.py") | reads(HUB / "cache_utils.py")
    unread = {
        *("attention_chunk_size", "kv_sharing_modes", "number_of_conv_states", "get_text_config", "per_layer_config"),
        *("is_causal", "layer_types", "sliding_window", "num_hidden_layers"),
    }
    assert shared <= unread, "transformers reads a new key; say of each decoder what it does with it"
    for model_type in ("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"):
        card, data = load_family(model_type), defaults(model_type)
        for key, value in {"is_causal": False, "attention_chunk_size": 8, "kv_sharing_modes": ["reuse"] * 32}.items():
            with pytest.raises(IsoformError, match=key):
                card.config.from_dict({**data, key: value})
        with pytest.raises(IsoformError, match="per_layer_config"):
            card.config.from_dict({**data, "per_layer_config": {"0": {"sliding_window": 4}}})


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_every_reason_is_needed(name: str) -> None:
    """A key that no module reads any more needs no reason."""
    paths = {path for one in FAMILIES for path in modules(one)}
    if name not in set().union(*(reads(HUB / path) for path in paths)):
        pytest.fail(f"no module of a family reads {name}; leave it out")
