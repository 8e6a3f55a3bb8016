"""A second, differently shaped configuration of each audio family; `second.py` runs these as its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_tiny as M
import torch
import transformers as T


def waveform(case: Any, **settings: Any) -> None:
    case.pre(
        **{
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": 16000,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": True,
            "return_attention_mask": True,
            **settings,
        }
    )


def padded(rows: int, samples: int, *lengths: int) -> dict[str, torch.Tensor]:
    mask = torch.zeros(rows, samples, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return {"input_values": M.R(rows, samples) * mask, "attention_mask": mask}


# ------------------------------------------------------------------ wav2vec 2.0
@M.case
def wav2vec2_b(c: Any) -> None:  # a classifier with layer norms, pre-norm, layer weights, an odd kernel for positions
    labels = dict(enumerate(["calm", "glad", "sad"]))
    c.model(
        "Wav2Vec2ForSequenceClassification",
        M._w2v(
            hidden_size=40,
            num_hidden_layers=3,
            num_attention_heads=5,
            intermediate_size=72,
            conv_dim=[12, 20, 24],
            conv_kernel=[10, 4, 3],
            conv_stride=[5, 4, 2],
            conv_bias=True,
            feat_extract_norm="layer",
            feat_extract_activation="relu",
            hidden_act="gelu_new",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=7,
            num_conv_pos_embedding_groups=8,
            use_weighted_layer_sum=True,
            classifier_proj_size=18,
            layer_norm_eps=1e-3,
            mask_time_prob=0.0,
            id2label=labels,
            label2id={name: n for n, name in labels.items()},
        ),
    )
    waveform(c, do_normalize=False)
    c.golden(padded(3, 2000, 2000, 1234, 200))


@M.case
def wav2vec2_ctc_b(c: Any) -> None:  # MMS: a language adapter in each layer; then convolutions that shorten by four
    M.jdump(c.dir, "vocab.json", {"[BLANK]": 0, "#": 3, "[UNK]": 1, "a": 2, "é": 4, "<b>": 5, "n": 6, "'": 7})
    tokenizer = T.Wav2Vec2CTCTokenizer(
        str(Path(c.dir) / "vocab.json"),
        bos_token="<b>",
        eos_token="</b>",
        unk_token="[UNK]",
        pad_token="[BLANK]",
        word_delimiter_token="#",
        replace_word_delimiter_char="_",
        do_lower_case=True,
    )
    c.tok(tokenizer)
    c.model(
        "Wav2Vec2ForCTC",
        M._w2v(
            vocab_size=9,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=3,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            adapter_attn_dim=6,
            add_adapter=True,
            num_adapter_layers=2,
            output_hidden_size=20,
            mask_feature_prob=0.1,
        ),
    )
    waveform(c)
    c.golden({"input_values": M.R(2, 9000), "attention_mask": torch.ones(2, 9000, dtype=torch.long)})


@M.case
def wav2vec2_base_b(c: Any) -> None:  # the pre-training class, in half precision and the newer spelling of halves
    c.model("Wav2Vec2ForPreTraining", M._w2v(hidden_size=48, num_attention_heads=4, num_hidden_layers=1))
    c.m.half().save_pretrained(c.dir)
    c.m = T.Wav2Vec2Model.from_pretrained(c.dir, dtype=torch.float32).eval()
    waveform(c, return_attention_mask=False)
    c.golden({"input_values": M.R(2, 3000)})
    c.info.pop("load_issues")  # the quantizer and the projections of the training, which the trunk has no use for
    config = json.loads((Path(c.dir) / "config.json").read_text(encoding="utf-8"))
    M.jdump(c.dir, "config.json", {**config, "architectures": ["Wav2Vec2ForPreTraining"]})


# ------------------------------------------------------------------ whisper and moonshine
def log_mel(case: Any, mels: int, frames: int) -> None:
    case.pre(
        feature_extractor_type="WhisperFeatureExtractor",
        processor_class="WhisperProcessor",
        feature_size=mels,
        sampling_rate=16000,
        hop_length=160,
        chunk_length=frames // 100,
        n_fft=400,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=False,
    )


def _whisper(**options: Any) -> T.WhisperConfig:
    shape = {
        "num_mel_bins": 80,
        "d_model": 48,
        "encoder_layers": 3,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 80,
        "decoder_layers": 4,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 56,
        "max_source_positions": 50,
        "max_target_positions": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "decoder_start_token_id": 2,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    return T.WhisperConfig(**{**shape, **options})


@M.case
def whisper_b(c: Any) -> None:  # English only, a second of sound, untied, heads of 12 channels, scaled embeddings
    c.model(
        "WhisperForConditionalGeneration",
        _whisper(vocab_size=301, tie_word_embeddings=False, scale_embedding=True, activation_function="relu"),
        is_multilingual=False,
        begin_suppress_tokens=[7],
        suppress_tokens=[9],
        decoder_start_token_id=2,
        no_timestamps_token_id=290,
        max_length=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    log_mel(c, 80, 100)
    features = {"input_features": M.R(2, 80, 100)}
    ids = M.I(300, 2, 9)
    c.golden({**features, "decoder_input_ids": ids}, {"max_new_tokens": 8, "do_sample": False}, gen_inputs=features)


@M.case
def whisper_labels(c: Any) -> None:  # the encoder alone, with a weight for each of its layers
    labels = M.labels(4)
    c.model(
        "WhisperForAudioClassification",
        _whisper(vocab_size=20, use_weighted_layer_sum=True, classifier_proj_size=12, **labels),
    )
    log_mel(c, 80, 100)
    c.golden({"input_features": M.R(2, 80, 100)})


@M.case
def moonshine_b(c: Any) -> None:  # every bias, untied, heads of 16 channels of which 10 turn, the older rope spelling
    c.model(
        "MoonshineForConditionalGeneration",
        T.MoonshineConfig(
            vocab_size=211,
            hidden_size=48,
            intermediate_size=56,
            encoder_num_hidden_layers=3,
            decoder_num_hidden_layers=1,
            encoder_num_attention_heads=3,
            decoder_num_attention_heads=3,
            encoder_hidden_act="relu",
            decoder_hidden_act="gelu",
            attention_bias=True,
            pad_head_dim_to_multiple_of=12,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.65},
            max_position_embeddings=70,
            tie_word_embeddings=False,
        ),
        max_length=60,
    )
    waveform(c, do_normalize=False, processor_class="Wav2Vec2Processor")
    sound = {"input_values": 0.1 * M.R(2, 5000)}
    ids = M.I(210, 2, 5)
    c.golden({**sound, "decoder_input_ids": ids}, {"max_new_tokens": 6, "do_sample": False}, gen_inputs=sound)
    path = Path(c.dir) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    parameters = config.pop("rope_parameters")
    config |= {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor")} | {"rope_scaling": None}
    M.jdump(c.dir, "config.json", config)
