"""What each kind of tokenizer does with a text, as JSON of the `tokenizers` library.

A function takes the settings of tokenizer_config.json and gives the parts by which a class replaces those of
tokenizer.json (`isoform.tokenization.assemble` puts them in). Special tokens are named, not spelled: "cls_token". A
`Precompiled` step without a map stands for the map of the checkpoint's own SentencePiece model; "unmapped" is the
normalizer where it has none. "languages": see `isoform.runtimes.preprocess.text.languages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from isoform.json_files import JsonObject
from isoform.reference.tokenizers.language_codes import MBART, MBART_50, NLLB
from isoform.tokenization import text_of

Parts = dict[str, Any]
Kind = Callable[[JsonObject], Parts]

SPACE = "▁"

# A frame's tokens with their segments (token type ids); A and B are the texts. "ends": a vocabulary without a
# tokenizer.json has BOS and EOS around them where tokenizer_config.json says so.
ALONE = ([("A", 0)], [("A", 0), ("B", 1)])
EOS_AFTER = ([("A", 0), ("eos_token", 0)], [("A", 0), ("eos_token", 0), ("B", 0), ("eos_token", 0)])
CLS_SEP = (
    [("cls_token", 0), ("A", 0), ("sep_token", 0)],
    [("cls_token", 0), ("A", 0), ("sep_token", 0), ("B", 1), ("sep_token", 1)],
)
TWO_SEPARATORS = (
    [("cls_token", 0), ("A", 0), ("sep_token", 0)],
    [("cls_token", 0), ("A", 0), ("sep_token", 0), ("sep_token", 0), ("B", 0), ("sep_token", 0)],
)
BOS_EOS = (
    [("bos_token", 0), ("A", 0), ("eos_token", 0)],
    [("bos_token", 0), ("A", 0), ("eos_token", 0), ("eos_token", 0), ("B", 0), ("eos_token", 0)],
)


def template(frame: tuple[Sequence[tuple[str, int]], Sequence[tuple[str, int]]]) -> Parts:
    single, pair = frame
    return {"type": "TemplateProcessing", "single": [list(p) for p in single], "pair": [list(p) for p in pair]}


def roberta(sep: str, cls: str, *, trim_offsets: bool, add_prefix_space: bool) -> Parts:
    ends = {"sep": sep, "cls": cls}
    return {"type": "RobertaProcessing", **ends, "trim_offsets": trim_offsets, "add_prefix_space": add_prefix_space}


def _sequence(kind: str, *steps: Parts) -> Parts:
    return {"type": "Sequence", kind: list(steps)}


# ------------------------------------------------------------------ WordPiece
def word_pieces(settings: JsonObject) -> Parts:
    """BERT's: words and punctuation cut apart, longest pieces first; lower case and without accents if asked."""
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.flag("tokenize_chinese_chars", True),
            "strip_accents": settings.flag("strip_accents"),
            "lowercase": settings.flag("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "unk_token",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "frame": template(CLS_SEP),
    }


def word_pieces_of_cells(settings: JsonObject) -> Parts:
    """TAPAS's: BERT's pieces of words that are cut by other rules, with a token for a text that says nothing."""
    if settings.get("never_split") or not settings.flag("do_basic_tokenize", True):
        name = "never_split" if settings.get("never_split") else "do_basic_tokenize"
        return {"refused": f"tokenizer_config.json: {name} = {settings[name]!r:.60} is not supported; take it out"}
    parts = word_pieces(settings)
    rules, empty = parts["normalizer"], settings.text("empty_token", "[EMPTY]")
    listed = [text_of(token) for token in settings.get("additional_special_tokens") or ()]
    words = {
        "lowercase": rules["lowercase"],
        "strip_accents": rules["strip_accents"],
        "chinese": rules["handle_chinese_chars"],
        "empty": next(iter(listed), empty),
    }
    return {**parts, "extra": [empty], "words": words}


