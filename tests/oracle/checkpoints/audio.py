"""Tiny audio models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.oracle.checkpoints.case import Case, case, flat, integers, labels, named, normal, write_json
from tests.oracle.checkpoints.tokenizers import bert_tok, qwen_tok, sentencepiece, t5_tok, unigram, whisper_tok


def waveform(case: Case, **settings: Any) -> None:
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
    return {"input_values": normal(rows, samples) * mask, "attention_mask": mask}


def log_mel(case: Case, mels: int, frames: int) -> None:
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


# ------------------------------------------------------------------ whisper
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


@case
def whisper(c: Case) -> None:
    """openai/whisper-large-v3-turbo."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    t = c.tok(whisper_tok())
    i = t.convert_tokens_to_ids
    eot = i("<|endoftext|>")
    c.model(
        "WhisperForConditionalGeneration",
        T.WhisperConfig(
            vocab_size=len(t),
            num_mel_bins=128,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=1500,
            max_target_positions=448,
            decoder_start_token_id=i("<|startoftranscript|>"),
            bos_token_id=eot,
            eos_token_id=eot,
            pad_token_id=eot,
            begin_suppress_tokens=[i("Ġ"), eot],
            suppress_tokens=None,
        ),
        alignment_heads=[[0, 1], [1, 0]],
        is_multilingual=True,
        lang_to_id={f"<|{k}|>": i(f"<|{k}|>") for k in LANGUAGES},
        task_to_id={"transcribe": i("<|transcribe|>"), "translate": i("<|translate|>")},
        no_timestamps_token_id=i("<|notimestamps|>"),
        prev_sot_token_id=i("<|startofprev|>"),
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
        begin_suppress_tokens=[i("Ġ"), eot],
        suppress_tokens=[],
        decoder_start_token_id=i("<|startoftranscript|>"),
        bos_token_id=eot,
        eos_token_id=eot,
        pad_token_id=eot,
    )
    c.pre(
        feature_extractor_type="WhisperFeatureExtractor",
        processor_class="WhisperProcessor",
        feature_size=128,
        sampling_rate=16000,
        hop_length=160,
        chunk_length=30,
        n_fft=400,
        n_samples=480000,
        nb_max_frames=3000,
        padding_side="right",
        padding_value=0.0,
        dither=0.0,
        return_attention_mask=False,
    )
    x = {"input_features": normal(1, 128, 3000)}
    c.golden(
        {
            **x,
            "decoder_input_ids": torch.tensor(
                [[i("<|startoftranscript|>"), i("<|en|>"), i("<|transcribe|>"), i("<|notimestamps|>"), 50]]
            ),
        },
        {"max_new_tokens": 6, "do_sample": False, "language": "en", "task": "transcribe"},
        gen_inputs=x,
    )


@case
def whisper_b(c: Case) -> None:
    """English only, a second of sound, untied, heads of 12 channels, scaled embeddings."""
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
    features = {"input_features": normal(2, 80, 100)}
    ids = integers(300, 2, 9)
    c.golden({**features, "decoder_input_ids": ids}, {"max_new_tokens": 8, "do_sample": False}, gen_inputs=features)


@case
def whisper_labels(c: Case) -> None:
    """The encoder alone, with a weight for each of its layers."""
    c.model(
        "WhisperForAudioClassification",
        _whisper(vocab_size=20, use_weighted_layer_sum=True, classifier_proj_size=12, **labels(4)),
    )
    log_mel(c, 80, 100)
    c.golden({"input_features": normal(2, 80, 100)})


# ------------------------------------------------------------------ moonshine
@case
def moonshine(c: Case) -> None:
    """UsefulSensors/moonshine-tiny: raw-audio conv stem, partial rotary 0.9, GLU decoder, tied."""
    v, m = sentencepiece()
    tk = T.LlamaTokenizer(vocab=v, merges=m)
    t = c.tok(
        T.PreTrainedTokenizerFast(
            tokenizer_object=tk.backend_tokenizer,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="</s>",
        )
    )
    c.model(
        "MoonshineForConditionalGeneration",
        T.MoonshineConfig(
            vocab_size=len(t),
            hidden_size=40,
            intermediate_size=80,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            encoder_num_key_value_heads=2,
            decoder_num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.9},
            max_position_embeddings=194,
        ),
        max_length=194,
    )
    c.pre(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        processor_class="Wav2Vec2Processor",
        do_normalize=False,
        feature_size=1,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=True,
        sampling_rate=16000,
    )
    x = {"input_values": 0.1 * normal(1, 8000), "attention_mask": torch.ones(1, 8000, dtype=torch.long)}
    c.golden(
        {**x, "decoder_input_ids": torch.tensor([[1, 300, 301]])},
        {"max_new_tokens": 6, "do_sample": False},
        gen_inputs=x,
    )


