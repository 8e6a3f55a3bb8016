"""What a call asks for, and what the model is by its generation_config.json: language, task, thresholds, prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoform.alignment_heads import listed_heads
from isoform.errors import CheckpointError, InputError
from isoform.json_files import read_object
from isoform.runtimes.generation.model_file import account_file
from isoform.runtimes.generation.settings import GenerationConfig, model_settings, resolve
from isoform.runtimes.pipelines.audio.speech.languages import CODES, LANGUAGES

TASKS = ("translate", "transcribe")
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "num_beams": 5}
"""Those of transformers' pipeline, where neither the call nor the model says otherwise."""
CONDITIONS = ("first-segment", "all-segments")
_READ = frozenset(
    (
        *("alignment_heads", "compression_ratio_threshold", "condition_on_prev_tokens", "forced_decoder_ids"),
        *("is_multilingual", "lang_to_id", "language", "logprob_threshold", "max_initial_timestamp_index"),
        *("no_speech_threshold", "no_timestamps_token_id", "prev_sot_token_id", "prompt_condition_type"),
        *("return_segments", "return_timestamps", "return_token_timestamps", "task", "task_to_id"),
    )
)
"""The keys of generation_config.json that only speech models have; what a call returns is fixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechModel:
    """The facts of a checkpoint; names are those of its files."""

    settings: Mapping[str, Any]  # generation_config.json
    decoder_start_token_id: int
    eos_token_id: int
    no_timestamps_token_id: int | None
    vocab_size: int
    positions: int  # of the decoder
    window: int  # of the encoder
    median_filter_width: int
    multilingual: bool | None
    lang_to_id: Mapping[str, int]
    task_to_id: Mapping[str, int]
    forced: tuple[int | None, ...]  # the tokens after the first, where no language or task is asked for
    prev_sot_token_id: int | None
    alignment_heads: bool  # whether there is one that the decoder has
    absent_heads: tuple[Any, ...]  # entries that are no head of it

    @classmethod
    def read(cls, folder: Path) -> SpeechModel:
        """Raises CheckpointError for files that are missing or do not fit."""
        config, settings = read_object(folder / "config.json"), model_settings(folder)
        account_file(folder, settings, read=_READ)
        where = f"{folder}/generation_config.json"

        def number(name: str, *sources: Mapping[str, Any], default: int | None = None) -> int:
            found = next((source[name] for source in sources if source.get(name) is not None), default)
            value: Any = found[0] if isinstance(found, list) and found else found
            if isinstance(value, bool) or not isinstance(value, int):
                raise CheckpointError(f"{where}: {name} is {value!r}, not a whole number; fetch the model's own file")
            return value

        rows = number("vocab_size", config)

        def token(name: str, *sources: Mapping[str, Any]) -> int:
            value = number(name, *sources)
            if not 0 <= value < rows:
                raise CheckpointError(f"{where}: {name} is {value}, and the model has logits for {rows} tokens")
            return value

        def table(name: str) -> dict[str, int]:
            """Those of the entries for which the model has logits; a text needs no other."""
            value = settings.get(name) or {}
            if not isinstance(value, dict) or not all(type(one) is int for one in value.values()):
                raise CheckpointError(f"{where}: {name} is {value!r:.60}, not an object of token ids")
            return {key: one for key, one in value.items() if 0 <= one < rows}

        heads, absent = listed_heads(
            settings.get("alignment_heads"),
            *(number(name, config, default=0) for name in ("decoder_layers", "decoder_attention_heads")),
        )
        suppressed = settings.get("suppress_tokens")
        held = suppressed if isinstance(suppressed, list) and len(suppressed) >= 2 else [None] * 2
        before = settings.get("prev_sot_token_id", held[-2])
        no_timestamps = settings.get("no_timestamps_token_id")
        return cls(
            settings=settings,
            decoder_start_token_id=token("decoder_start_token_id", settings, config),
            eos_token_id=token("eos_token_id", settings, config),
            no_timestamps_token_id=None if no_timestamps is None else token("no_timestamps_token_id", settings),
            vocab_size=rows,
            positions=number("max_target_positions", config, default=448),
            window=number("max_source_positions", config, default=1500),
            median_filter_width=number("median_filter_width", config, default=7),
            multilingual=settings.get("is_multilingual"),
            lang_to_id=table("lang_to_id"),
            task_to_id=table("task_to_id"),
            forced=_forced(settings.get("forced_decoder_ids") or config.get("forced_decoder_ids") or (), where, rows),
            prev_sot_token_id=before if type(before) is int and 0 <= before < rows else None,
            alignment_heads=bool(heads),
            absent_heads=absent,
        )

    @property
    def first_timestamp(self) -> int:
        """The token of 0.00 s; beyond the vocabulary where the model has none."""
        return self.vocab_size + 1 if self.no_timestamps_token_id is None else self.no_timestamps_token_id + 1


def _forced(pairs: Any, where: str, rows: int) -> tuple[int | None, ...]:
    """[[1, a], [2, b], …] -> (a, b, …)."""
    try:
        places = [int(place) for place, _ in pairs]
        tokens = tuple(token for _, token in pairs)
    except (TypeError, ValueError):
        raise CheckpointError(f"{where}: forced_decoder_ids is {pairs!r:.60}, not pairs of place and token") from None
    if not places or places[0] != 1:
        return ()
    if places != list(range(1, len(places) + 1)):
        raise CheckpointError(f"{where}: forced_decoder_ids leave a gap: {pairs!r:.60}")
    if not all(token is None or (type(token) is int and 0 <= token < rows) for token in tokens):
        raise CheckpointError(f"{where}: forced_decoder_ids are {pairs!r:.60}, and the model has {rows} tokens")
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechSettings:
    """A call's settings, apart from how tokens are generated; None is "off"."""

    generation: GenerationConfig
    timestamps: bool
    language: int | None = None  # its token
    task: str | None = None
    temperatures: tuple[float, ...] = (0.0,)  # tried in turn while a text looks wrong; above 0 it is sampled
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_prev_tokens: bool = False
    prompt_ids: tuple[int, ...] = ()
    every_segment: bool = False  # the prompt stands before all segments, not only the first

    def prefix(self, model: SpeechModel, detected: int | None) -> list[int]:
        """The tokens that a text begins with; `detected` is the token of the language heard."""
        forced = model.forced if self.language is None and self.task is None else ()
        tokens: list[int | None] = [model.decoder_start_token_id, *forced]
        language = detected if self.language is None else self.language
        if language is not None:
            tokens[1:2] = [language]
        if self.task is not None:
            tokens.append(model.task_to_id[self.task])
        elif self.language is not None and model.task_to_id and not set(model.task_to_id.values()) & set(tokens):
            tokens.append(model.task_to_id["transcribe"])
        silent = model.no_timestamps_token_id
        if silent is not None and not self.timestamps and tokens[-1] != silent:
            tokens.append(silent)
        elif self.timestamps and tokens[-1] == silent:
            tokens.pop()
        return [token for token in tokens if token is not None]

    def detects(self, model: SpeechModel) -> bool:
        """Whether the language is to be heard."""
        forced = model.forced if self.language is None and self.task is None else ()
        return self.language is None and bool(model.lang_to_id) and (not forced or forced[0] is None)