def word_pieces_between_separators(settings: JsonObject) -> Parts:
    """BERT's pieces in RoBERTa's frame: two separators between two texts."""
    frame = roberta("sep_token", "cls_token", trim_offsets=True, add_prefix_space=False)
    return {**word_pieces(settings), "frame": frame}


# ------------------------------------------------------------------ byte-level BPE
def _byte_pairs(**more: Any) -> Parts:
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {"type": "BPE", **plain, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **more}


def _bytes(add_prefix_space: bool, *, trim_offsets: bool = True, use_regex: bool = True) -> Parts:
    flags = {"trim_offsets": trim_offsets, "use_regex": use_regex}
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, **flags}


_DECODER = _bytes(True)


def byte_level(settings: JsonObject) -> Parts:
    """GPT-2's: its own regular expression cuts words, and each byte is a letter. The frame is the file's."""
    return {
        "normalizer": None,
        "pre_tokenizer": _bytes(settings.flag("add_prefix_space", False)),
        "decoder": _DECODER,
        "model": _byte_pairs(),
    }


def byte_level_prompted(settings: JsonObject) -> Parts:
    """Whisper's: GPT-2's letters behind the tokens that say what to do."""
    language, task = settings.text("language"), settings.text("task")
    if language is not None and len(language) > 3:  # a name, not a code: the file's frame has its token
        return byte_level(settings)
    asked = [language, {"transcribe": "transcribe", "translate": "translate"}.get(task or "")]
    prompt = ["<|startoftranscript|>", *(f"<|{word.lower()}|>" for word in asked if word)]
    if not settings.flag("predict_timestamps", False):
        prompt.append("<|notimestamps|>")
    before = [(token, 0) for token in prompt]
    one, two = [("A", 0), ("eos_token", 0)], [("A", 0), ("B", 1), ("eos_token", 1)]
    return {**byte_level(settings), "frame": template(([*before, *one], [*before, *two]))}


def byte_level_framed(settings: JsonObject) -> Parts:
    """RoBERTa's and BART's: GPT-2's letters in `<s> … </s>`."""
    prefix, trim = settings.flag("add_prefix_space", False), settings.flag("trim_offsets", True)
    return {
        **byte_level(settings),
        "frame": roberta("sep_token", "cls_token", trim_offsets=trim, add_prefix_space=prefix),
    }


def byte_level_of_words(settings: JsonObject) -> Parts:
    """LayoutLMv3's: GPT-2's letters in `<s> … </s>`, of texts that come as lists of words, each with a space before it.

    "boxes": the boxes of tokens that are of no word.
    """
    prefix = settings.flag("add_prefix_space", True)
    boxes = {name: settings.get(f"{name}_token_box") or [0, 0, 0, 0] for name in ("cls", "sep", "pad")}
    return {
        **byte_level(JsonObject(settings.path, {**settings, "add_prefix_space": prefix})),
        "frame": roberta("sep_token", "cls_token", trim_offsets=True, add_prefix_space=prefix),
        "boxes": boxes,
    }


def byte_level_between_separators(settings: JsonObject) -> Parts:
    """DeBERTa's: GPT-2's letters, and two separators between two texts."""
    return {**byte_level(settings), "frame": template(TWO_SEPARATORS)}


def byte_level_composed(settings: JsonObject) -> Parts:
    """GPT-NeoX's: GPT-2's letters over composed text (NFC), nothing around them."""
    prefix, trim = settings.flag("add_prefix_space", False), settings.flag("trim_offsets", True)
    return {
        **byte_level(settings),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _bytes(prefix, trim_offsets=trim),
        "frame": {**template(ALONE), "ends": True},
    }


def byte_level_digits(settings: JsonObject) -> Parts:
    """Cohere's: GPT-2's letters over composed text, digits one by one."""
    prefix = settings.flag("add_prefix_space", False)
    return {
        **byte_level(settings),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, _bytes(prefix)),
        "decoder": _bytes(prefix),
    }


def _split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> Parts:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUT_WITH_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _cut_bytes(settings: JsonObject, pattern: str) -> Parts:
    prefix = settings.flag("add_prefix_space", False)
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _sequence("pretokenizers", _split(pattern), _bytes(prefix, use_regex=False)),
        "decoder": _DECODER,
        "model": _byte_pairs(),
    }


