"""The inputs level: a bundle reads texts, chats, pictures and sound as its source and transformers do.

A model that computes the same from other ids answers something else. So the files beside the model are compared, then
what they make of a corpus chosen to be awkward. transformers, where it is installed, is asked in a process of its own;
what it said is kept in the manifest, for machines without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import IsoformError, UnsupportedModel
from isoform.reference.checkpoints.checkpoint import SIDECARS
from isoform.reference.classes import class_facts
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.signature import Port, Signature

BACKEND, LEVEL = "bundle", "inputs"
IDS, TEMPLATE = "token ids", "chat template"  # groups
ORACLE_IDS, ORACLE_TEMPLATE = "token ids of transformers", "chat template of transformers"

CORPUS = (
    "",
    " ",
    "   three spaces before and after   ",
    "one  two   three    four     five",
    "tab\tnewline\nreturn\r\nform\x0cfeed nbsp\u00a0thin\u2009zero\u200bwidth\ufeff",
    "\n\n\n",
    "Hello, world! Don't can't won't I'm we'll they'd it's",
    "CamelCase snake_case kebab-case UPPER lower 3rd 2nd x1y2z3",
    "0 1 12 123 1234 12345 1,234.56 1e-10 0x7f ½ ² ٣ 四 Ⅷ",
    "naïve café résumé",  # composed
    "nai\u0308ve cafe\u0301 re\u0301sume\u0301",  # decomposed
    "ﬁ ﬂ ﬃ ① Å Å µ μ ſ ẞ ß İ i̇ ı",  # compatibility forms and case that does not come back
    "\u1100\u1161\u11a8 각 ｶﾞ ガ が",
    "עברית ערבית العربية فارسی اُردُو ‮right to left‬",
    "हिन्दी தமிழ் ไทยไม่เว้นวรรค 中文字符 日本語 한국어 ქართული አማርኛ",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☠︎ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀 \U0010fffd \u0378 \ue000",  # beyond the first plane, unassigned, private
    "\x00\x01\x1f\x7f\x85 control",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n",
    "https://example.org/a?b=c&d=%20#e user@example.org <b>bold</b> &amp; \\n $x^2$",
    "'''\"\"\"```---===***...,,,!!!???",
    "▁lower one eighth block ▁▁ Ġ Ċ ## </w>",  # how tokenizers mark spaces and pieces
    "a" * 300,
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "The quick brown fox jumps over the lazy dog. " * 8,
)
"""Texts on which tokenizers go wrong: spaces, normal forms, scripts, emoji, bytes, the tokenizers' own marks."""

CHATS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": " spaces kept? "}),
    (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2\n"},
        {"role": "user", "content": "And <b>{{ 2 }}</b> 🙂?"},
    ),
)
STATED = ("add_bos_token", "add_eos_token")
"""Settings that a bundle states as the post-processor has them, whatever the source says."""
ADDED = 24  # of the added tokens at most: those that take spaces with them first
SECONDS = 120.0  # that transformers may take

_PROGRAM = """
import inspect, json, sys
from transformers import AutoTokenizer, __version__
folder, asked = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
def render(chat, prompt):
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    except Exception:
        return None
of_words = "boxes" in inspect.signature(type(tokenizer).__call__).parameters
def ids(text, special):
    given = {"text": [text], "boxes": [[0, 0, 0, 0]]} if of_words else {"text": text}
    return tokenizer(**given, add_special_tokens=special)["input_ids"]
json.dump({
    "version": __version__,
    "ids": [[ids(text, special) for special in (True, False)] for text in asked["texts"]],
    "chats": [[render(chat, prompt) for prompt in (True, False)] for chat in asked["chats"]]
             if tokenizer.chat_template else [],
}, sys.stdout)
"""


def check_preprocessing(
    folder: Path,
    source: Path,
    signature: Signature,
    *,
    facts: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
    oracle: bool = False,
) -> tuple[Report, dict[str, Any] | None]:
    """Compare the files and features of a bundle's folder with those of its source's.

    `facts` are those of the bundle's manifest; what it does not state is read from the folder, like the source's. With
    `oracle`, transformers is asked too, if it is here; `stored` is what it said before, and it is not asked again about
    the same files. Returns the report, and what to store: {"by", "files", "ids", "chats"}.
    """
    report = Report([_files(folder, source)])
    mine = _read(folder, facts or {}, report)
    theirs = _read(source, {}, Report()) if mine is not None else None
    if mine is not None and theirs is not None:
        texts = corpus(mine.tokens + theirs.tokens)
        report.results.append(_differing(IDS, "texts", texts, _all_ids(mine, texts), _all_ids(theirs, texts)))
        chats = [json.dumps(chat, ensure_ascii=False) for chat in CHATS]
        if mine.chats() or theirs.chats():
            report.results.append(_differing(TEMPLATE, "chats", chats, mine.chats(), theirs.chats()))
        stored = _against_oracle(report, folder, mine, stored, oracle)
    for port in signature.inputs:
        if port.role in FEATURES:
            report.results += _features(port, folder, source, facts or {}, report.skipped)
    return report, dict(stored) if stored else None