def read_call(model: SpeechModel, asked: Mapping[str, Any], *, timestamps: bool | None) -> SpeechSettings:
    """The settings of a call: what is `asked`, else what the model's file says. InputError for what does not fit."""
    asked = dict(asked)

    def take(name: str, default: Any = None) -> Any:
        value = asked.pop(name, None)
        return model.settings.get(name, default) if value is None else value

    multilingual, task, language = take("is_multilingual", model.multilingual), take("task"), take("language")
    if multilingual is False and (task is not None or language is not None):
        raise InputError(
            f"this model knows English only, so {'language' if language is not None else 'task'}="
            f"{language if language is not None else task!r} cannot be asked for; leave it out, or use a multilingual "
            "model"
        )
    if task is not None and task not in TASKS:
        raise InputError(f"task={task!r} is not one of {', '.join(TASKS)}")
    if task is not None and task not in model.task_to_id:
        raise InputError(f"task={task!r}: the model's generation_config.json has no task_to_id that names it")
    temperature = asked.pop("temperature", None)
    temperatures = temperature if isinstance(temperature, list | tuple) else (temperature,)
    try:
        steps = tuple(float(one or 0.0) for one in temperatures)
    except (TypeError, ValueError):
        raise InputError(f"temperature={temperature!r} is not a number or a list of numbers") from None
    if not steps or min(steps) < 0:
        raise InputError(f"temperature={temperature!r} must be at least 0")
    condition = take("prompt_condition_type") or CONDITIONS[0]
    previous = take("condition_on_prev_tokens", False)
    if condition not in CONDITIONS:
        raise InputError(f"prompt_condition_type={condition!r} is not one of {', '.join(CONDITIONS)}")
    if condition == CONDITIONS[1] and previous is not True:
        raise InputError(f"prompt_condition_type={condition!r} needs condition_on_prev_tokens=True")
    prompt = asked.pop("prompt_ids", None)
    logprob, silence = _threshold(take, "logprob_threshold"), _threshold(take, "no_speech_threshold")
    compression = _threshold(take, "compression_ratio_threshold")
    if silence is not None and logprob is None:
        raise InputError("no_speech_threshold is used together with logprob_threshold; pass both")
    if (timestamps or silence is not None) and model.no_timestamps_token_id is None:
        raise InputError(
            "this model writes no timestamps: its generation_config.json has no no_timestamps_token_id; pass "
            "return_timestamps=False"
        )
    for name in ("return_segments", "return_token_timestamps", "force_unique_generate_call", "do_sample"):
        asked.pop(name, None)  # what is returned is fixed, and the temperature says whether tokens are drawn
    return SpeechSettings(
        generation=resolve(asked, {k: v for k, v in model.settings.items() if k != "temperature"}, DEFAULTS),
        timestamps=bool(timestamps),
        language=None if language is None else language_token(model, language),
        task=task,
        temperatures=steps,
        compression_ratio_threshold=compression,
        logprob_threshold=logprob,
        no_speech_threshold=silence,
        condition_on_prev_tokens=bool(previous),
        prompt_ids=() if prompt is None else _ids(prompt),
        every_segment=condition == CONDITIONS[1],
    )