def byte_level_cut(settings: JsonObject) -> Parts:
    """Qwen2's: another regular expression, over composed text."""
    return _cut_bytes(settings, _CUT)


def byte_level_cut_with_marks(settings: JsonObject) -> Parts:
    """Qwen3.5's: Qwen2's, where a combining mark belongs to its letter."""
    return _cut_bytes(settings, _CUT_WITH_MARKS)


_CLIP_CUT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def lower_case_bytes(settings: JsonObject) -> Parts:
    """CLIP's: lower case, one kind of space, and words that end in "</w>"."""
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    return {
        "normalizer": _sequence("normalizers", {"type": "NFC"}, spaces, {"type": "Lowercase"}),
        "pre_tokenizer": _sequence("pretokenizers", _split(_CLIP_CUT, "Removed", invert=True), _bytes(False)),
        "decoder": _DECODER,
        "model": _byte_pairs(unk_token="unk_token", end_of_word_suffix="</w>"),
        "frame": roberta("eos_token", "bos_token", trim_offsets=False, add_prefix_space=False),
        "end_of_word": "</w>",
    }


# ------------------------------------------------------------------ SentencePiece BPE
MARKS_TO_SPACES: Parts = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
_FROM_BYTES: tuple[Parts, ...] = (MARKS_TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"})


def metaspace(settings: JsonObject) -> Parts:
    """Llama's: "▁" for a space and before the text, unknown letters as bytes."""
    prefix = settings.flag("add_prefix_space", True)
    scheme = ("always" if settings.flag("legacy", False) else "first") if prefix else "never"
    left = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": None,
        "pre_tokenizer": _metaspace(scheme, split=False),
        "decoder": _sequence("decoders", *_FROM_BYTES, *left),
        "model": _byte_pairs(fuse_unk=True, byte_fallback=True),
    }


def spaces_as_marks(settings: JsonObject) -> Parts:
    """Gemma's: "▁" for a space, none before the text."""
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": _sequence("decoders", *_FROM_BYTES),
        "model": _byte_pairs(fuse_unk=True, byte_fallback=True, unk_token="unk_token"),
    }


def lower_case_spaces_as_marks(settings: JsonObject) -> Parts:
    """SigLIP 2's: Gemma's, over lower case."""
    parts = spaces_as_marks(settings)
    return {**parts, "normalizer": _sequence("normalizers", {"type": "Lowercase"}, parts["normalizer"])}


# ------------------------------------------------------------------ SentencePiece Unigram
_CHARSMAP: Parts = {"type": "Precompiled"}


def _metaspace(scheme: str, *, split: bool = True) -> Parts:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def _unigram(unk_id: Any) -> Parts:
    return {"type": "Unigram", "unk_id": unk_id, "byte_fallback": False}


def _words(settings: JsonObject) -> Parts:
    """Words that begin with "▁", as SentencePiece's Unigram cuts them."""
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    return {
        "normalizer": _CHARSMAP,
        "pre_tokenizer": _sequence("pretokenizers", {"type": "WhitespaceSplit"}, _metaspace(scheme)),
        "decoder": _metaspace(scheme),
    }


def unigram_framed(settings: JsonObject) -> Parts:
    """XLM-RoBERTa's: `<s> … </s>`; the unknown piece is the fourth."""
    return {**_words(settings), "model": _unigram(3), "frame": template(BOS_EOS)}


def unigram_named_unknown(settings: JsonObject) -> Parts:
    """CamemBERT's: XLM-RoBERTa's, with the unknown piece where the vocabulary has it."""
    unknown = {"score": None, "default": 0}
    return {**_words(settings), "model": _unigram(unknown), "frame": template(BOS_EOS)}