def _result(group: str, detail: str, metric: str, value: float, note: str = "") -> Result:
    case = f"{group}, {detail}" if detail else group
    return Result.of(Subject(BACKEND, LEVEL, "", group, case), metric, value, 0, note)


# ------------------------------------------------------------------ files
def _files(folder: Path, source: Path) -> Result:
    """The small files beside the model: the same bytes, or the same JSON."""
    names = [name for name in SIDECARS if (folder / name).is_file() or (source / name).is_file()]
    changed = []
    for name in names:
        mine, theirs = folder / name, source / name
        if not mine.is_file():
            changed.append(f"{name} is missing")
        elif theirs.is_file() and not _same_file(mine, theirs):
            changed.append(f"{name} differs from the source's")
    return _result("files beside the model", f"{len(names)}", "changed", len(changed), "; ".join(changed))


def _same_file(one: Path, other: Path) -> bool:
    first, second = one.read_bytes(), other.read_bytes()
    if first == second or one.suffix != ".json":
        return first == second
    try:
        data = [json.loads(each) for each in (first, second)]
    except ValueError:
        return False
    if one.name == "tokenizer_config.json":
        data = [{k: v for k, v in each.items() if k not in STATED} if isinstance(each, dict) else each for each in data]
    return bool(data[0] == data[1])


