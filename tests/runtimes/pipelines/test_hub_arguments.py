"""Pipelines over Hub ids: what is fetched, with which revision and token, and the task that the Hub states."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import isoform
from isoform.errors import CheckpointError, InputError
from tests.oracle import tiny
from tests.reference.checkpoints.hub_server import Hub, Repository, files_of, point_at, serve

Tiny = Callable[[str], Path]
TEXT = "The small cat reads."


def without(files: dict[str, bytes], *keys: str) -> dict[str, bytes]:
    """The files of a checkpoint whose config.json lacks some keys."""
    config = {key: value for key, value in json.loads(files["config.json"]).items() if key not in keys}
    return {**files, "config.json": json.dumps(config).encode()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    labelled, masked = files_of(tiny("bert_seqcls")), files_of(tiny("bert"))
    repositories = {
        "org/labels": Repository(labelled, {"v2": files_of(tiny("distilbert_seqcls"))}, tag="fill-mask"),
        "org/untold": Repository(without(masked, "architectures"), tag="fill-mask"),
        "org/none": Repository(without(masked, "architectures")),
        "org/odd": Repository(without(masked, "architectures"), tag="colouring"),
        "org/tokens": Repository({name: labelled[name] for name in labelled if name.startswith("token")}),
        "org/secret": Repository(labelled, token="hf_secret"),
    }
    with serve(repositories) as served:
        point_at(served, monkeypatch, tmp_path)
        yield served


def ours(*arguments: Any, **options: Any) -> Any:
    return isoform.pipeline(*arguments, **options)


def answer(*arguments: Any, **options: Any) -> Any:
    with ours(*arguments, **options) as pipe:
        return pipe(TEXT)


def test_the_architecture_says_the_task_and_the_hub_is_not_asked(hub: Hub) -> None:
    with ours(model="org/labels") as pipe:
        assert pipe.task == "text-classification"
        assert pipe.model.name_or_path == "org/labels"
        assert pipe(TEXT) == answer(model=tiny("bert_seqcls"))


def test_the_hub_says_the_task_where_no_architecture_does(hub: Hub) -> None:
    with ours(model="org/untold") as pipe:
        assert pipe.task == "fill-mask"
    with ours(model="org/none") as pipe:
        assert pipe.task == "feature-extraction", "nobody says a task, and a model without its head is left"
    with pytest.raises(InputError, match="org/odd is for colouring, for which there is no pipeline"):
        ours(model="org/odd")
    hub.status = 500
    with pytest.raises(CheckpointError, match="org/untold could not be fetched"):
        ours(model="org/untold")


def test_a_revision_is_the_models_and_not_that_of_other_repositories(hub: Hub) -> None:
    expected = answer(model=tiny("distilbert_seqcls"))
    assert answer(model="org/labels", revision="v2") == expected
    assert answer(model="org/labels", model_kwargs={"revision": "v2"}) == expected
    with ours(model="org/labels", revision="v2") as pipe:
        assert answer(model=pipe.model) == expected, "another pipeline over its model has the same revision"
    assert answer(model="org/labels", revision="v2", tokenizer="org/tokens")
    with pytest.raises(CheckpointError, match="has no revision 'v3'"):
        ours(model="org/labels", revision="v3")


def test_a_tokenizer_of_the_hub_brings_no_weights(hub: Hub) -> None:
    expected = answer(model=tiny("bert_seqcls"))
    assert answer(model=tiny("bert_seqcls"), tokenizer="org/labels") == expected
    assert "model.safetensors" not in hub.fetched()
    assert answer(model=tiny("bert_seqcls"), config="org/labels", tokenizer=("org/tokens", {})) == expected
    with pytest.raises(CheckpointError, match="tokenizer: org/nothing is no folder here and not on the Hub"):
        ours(model=tiny("bert_seqcls"), tokenizer="org/nothing")


def test_a_token_goes_along(hub: Hub) -> None:
    expected = answer(model=tiny("bert_seqcls"))
    assert answer(model="org/secret", token="hf_secret") == expected
    assert answer(model=tiny("bert_seqcls"), tokenizer="org/secret", token="hf_secret") == expected
    for token in (None, False, "hf_other"):
        with pytest.raises(CheckpointError, match="not on the Hub"):
            ours(model="org/secret", revision="main", cache_dir="/tmp", token=token)


@pytest.mark.parametrize("option", ["offline", "local_files_only"])
def test_nothing_is_asked_of_the_hub_offline(hub: Hub, option: str, tmp_path: Path) -> None:
    expected = answer(model="org/labels", cache_dir=tmp_path / "cache")
    hub.requests.clear()
    assert answer(model="org/labels", cache_dir=tmp_path / "cache", **{option: True}) == expected
    assert answer(None, "org/labels", model_kwargs={"cache_dir": str(tmp_path / "cache")}, **{option: True}) == expected
    assert hub.requests == []
    with pytest.raises(CheckpointError, match="the Hub is off"):
        ours(model="org/untold", **{option: True})
    ours("fill-mask", "org/untold").close()
    hub.requests.clear()
    with pytest.raises(InputError, match="the Hub may not be asked; give task="):
        ours(model="org/untold", **{option: True})
    assert hub.requests == []


def test_a_task_in_the_place_of_the_model_is_explained(hub: Hub) -> None:
    with pytest.raises(InputError, match="give a model as model="):
        ours("org/labels")
    assert hub.requests == []


def test_the_default_model_comes_at_its_revision(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoform.reference.default_models import DEFAULT_MODELS

    name, revision = DEFAULT_MODELS["text-classification"]
    hub.repositories[name] = Repository({"config.json": b"{}"}, {revision: files_of(tiny("bert_seqcls"))})
    with pytest.warns(UserWarning, match=f"{name} at revision {revision}"):
        assert answer("sentiment-analysis") == answer(model=tiny("bert_seqcls"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match="no model was given"), pytest.raises(CheckpointError, match="the Hub is off"):
        ours("fill-mask")