def unigram_before_end(settings: JsonObject) -> Parts:
    """T5's: the text and `</s>`, with tokens that stand for masked spans."""
    parts = {**_words(JsonObject(settings.path, {})), "model": _unigram(2), "frame": template(EOS_AFTER)}
    count = settings.integer("extra_ids", 100, least=0, most=10_000)
    return {**parts, "extra": [f"<extra_id_{n}>" for n in range(count)]}


def unigram_lower_case(settings: JsonObject) -> Parts:
    """ALBERT's: lower case without accents, unless asked otherwise; quotes are one kind."""
    steps: list[Parts] = [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
    ]
    if not settings.flag("keep_accents", False):
        steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if settings.flag("do_lower_case", True):
        steps.append({"type": "Lowercase"})
    normalizer = _sequence("normalizers", *steps, _CHARSMAP)
    return {**_words(settings), "normalizer": normalizer, "model": _unigram(1), "frame": template(CLS_SEP)}


def unigram_without_punctuation(settings: JsonObject) -> Parts:
    """SigLIP's: lower case without punctuation, one space between words, and `</s>` behind them."""
    steps: list[Parts] = [{"type": "Lowercase"}] if settings.flag("do_lower_case", True) else []
    steps += [
        {"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-`{-~]"}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        _CHARSMAP,
    ]
    return {
        **_words(JsonObject(settings.path, {})),
        "normalizer": _sequence("normalizers", *steps),
        "model": _unigram(2),
        "frame": template(EOS_AFTER),
    }