# ------------------------------------------------------------------ texts and chats
class _TextReader:
    """The tokenizer and chat templates of a folder."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        from isoform.runtimes.preprocess.text.chat import ChatTemplate
        from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

        self.tokenizer = TextTokenizer(folder, facts)
        self.template = ChatTemplate.read(folder, self.tokenizer.special)
        self.tokens = _added(folder)
        self.of_words = "boxes" in (facts.get("tokenizer") or {})

    def ids(self, text: str, special: bool) -> list[int]:
        texts: list[Any] = [[text]] if self.of_words else [text]
        ids: list[int] = self.tokenizer.encode(texts, add_special_tokens=special, words=self.of_words)[0].ids
        return ids

    def chats(self) -> list[list[str | None]]:
        """Every chat with and without the prompt of an answer; None where the template refuses it."""
        if "default" not in self.template.templates:
            return []
        return [[self._render(chat, prompt) for prompt in (True, False)] for chat in CHATS]

    def _render(self, chat: Sequence[Mapping[str, str]], prompt: bool) -> str | None:
        try:
            return self.template.render(list(chat), add_generation_prompt=prompt)
        except IsoformError:
            return None


def _read(folder: Path, facts: Mapping[str, Any], report: Report) -> _TextReader | None:
    """None when there is no tokenizer.json; a failed result when there is one that cannot be read."""
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        return _TextReader(folder, {**class_facts(folder), **facts})
    except UnsupportedModel as error:
        report.skipped.append(Skip(BACKEND, LEVEL, "", IDS, IDS, " ".join(str(error).split())))
        return None
    except (IsoformError, OSError) as error:
        report.results.append(_result(IDS, "", "error", 1, " ".join(str(error).split())))
        return None


def _added(folder: Path) -> list[str]:
    """The added tokens of tokenizer.json; those that take spaces with them, or are no whole words only, come first."""
    try:
        entries = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
        keyed = [(not (t.get("lstrip") or t.get("rstrip") or t.get("single_word")), t["content"]) for t in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [content for _, content in sorted(keyed, key=lambda entry: entry[0])]


def corpus(tokens: Sequence[str]) -> list[str]:
    """CORPUS, and texts with these added tokens in them, bare and among spaces and letters."""
    chosen = [token for token in dict.fromkeys(tokens) if token][:ADDED]
    around = [text for token in chosen for text in (f"a {token}  b", f"a{token}b", f" {token} {token}")]
    return [*CORPUS, *around]


def _all_ids(reader: _TextReader, texts: Sequence[str]) -> list[list[list[int]]]:
    return [[reader.ids(text, special) for special in (True, False)] for text in texts]


def _differing(
    group: str, unit: str, inputs: Sequence[str], got: Sequence[Any], want: Sequence[Any], note: str = ""
) -> Result:
    """How many of the inputs come out differently; the note shows the first."""
    detail = f"{len(inputs)} {unit}"
    if len(got) != len(want):
        return _result(group, detail, "differing", len(inputs), f"{len(got)} results, not {len(want)}")
    wrong = [n for n, (mine, theirs) in enumerate(zip(got, want, strict=True)) if mine != theirs]
    if wrong:
        n = wrong[0]
        pair = next((m, t) for m, t in zip(got[n], want[n], strict=True) if m != t)
        note = f"{inputs[n][:60]!r} gives {_cut(pair[0])}, not {_cut(pair[1])}"
    return _result(group, detail, "differing", len(wrong), note)


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


# ------------------------------------------------------------------ transformers, or what it said
def _against_oracle(
    report: Report, folder: Path, mine: _TextReader, stored: Mapping[str, Any] | None, oracle: bool
) -> Mapping[str, Any] | None:
    texts = corpus(mine.tokens)
    ids, chats = _all_ids(mine, texts), mine.chats()
    state = _state(folder)
    fresh = stored is None or stored.get("files") != state
    said = ask_transformers(folder, texts) if oracle and fresh and find_spec("transformers") is not None else None
    if isinstance(said, str):
        report.skipped.append(Skip(BACKEND, LEVEL, "", ORACLE_IDS, ORACLE_IDS, said))
    elif said is not None:
        by = f"transformers {said['version']}"
        report.results.append(_differing(ORACLE_IDS, "texts", texts, ids, said["ids"], by))
        if said["chats"] and chats:
            shown = [json.dumps(chat, ensure_ascii=False) for chat in CHATS]
            report.results.append(_differing(ORACLE_TEMPLATE, "chats", shown, chats, said["chats"], by))
        return {
            "by": by,
            "files": state,
            "ids": {_short(text): _short(found) for text, found in zip(texts, said["ids"], strict=True)},
            "chats": [_short(found) for found in said["chats"]],
        }
    if stored:
        known: Mapping[str, str] = stored.get("ids", {})
        by = f"as {stored.get('by', 'transformers')} gave them before"
        held = [(text, found) for text, found in zip(texts, ids, strict=True) if _short(text) in known]
        wrong = [text for text, found in held if known[_short(text)] != _short(found)]
        note = f"{wrong[0][:60]!r} gives other ids" if wrong else by
        report.results.append(_result(ORACLE_IDS, f"{len(held)} texts", "differing", len(wrong), note))
        if stored.get("chats") and chats:
            pairs = zip(chats, stored["chats"], strict=False)
            count = sum(_short(found) != kept for found, kept in pairs)
            report.results.append(_result(ORACLE_TEMPLATE, f"{len(chats)} chats", "differing", count, by))
    return stored


def _state(folder: Path) -> str:
    """Changes with the files that a tokenizer is made of."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    return _short([hashlib.sha256(path.read_bytes()).hexdigest() for n in names if (path := folder / n).is_file()])


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def ask_transformers(folder: Path, texts: Sequence[str]) -> dict[str, Any] | str:
    """Its version, and what it makes of the texts and CHATS, offline; or why there is no answer."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "USE_TORCH": "0"}
    asked = json.dumps({"texts": list(texts), "chats": CHATS})
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(folder)]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"transformers gave no answer ({error})"
    if done.returncode:
        return f"transformers cannot read the tokenizer ({(done.stderr.strip().splitlines() or ['no reason'])[-1]})"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ------------------------------------------------------------------ pictures and sound
def _pictures(folder: Path, facts: Mapping[str, Any]) -> NDArray[np.float32] | None:
    from isoform.runtimes.preprocess.image.opening import open_processor
    from isoform.runtimes.preprocess.image.processor import ImageProcessor
    from isoform.validators.cases.media import drawn

    return open_processor(folder, facts)([drawn()])[0] if ImageProcessor.is_in(folder) else None


def _tone(seconds: float = 1.5) -> NDArray[np.float32]:
    """A rising tone with a beat, 16 kHz."""
    import numpy as np

    at = np.arange(int(16000 * seconds)) / 16000
    return (0.4 * np.sin(2 * np.pi * (200 + 900 * at) * at) * (1 + np.sin(2 * np.pi * 3 * at)) / 2).astype(np.float32)


def _spectra(folder: Path, facts: Mapping[str, Any]) -> NDArray[np.float32] | None:
    from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel

    return log_mel(_tone(), LogMelSettings.read(folder)) if _has_settings(folder) else None


def _waveform(folder: Path, facts: Mapping[str, Any]) -> NDArray[np.float32] | None:
    from isoform.runtimes.preprocess.audio.waveform import WaveformSettings, pad

    return pad([_tone()], WaveformSettings.read(folder))[0] if _has_settings(folder) else None


def _has_settings(folder: Path) -> bool:
    return (folder / "preprocessor_config.json").is_file()


FEATURES: dict[str, Callable[[Path, Mapping[str, Any]], NDArray[np.float32] | None]] = {
    "features": _spectra,
    "sound": _waveform,
    "pixels": _pictures,
}
"""Role of an input port -> what a folder's processor makes of a picture or sound of ours; None without a processor."""


def _features(
    port: Port, folder: Path, source: Path, facts: Mapping[str, Any], skipped: list[Skip]
) -> Iterator[Result]:
    """What both folders make of a sample; a processor that isoform does not have is skipped with the reason."""
    from isoform.validators.truth.distances import difference

    group, made = f"{port.name} of a sample", FEATURES[port.role or ""]
    try:
        mine, theirs = made(folder, {**class_facts(folder), **facts}), made(source, class_facts(source))
    except UnsupportedModel as error:
        skipped.append(Skip(BACKEND, LEVEL, "", group, group, " ".join(str(error).split())))
        return
    except (IsoformError, OSError) as error:
        yield _result(group, "", "error", 1, " ".join(str(error).split()))
        return
    if theirs is None:
        return
    if mine is None:
        yield _result(group, "", "error", 1, "the bundle has no processor, its source has one; export the model again")
        return
    gap = difference(mine, theirs)
    yield _result(group, "", "max_abs", gap.max_abs, gap.problem)
