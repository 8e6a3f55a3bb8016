"""Tokenizers of every kind that the checkpoints have, trained on a small corpus: the same on every machine.

The Rust trainers break ties in hash order, so that two runs may differ. These train in Python, and the text itself
breaks ties.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers as T
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from isoform.reference.checkpoints.sentencepiece_model import white_space_map

Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]

ARTICLES = "the a one every this that some no".split()  # noqa: SIM905  words are read better than a column of strings
NOUNS = [
    "model",
    "cat",
    "dog",
    "house",
    "river",
    "mountain",
    "computer",
    "language",
    "picture",
    "sound",
    "question",
    "answer",
    "table",
    "number",
    "year",
    "city",
    "translation",
    "weather",
    "music",
    "teacher",
    "student",
    "garden",
    "window",
    "train",
    "paper",
    "market",
    "signal",
    "network",
    "island",
]
VERBS = [
    "sees",
    "reads",
    "writes",
    "finds",
    "makes",
    "takes",
    "gives",
    "shows",
    "tells",
    "knows",
    "wants",
    "keeps",
    "loves",
    "builds",
    "opens",
    "closes",
    "moves",
    "answers",
    "translates",
    "describes",
    "contains",
    "follows",
]
ADJECTIVES = [
    "small",
    "large",
    "red",
    "green",
    "old",
    "new",
    "quick",
    "quiet",
    "bright",
    "dark",
    "simple",
    "strange",
    "warm",
    "cold",
    "open",
    "secret",
    "useful",
    "beautiful",
    "important",
]
ODD = (
    "Hello, world! It's 2024-05-17 and the temperature is 21.5°C; that's 70.7°F.",
    "Café, naïve, façade, Ångström, Straße, smörgåsbord. Où est la gare? ¿Dónde está la biblioteca?",
    "translate English to German: The house is wonderful. Das Haus ist wunderbar.",
    "summarize: We're testing tokenizers; they've got contractions, don't they? I'll say they do.",
    "你好，世界。今日は天気がいいですね。 Привет, мир! 안녕하세요 🙂🚀",
    "x = f(y)[0] + 3.14159e-2 # a comment\n\tindented\n\n",
)

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"\p{N}{1,3}" + REST
QWEN = CONTRACTIONS + r"\p{N}" + REST
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@cache
def corpus() -> tuple[str, ...]:
    draw = np.random.RandomState(0)

    def one(words: list[str]) -> str:
        return words[draw.randint(len(words))]

    def sentence() -> str:
        subject = f"{one(ARTICLES).capitalize()} {one(ADJECTIVES)} {one(NOUNS)}"
        return f"{subject} {one(VERBS)} {one(ARTICLES)} {one(NOUNS)} in {one(ARTICLES)} {one(ADJECTIVES)} {one(NOUNS)}."

    return (*(sentence() for _ in range(600)), *ODD * 3)


# ------------------------------------------------------------------ training
def _words(cut: Any, normalizer: Any = None) -> Counter[str]:
    """The words of the corpus, as the pre-tokenizer `cut` gives them, with their counts."""
    count: Counter[str] = Counter()
    for line in corpus():
        for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(line) if normalizer else line):
            count[word] += 1
    return count


def _merges(
    words: dict[str, int],
    number: int,
    split: Callable[[str], list[str]] = list,
    join: Callable[[str, str], str] = lambda a, b: a + b,
) -> list[tuple[tuple[str, str], int]]:
    """Merges with their counts, most frequent pair first (ties: the greater pair)."""
    cut = [(split(word), count) for word, count in sorted(words.items())]
    merges: list[tuple[tuple[str, str], int]] = []
    while len(merges) < number:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in cut:
            for pair in itertools.pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append((best, pairs[best]))
        joined = join(*best)
        for symbols, _ in cut:
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = [joined]
                i += 1
    return merges


def _numbered(*parts: Iterable[str]) -> Vocabulary:
    vocabulary: Vocabulary = {}
    for piece in itertools.chain(*parts):
        vocabulary.setdefault(piece, len(vocabulary))
    return vocabulary


def _metaspace() -> Any:
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)


def _letters(words: dict[str, int]) -> Counter[str]:
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    return letters


@cache
def _byte_level(size: int, specials: tuple[str, ...], regex: str | None) -> tuple[Vocabulary, Merges]:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), level]) if regex else level
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [pair for pair, _ in _merges(_words(cut), size - len(specials) - len(alphabet))]
    return _numbered(specials, alphabet, (a + b for a, b in merges)), merges


def byte_level(
    size: int = 420, specials: Sequence[str] = (), regex: str | None = None, end: str | None = None
) -> tuple[Vocabulary, Merges]:
    """Vocabulary and merges of a byte-level BPE: ids of `specials`, then 256 bytes, then merges, then `end`."""
    vocabulary, merges = _byte_level(size, tuple(specials), regex)
    vocabulary = dict(vocabulary)
    if end is not None:
        vocabulary[end] = len(vocabulary)
    return vocabulary, merges


def sentencepiece(size: int = 600, specials: tuple[str, ...] = ("<unk>", "<s>", "</s>")) -> tuple[Vocabulary, Merges]:
    """Vocabulary and merges of a SentencePiece BPE with byte fallback: specials, bytes, merges, letters."""
    vocabulary, merges = _sentencepiece(size, specials)
    return dict(vocabulary), merges


@cache
def _sentencepiece(size: int, specials: tuple[str, ...]) -> tuple[Vocabulary, Merges]:
    words = _words(_metaspace())
    count = _letters(words)
    letters = sorted(count, key=lambda letter: (-count[letter], letter))[:80]
    spelt = {word: n for word, n in words.items() if set(word) <= set(letters)}
    merges = [pair for pair, _ in _merges(spelt, size - len(specials) - 256 - len(letters))]
    return _numbered(specials, (f"<0x{i:02X}>" for i in range(256)), (a + b for a, b in merges), letters), merges


@cache
def unigram(size: int, specials: tuple[str, ...]) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, of a Unigram model: specials, then pieces by falling score."""
    words = _words(_metaspace())
    count = _letters(words)
    for (a, b), n in _merges(words, size - len(specials) - len(count)):
        count[a + b] = max(count[a + b], n)
    total = sum(count.values())
    scores = ((piece, round(math.log(n / total), 4)) for piece, n in count.items())
    return [(piece, 0.0) for piece in specials] + sorted(scores, key=lambda pair: (-pair[1], pair[0]))