def unigram_in_lines(settings: JsonObject) -> Parts:
    """DeBERTa-v2's: words keep the space before them, and runs of spaces are one."""
    steps: list[Parts] = [{"type": "Lowercase"}] if settings.flag("do_lower_case", False) else []
    steps += [
        {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "},
        {"type": "NFC"},
        {"type": "Strip", "strip_left": False, "strip_right": True},
    ]
    space = _metaspace("always" if settings.flag("add_prefix_space", True) else "first")
    cut = [{"type": "Punctuation", "behavior": "Isolated"}] if settings.flag("split_by_punct", False) else []
    unknown = {"score": 0.0, "default": settings.integer("unk_id", 1, least=0)}
    return {
        "normalizer": _sequence("normalizers", *steps),
        "pre_tokenizer": _sequence("pretokenizers", *cut, space),
        "decoder": space,
        "model": _unigram(unknown),
        "frame": template(CLS_SEP),
    }


# ------------------------------------------------------------------ languages
SPOKEN = r"([a-z]{2}_[A-Z]{2})"
SPOKEN_AND_WRITTEN = r"([a-z]{3}_[A-Z][a-z]{3})"
"""Tokens of languages: mBART's ("en_XX"), and NLLB's with their script ("eng_Latn")."""


def _languages(settings: JsonObject, pattern: str, source: str, *, before: bool) -> Parts:
    """Where the token of a language stands, and which languages a folder states."""
    stated = settings.text("src_lang"), settings.text("tgt_lang")
    return {"pattern": pattern, "before": before, "source": stated[0] or source, "target": stated[1]}


_LINES_TO_SPACES: Parts = {"type": "Replace", "pattern": {"Regex": r"\n"}, "content": " "}
_MANY_SPACES: Parts = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def _spaced(*first: Parts) -> Parts:
    """One space between words, each of which begins with "▁"."""
    space = _metaspace("always")
    return {
        "normalizer": _sequence("normalizers", *first, _MANY_SPACES),
        "pre_tokenizer": space,
        "decoder": space,
    }


def unigram_of_a_language(settings: JsonObject) -> Parts:
    """mBART's: XLM-RoBERTa's words without its map of characters, `</s>` and the language behind them."""
    words = _words(JsonObject(settings.path, {}))
    return {
        **words,
        "normalizer": None,
        "model": _unigram(3),
        "extra": list(MBART),
        "languages": _languages(settings, SPOKEN, "en_XX", before=False),
    }


def unigram_after_a_language(settings: JsonObject) -> Parts:
    """mBART-50's: the language before a text and `</s>` behind it."""
    return {
        **_spaced(_CHARSMAP),
        "model": _unigram(3),
        "extra": list(MBART_50),
        "languages": _languages(settings, SPOKEN, "en_XX", before=True),
    }


def byte_pairs_after_a_language(settings: JsonObject) -> Parts:
    """NLLB's: a SentencePiece BPE, the language before a text, or behind it in the older order."""
    before = not settings.flag("legacy_behaviour", False)
    return {
        **_spaced(_CHARSMAP),
        "unmapped": None,
        "model": _byte_pairs(fuse_unk=True, unk_token="unk_token"),
        "extra": list(NLLB),
        "languages": _languages(settings, SPOKEN_AND_WRITTEN, "eng_Latn", before=before),
    }


def unigram_before_end_spaced(settings: JsonObject) -> Parts:
    """Pegasus's: the text and `</s>`, with tokens that stand for masked words and sentences."""
    offset = settings.integer("offset", 103, least=0, most=10_000)
    sentence = settings.text("mask_token_sent", "<mask_1>")
    return {
        **_spaced(_CHARSMAP),
        "unmapped": _sequence("normalizers", _LINES_TO_SPACES, _MANY_SPACES),
        "model": _unigram({"score": 0.0, "default": 0}),
        "frame": template(([("A", 0), ("eos_token", 0)], [("A", 0), ("B", 0), ("eos_token", 0)])),
        "extra": [*([sentence] if sentence else []), *(f"<unk_{n}>" for n in range(2, offset))],
    }


# ------------------------------------------------------------------ pieces with the ids of another file
HIDDEN, CODE = "\ue000", "\ue001"
"""Begin the spelling of pieces that no text becomes, and stand for ">>" in the code of a language; of no writing."""


def _replace(pattern: str, content: str) -> Parts:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


_FOUND = _replace(HIDDEN, "")
_TRIMMED: tuple[Parts, ...] = ({"type": "Fuse"}, _replace(r"\A\s+|\s+\z", ""))
_MARKED: tuple[Parts, ...] = (
    _replace(" {2,}", " "),
    _replace(r"\A ", ""),
    _replace(f"[ {SPACE}]+\\z", ""),
    {"type": "Prepend", "prepend": SPACE},
    _replace(" ", SPACE),
)
"""What SentencePiece makes of spaces."""


def words_and_end() -> Parts:
    """What M2M-100 does with a text, by SentencePiece itself: words that begin with "▁". The normalizer's steps come
    after the model's own map of characters."""
    space = _metaspace("always")
    return {
        "normalizer": list(_MARKED),
        "pre_tokenizer": space,
        "decoder": _sequence("decoders", _FOUND, space, *_TRIMMED),
    }


def unigram_of_a_pair() -> Parts:
    """What Marian does with a text: the same, after the code of the language to translate to, if there is one."""
    space = _metaspace("always")
    return {
        "normalizer": [_replace(r"\A>>(?=[\s\S]*?<<)", CODE), *_MARKED],
        "pre_tokenizer": _sequence("pretokenizers", _split(f"{SPACE}{CODE}[\\s\\S]*?<<"), space),
        "decoder": _sequence("decoders", _FOUND, _replace(CODE, ">>"), space, *_TRIMMED),
    }


def _known(settings: JsonObject) -> Parts:
    """How many tokens a rebuilt vocabulary has; the pieces after them are unknown to the model."""
    count = settings.integer("known_pieces", least=1)
    return {} if count is None else {"known": count}


def numbered_of_a_pair(settings: JsonObject) -> Parts:
    """Marian's tokenizer.json as it stands."""
    if settings.flag("separate_vocabs", False):
        return {"refused": "a Marian tokenizer with separate_vocabs has two vocabularies, which is not supported"}
    frame = template(([("A", 0), ("eos_token", 0)], [("A", 0), ("B", 0), ("eos_token", 0)]))
    return {"frame": frame, **_known(settings)}


def numbered_of_many(settings: JsonObject) -> Parts:
    """M2M-100's tokenizer.json as it stands, after the token of a language."""
    return {"languages": _languages(settings, r"__([a-z]{2,3})__", "en", before=True), **_known(settings)}
