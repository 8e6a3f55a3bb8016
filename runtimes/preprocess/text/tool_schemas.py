"""The JSON schema of a Python function, for the tools of a conversation, as transformers describes functions.

The type hints of the function say the types, its docstring in Google's format says what it does and what each argument
is for: an `Args:` section with a line for each. "(choices: ["a", "b"])" at the end of a line lists the values.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from isoform.errors import InputError

_SCALARS: Mapping[type, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}
_TYPES: Mapping[Any, str] = {**_SCALARS, list: "array", tuple: "array", dict: "object"}
_SECTION = re.compile(r"(?m)^[ \t]*(Args|Returns|Raises):[ \t]*$")
_ARGUMENT = re.compile(r"^([ \t]*)(\w+):[ \t]*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """{"type": "function", "function": {name, description, parameters}}. Raises InputError for what says too little."""
    name = getattr(function, "__name__", "operation")
    text = (inspect.getdoc(function) or "").strip()
    if not text:
        raise InputError(f"the tool {name} has no docstring, which tells the model what it does; write one")
    described, arguments, returned = _read(text)
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise InputError(f"the type hints of the tool {name} cannot be read ({error})") from None
    given = inspect.signature(function).parameters
    own = next((one for one in list(given)[:1] if one in ("self", "cls") and one not in hints), None)
    properties: dict[str, Any] = {}
    for argument in given:
        if argument == own:
            continue
        if argument not in hints:
            raise InputError(f"the argument {argument} of the tool {name} has no type hint; give it one")
        if argument not in arguments:
            raise InputError(f"the docstring of the tool {name} does not describe {argument}; add it under Args:")
        schema, text = _schema(hints[argument], f"{name}({argument})"), arguments[argument]
        if (choices := _CHOICES.search(text)) is not None:
            schema["enum"] = _values(choices.group(1), name, argument)
            text = text[: choices.start()].strip()
        properties[argument] = {**schema, "description": text}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [one for one in properties if given[one].default is inspect.Parameter.empty]:
        parameters["required"] = required
    made: dict[str, Any] = {"name": name, "description": described, "parameters": parameters}
    if "return" in hints and (result := _returned(hints["return"], returned)) is not None:
        made["return"] = result
    return {"type": "function", "function": made}


def _returned(hint: Any, text: str) -> dict[str, Any] | None:
    """The schema of what comes back; left out where it has none, because no model writes it."""
    try:
        schema = _schema(hint, "")
    except InputError:
        return None
    return {**schema, "description": text} if text else schema


def _values(text: str, name: str, argument: str) -> list[Any]:
    try:
        values = json.loads(text)
    except ValueError:
        raise InputError(f"the choices of {argument} in the tool {name} are no JSON list: {text}") from None
    return [value.strip() if isinstance(value, str) else value for value in values]


def _read(text: str) -> tuple[str, dict[str, str], str]:
    """The description, the text of each argument, and that of what is returned."""
    pieces = _SECTION.split(text)
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    arguments: dict[str, str] = {}
    current, indent = "", ""
    for line in sections.get("Args", "").splitlines():
        found = _ARGUMENT.match(line)
        if found is not None and (not arguments or len(found.group(1)) <= len(indent)):
            indent, current = found.group(1), found.group(2)
            arguments[current] = found.group(3).strip()
        elif current and line.strip():
            arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    returned = sections.get("Returns", "").strip()
    return pieces[0].strip(), arguments, returned


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type hint."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is None:
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enumerated([member.value for member in hint], where)
        if hint in _TYPES:
            return {"type": _TYPES[hint]}
    elif origin is Union or origin is types.UnionType:
        return _union([_schema(one, where) for one in arguments if one is not type(None)], type(None) in arguments)
    elif origin is Literal:
        return _enumerated(list(arguments), where)
    elif origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    elif origin is dict:
        more = {"additionalProperties": _schema(arguments[1], where)} if len(arguments) == 2 else {}
        return {"type": "object", **more}
    elif origin is tuple and len(arguments) > 1 and ... not in arguments:
        return {"type": "array", "prefixItems": [_schema(one, where) for one in arguments]}
    raise InputError(
        f"the type hint {hint!r:.60} of the tool {where} has no JSON schema here; use basic types, list, dict, Literal "
        "or an Enum, or give the schema as a dict"
    )


def _enumerated(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise InputError(f"the values of the tool {where} are not numbers, texts, True, False or None: {values!r:.60}")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _union(schemas: list[dict[str, Any]], optional: bool) -> dict[str, Any]:
    if len(schemas) == 1:
        made = schemas[0]
    elif all(schema.keys() == {"type"} and isinstance(schema["type"], str) for schema in schemas):
        names = sorted({schema["type"] for schema in schemas})
        made = {"type": names[0] if len(names) == 1 else names}
    else:
        made = {"anyOf": schemas}
    return made | ({"nullable": True} if optional else {})
