"""Every form gives transformers' answer, or is refused with the reason that the documentation gives."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import transformers
from transformers.pipelines import audio_classification, automatic_speech_recognition

import isoform
from isoform.errors import IsoformError
from tests.migration import comparing
from tests.migration.__main__ import renewed
from tests.migration.desk import lay_out
from tests.migration.form import Form
from tests.migration.table import TOPICS

ROOT = Path(__file__).parents[2]
FORMS = [form for forms in TOPICS.values() for form in forms]
Pipeline = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all forms."""
    folder, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    lay_out(folder)
    os.chdir(folder)
    transformers.logging.set_verbosity_error()
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def ours() -> Iterator[Pipeline]:
    yield from shared(isoform.pipeline)


@pytest.fixture(scope="module")
def theirs() -> Iterator[Pipeline]:
    """transformers', which decodes files with soundfile instead of ffmpeg: the samples of these files are the same."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (audio_classification, automatic_speech_recognition):
            patch.setattr(module, "ffmpeg_read", decoded)
        yield from shared(transformers.pipeline)


def decoded(content: bytes, rate: int) -> Any:
    samples, native = soundfile.read(io.BytesIO(content), dtype="float32")
    assert native == rate
    return samples


def shared(make: Pipeline) -> Iterator[Pipeline]:
    """`pipeline`, which gives the same object again where it is asked for a task and a model alone."""
    made: dict[str, Any] = {}

    def pipeline(*arguments: Any, **options: Any) -> Any:
        if set(options) <= {"model", "task"} and all(isinstance(one, str) for one in (*arguments, *options.values())):
            key = repr((arguments, sorted(options.items())))
            if key not in made:
                made[key] = make(*arguments, **options)
            return made[key]
        return make(*arguments, **options)

    yield pipeline
    for pipe in made.values():
        if hasattr(pipe, "close"):
            pipe.close()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form.source.split())[:100])
def test_a_form_gives_the_same_answer_or_is_refused(form: Form, ours: Pipeline, theirs: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form.refused:
            with pytest.raises(IsoformError, match=form.says):
                comparing.run(form.source, ours)
            return
        mine = comparing.run(form.source, ours)
        other = comparing.run(form.like, ours) if form.like else comparing.run(form.source, theirs)
    assert not list(comparing.differences(mine, other))


def test_the_comparison_sees_every_kind_of_difference() -> None:
    def differ(a: Any, b: Any) -> bool:
        return bool(list(comparing.differences(comparing.plain(a), comparing.plain(b))))

    assert not differ([{"score": 0.5, "label": "a"}], [{"score": 0.500001, "label": "a"}])
    wrongs: list[Any] = [
        [{"score": 0.51, "label": "a"}],
        [{"score": 0.5, "label": "b"}],
        [],
        [{"score": 0.5}],
        {},
        None,
    ]
    for wrong in wrongs:
        assert differ(wrong, [{"score": 0.5, "label": "a"}]), wrong
    assert differ(1, True)
    assert differ("1", 1)
    assert differ(float("nan"), 0.0)


def test_the_list_is_long_and_has_no_form_twice() -> None:
    sources = [form.source for form in FORMS]
    assert len(set(sources)) == len(sources)
    assert sum(not form.refused for form in FORMS) >= 123


def test_the_documentation_lists_the_forms_as_they_are() -> None:
    page = ROOT / "docs" / "migration.md"
    text = page.read_text(encoding="utf-8")
    assert text == renewed(text), "run python -m tests.migration docs/migration.md"