def language_token(model: SpeechModel, language: Any) -> int:
    """The token of a language given as a code, an English name or the token itself. Raises InputError."""
    if not isinstance(language, str):
        raise InputError(f"language={language!r} is not a code like 'en' or a name like 'english'")
    name = language.lower()
    token = name if name in model.lang_to_id else f"<|{CODES.get(name, name)}|>"
    if token in model.lang_to_id:
        return model.lang_to_id[token]
    if not model.lang_to_id:
        raise InputError(f"language={language!r}: the model's generation_config.json has no lang_to_id")
    known = [code for code in LANGUAGES if f"<|{code}|>" in model.lang_to_id]
    raise InputError(f"language={language!r} is not known; the model's languages are {', '.join(known)}")


def _threshold(take: Any, name: str) -> float | None:
    value = take(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name}={value!r} is not a number")
    return float(value)


def _ids(prompt: Any) -> tuple[int, ...]:
    try:
        return tuple(int(token) for token in prompt)
    except (TypeError, ValueError):
        raise InputError(f"prompt_ids={prompt!r:.60} are not token ids; pass a list of whole numbers") from None


def room(settings: SpeechSettings, model: SpeechModel, prompt: Sequence[int]) -> int:
    """The greatest number of new tokens after a prompt. InputError when it does not fit."""
    generation, length = settings.generation, len(prompt)
    if (new := generation.max_new_tokens) is not None:
        if new + length > model.positions:
            raise InputError(
                f"max_new_tokens={new} and a prompt of {length} tokens exceed the model's {model.positions} positions; "
                f"pass at most max_new_tokens={max(model.positions - length, 0)}"
            )
        return new
    longest = 20 if generation.max_length is None else generation.max_length
    return min(longest + min(length, model.positions // 2 - 1), model.positions) - length
