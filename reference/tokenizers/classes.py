"""The Hub's tokenizer classes: what each makes of a tokenizer.json, and which one a folder's tokenizer is.

As transformers 5 has it: most classes build the normalizer, pre-tokenizer, decoder and post-processor themselves, from
tokenizer_config.json, and take only the vocabulary from tokenizer.json. A class that is not listed is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoform.json_files import JsonObject, read_text
from isoform.reference.tokenizers import parts
from isoform.reference.tokenizers.parts import Kind

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerClass:
    """A class of transformers.

    kind: the parts it builds. tokens: its named special tokens, unless a file says otherwise. strips: those of them
    that take the space before them along. extra: its other special tokens. segments: the model is told the first of two
    texts from the second (token_type_ids), unless a file says otherwise. vocabulary: the files that it was made from
    before tokenizer.json. lists: whether the control pieces of a SentencePiece model are special tokens too.
    """

    kind: Kind
    tokens: Mapping[str, str]
    padding_side: str = "right"
    strips: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    segments: bool = False
    vocabulary: tuple[str, ...] = ()
    lists: bool = True

    def facts(self, settings: JsonObject) -> Facts:
        found: Facts = {"tokens": dict(self.tokens), "padding_side": self.padding_side}
        if self.strips:
            found["strips"] = list(self.strips)
        if self.extra:
            found["extra"] = list(self.extra)
        if self.segments:
            found["segments"] = True
        return {**found, **self.kind(settings)}


_WORDS, _MERGES = ("vocab.txt",), ("vocab.json", "merges.txt")


def _tokens(**names: str) -> dict[str, str]:
    return {f"{name}_token": text for name, text in names.items()}


_BERT = _tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = _tokens(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
_GEMMA = _tokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>")
_END = "<|endoftext|>"
_GPT2 = _tokens(bos=_END, eos=_END, unk=_END)
_QWEN = _tokens(eos=_END, unk=_END, pad=_END)

TOKENIZERS: dict[str, TokenizerClass] = {
    "AlbertTokenizer": TokenizerClass(
        kind=parts.unigram_lower_case,
        tokens=_tokens(bos="[CLS]", eos="[SEP]", unk="<unk>", sep="[SEP]", pad="<pad>", cls="[CLS]", mask="[MASK]"),
        vocabulary=("spiece.model",),
    ),
    "BertTokenizer": TokenizerClass(kind=parts.word_pieces, tokens=_BERT, segments=True, vocabulary=_WORDS),
    "CLIPTokenizer": TokenizerClass(
        kind=parts.lower_case_bytes,
        tokens=_tokens(bos="<|startoftext|>", eos=_END, unk=_END, pad=_END),
        vocabulary=_MERGES,
    ),
    "CamembertTokenizer": TokenizerClass(
        kind=parts.unigram_named_unknown,
        tokens=_ROBERTA,
        strips=("mask_token",),
        extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
        vocabulary=("sentencepiece.bpe.model",),
    ),
    "CodeGenTokenizer": TokenizerClass(kind=parts.byte_level, tokens=_GPT2, vocabulary=_MERGES),
    "CohereTokenizer": TokenizerClass(
        kind=parts.byte_level_digits,
        tokens=_tokens(
            bos="<BOS_TOKEN>",
            eos="<|END_OF_TURN_TOKEN|>",
            unk="<UNK>",
            sep="<SEP>",
            pad="<PAD>",
            cls="<CLS>",
            mask="<MASK_TOKEN>",
        ),
        padding_side="left",
        vocabulary=_MERGES,
    ),
    "DebertaTokenizer": TokenizerClass(
        kind=parts.byte_level_between_separators,
        tokens={**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"},
        segments=True,
        vocabulary=_MERGES,
    ),
    "DebertaV2Tokenizer": TokenizerClass(
        kind=parts.unigram_in_lines,
        tokens={**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"},
        segments=True,
        vocabulary=("spm.model",),
    ),
    "DistilBertTokenizer": TokenizerClass(kind=parts.word_pieces, tokens=_BERT, vocabulary=_WORDS),
    "GPT2Tokenizer": TokenizerClass(kind=parts.byte_level, tokens=_GPT2, vocabulary=_MERGES),
    "GPTNeoXTokenizer": TokenizerClass(
        kind=parts.byte_level_composed, tokens={**_GPT2, "pad_token": "<|padding|>"}, vocabulary=_MERGES
    ),
    "GemmaTokenizer": TokenizerClass(
        kind=parts.spaces_as_marks, tokens=_GEMMA, padding_side="left", vocabulary=("tokenizer.model",)
    ),
    "LayoutLMv3Tokenizer": TokenizerClass(kind=parts.byte_level_of_words, tokens=_ROBERTA, vocabulary=_MERGES),
    "LlamaTokenizer": TokenizerClass(
        kind=parts.metaspace,
        tokens=_tokens(bos="<s>", eos="</s>", unk="<unk>"),
        padding_side="left",
        vocabulary=("tokenizer.model",),
    ),
    "M2M100Tokenizer": TokenizerClass(
        kind=parts.numbered_of_many,
        tokens=_tokens(bos="<s>", eos="</s>", sep="</s>", unk="<unk>", pad="<pad>"),
        vocabulary=("sentencepiece.bpe.model", "vocab.json"),
    ),
    "MBart50Tokenizer": TokenizerClass(
        kind=parts.unigram_after_a_language,
        tokens={name: token for name, token in _ROBERTA.items() if name != "bos_token"},
        strips=("mask_token",),
        vocabulary=("sentencepiece.bpe.model",),
    ),
    "MBartTokenizer": TokenizerClass(
        kind=parts.unigram_of_a_language,
        tokens=_ROBERTA,
        strips=("mask_token",),
        vocabulary=("sentencepiece.bpe.model",),
    ),
    "MPNetTokenizer": TokenizerClass(
        kind=parts.word_pieces_between_separators,
        tokens={**_ROBERTA, "unk_token": "[UNK]"},
        strips=("mask_token",),
        vocabulary=_WORDS,
    ),
    "MarianTokenizer": TokenizerClass(
        kind=parts.numbered_of_a_pair,
        tokens=_tokens(eos="</s>", unk="<unk>", pad="<pad>"),
        vocabulary=("source.spm", "vocab.json"),
    ),
    "NllbTokenizer": TokenizerClass(
        kind=parts.byte_pairs_after_a_language,
        tokens=_ROBERTA,
        strips=("mask_token",),
        vocabulary=("sentencepiece.bpe.model",),
    ),
    "PegasusTokenizer": TokenizerClass(
        kind=parts.unigram_before_end_spaced,
        tokens=_tokens(eos="</s>", unk="<unk>", pad="<pad>", mask="<mask_2>"),
        vocabulary=("spiece.model",),
    ),
    "Qwen2Tokenizer": TokenizerClass(kind=parts.byte_level_cut, tokens=_QWEN, vocabulary=_MERGES),
    "Qwen3_5Tokenizer": TokenizerClass(kind=parts.byte_level_cut_with_marks, tokens=_QWEN),
    "RobertaTokenizer": TokenizerClass(kind=parts.byte_level_framed, tokens=_ROBERTA, vocabulary=_MERGES),
    "Siglip2Tokenizer": TokenizerClass(
        kind=parts.lower_case_spaces_as_marks, tokens=_GEMMA, padding_side="left", vocabulary=("tokenizer.model",)
    ),
    "SiglipTokenizer": TokenizerClass(
        kind=parts.unigram_without_punctuation,
        tokens=_tokens(eos="</s>", unk="<unk>", pad="</s>"),
        vocabulary=("spiece.model",),
        lists=False,
    ),
    "T5Tokenizer": TokenizerClass(
        kind=parts.unigram_before_end,
        tokens=_tokens(eos="</s>", unk="<unk>", pad="<pad>"),
        vocabulary=("spiece.model",),
    ),
    "TapasTokenizer": TokenizerClass(kind=parts.word_pieces_of_cells, tokens=_BERT, segments=True, vocabulary=_WORDS),
    "WhisperTokenizer": TokenizerClass(kind=parts.byte_level_prompted, tokens=_GPT2, vocabulary=_MERGES),
    "XLMRobertaTokenizer": TokenizerClass(
        kind=parts.unigram_framed, tokens=_ROBERTA, vocabulary=("sentencepiece.bpe.model",)
    ),
}
"""The classes that build a tokenizer of their own."""

ALIASES: dict[str, str] = {
    **dict.fromkeys(("BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "MvpTokenizer"), "RobertaTokenizer"),
    **dict.fromkeys(
        (
            *("ConvBertTokenizer", "DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer"),
            *(
                "ElectraTokenizer",
                "LayoutLMTokenizer",
                "LxmertTokenizer",
                "MobileBertTokenizer",
                "SqueezeBertTokenizer",
            ),
        ),
        "BertTokenizer",
    ),
    "FNetTokenizer": "AlbertTokenizer",
    "Phi3Tokenizer": "LlamaTokenizer",
}
"""Other names of the same classes."""

STORED = (
    *("", "BloomTokenizer", "ParakeetTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "PythonBackend"),
    "TokenizersBackend",
)
"""The classes that take tokenizer.json as it stands, and "" for none at all."""

OF_CHARACTERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
"""The classes whose vocabulary is the characters of vocab.json alone: no tokenizer.json comes of it."""

AS_STORED: Facts = {"tokens": {}, "padding_side": "right"}

# The class that transformers has for a model_type: where a folder declares none, or one that is ignored.
_MODELS = {
    "AlbertTokenizer": "albert yoso",
    "BertTokenizer": "align bark bert blip bros chinese_clip convbert distilbert electra ernie flava git "
    "grounding-dino layoutlm lxmert megatron-bert mm-grounding-dino mobilebert nezha nomic_bert qdqbert realm "
    "squeezebert vilt visual_bert",
    "CLIPTokenizer": "aimv2 clip clipseg groupvit omdet-turbo oneformer owlv2 owlvit sam3 xclip",
    "CamembertTokenizer": "camembert",
    "CohereTokenizer": "aya_vision cohere cohere2",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "GPT2Tokenizer": "blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj instructblip jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma shieldgemma2 t5gemma",
    "LayoutLMv3Tokenizer": "layoutlmv3",
    "LlamaTokenizer": "idefics idefics2",
    "M2M100Tokenizer": "m2m_100",
    "MBart50Tokenizer": "mbart50",
    "MBartTokenizer": "mbart",
    "MPNetTokenizer": "mpnet",
    "MarianTokenizer": "marian",
    "NllbTokenizer": "nllb nllb-moe",
    "PegasusTokenizer": "pegasus",
    "Qwen2Tokenizer": "internvl qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_asr qwen3_moe "
    "qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
    "RobertaTokenizer": "bart bridgetower clap data2vec-text florence2 ibert led lilt longformer mra mvp roberta "
    "roberta-prelayernorm",
    "Siglip2Tokenizer": "siglip2",
    "SiglipTokenizer": "siglip",
    "T5Tokenizer": "mt5 musicgen musicgen_melody switch_transformers t5",
    "TapasTokenizer": "tapas",
    "TokenizersBackend": "ernie4_5 glm glm4 glm4_moe got_ocr2 gpt_bigcode granite granitemoe granitemoehybrid "
    "internlm2 internlm3 jamba kosmos-2 llava llava_next minicpm3 minicpmv ministral ministral3 mistral mistral3 "
    "mixtral modernbert modernbert-decoder molmo nemotron nystromformer olmo2 olmo3 persimmon phi3 phi3_v phimoe "
    "pix2struct pixtral smolvlm stablelm umt5 vipllava voxtral xlm-roberta-xl",
    "WhisperTokenizer": "whisper",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 metaclip_2 trocr xlm-roberta xmod",
}
_REGISTERED = {model: name for name, models in _MODELS.items() for model in models.split()}

# Those whose class counts even against the one that the Hub declares.
_CORRECTED = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "siglip2")


def tokenizer_class(folder: Path) -> str:
    """The class that transformers' AutoTokenizer picks, without "Fast"; "" where tokenizer.json stands as it is."""
    config, settings = JsonObject.read(folder / "config.json"), JsonObject.read(folder / "tokenizer_config.json")
    declared = settings.text("tokenizer_class") or config.text("tokenizer_class") or ""
    declared = declared if declared in STORED else declared.removesuffix("Fast")
    kind = config.text("model_type", "")
    registered = _REGISTERED.get(kind, "")
    stored = registered == "TokenizersBackend"
    if declared == "LlamaTokenizer" and not stored and kind not in _CORRECTED and _has_byte_level(folder):
        return ""
    if declared and registered and registered != declared:
        if stored:
            return ""
        declared = registered if kind in _CORRECTED else declared
    chosen = declared or registered
    return "" if chosen in STORED else chosen


