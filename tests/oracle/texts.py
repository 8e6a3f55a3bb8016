"""Texts that tokenizers disagree about: spaces, newlines, digits, scripts, marks, emoji, and seeded random Unicode."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from itertools import pairwise

HAND = (
    "",
    " ",
    "  ",
    "   ",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "Hello, world!",
    " Hello  world   with    runs     of      spaces ",
    "trailing spaces   ",
    "\n",
    "\n\n",
    "\n\n\n\nfour",
    "\t",
    "\t\ttabs\tinside\t",
    "line one\nline two\r\nline three\r\rend\n",
    " \n \n\n  \n   indented\n\tand tabbed\n",
    "def f(x):\n    return x ** 2  # square\n\n\nprint(f(3))\n",
    "for (int i = 0; i < 10; ++i) { a[i] += b->c[i]; }",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX; mixedCase snake_case kebab-case CamelCaseHTTPServer",
    "I'm, you're, he's, we've, they'll, she'd, don't, I'M YOU'RE HE'S WE'VE THEY'LL SHE'D DON'T 'tis rock'n'roll 'sup",
    "1 12 123 1234 12345 123456 1234567 3.14159e-2 1,000,000.00 2024-05-17 0x1F ½ ² ① Ⅷ 一二三 ١٢٣ १२३",
    "a1b2c3 x86_64 v1.2.3-rc4 $5.00 50% #1 @user",
    "!!!???...;;;:::---___===+++***///\\\\\\|||~~~```^^^&&&%%%$$$###@@@",
    "«quoted» “curly” ‘single’ „low“ – en — em … ellipsis • bullet © ® ™ € £ ¥ § ¶ † ‡",
    "Café, naïve, façade, Ångström, Straße, smörgåsbord, Où est la gare? ¿Dónde está? İstanbul ıŞğ",
    unicodedata.normalize("NFC", "é ü ñ ç å ộ 각 が パ"),
    "Привет, мир! Ё ё ў ґ. Ελληνικά ΑΒΓ ς σ. עברית שָׁלוֹם.",
    "العربية مَرْحَبًا بالعالم ٠١٢٣ فارسی می‌خواهم",
    "हिन्दी नमस्ते दुनिया क्षत्रिय বাংলা தமிழ் తెలుగు ไทย ภาษาไทย ລາວ ខ្មែរ မြန်မာ",
    "你好，世界。今日は天気がいいですね。カタカナ ひらがな 한국어 안녕하세요 𠀀𠮷 ﾊﾝｶｸ Ｆｕｌｌ　space",
    "🙂🚀 👨‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ ☕︎ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ✂️ 1️⃣",
    "zero​width joiner‍ non‌joiner nbsp\u00a0here thin\u2009space line\u2028sep para\u2029sep bom\ufeff soft\u00adhyphen",
    "control\x01chars\x07and\x1besc\x7fdel\x80c1\x85nel",
    "replacement � and private \ue000 and noncharacter \uffff and \U0010fffd",
    "math ∑∫√∞≠≤≥ 𝐀𝑩𝕮 arrows ←↑→↓ box ┌─┐│ braille ⠓⠑ runes ᚠᚢ",
    "translate English to German: The house is wonderful.",
    "https://example.com/path?query=1&b=%20#frag user@example.org C:\\Users\\x ~/.config",
    '{"key": [1, 2.5, null, true], "nested": {"a\\n": "b"}}',
    '<html><body class="x">&amp;</body></html>',
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbb ababababab",
    "longwordwithoutanyspaces" * 4,
    "ﬁ ﬂ ﬀ ligatures Ǆ ǅ ǆ titlecase ŉ ẞ K Å Ω",
)
DECOMPOSED = tuple(unicodedata.normalize("NFD", text) for text in ("Café naïve", "Ångström ộ", "각 が パ", "é"))
LITERAL_ESCAPES = ("▁", "a▁b", " ▁", "▁▁ x", "x ▁y")


def random_texts(count: int, seed: int) -> list[str]:
    """`count` short strings that mix the alphabets above; no surrogates, no literal "▁"."""
    draw = random.Random(seed)
    pools = (
        "abcdefghijklmnopqrstuvwxyz",
        "ABC'sStT dD",
        "   \n\t\r",
        "0123456789",
        ".,;:!?-_'\"()[]{}<>/\\|@#$%^&*+=~`",
        "éüñçßøåÉÜ",
        "абвгдежзАБВ",
        "的一是不了人我在有他",
        "あいうアイウ한국어",
        "مرحباאבג",
        "नमस्ते",
        "🙂🚀👍🏽\u200d❤️",
        "\u0301\u0308\u0327",
        "\u00a0\u2003\u3000\u200b",
    )
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            pool = draw.choice(pools)
            parts.append("".join(draw.choice(pool) for _ in range(draw.randint(1, 5))))
        texts.append("".join(parts))
    for _ in range(count // 4):
        points = (draw.choice((draw.randrange(0x20, 0x3000), draw.randrange(0x3000, 0x20000))) for _ in range(12))
        texts.append("".join(chr(c) for c in points if _old(c) and c != 0x2581))
    return texts


def _old(point: int) -> bool:
    """Assigned since Unicode 3.2. Libraries carry different versions of Unicode; newer letters are letters to some."""
    return unicodedata.ucd_3_2_0.category(chr(point)) not in ("Cn", "Cs", "Co")


def byte_letters() -> dict[int, str]:
    """The 256 letters that stand for bytes in a byte-level BPE vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


def crossing_merges(rounds: int = 6, take: int = 250) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE learnt from the texts above *without* cutting them into words.

    Its merges run across every border that a pre-tokenizer may draw, so a border in the wrong place changes the ids.
    """
    letters = byte_letters()
    texts = [[letters[byte] for byte in text.encode()] for text in (*HAND, *DECOMPOSED, *random_texts(200, seed=1))]
    vocab = {letter: index for index, letter in enumerate(sorted(letters.values()))}
    merges: list[tuple[str, str]] = []
    for _ in range(rounds):
        counts = Counter(pair for text in texts for pair in pairwise(text))
        chosen = [pair for pair, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n > 1]
        rank = {pair: i for i, pair in enumerate(p for p in chosen[:take] if p[0] + p[1] not in vocab)}
        for left, right in rank:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
        texts = [_merged(text, set(rank)) for text in texts]
    return vocab, merges


def _merged(text: list[str], pairs: set[tuple[str, str]]) -> list[str]:
    out: list[str] = []
    for symbol in text:
        if out and (out[-1], symbol) in pairs:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out
