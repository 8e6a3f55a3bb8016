"""Chat templates: a conversation to the text a model was trained on, rendered as transformers renders it.

A template comes from the Hub with the model and is untrusted code: it sees only plain JSON values, and runs in
`sandbox`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoform.errors import InputError
from isoform.json_files import JsonObject, is_there, read_text
from isoform.runtimes.preprocess.text.sandbox import render
from isoform.runtimes.preprocess.text.tool_schemas import tool_schema

Message = Mapping[str, Any]
"""{"role": "user", "content": "…"}; content may be a list of {"type": "text", "text": "…"} parts."""

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the names under which reasoning is passed


@dataclass(frozen=True)
class ChatTemplate:
    """The templates of a model by name ("default", "tool_use", …) and the special tokens they may write."""

    templates: dict[str, str]
    special: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, special: Mapping[str, str]) -> ChatTemplate:
        """The templates of a folder: chat_template.jinja and additional_chat_templates/*.jinja, else the entry of
        tokenizer_config.json (a text, or a list of named texts), else chat_template.json. There may be none."""
        templates: dict[str, str] = {}
        files = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        named = [("default", folder / "chat_template.jinja")] + [(path.stem, path) for path in files]
        for name, path in named:
            if is_there(path):
                templates[name] = read_text(path)
        if not templates:
            files_of_old = (JsonObject.read(folder / name) for name in ("tokenizer_config.json", "chat_template.json"))
            found = next((file for file in files_of_old if file.get("chat_template") is not None), None)
            if found is not None:
                templates = _listed(found)
        return cls(templates, special)

    def replace(self, templates: Mapping[str, str]) -> None:
        """Use these templates from now on."""
        self.templates.clear()
        self.templates.update(templates)

    def choose(self, name: str | None = None, tools: bool = False) -> str:
        """The template of that name, or `name` itself when it is a template; InputError when there is none."""
        if name is not None:
            return self.templates.get(name, name)
        if tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" in self.templates:
            return self.templates["default"]
        if self.templates:
            raise InputError(
                f"this model has chat templates named {', '.join(sorted(self.templates))} and no default; pass "
                "chat_template= with one of the names"
            )
        raise InputError(
            "this model has no chat template, so it takes no chat messages; pass plain text, or a template with "
            "chat_template="
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation. `variables` reach the template under their names.

        `continue_final_message` leaves the last message open, so that the model goes on with it (a text names the
        field of the message to continue). `tools` are JSON schemas, or functions with type hints and a docstring.
        InputError says what template or messages lack.
        """
        if not messages:
            raise InputError("the conversation is empty; give at least one message")
        if continue_final_message and add_generation_prompt:
            raise InputError("continue_final_message and add_generation_prompt exclude each other; pass one of them")
        described = None if tools is None else [_tool(tool) for tool in tools]
        for document in documents or ():
            if not isinstance(document, Mapping):
                raise InputError(f"a document is a dict with 'title' and 'text', not {type(document).__name__}")
        chat = [_message(message) for message in messages]
        template = self.choose(chat_template, tools is not None)
        final = _leave_open(chat, continue_final_message, template) if continue_final_message else ""
        values = {
            **self.special,
            **plain(variables),
            "messages": chat,
            "tools": plain(described),
            "documents": plain(list(documents)) if documents is not None else None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = render(template, values)
        return _cut(text, final) if continue_final_message else text


def _listed(file: JsonObject) -> dict[str, str]:
    """The templates of a JSON file by name: one text, or a list of named texts."""
    entry = file["chat_template"]
    if isinstance(entry, str):
        return {"default": entry}
    texts: dict[str, str] = {}
    for item in entry if isinstance(entry, list) else [None]:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("name", "template")):
            raise file.wrong("chat_template", "a text, or a list of objects with name and template")
        texts[item["name"]] = item["template"]
    return texts


def is_chat(value: Any) -> bool:
    """Whether a pipeline's input is one conversation: a non-empty list of messages with a role and a content."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and isinstance(value[0], Mapping)
        and "role" in value[0]
        and "content" in value[0]
    )


def plain(value: Any) -> Any:
    """A copy made of JSON types only, so that a template finds no method it could misuse; others become "<type>"."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else [plain(v) for v in value]
    return f"<{type(value).__name__}>"


def _tool(tool: Any) -> Mapping[str, Any]:
    """The JSON schema of a tool."""
    if isinstance(tool, Mapping):
        return tool
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        return tool_schema(tool)
    raise InputError(f"a tool is a JSON schema (a dict) or a function, not a {type(tool).__name__}")


def _message(message: Any) -> dict[str, Any]:
    """A message as the template sees it: no empty keys, and reasoning under the names that templates know."""
    if not isinstance(message, Mapping):
        raise InputError(f"a chat message is a dict with 'role' and 'content', not {message!r:.80}")
    if "role" not in message or ("content" not in message and "tool_calls" not in message):
        found = ", ".join(map(str, message)) or "neither"
        raise InputError(f"a chat message needs 'role' and 'content'; this one has {found}")
    clean: dict[str, Any] = {key: plain(value) for key, value in message.items() if value is not None}
    reasoning = next((clean[key] for key in _REASONING if key in clean), None)
    if reasoning is not None:
        clean = {"thinking": reasoning, **clean, "reasoning_content": reasoning}
    return clean


def _leave_open(chat: list[dict[str, Any]], which: bool | str, template: str) -> str:
    """Mark where the last message ends, in place, and return its text."""
    name = which if isinstance(which, str) else "content"
    last = chat[-1]
    final = last.get(name)
    if final is None:
        raise InputError(f"continue_final_message: the last message has no {name!r} to continue")
    names = [key for key in _REASONING if last.get(key) == final] if name in _REASONING else [name]
    if not any(key in template for key in names):
        raise InputError(f"continue_final_message: this model's chat template does not use {name!r}")
    if isinstance(final, list | tuple):
        for block in reversed(final):
            if "text" in block:
                text: str = block["text"]
                block["text"] = text + _TAG
                return text
        raise InputError("continue_final_message: the last message holds no text to continue")
    for key in names:
        last[key] = last[key] + _TAG
    return str(final)


def _cut(text: str, final: str) -> str:
    """Everything before the mark."""
    if final.strip() not in text or _TAG.strip() not in text:
        raise InputError(
            "continue_final_message: the chat template drops or rewrites the last message, so it cannot be continued; "
            "pass continue_final_message=False"
        )
    at = text.rindex(_TAG.strip())
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()