def _has_byte_level(folder: Path) -> bool:
    path = folder / "tokenizer.json"
    return path.is_file() and '"ByteLevel"' in read_text(path)


def find_class(name: str) -> TokenizerClass | None:
    """The class of that name; None for one that isoform does not have."""
    return TOKENIZERS.get(ALIASES.get(name, name))


def refusal(name: str) -> str:
    shown = name if name.isidentifier() and len(name) < 60 else f"{name[:60]!r}"
    return (
        f"the tokenizer class {shown} is not supported; if its tokenizer.json may be taken as it stands, declare "
        '"tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
    )


def _other_pattern(folder: Path) -> str | None:
    """Why the pattern by which tokenizer.json cuts words is not the one that counts; None where it is."""
    config, settings = JsonObject.read(folder / "config.json"), JsonObject.read(folder / "tokenizer_config.json")
    if not settings.flag(_PATTERN, False) or config.text("model_type", _PATTERNED[0]) not in _PATTERNED:
        return None
    major = config.text("transformers_version", "0").partition(".")[0]
    stored = JsonObject.read(folder / "tokenizer.json")
    count = len(stored.object("model").get("vocab") or ()) + len(stored.items_of("added_tokens"))
    if (major.isdecimal() and int(major) >= 5) or count <= _PATTERN_SIZE:
        return None
    return (
        f"tokenizer_config.json: {_PATTERN} = True replaces a pattern of tokenizer.json, which isoform takes as it "
        "stands; write the tokenizer anew with transformers (AutoTokenizer.from_pretrained(…).save_pretrained(…)) and "
        "take the key out"
    )


_PATTERN, _PATTERN_SIZE = "fix_mistral_regex", 100_000
_PATTERNED = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
"""The model types in whose larger vocabularies transformers replaces it, where transformers 4 wrote config.json."""


def tokenizer_facts(folder: Path) -> Facts | None:
    """What the folder's tokenizer class makes of its tokenizer.json (`isoform.tokenization`); None without a tokenizer.

    Raises CheckpointError for a setting that makes no sense.
    """
    present = (folder / "tokenizer.json").is_file()
    if not present and not (folder / "tokenizer_config.json").is_file():
        return None
    name = tokenizer_class(folder)
    if present and (reason := _other_pattern(folder)) is not None:
        return {"refused": reason}
    if not name:
        return AS_STORED if present else None
    found = find_class(name)
    if found is None:
        return {"refused": refusal(name)} if present or name not in OF_CHARACTERS else None
    facts = found.facts(JsonObject.read(folder / "tokenizer_config.json"))
    return facts if present or "refused" in facts else None
