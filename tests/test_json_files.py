"""What a JSON file of a model's folder holds is of the asked type, or one line names file, key and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import CheckpointError
from isoform.json_files import JsonObject, read_list, read_object, read_text

ANY: list[Any] = [
    None,
    True,
    0,
    1,
    3,
    -2,
    2.0,
    1.5,
    1e30,
    float("inf"),
    float("nan"),
    10**400,
    "x",
    "",
    [],
    [1],
    ["a"],
    {},
]

GETTERS: dict[str, tuple[Callable[[JsonObject], Any], list[Any]]] = {
    "text": (lambda o: o.text("k", "?"), ["x", ""]),
    "choice": (lambda o: o.choice("k", ["x", "y"], "y"), ["x"]),
    "flag": (lambda o: o.flag("k", False), [True, 0, 1]),
    "integer": (lambda o: o.integer("k", 7, least=0, most=10), [0, 1, 3, 2.0]),
    "unbounded integer": (lambda o: o.integer("k"), [0, 1, 3, -2, 2.0, 1e30, 10**400]),
    "number": (lambda o: o.number("k", 0.5, least=0), [0, 1, 3, 2.0, 1.5, 1e30]),
    "object": (lambda o: dict(o.object("k")), [{}]),
    "list": (lambda o: list(o.items_of("k")), [[], [1], ["a"]]),
    "integers": (lambda o: o.integers("k", least=0, most=3), [0, 1, 3, [], [1]]),
    "texts": (lambda o: o.texts("k"), [[], ["a"]]),
}


@pytest.mark.parametrize("name", GETTERS)
def test_each_getter_takes_its_type_alone(name: str) -> None:
    get, right = GETTERS[name]
    for value in ANY[1:]:
        found = JsonObject(Path("some.json"), {"k": value}, "inner.")
        if any(type(value) is type(one) and value == one for one in right):
            get(found)
            continue
        with pytest.raises(CheckpointError, match=r"^some\.json: inner\.k is .*, not .*; correct the file$") as error:
            get(found)
        assert len(str(error.value)) < 200
    assert get(JsonObject(Path("x"), {"k": None})) == get(JsonObject(Path("x"), {}))


def test_values_come_out_in_their_type(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"n": 16.0, "f": 1, "x": 3, "o": {"i": [1, 2]}, "t": ["a"]}))
    found = JsonObject.read(tmp_path / "a.json")
    assert repr(found.integer("n")) == "16"
    assert found.flag("f") is True
    assert repr(found.number("x")) == "3.0"
    assert found.object("o").integers("i") == (1, 2)
    assert found.texts("t") == ("a",)
    assert dict(JsonObject.read(tmp_path / "none.json")) == {}
    with pytest.raises(CheckpointError, match=r"a\.json: o\.i is \[1, 2\], not a whole number from 2 to 9"):
        found.object("o").integers("i", least=2, most=9)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\x00", '{"a": "\\ud800"}', '{"\\uDC00": 1}', "9" * 5000, "3"])
def test_what_is_no_json_object_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    for read in (read_object, read_list):
        with pytest.raises(CheckpointError, match=r"x\.json .*; fetch it again") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_object(tmp_path / "x.json") == {"a": "\U0001f600"}


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"x\.txt is not UTF-8 text"):
        read_text(tmp_path / "x.txt")
    with pytest.raises(CheckpointError, match=r"x\.json is not readable JSON"):
        (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
        read_object(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_text(tmp_path)