@cache
def wordpiece(
    size: int = 500, specials: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), lower: bool = True
) -> Vocabulary:
    words = _words(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=lower))

    def split(word: str) -> list[str]:
        return [word[0]] + ["##" + letter for letter in word[1:]]

    alphabet = sorted({symbol for word in words for symbol in split(word)})
    merges = _merges(words, size - len(specials) - len(alphabet), split, lambda a, b: a + b[2:])
    return _numbered(specials, alphabet, (a + b[2:] for (a, b), _ in merges))


# ------------------------------------------------------------------ SentencePiece models
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


def write_pieces(
    path: Path,
    pieces: list[tuple[str, float, int]],
    *,
    kind: int = 1,
    charsmap: bytes = b"",
    byte_fallback: bool = False,
    **ids: int,
) -> None:
    """A SentencePiece model: text, score and type of each piece; `kind` 1 is Unigram, 2 BPE."""
    from sentencepiece import sentencepiece_model_pb2

    made: Any = sentencepiece_model_pb2
    model = made.ModelProto()
    for piece, score, of_type in pieces:
        model.pieces.add(piece=piece, score=score, type=of_type)
    model.trainer_spec.model_type = kind
    model.trainer_spec.byte_fallback = byte_fallback
    for name, value in ids.items():
        setattr(model.trainer_spec, name, value)
    model.normalizer_spec.precompiled_charsmap = charsmap
    path.write_bytes(model.SerializeToString())


# ------------------------------------------------------------------ tokenizers
def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def bert_tok(**options: Any) -> Any:
    vocabulary = wordpiece(lower=options.get("do_lower_case", True))
    return T.BertTokenizer(vocab=dict(vocabulary), model_max_length=512, **options)


def roberta_tok(cls: Any = None, **options: Any) -> Any:
    vocabulary, merges = byte_level(500, ("<s>", "<pad>", "</s>", "<unk>"), end="<mask>")
    length = options.pop("model_max_length", 512)
    return (cls or T.RobertaTokenizer)(vocab=vocabulary, merges=merges, model_max_length=length, **options)


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for c in message['content'] %}"
    "%s{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen_tok(extra: Sequence[str] = (), chat: bool = True, media: str = "", **options: Any) -> Any:
    vocabulary, merges = byte_level(450, regex=QWEN, end="<|endoftext|>")
    t = T.Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=32768, **options)
    t.add_tokens(_special("<|im_start|>", "<|im_end|>", *extra), special_tokens=True)
    if chat:
        t.chat_template = CHATML.replace("%s", media)
    return t


def llama_tok(extra: Sequence[str] = (), **options: Any) -> Any:
    vocabulary, merges = sentencepiece()
    t = T.LlamaTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=4096, legacy=False, add_bos_token=True, **options
    )
    if extra:
        t.add_tokens(_special(*extra), special_tokens=True)
    return t


