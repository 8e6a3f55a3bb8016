"""translation: a text in another language, from one model for one pair of languages or for many."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines import languages_of
from isoform.runtimes.pipelines.text.text_to_text import PREFIX, TextToText, TextToTextOptions
from isoform.runtimes.pipelines.text.text_writer import WritingCall

if TYPE_CHECKING:
    from tokenizers import Encoding

_TASK = "translation_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationOptions(TextToTextOptions):
    """The parameters of a call."""

    src_lang: str | None = None  # the language of the text, as the model writes it: "eng_Latn", "en_XX", "en"
    tgt_lang: str | None = None  # that of the translation


class Translation(TextToText):
    """`pipe("A cat sleeps.")` -> [{"translation_text": "Eine Katze schläft."}]; a list gives an object for each text.

    The languages are those of `src_lang` and `tgt_lang`, or of the task ("translation_en_to_de"). A model that takes
    language codes needs both. One whose config.json has a prefix for each pair has that put before the text; without
    languages it takes the first pair. A model for one pair takes no `src_lang` and no `tgt_lang`, and ignores those of
    the task.
    """

    task: ClassVar[str] = "translation"
    returned: ClassVar[str] = "translation"
    options: ClassVar[type[TranslationOptions]] = TranslationOptions

    def begin(self, options: Any) -> WritingCall:
        """See `Pipeline.begin`."""
        pair, known = self._pair(options.src_lang, options.tgt_lang), self._known()
        if self.text_tokenizer.languages is not None:
            return super().begin(options)
        if pair is None and (options.src_lang or options.tgt_lang):
            raise InputError(
                f"src_lang={options.src_lang!r} and tgt_lang={options.tgt_lang!r}: a translation needs both languages"
            )
        if pair is None and known:
            warnings.warn(f"translation does not say which languages; it takes {known[0]}", stacklevel=4)
        elif known and options.prefix is None and _key(pair) not in known:
            raise InputError(
                f"the model's config.json has no prefix for {_key(pair)}; it has {', '.join(known)}. Take one of "
                "those, or pass prefix="
            )
        elif not known and (options.src_lang or options.tgt_lang) and options.prefix is None:
            raise InputError(
                f"src_lang={options.src_lang!r} and tgt_lang={options.tgt_lang!r} choose nothing: this model takes no "
                "language codes; leave them out"
            )
        return super().begin(options)

    def _advise(self, length: int, least: int | None, most: int | None) -> None:
        """See `TextToText._advise`."""
        if most is not None and length > 0.9 * most:
            warnings.warn(
                f"Your input_length: {length} is bigger than 0.9 * max_length: {most}. You might consider increasing "
                "your max_length manually, e.g. translator('...', max_length=400)",
                stacklevel=2,
            )

    def _own_settings(self, options: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `TextWriter._own_settings`: a translation begins with the token of its language."""
        if (languages := self.text_tokenizer.languages) is None:
            return {}
        source, target = self._codes(options.src_lang, options.tgt_lang)
        languages.around(source)
        forced = languages.forced(target)
        if given.get("forced_bos_token_id", forced) != forced:
            raise InputError(
                f"forced_bos_token_id={given['forced_bos_token_id']!r:.40} is not the token of tgt_lang={target!r} "
                f"({forced}); give one of them"
            )
        return {"forced_bos_token_id": forced}

    def _read(self, texts: Sequence[str], options: Any) -> list[Encoding]:
        """See `TextToText._read`: with the token of the language, where the model has one."""
        if self.text_tokenizer.languages is None:
            return super()._read(texts, options)
        source, _ = self._codes(options.src_lang, options.tgt_lang)
        return self.encode(texts, truncation=options.truncation or False, language=source)

    def _prefix(self, options: Any) -> str:
        """See `TextToText._prefix`: that of the languages of the call; none for a model with language codes."""
        if self.text_tokenizer.languages is not None:
            return options.prefix or ""
        key = _key(self._pair(options.src_lang, options.tgt_lang))
        own = self._by_task()[key].get(PREFIX) if key in self._known() else None
        return own if isinstance(own, str) and options.prefix is None else super()._prefix(options)

    @property
    def _special(self) -> Mapping[str, Any]:
        """See `TextToText._special`: what the model has for the languages that the pipeline was made for."""
        known = self._known()
        key = _key(self._pair(self._parameters.get("src_lang"), self._parameters.get("tgt_lang")))
        return self._by_task()[key if key in known else known[0]] if known else {}

    def _known(self) -> list[str]:
        """The entries of `task_specific_params` for pairs of languages."""
        return [name for name in self._by_task() if name.startswith(_TASK)]

    def _codes(self, source: str | None, target: str | None) -> tuple[str | None, str | None]:
        """The languages of a text and of its translation: as a call says it, and where it does not, as the task."""
        named = languages_of(self.task) or (None, None)
        return source or named[0], target or named[1]

    def _pair(self, source: str | None, target: str | None) -> tuple[str, str] | None:
        """From which language to which, where both are known."""
        first, second = self._codes(source, target)
        return (first, second) if first and second else None


def _key(pair: tuple[str, str] | None) -> str:
    """The entry of `task_specific_params` for a pair of languages, "" without one."""
    return f"{_TASK}{pair[0]}_to_{pair[1]}" if pair else ""
