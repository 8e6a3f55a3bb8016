r"""How byte-level BPE vocabularies cut text into words, under the names that GGUF files give to it.

A GGUF file holds no regular expression: `tokenizer.ggml.pre` names one of the cuts that llama.cpp knows
(`llm_tokenizer_bpe` and `llama_vocab::impl::load` in its `src/llama-vocab.cpp`, read at build 11549). A tokenizer.json
holds the cut itself, as steps. `splits_of` brings those steps into one spelling, and the table below joins both sides.

Each cut is a tuple of regular expressions, applied one after the other; every match stands alone ("Isolated"), and so
does the text between two matches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isoform.errors import InputError, UnsupportedExport

# tokenizer.ggml.model: the kinds of vocabulary in GGUF, named after the first family that had each.
GGUF_SENTENCEPIECE_BPE = "llama"
GGUF_BYTE_BPE = "gpt2"
GGUF_WORDPIECE = "bert"
GGUF_UNIGRAM = "t5"
GGUF_NONE = "none"
GGUF_RAW_BPE = "gemma4"  # merges over "▁"-escaped UTF-8; the same as GGUF_BYTE_BPE with a pre-tokenizer that is `raw`

# The steps of a tokenizer.json that the tokenizers library names after the family that had each first.
WORDPIECE_NORMALIZER = "BertNormalizer"
WORDPIECE_CUT = "BertPreTokenizer"
CLS_SEP = "BertProcessing"  # adds CLS and SEP
CLS_SEP_SEP = "RobertaProcessing"  # the same, with two SEP between two texts

# tokenizer.ggml.pre of a WordPiece vocabulary. llama.cpp ignores it there; its converter writes this for the usual one.
WORDPIECE_PRE = "jina-v2-en"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_WORDS = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}|{{1}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


def _cases(suffix: str, digits: str) -> str:
    return _CASES.replace("{0}", suffix).replace("{1}", digits)


ONE_DIGIT = rf"{_WORDS}|\p{{N}}{_TAIL}"
THREE_DIGITS = rf"{_WORDS}|\p{{N}}{{1,3}}{_TAIL}"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_HAN = r"[一-龥ࠀ-一가-퟿]+"
_EAST_ASIAN = r"[一-龥぀-ゟ゠-ヿ]+"
_MARKED_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _SPACES
)
# Letters of scripts with case; escaped, since some of them do not survive Unicode normalization.
_LATIN_GREEK_CYRILLIC = (
    r"\s?[A-Za-z"
    "\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-"
    "\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0"
    "-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
    "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6"
    "-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
_CASE_LIMIT = "llama.cpp tells upper from lower case for ASCII letters only, and takes no combining mark as a letter"
_MARKS_IN_WORDS = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_WORDS_WITH_SPACES = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """One cut that llama.cpp knows, with what else it couples to the name.

    names: the values of tokenizer.ggml.pre that behave so; the first is the one that isoform writes.
    splits: the regular expressions, as tokenizer.json spells them.
    ignore_merges: a word that is a token is taken whole, before any merge.
    add_bos: BOS is prepended unless tokenizer.ggml.add_bos_token says otherwise.
    clean_spaces: detokenizing drops the space before punctuation.
    raw: merges run over UTF-8 text with "▁" for a space, not over the 256 byte letters.
    composed: those of the names whose tokenizer.json composes the text first (NFC). llama.cpp does not.
    limit: where llama.cpp's cut is not the one written here; empty when the two agree.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    clean_spaces: bool = True
    raw: bool = False
    composed: tuple[str, ...] = ()
    limit: str = ""


PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        names=(
            *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
            *("modern-bert", "mpt", "olmo", "jais", "exaone4", "jina-v1-en", "jina-v2-code", "roberta-bpe"),
        ),
        splits=(GPT2,),
        composed=("olmo", "mpt", "modern-bert"),
    ),
    PreTokenizer(names=("trillion", "granite-docling"), splits=(GPT2,), clean_spaces=False),
    PreTokenizer(
        names=(
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
            "jina-v5-nano",
        ),
        splits=(THREE_DIGITS,),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(names=("glm4",), splits=(THREE_DIGITS,), ignore_merges=True),
    PreTokenizer(names=("dbrx", "smaug-bpe", "chatglm-bpe"), splits=(THREE_DIGITS,)),
    PreTokenizer(
        names=("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2"),
        splits=(ONE_DIGIT,),
        clean_spaces=False,
        composed=("qwen2",),
    ),
    PreTokenizer(names=("stablelm2", "megrez"), splits=(ONE_DIGIT,)),
    PreTokenizer(
        names=("qwen35",),
        splits=(_MARKS_IN_WORDS,),
        clean_spaces=False,
        composed=("qwen35",),
    ),
    PreTokenizer(
        names=("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        splits=(DIGIT, GPT2),
    ),
    PreTokenizer(names=("smollm", "command-r"), splits=(DIGIT, GPT2), clean_spaces=False, composed=("command-r",)),
    PreTokenizer(names=("falcon",), splits=(PUNCTUATION, GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(
        names=("deepseek-llm",),
        splits=(r"[\r\n]", _LATIN_GREEK_CYRILLIC, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, DIGITS),
        clean_spaces=False,
        limit=r"in this cut, \s of llama.cpp takes no no-break space",
    ),
    PreTokenizer(
        names=("deepseek-coder",),
        splits=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, DIGIT),
        clean_spaces=False,
    ),
    PreTokenizer(
        names=("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        splits=(r"\p{N}{1,3}", _EAST_ASIAN, _MARKED_WORDS),
        clean_spaces=False,
    ),
    PreTokenizer(
        names=("tekken",),
        splits=(_cases("", r"\p{N}"),),
        ignore_merges=True,
        add_bos=True,
        clean_spaces=False,
        limit=_CASE_LIMIT,
    ),
    PreTokenizer(
        names=("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        splits=(_cases(f"{_SUFFIX}?", r"\p{N}{1,3}"),),
        clean_spaces=False,
        limit=_CASE_LIMIT,
    ),
    PreTokenizer(
        names=("granite-embed-multi-97m",),
        splits=(_cases(f"{_SUFFIX}?", r"\p{N}{1,3}"),),
        ignore_merges=True,
        clean_spaces=False,
        limit=_CASE_LIMIT,
    ),
    PreTokenizer(
        names=("tiny_aya", "cohere2moe"),
        splits=(r"\d{1,3}(?=(?:\d{3})*\b)", _cases(f"{_SUFFIX}?", r"\p{N}{1,3}")),
        clean_spaces=False,
        limit=_CASE_LIMIT,
    ),
    PreTokenizer(
        names=("bailingmoe", "bailingmoe2", "llada-moe"),
        splits=(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
        clean_spaces=False,
    ),
    PreTokenizer(
        names=("seed-coder",),
        splits=(rf"{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
        clean_spaces=False,
    ),
    PreTokenizer(
        names=("exaone-moe",),
        splits=(_WORDS_WITH_SPACES,),
    ),
    PreTokenizer(
        names=("jais-2",),
        splits=(rf"{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_CASCADE}|\s{{1}}",),
    ),
    PreTokenizer(
        names=("youtu",),
        splits=(
            r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _cases(f"{_SUFFIX}?", r"\p{N}"),
        ),
        ignore_merges=True,
        clean_spaces=False,
        limit=_CASE_LIMIT,
    ),
    PreTokenizer(names=("laguna",), splits=(r"[^\n]+|[\n]+", ONE_DIGIT), clean_spaces=False),
    PreTokenizer(
        names=("minicpm5",),
        splits=(r"\p{N}{1,3}", rf"{_WORDS}|\p{{N}}+{_TAIL}"),
        ignore_merges=True,
    ),
    PreTokenizer(names=("bloom", "gpt3-finnish"), splits=(r" ?[^(\s|[.,!?…。，、।۔،])]+",)),
    PreTokenizer(names=("poro-chat",), splits=(r" ?[^(\s|[.,!?…。，、।۔،])]+",), clean_spaces=False),
    PreTokenizer(names=("viking",), splits=(r" ?[^(\s|[.,!?…。，、।۔،])]+", DIGIT), clean_spaces=False),
    PreTokenizer(names=("sarvam-moe",), splits=(), clean_spaces=False, raw=True),
    PreTokenizer(names=("gemma4", "granite-embed-multi-311m"), splits=(), add_bos=True, raw=True),
)

# Other ways in which a tokenizer.json spells a cut of the table.
_ALSO: dict[tuple[str, ...], tuple[str, ...]] = {
    (PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]"): (PUNCTUATION, GPT2, "[0-9][0-9][0-9]"),
}


# Cuts that llama.cpp has as code, or that no tokenizer.json spells: they can be asked for by name only.
NAMED_ONLY = ("afmoe", "chameleon", "default", "kimi-k2", "superbpe")


def pre_tokenizer(name: str) -> PreTokenizer:
    """The cut that GGUF calls `name`."""
    for row in PRE_TOKENIZERS:
        if name in row.names:
            return row
    known = ", ".join(sorted(name for row in PRE_TOKENIZERS for name in row.names))
    raise InputError(f"no pre-tokenizer is called {name!r} here; known are {known}")


def match(splits: tuple[str, ...]) -> list[PreTokenizer]:
    """Every row of the table that cuts as `splits` (from `splits_of`) does."""
    splits = _ALSO.get(splits, splits)
    return [row for row in PRE_TOKENIZERS if not row.raw and row.splits == splits]


def splits_of(pre: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The cut of a tokenizer.json's byte-level `pre_tokenizer`, in the spelling of the table."""
    found: list[str] = []
    byte_level = False
    for step in _steps(pre):
        kind = step.get("type")
        if kind == "Split":
            found.append(_split(step))
        elif kind == "Digits":
            found.append(DIGIT if step.get("individual_digits") else DIGITS)
        elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
            found.append(PUNCTUATION)
        elif kind == "ByteLevel":
            byte_level = True
            if step.get("add_prefix_space"):
                raise UnsupportedExport(
                    "the pre_tokenizer ByteLevel has add_prefix_space=true: llama.cpp puts no space before the first "
                    "word of a byte-level BPE vocabulary; export to ONNX, or name a pre-tokenizer with --pre NAME"
                )
            if step.get("use_regex", True):
                found.append(GPT2)
        else:
            raise UnsupportedExport(
                f"no pre-tokenizer of llama.cpp has a step like {step!r}; export to ONNX, or name one with --pre NAME"
            )
    if not byte_level:
        raise UnsupportedExport(
            f"the BPE vocabulary is neither byte-level nor a SentencePiece one: its pre_tokenizer is {pre!r}; "
            f"export to ONNX, or name a pre-tokenizer with --pre NAME"
        )
    return tuple(found)


def _steps(pre: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if pre is None:
        return
    if pre.get("type") == "Sequence":
        for step in pre.get("pretokenizers", ()):
            yield from _steps(step)
    else:
        yield pre


def _split(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern", {})
    # Cutting out what lies between the matches and throwing nothing away: the same, as these patterns match all text.
    isolates = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    if not isolates or not isinstance(pattern.get("Regex"), str):
        raise UnsupportedExport(
            f"no pre-tokenizer of llama.cpp splits like {dict(step)!r}; export to ONNX, or name one with --pre NAME"
        )
    spelled: str = pattern["Regex"]
    spelled = spelled.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    for long in (
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        "(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))",
    ):
        spelled = spelled.replace(long, _SUFFIX)
    return spelled


def pre_tokenizer_steps(row: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json that cuts like `row` (byte-level rows only)."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False} for split in row.splits
    ]
    if row.splits == (GPT2,):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}
