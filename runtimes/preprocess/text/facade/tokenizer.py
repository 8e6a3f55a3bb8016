"""`pipe.tokenizer`: a tokenizer that answers scripts written for transformers as transformers' own does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.json_files import read_object
from isoform.runtimes.preprocess.text.chat import ChatTemplate
from isoform.runtimes.preprocess.text.facade.tokenized import Tokenized
from isoform.runtimes.preprocess.text.facade.tokens import NO_LIMIT, TokenNames
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

_PADDINGS: Mapping[Any, str] = {
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    False: "",
    "do_not_pad": "",
    None: "",
}
_COPIED = (
    *("added_tokens.json", "merges.txt", "normalizer.json", "special_tokens_map.json", "tokenizer.model"),
    *("sentencepiece.bpe.model", "spiece.model", "vocab.json", "vocab.txt"),
)


class TokenizerFacade(TokenNames):
    """The tokenizer of a pipeline with transformers' methods; what is set on it holds for the pipeline too."""

    def __init__(
        self,
        text: TextTokenizer,
        folder: Path,
        *,
        name_or_path: str = "",
        input_names: Sequence[str] = ("input_ids", "attention_mask"),
        template: ChatTemplate | None = None,
    ) -> None:
        """`input_names`: what a call gives unless it says otherwise. `template`: the chat template in use."""
        super().__init__(text, folder)
        self.__dict__.update(
            _folder=folder,
            _template=template or ChatTemplate.read(folder, text.special),
            name_or_path=name_or_path,
            is_fast=True,
            model_input_names=list(input_names),
        )

    # ------------------------------------------------------------------ settings
    @property
    def padding_side(self) -> str:
        return self._text.padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._text.padding_side = _side("padding_side", side)

    @property
    def truncation_side(self) -> str:
        return self._text.truncation_side

    @truncation_side.setter
    def truncation_side(self, side: str) -> None:
        self._text.truncation_side = _side("truncation_side", side)

    @property
    def model_max_length(self) -> int:
        """The longest input in tokens; 1e30 for none."""
        return NO_LIMIT if self._text.max_length is None else self._text.max_length

    @model_max_length.setter
    def model_max_length(self, length: int) -> None:
        if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
            raise InputError(f"model_max_length={length!r:.40} is not a number of tokens")
        self._text.max_length = None if length > 10**20 else int(length)

    @property
    def clean_up_tokenization_spaces(self) -> bool:
        return self._text.cleans_up

    @clean_up_tokenization_spaces.setter
    def clean_up_tokenization_spaces(self, cleans: bool) -> None:
        self._text.cleans_up = bool(cleans)

    @property
    def chat_template(self) -> Any:
        """The template, a dict of several by name, or None."""
        templates: Mapping[str, str] = self._template.templates
        return (templates["default"] if list(templates) == ["default"] else dict(templates)) if templates else None

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        if template is not None and not isinstance(template, str | Mapping):
            raise InputError(f"chat_template={template!r:.40} is not a template: a text, or a dict of them by name")
        self._template.replace({"default": template} if isinstance(template, str) else dict(template or {}))

    def __repr__(self) -> str:
        return f"TokenizerFacade(name_or_path={self.name_or_path!r}, tokens={len(self)})"

    # ------------------------------------------------------------------ texts to ids
    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: None = None,
        text_pair_target: None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> Tokenized:
        """The ids and masks of a text, of a pair, or of lists of them. Names and defaults are transformers'."""
        if text is None or text_target is not None or text_pair_target is not None:
            raise InputError("give the text to tokenize as text=; text_target is not supported")
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        several = isinstance(text, list | tuple) and not (
            is_split_into_words and not (text and isinstance(text[0], list | tuple))
        )
        texts, pairs = (list(text), text_pair) if several else ([text], None if not text_pair else [text_pair])
        if isinstance(pairs, str):
            raise InputError("a list of texts comes with a list of second texts, text_pair, of the same length")
        if not is_split_into_words:
            texts = [tuple(one) if isinstance(one, list | tuple) else one for one in texts]
        rows = self._text.encode(
            texts,
            None if pairs is None else list(pairs),
            add_special_tokens=add_special_tokens,
            truncation=truncation or False,
            max_length=max_length,
            stride=stride,
            words=is_split_into_words,
        )
        groups = [[row, *(row.overflowing if return_overflowing_tokens else ())] for row in rows]
        flat = [row for group in groups for row in group]
        self._pad_rows(flat, padding, max_length, pad_to_multiple_of, padding_side)
        wanted = {
            "token_type_ids": _asked(return_token_type_ids, "token_type_ids" in self.model_input_names),
            "attention_mask": _asked(return_attention_mask, "attention_mask" in self.model_input_names),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        read: dict[str, Any] = {"token_type_ids": "type_ids", "offset_mapping": "offsets"}
        data: dict[str, Any] = {"input_ids": [row.ids for row in flat]}
        for name in (name for name, asked in wanted.items() if asked):
            data[name] = [len(row.ids) if name == "length" else getattr(row, read.get(name, name)) for row in flat]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [n for n, group in enumerate(groups) for _ in group]
        answer = Tokenized(data, flat).convert_to_tensors(return_tensors)
        if several or return_tensors is not None or return_overflowing_tokens:
            return answer
        return Tokenized({k: v[0] if isinstance(v[0], list) else v for k, v in answer.items()}, flat)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ids of a text or a pair; options as in a call."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any) -> Any:
        """The tokens of a text as the vocabulary spells them."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def _pad_rows(
        self, rows: Sequence[Encoding], padding: Any, length: int | None, multiple: int | None, side: str | None
    ) -> None:
        if isinstance(padding, bool | str | None) and padding in _PADDINGS:
            kind = _PADDINGS[padding]
        else:
            raise InputError(f"padding={padding!r:.40} is not one of True, False, 'longest', 'max_length'")
        if not kind:
            return
        if (pad := self.pad_token) is None:
            raise InputError("this tokenizer has no padding token; set one: tokenizer.pad_token = tokenizer.eos_token")
        if kind == "longest":
            target = max((len(row.ids) for row in rows), default=0)
        elif (target := length if length is not None else self._text.max_length or 0) == 0:
            return
        if multiple:
            target = -(-target // multiple) * multiple
        for row in rows:
            row.pad(
                target,
                direction=_side("padding_side", side or self.padding_side),
                pad_id=self.pad_token_id,
                pad_type_id=0,
                pad_token=pad,
            )

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> Tokenized:
        """Pad rows of ids, given as a dict of lists or a list of dicts, to one length."""
        if isinstance(encoded_inputs, list | tuple):
            encoded_inputs = {key: [one[key] for one in encoded_inputs] for key in encoded_inputs[0]}
        data = {key: _listed(value) for key, value in encoded_inputs.items()}
        if "input_ids" not in data:
            raise InputError(f"there are no input_ids to pad, only {', '.join(data) or 'nothing'}")
        one = bool(data["input_ids"]) and not isinstance(data["input_ids"][0], list)
        rows = {key: [value] if one else value for key, value in data.items()}
        if _asked(return_attention_mask, "attention_mask" in self.model_input_names):
            rows.setdefault("attention_mask", [[1] * len(ids) for ids in rows["input_ids"]])
        kind = _PADDINGS.get(padding, "longest")
        if kind:
            longest = max((len(ids) for ids in rows["input_ids"]), default=0)
            length = longest if kind == "longest" else max_length or self._text.max_length or longest
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else length
            side = _side("padding_side", padding_side or self.padding_side)
            fills = {"input_ids": self.pad_token_id, "special_tokens_mask": 1, "labels": -100}
            if fills["input_ids"] is None:
                raise InputError(
                    "this tokenizer has no padding token; set one: tokenizer.pad_token = tokenizer.eos_token"
                )
            for key in ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"):
                if key in rows:
                    rows[key] = [_filled(row, length, fills.get(key, 0), side) for row in rows[key]]
        return Tokenized({k: v[0] for k, v in rows.items()} if one else rows).convert_to_tensors(return_tensors)

    # ------------------------------------------------------------------ ids to texts
    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """The text of ids (a list, an array, a tensor or one id), or the texts of a list of such."""
        ids = _listed(token_ids)
        if isinstance(ids, Mapping):
            ids = _listed(ids["input_ids"])
        if isinstance(ids, int):
            ids = [ids]
        if ids and isinstance(ids[0], list | tuple):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        return self._text.decode(
            ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )

    def batch_decode(self, sequences: Any, *options: Any, **named: Any) -> list[str]:
        """The texts of several rows of ids."""
        rows = _listed(sequences)
        texts = self.decode(
            [_listed(row) for row in rows] if isinstance(rows, list | tuple) else rows, *options, **named
        )
        return [texts] if isinstance(texts, str) else texts

    # ------------------------------------------------------------------ conversations
    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The template of that name, or the one in use."""
        return self._template.choose(chat_template, tools is not None)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """The text of a conversation, or of a list of them; with `tokenize` its ids and masks, or the ids alone."""
        several = bool(conversation) and isinstance(conversation[0], list | tuple)
        texts = [
            self._template.render(
                one,
                tools=tools,
                documents=documents,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
            for one in (conversation if several else [conversation])
        ]
        rendered = texts if several else texts[0]
        if not tokenize:
            return rendered
        tokens = self(
            rendered,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return tokens if return_dict else tokens["input_ids"]

    # ------------------------------------------------------------------ saving
    def save_pretrained(self, save_directory: str | PathLike[str], **ignored: Any) -> tuple[str, ...]:
        """Write the tokenizer's files as it is now; returns their paths."""
        folder = Path(save_directory).expanduser()
        if folder.is_file():
            raise InputError(f"{folder} is a file; give a folder to save into")
        folder.mkdir(parents=True, exist_ok=True)
        for name in _COPIED if not self.changed else ():
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, folder / name)
        settings = {**read_object(self._folder / "tokenizer_config.json")}
        for name in ("chat_template", "additional_special_tokens", "extra_special_tokens"):
            settings.pop(name, None)
        settings |= {"extra_special_tokens": self._extra} if self._extra else {}
        settings |= {
            **self.special_tokens_map,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        self.backend_tokenizer.save(str(folder / "tokenizer.json"))
        for name, template in self._template.templates.items():
            path = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
            path.parent.mkdir(exist_ok=True)
            path.write_text(template, "utf-8")
        return tuple(str(path) for path in sorted(folder.rglob("*")) if path.is_file())


def _side(name: str, side: Any) -> str:
    if side not in ("left", "right"):
        raise InputError(f"{name}={side!r:.40} is not 'left' or 'right'")
    return str(side)


def _asked(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _listed(value: Any) -> Any:
    """An array or tensor as lists; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _filled(row: Sequence[int], length: int, fill: int | None, side: str) -> list[Any]:
    missing = [fill] * (length - len(row))
    return [*missing, *row] if side == "left" else [*row, *missing]
