"""A format is an object: its options, its refusals by part and task, and the table that is generated from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoform import api, formats, support
from isoform.errors import InputError
from isoform.exporters import gguf, onnx, torchscript
from isoform.exporters.bundle import FORMATS
from isoform.reference.card import Part, Task
from isoform.reference.model import Model, open_model

Tiny = Callable[[str], Path]


def test_the_registry_is_sorted_and_every_format_has_a_backend() -> None:
    assert list(FORMATS) == sorted(FORMATS)
    assert set(FORMATS) == set(formats.FORMATS) == set(formats.BACKENDS)
    assert all(form.name == name for name, form in FORMATS.items())
    assert {formats.FORMAT_OF[backend] for backend in formats.CHECKED_ON.values()} == set(FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_unknown_type_is_refused_before_a_model_is_opened(name: str) -> None:
    form = FORMATS[name]
    form.check_request(form.of_types(["f16"]))
    with pytest.raises(InputError, match="q9_9"):
        form.check_request(form.of_types(["q9_9"]))


def test_options_by_name_and_as_objects_write_the_same(tiny: Tiny, tmp_path: Path) -> None:
    named, _ = api.export_and_check(
        tiny("llama"), tmp_path / "a", onnx_types="f16", gguf_types="q8_0", dtype="bf16", check=False
    )
    objects, _ = api.export_and_check(
        tiny("llama"),
        tmp_path / "b",
        onnx=onnx.Options(types=("f16",)),
        gguf=gguf.Options(types=("q8_0",)),
        torchscript=torchscript.Options(dtype="bf16"),
        check=False,
    )
    assert [(a.format, a.dtype) for a in named.artifacts] == [
        ("onnx", "f16"),
        ("torchscript", "bf16"),
        ("gguf", "q8_0"),
    ]
    # torch numbers the classes of a second trace in one process anew, so its archives differ.
    first, second = ([a for a in made.artifacts if a.format != "torchscript"] for made in (named, objects))
    assert first == second


def test_options_of_one_format_are_not_given_twice(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="portable of onnx is given twice"):
        api.export(tiny("llama"), tmp_path / "a", portable=True, onnx=onnx.Options())


def test_gguf_follows_the_dtype_unless_its_types_are_given(tiny: Tiny, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"to": "gguf", "dtype": "f16", "check": False}
    followed, _ = api.export_and_check(tiny("llama"), tmp_path / "a", **asked)
    named, _ = api.export_and_check(tiny("llama"), tmp_path / "b", gguf_types="q8_0", **asked)
    given, _ = api.export_and_check(tiny("llama"), tmp_path / "c", gguf=gguf.Options(types=("q8_0",)), **asked)
    assert [[a.dtype for a in made.artifacts] for made in (followed, named, given)] == [["f16"], ["q8_0"], ["q8_0"]]


def in_parts(model: Model) -> Model:
    """The same model as a task of two parts, of which llama.cpp has one."""
    card = model.family.gguf
    assert card is not None
    assert model.task.build is not None
    assert model.task.signature is not None
    roots = {name: name for name in ("embed", "head", "layers", "norm")}
    whole = Part(build=model.task.build, signature=model.task.signature, roots=roots, gguf=replace(card, file="mmproj"))
    parts = {"decoder": whole, "scorer": replace(whole, gguf=None)}
    task = Task(name="scoring", architectures=model.task.architectures, parts=parts)
    family = replace(model.family, gguf=None, no_gguf="llama.cpp has no scorer", tasks=(task,))
    return replace(model, family=family, task=task)


def test_each_part_of_a_task_is_refused_or_written_alone(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("llama"))
    several = in_parts(model)
    form = FORMATS["gguf"]
    assert form.refusal(several.family, several.task, "decoder") == ""
    assert form.refusal(several.family, several.task, "scorer") == "llama.cpp has no scorer"
    assert support._answer(form, several.family, several.task) == "decoder: yes; scorer: llama.cpp has no scorer"
    (whole,) = gguf.write(model, tmp_path / "whole", ["q8_0"])
    (part,) = gguf.write(several, tmp_path / "parts", ["q8_0"])
    assert (part.part, part.files[0].path) == ("decoder", "gguf/mmproj-q8_0.gguf")
    assert part.files[0].sha256 == whole.files[0].sha256