def gemma_tok(size: int = 620) -> Any:
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    vocabulary, merges = sentencepiece(size, specials)
    return T.GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def llama3_tok() -> Any:
    vocabulary, merges = byte_level(450, regex=LLAMA3)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    begin = "<|begin_of_text|>"
    tokenizer.add_special_tokens(
        _special(
            *(begin, "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
        )
    )
    ids = [(begin, tokenizer.token_to_id(begin))]
    template = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=ids
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    t = T.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token="<|end_of_text|>",
        model_max_length=131072,
        model_input_names=["input_ids", "attention_mask"],
    )
    t.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
        "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    return t


def t5_tok(**options: Any) -> Any:
    pieces = unigram(400, ("<pad>", "</s>", "<unk>")) + [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)]
    return T.T5Tokenizer(vocab=pieces, extra_ids=100, model_max_length=512, **options)


@cache
def _clip() -> tuple[Vocabulary, Merges]:
    """A byte-level BPE that marks the end of a word, over lower-case text."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CLIP), "removed", invert=True), level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [byte + "</w>" for byte in alphabet]
    words = _words(cut, normalizers.Lowercase())
    merges = [pair for pair, _ in _merges(words, 700 - len(base), lambda word: [*word[:-1], word[-1] + "</w>"])]
    return _numbered(base, (a + b for a, b in merges), ("<|startoftext|>", "<|endoftext|>")), merges


def clip_tok() -> Any:
    vocabulary, merges = _clip()
    return T.CLIPTokenizer(vocab=dict(vocabulary), merges=merges, model_max_length=77)


def whisper_tok() -> Any:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    end = "<|endoftext|>"
    vocabulary, merges = byte_level(400, end=end)
    t = T.WhisperTokenizer(vocab=vocabulary, merges=merges, model_max_length=448, pad_token=end)
    tasks = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    languages = (f"<|{code}|>" for code in LANGUAGES)
    t.add_tokens(_special("<|startoftranscript|>", *languages, *tasks), special_tokens=True)
    t.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", special=False, normalized=False) for i in range(1501)])
    t.set_prefix_tokens()
    return t


ENDS = ("<s>", "<pad>", "</s>", "<unk>")


def spoken_tok(cls: Any, codes: Sequence[str], **options: Any) -> Any:
    """mBART's and mBART-50's: a Unigram vocabulary that ends with languages and a mask."""
    pieces = unigram(400, ENDS) + [(token, 0.0) for token in (*codes, "<mask>")]
    return cls(vocab=pieces, model_max_length=1024, **options)


def nllb_tok(codes: Sequence[str], **options: Any) -> Any:
    vocabulary, merges = sentencepiece(620, ENDS)
    pieces = [piece for piece in vocabulary if not piece.startswith("<0x")]
    numbered = _numbered(pieces, codes, ("<mask>",))
    return T.NllbTokenizer(vocab=numbered, merges=merges, extra_special_tokens=list(codes), **options)


def pegasus_tok(**options: Any) -> Any:
    masks = ("<mask_1>", "<mask_2>", *(f"<unk_{n}>" for n in range(2, 103)))
    return T.PegasusTokenizer(vocab=unigram(520, ("<pad>", "</s>", *masks, "<unk>")), model_max_length=512, **options)


_CONTROLS = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def marian_files(folder: Path, codes: Sequence[str] = (), charsmap: bytes | None = None) -> dict[str, int]:
    """source.spm, target.spm and vocab.json, which lacks some pieces of the source; returns the vocabulary."""
    source, target = unigram(400, ()), unigram(260, ())
    for name, pieces in (("source", source), ("target", [("▁Straße", -7.5), *target])):
        found = [*_CONTROLS, *((piece, score, NORMAL) for piece, score in pieces)]
        write_pieces(folder / f"{name}.spm", found, charsmap=charsmap or white_space_map())
    kept = [piece for n, (piece, _) in enumerate(source) if n % 23 != 5]
    vocabulary = _numbered(("</s>", "<unk>"), reversed(kept), ("▁Straße",), codes, ("<pad>",))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=2), encoding="utf-8")
    return vocabulary


def m2m_files(folder: Path, charsmap: bytes | None = None) -> dict[str, int]:
    """sentencepiece.bpe.model, a BPE without bytes, and vocab.json in another order; returns the vocabulary."""
    found, _ = sentencepiece(620, ())
    pieces = [piece for piece in found if not piece.startswith("<0x")]
    model = [*_CONTROLS, *((piece, -float(n), NORMAL) for n, piece in enumerate(pieces))]
    write_pieces(folder / "sentencepiece.bpe.model", model, kind=2, charsmap=charsmap or white_space_map())
    vocabulary = _numbered(ENDS, reversed([piece for n, piece in enumerate(pieces) if n % 41 != 7]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=2), encoding="utf-8")
    return vocabulary