@case
def moonshine_b(c: Case) -> None:
    """Every bias, untied, heads of 16 channels of which 10 turn, the older rope spelling."""
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
    sound = {"input_values": 0.1 * normal(2, 5000)}
    ids = integers(210, 2, 5)
    c.golden({**sound, "decoder_input_ids": ids}, {"max_new_tokens": 6, "do_sample": False}, gen_inputs=sound)
    path = c.folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    parameters = config.pop("rope_parameters")
    config |= {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor")} | {"rope_scaling": None}
    write_json(c.folder, "config.json", config)


# ------------------------------------------------------------------ wav2vec2
def _w2v(**options: Any) -> Any:
    return T.Wav2Vec2Config(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 32,
            "num_conv_pos_embedding_groups": 4,
            "codevector_dim": 16,
            "proj_codevector_dim": 16,
            "classifier_proj_size": 16,
            "tdnn_dim": [16, 16, 16, 16, 32],
            "xvector_output_dim": 16,
            "num_codevectors_per_group": 8,
            "output_hidden_size": 32,
            **options,
        }
    )


def _ctc_vocab() -> dict[str, int]:
    return {k: i for i, k in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *list("ETAONIHSRDLUMWCFGYPBVK'XJQZ")])}


@case
def wav2vec2(c: Case) -> None:
    """superb/wav2vec2-base-superb-ks: group norm, post-norm, weighted layer sum."""
    names = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_"]
    c.model(
        "Wav2Vec2ForSequenceClassification",
        _w2v(use_weighted_layer_sum=True, **named(*names)),
    )
    c.pre(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        do_normalize=True,
        feature_size=1,
        padding_side="right",
        padding_value=0,
        return_attention_mask=False,
        sampling_rate=16000,
    )
    c.golden({"input_values": normal(1, 8000)})


@case
def wav2vec2_ctc(c: Case) -> None:
    """facebook/wav2vec2-base-960h."""
    write_json(c.folder, "vocab.json", _ctc_vocab())
    c.tok(T.Wav2Vec2CTCTokenizer(str(c.folder / "vocab.json")))
    c.model("Wav2Vec2ForCTC", _w2v(vocab_size=32))
    c.pre(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        processor_class="Wav2Vec2Processor",
        do_normalize=True,
        feature_size=1,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=False,
        sampling_rate=16000,
    )
    c.golden({"input_values": normal(1, 8000)})


@case
def wav2vec2_large(c: Case) -> None:
    """wav2vec2-large-lv60 style: layer norm convs with bias, stable (pre-) layer norm, attention mask."""
    write_json(c.folder, "vocab.json", _ctc_vocab())
    c.tok(T.Wav2Vec2CTCTokenizer(str(c.folder / "vocab.json")))
    c.model("Wav2Vec2ForCTC", _w2v(vocab_size=32, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True))
    c.pre(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        processor_class="Wav2Vec2Processor",
        do_normalize=True,
        feature_size=1,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=True,
        sampling_rate=16000,
    )
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1, 5000:] = 0
    c.golden({"input_values": normal(2, 8000) * mask, "attention_mask": mask})


@case
def wav2vec2_b(c: Case) -> None:
    """A classifier with layer norms, pre-norm, layer weights, an odd kernel for positions."""
    c.model(
        "Wav2Vec2ForSequenceClassification",
        _w2v(
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
            **named("calm", "glad", "sad"),
        ),
    )
    waveform(c, do_normalize=False)
    c.golden(padded(3, 2000, 2000, 1234, 200))


