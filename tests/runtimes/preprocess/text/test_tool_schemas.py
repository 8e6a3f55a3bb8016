"""Functions as the tools of a conversation, described as transformers describes them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

from isoform.errors import InputError
from isoform.runtimes.preprocess.text.chat import ChatTemplate
from isoform.runtimes.preprocess.text.tool_schemas import tool_schema


class Unit(enum.Enum):
    CELSIUS = "c"
    KELVIN = "k"


class Weather:
    def at(self, place: str) -> str:
        """Say how it is.

        Args:
            place: Where.
        """
        return place


def temperature(place: str, unit: Literal["c", "f"] = "c", days: int | None = None) -> float:
    """
    Get the temperature at a place.

    More about it: it is warm.

    Args:
        place: The place, in the format
            "City, Country"
        unit: The unit to give it in. (choices: ["c", "f"])
        days: How many days from now

    Returns:
        The temperature, as a number
        of degrees.
    """
    return 22.0


def many(
    a: list[int],
    b: dict[str, float],
    c: tuple[int, str],
    d: Union[int, str],  # noqa: UP007
    e: Optional[list[str]],  # noqa: UP045
    f: Unit,
    g: Any,
    h: bool,
    i: list = [],  # type: ignore[type-arg]  # noqa: B006
    j: list[str] | dict[str, int] = [],  # noqa: B006
) -> Weather:
    """Do much.

    Args:
        a: One
        b: Two: with a colon
        c: Three

        d: Four
        e: Five
        f: Six
        g: Seven
        h: Eight
        i: Nine
        j: Ten
    Raises:
        ValueError: never
    """
    return Weather()


def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize("function", [temperature, many, nothing, Weather().at])
def test_a_function_is_described_as_by_transformers(function: Callable[..., Any]) -> None:
    from transformers.utils import get_json_schema

    assert tool_schema(function) == get_json_schema(function)


def test_functions_and_schemas_render_alike(tiny: Callable[[str], Path]) -> None:
    template = ChatTemplate({"default": "{{ tools | tojson }}{{ messages[0].content }}"})
    chat = [{"role": "user", "content": "hello"}]
    made = template.render(chat, tools=[temperature, Weather().at])
    assert made == template.render(chat, tools=[tool_schema(temperature), tool_schema(Weather().at)])
    assert '"City, Country\\"' in made
    with pytest.raises(InputError, match="not a str"):
        template.render(chat, tools=["temperature"])  # type: ignore[list-item]


def silent(a: int) -> None: ...


def untyped(a) -> None:  # type: ignore[no-untyped-def]
    """Say.

    Args:
        a: One
    """


def undescribed(a: int) -> None:
    """Say."""


def odd(a: Weather) -> None:
    """Say.

    Args:
        a: One
    """


def choosy(a: str) -> None:
    """Say.

    Args:
        a: One (choices: a, b)
    """


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (silent, "the tool silent has no docstring"),
        (untyped, "a of the tool untyped has no type hint"),
        (undescribed, "does not describe a"),
        (odd, "has no JSON schema here"),
        (choosy, "the choices of a in the tool choosy are no JSON list"),
    ],
)
def test_a_function_that_says_too_little_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tool_schema(function)