@case
def wav2vec2_ctc_b(c: Case) -> None:
    """MMS: a language adapter in each layer; then convolutions that shorten by four."""
    write_json(c.folder, "vocab.json", {"[BLANK]": 0, "#": 3, "[UNK]": 1, "a": 2, "é": 4, "<b>": 5, "n": 6, "'": 7})
    tokenizer = T.Wav2Vec2CTCTokenizer(
        str(c.folder / "vocab.json"),
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
        _w2v(
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
    c.golden({"input_values": normal(2, 9000), "attention_mask": torch.ones(2, 9000, dtype=torch.long)})


@case
def wav2vec2_base_b(c: Case) -> None:
    """The pre-training class, in half precision and the newer spelling of halves."""
    c.model("Wav2Vec2ForPreTraining", _w2v(hidden_size=48, num_attention_heads=4, num_hidden_layers=1))
    c.m.half().save_pretrained(c.folder)
    c.m = T.Wav2Vec2Model.from_pretrained(c.folder, dtype=torch.float32).eval()
    waveform(c, return_attention_mask=False)
    c.golden({"input_values": normal(2, 3000)})
    c.info.pop("load_issues")  # the quantizer and the projections of the training, which the trunk has no use for
    config = json.loads((c.folder / "config.json").read_text(encoding="utf-8"))
    write_json(c.folder, "config.json", {**config, "architectures": ["Wav2Vec2ForPreTraining"]})


# ------------------------------------------------------------------ mimi
def _mimi(**options: Any) -> dict[str, Any]:
    return dict(
        {
            "model_type": "mimi",
            "num_filters": 4,
            "hidden_size": 32,
            "upsampling_ratios": [8, 6, 5, 4],
            "codebook_size": 32,
            "codebook_dim": 16,
            "vector_quantization_hidden_dimension": 16,
            "num_quantizers": 8,
            "num_semantic_quantizers": 1,
            "upsample_groups": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "sliding_window": 10,
        },
        **options,
    )


@case
def mimi(c: Case) -> None:
    """kyutai/mimi (Moshi's codec alone)."""
    c.model("MimiModel", T.MimiConfig(**{k: v for k, v in _mimi().items() if k != "model_type"}))
    c.pre(
        feature_extractor_type="EncodecFeatureExtractor",
        feature_size=1,
        sampling_rate=24000,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=True,
        chunk_length_s=None,
        overlap=None,
    )
    c.golden({"input_values": 0.3 * normal(1, 1, 9600)})


# ------------------------------------------------------------------ moshi
@case
def moshi(c: Case) -> None:
    """kyutai/moshiko-pytorch-bf16 (HF layout: kmhf/hf-moshiko): temporal LM + depth decoder + Mimi."""
    v = unigram(400, ("<unk>", "<s>", "</s>", "<pad>"))
    tok = Tokenizer(models.Unigram(v, unk_id=0, byte_fallback=False))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    t = c.tok(
        T.PreTrainedTokenizerFast(
            tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
    )
    c.model(
        "MoshiForConditionalGeneration",
        T.MoshiConfig(
            vocab_size=len(t),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            head_dim=12,
            ffn_dim=128,
            num_codebooks=8,
            audio_vocab_size=32,
            max_position_embeddings=3000,
            sliding_window=3000,
            audio_encoder_config=_mimi(),
            depth_decoder_config={
                "model_type": "moshi_depth",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 64,
                "max_position_embeddings": 9,
                "sliding_window": 8,
            },
        ),
        pad_token_id=3,
    )  # no eos: with int eos+pad ids 5.23's MoshiForConditionalGeneration.generate raises in torch.isin(int, int)
    c.pre(
        feature_extractor_type="EncodecFeatureExtractor",
        feature_size=1,
        sampling_rate=24000,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=True,
        chunk_length_s=None,
        overlap=None,
    )
    c.golden(
        {
            "input_ids": integers(300, 1, 6),
            "user_audio_codes": integers(32, 1, 8, 6, lo=0),
            "moshi_audio_codes": integers(32, 1, 8, 6, lo=0, seed=4),
        },
        {
            "max_new_tokens": 4,
            "do_sample": False,
            "return_audio_waveforms": False,
            "concat_unconditional_inputs": False,
        },
    )


# ------------------------------------------------------------------ encodec
ENC32 = {
    "model_type": "encodec",
    "audio_channels": 1,
    "chunk_length_s": None,
    "codebook_dim": 16,
    "codebook_size": 64,
    "compress": 2,
    "dilation_growth_rate": 2,
    "hidden_size": 16,
    "kernel_size": 7,
    "last_kernel_size": 7,
    "norm_type": "weight_norm",
    "normalize": False,
    "num_filters": 4,
    "num_lstm_layers": 2,
    "num_residual_layers": 1,
    "overlap": None,
    "pad_mode": "reflect",
    "residual_kernel_size": 3,
    "sampling_rate": 32000,
    "target_bandwidths": [1.2],
    "trim_right_ratio": 1.0,
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}


@case
def encodec(c: Case) -> None:
    """facebook/encodec_24khz (Bark's codec): causal, weight norm, LSTM, RVQ."""
    c.model(
        "EncodecModel",
        T.EncodecConfig(
            num_filters=4,
            hidden_size=16,
            codebook_dim=16,
            codebook_size=64,
            upsampling_ratios=[8, 5, 4, 2],
            target_bandwidths=[0.9, 1.8, 3.6],
        ),
    )
    c.pre(
        feature_extractor_type="EncodecFeatureExtractor",
        feature_size=1,
        sampling_rate=24000,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=True,
        chunk_length_s=None,
        overlap=None,
    )
    c.golden({"input_values": 0.3 * normal(1, 1, 6400)})


# ------------------------------------------------------------------ musicgen
@case
def musicgen(c: Case) -> None:
    """facebook/musicgen-large: T5 encoder + codebook LM (delay pattern, CFG) + Encodec 32 kHz."""
    t = c.tok(t5_tok())
    cfg = T.MusicgenConfig(
        text_encoder=T.T5Config(vocab_size=len(t), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4).to_dict(),
        audio_encoder=dict(ENC32),
        decoder=T.MusicgenDecoderConfig(
            vocab_size=64,
            hidden_size=48,
            num_hidden_layers=2,
            ffn_dim=96,
            num_attention_heads=4,
            num_codebooks=4,
            pad_token_id=64,
            bos_token_id=64,
            max_position_embeddings=2048,
        ).to_dict(),
    )
    c.model(
        "MusicgenForConditionalGeneration",
        cfg,
        bos_token_id=64,
        decoder_start_token_id=64,
        pad_token_id=64,
        do_sample=True,
        guidance_scale=3.0,
        max_length=1500,
    )
    c.pre(
        feature_extractor_type="EncodecFeatureExtractor",
        processor_class="MusicgenProcessor",
        feature_size=1,
        sampling_rate=32000,
        padding_side="left",
        padding_value=0.0,
        return_attention_mask=True,
        chunk_length_s=None,
        overlap=None,
    )
    e = dict(t(["quiet music in a garden"], return_tensors="pt"))
    c.golden(
        {**e, "decoder_input_ids": integers(64, 4, 5, lo=0)},
        {"max_new_tokens": 10, "do_sample": False, "guidance_scale": 3.0},
        gen_inputs=e,
    )


# ------------------------------------------------------------------ bark
@torch.no_grad()
def _bark_golden(c: Case, m: Any, t: Any, semantic: int, coarse: int, codes: int) -> None:
    """Each of the four parts alone, then the whole chain."""
    again = T.BarkModel.from_pretrained(c.folder).eval()
    inputs = {
        "semantic.input_ids": integers(semantic, 1, 12, lo=0),
        "coarse.input_ids": integers(coarse, 1, 12, lo=0),
        "fine.input_ids": integers(codes, 1, 16, 8, lo=0),
        "codec.codes": integers(codes, 8, 1, 20, lo=0),
    }
    outputs = {
        "semantic.logits": m.semantic(input_ids=inputs["semantic.input_ids"]).logits,
        "coarse.logits": m.coarse_acoustics(input_ids=inputs["coarse.input_ids"]).logits,
        "fine.logits_4": m.fine_acoustics(4, input_ids=inputs["fine.input_ids"]).logits,
        "codec.audio": m.codec_model.decoder(m.codec_model.quantizer.decode(inputs["codec.codes"])),
    }
    logits = again.semantic(input_ids=inputs["semantic.input_ids"]).logits
    c.info["reload_maxdiff"] = float((logits - outputs["semantic.logits"]).abs().max())
    fixed = {"padding": "max_length", "max_length": 32, "return_token_type_ids": False}
    ids = t("Hello, world!", return_tensors="pt", **fixed)
    torch.manual_seed(0)
    audio = again.generate(**ids, do_sample=False)
    c.store(flat("in", inputs) | flat("out", outputs) | flat("gen", {"audio": audio, **ids}))


@case
def bark(c: Case) -> None:
    """suno/bark: 3 GPTs + Encodec 24 kHz; all vocabulary constants scaled down in generation_config."""
    t = c.tok(bert_tok(do_lower_case=False))
    sem, cb, cc = 40, 32, 2  # semantic codes, codebook size, coarse codebooks
    toff = sem + 8
    tpad = toff + len(t) + 1
    infer = tpad + 1
    coarse_v = sem + cc * cb + 8
    cpad = sem + cc * cb
    cinf = cpad + 2
    gpt = {
        "num_layers": 2,
        "num_heads": 4,
        "hidden_size": 32,
        "block_size": 256,
        "bias": False,
    }  # block_size: its causal-mask buffers are in the checkpoint
    cfg = T.BarkConfig(
        semantic_config=dict(model_type="semantic", input_vocab_size=infer + 1, output_vocab_size=sem + 8, **gpt),
        coarse_acoustics_config=dict(
            model_type="coarse_acoustics", input_vocab_size=coarse_v, output_vocab_size=coarse_v, **gpt
        ),
        fine_acoustics_config=dict(
            model_type="fine_acoustics",
            input_vocab_size=cb + 8,
            output_vocab_size=cb + 8,
            n_codes_total=8,
            n_codes_given=1,
            tie_word_embeddings=True,
            **gpt,
        ),
        codec_config={
            "model_type": "encodec",
            "num_filters": 4,
            "hidden_size": 16,
            "codebook_dim": 16,
            "codebook_size": cb,
            "upsampling_ratios": [8, 5, 4, 2],
            "target_bandwidths": [3.0],
            "sampling_rate": 24000,
            "norm_type": "weight_norm",
            "use_causal_conv": True,
        },
    )
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    g = BarkGenerationConfig(
        semantic_config={
            "eos_token_id": sem,
            "text_encoding_offset": toff,
            "text_pad_token": tpad,
            "semantic_infer_token": infer,
            "semantic_vocab_size": sem,
            "max_new_tokens": 16,
            "max_input_semantic_length": 32,
        },
        coarse_acoustics_config={
            "coarse_semantic_pad_token": cpad,
            "coarse_infer_token": cinf,
            "max_coarse_input_length": 32,
            "max_coarse_history": 60,
            "sliding_window_len": 20,
        },
        fine_acoustics_config={"max_fine_history_length": 64, "max_fine_input_length": 128},
        codebook_size=cb,
    )
    m = c.model("BarkModel", cfg)
    # 5.23 cannot save a BarkGenerationConfig (AttributeError: early_stopping): write the Hub's nested file by hand
    gd = {
        "model_type": "bark",
        "sample_rate": 24000,
        "codebook_size": cb,
        **{
            k: getattr(g, k).to_diff_dict()
            for k in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config")
        },
    }
    write_json(c.folder, "generation_config.json", gd)
    write_json(
        c.folder,
        "speaker_embeddings_path.json",
        {
            "repo_or_path": "",
            "v2/en_speaker_0": {
                k: f"speaker_embeddings/en_speaker_0_{k}.npy"
                for k in ("semantic_prompt", "coarse_prompt", "fine_prompt")
            },
        },
    )
    (c.folder / "speaker_embeddings").mkdir()
    rs = np.random.RandomState(0)
    for k, a in (
        ("semantic_prompt", rs.randint(0, sem, 20)),
        ("coarse_prompt", rs.randint(0, cb, (2, 30))),
        ("fine_prompt", rs.randint(0, cb, (8, 30))),
    ):
        np.save(f"{c.folder}/speaker_embeddings/en_speaker_0_{k}.npy", a.astype(np.int64))
    _bark_golden(c, m, t, sem, coarse_v, cb)


# ------------------------------------------------------------------ qwen2_audio
@case
def qwen2_audio(c: Case) -> None:
    """Qwen/Qwen2-Audio-7B(-Instruct): Whisper encoder + avg-pool + linear + Qwen2."""
    media = "{% if c['type'] == 'audio' %}{{ 'Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n' }}{% endif %}"
    t = c.tok(qwen_tok(("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"), media=media, pad_token="<|endoftext|>"))
    a = t.convert_tokens_to_ids("<|AUDIO|>")
    cfg = T.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 128,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "max_source_positions": 1500,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(t),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
        },
        audio_token_index=a,
    )
    c.model(
        "Qwen2AudioForConditionalGeneration",
        cfg,
        eos_token_id=[t.convert_tokens_to_ids("<|im_end|>"), t.eos_token_id],
        pad_token_id=t.pad_token_id,
    )
    c.pre(
        feature_extractor_type="WhisperFeatureExtractor",
        processor_class="Qwen2AudioProcessor",
        feature_size=128,
        sampling_rate=16000,
        hop_length=160,
        chunk_length=30,
        n_fft=400,
        n_samples=480000,
        nb_max_frames=3000,
        padding_side="right",
        padding_value=0.0,
        dither=0.0,
        return_attention_mask=True,
    )
    fm = torch.zeros(1, 3000, dtype=torch.long)
    fm[:, :60] = 1  # 60 frames -> 30 -> 15 tokens
    ids = torch.cat(
        [
            t("Audio 1: ", return_tensors="pt")["input_ids"],
            torch.full((1, 15), a),
            t("\nWhat?", return_tensors="pt")["input_ids"],
        ],
        1,
    )
    x = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": normal(1, 128, 3000),
        "feature_attention_mask": fm,
    }
    c.golden(x, {"max_new_tokens": 5, "do_sample": False})
