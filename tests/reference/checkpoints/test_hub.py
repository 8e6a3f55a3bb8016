"""Hub ids open through huggingface_hub: only what is needed, once, and with one clear line when it cannot be."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load, save

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.model import open_model
from tests.oracle import tiny
from tests.reference.checkpoints.hub_server import Hub, Repository, commit_of, files_of, point_at, serve

IDS = torch.tensor([[1, 5, 9, 4]])
REST = {
    ".gitattributes": b"*.bin filter=lfs",
    "README.md": b"# A model",
    "flax_model.msgpack": b"flax",
    "model.fp16.safetensors": b"another variant",
    "model.gguf": b"GGUF",
    "onnx/config.json": b"{}",
    "onnx/model.onnx": b"onnx",
    "original/consolidated.00.pth": b"pth",
    "pytorch_model.bin": b"a pickle",
    "tf_model.h5": b"tf",
    "training_args.bin": b"a pickle",
}


def as_bin(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same repository as it was before safetensors."""
    stream = io.BytesIO()
    torch.save(load(files["model.safetensors"]), stream)
    rest = {name: content for name, content in files.items() if name != "model.safetensors"}
    return {**rest, "pytorch_model.bin": stream.getvalue()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub of its own, and an empty cache."""
    llama, other = files_of(tiny("llama")), files_of(tiny("llama3_instruct"))
    repositories = {
        "org/llama": Repository({**REST, **llama}, {"v2": other}),
        "org/pieces": Repository({**llama, "tokenizer.model": b"SentencePiece"}),
        "org/bert": Repository({**REST, **files_of(tiny("bert_embed"))}),
        "org/sharded": Repository({**REST, **files_of(tiny("qwen3_sharded"))}),
        "org/old": Repository({**REST, **as_bin(llama)}),
        "org/secret": Repository(llama, token="hf_secret"),
        "org/dense": Repository(with_dense(files_of(tiny("bert_embed")))),
        "org/inner": Repository(with_dense(files_of(tiny("bert_embed")), inner="0_Transformer/")),
        "org/gated": Repository(llama, token="hf_gated", gated=True),
        "org/weightless": Repository({"config.json": llama["config.json"]}),
        "org/ggufs": Repository(
            {
                "README.md": b"# Quantized",
                **{f"m-{kind}.gguf": b"GGUF" for kind in ("q4_k_m", "q8_0")},
                **{f"m-f16-0000{n}-of-00002.gguf": b"GGUF" for n in (1, 2)},
            }
        ),
        "org/empty": Repository({"README.md": b"# Nothing"}),
        "org/evil": Repository({**llama, "model-../../../../evil.safetensors": b"outside"}),
    }
    with serve(repositories) as served:
        point_at(served, monkeypatch, tmp_path)
        yield served


def with_dense(files: dict[str, bytes], inner: str = "") -> dict[str, bytes]:
    """A repository with a Dense module; with the model in a folder of its own its weights are pickled."""
    weights = {"linear.weight": torch.ones(3, 40), "linear.bias": torch.ones(3)}
    kinds = {inner: "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    listed = [
        {"idx": n, "name": str(n), "path": place.rstrip("/"), "type": f"sentence_transformers.models.{kind}"}
        for n, (place, kind) in enumerate(kinds.items())
    ]
    pickled = io.BytesIO()
    torch.save(weights, pickled)
    stored = {"pytorch_model.bin": pickled.getvalue()} if inner else {"model.safetensors": save(weights)}
    return {
        **{name if "/" in name else f"{inner}{name}": held for name, held in files.items() if name != "modules.json"},
        "modules.json": json.dumps(listed).encode(),
        "2_Dense/config.json": b'{"in_features": 40, "out_features": 3}',
        **{f"2_Dense/{name}": content for name, content in stored.items()},
    }


def refused(source: str, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(source)
    return message


# ------------------------------------------------------------------ what is fetched
def test_only_the_files_that_a_model_needs_are_fetched(hub: Hub) -> None:
    opened = open_model("org/bert")
    sidecars = open_checkpoint(tiny("bert_embed")).sidecars()
    expected = {path.relative_to(tiny("bert_embed")).as_posix() for path in sidecars}
    assert hub.fetched() == expected | {"model.safetensors", "README.md"}
    assert opened.name == "org/bert"
    assert torch.equal(opened.module()(IDS)[0], open_model(tiny("bert_embed")).module()(IDS)[0])


@pytest.mark.parametrize("name", ["org/dense", "org/inner"])
def test_the_modules_of_sentence_transformers_are_fetched_with_their_weights(hub: Hub, name: str) -> None:
    opened = open_model(name)
    dense = {"2_Dense/config.json", f"2_Dense/{'pytorch_model.bin' if name == 'org/inner' else 'model.safetensors'}"}
    assert dense <= hub.fetched()
    vectors = opened.module()(IDS)[1]
    assert vectors.shape == (1, 3)
    hub.requests.clear()
    assert torch.equal(open_model(name, offline=True).module()(IDS)[1], vectors)
    assert hub.requests == []


def test_shards_are_fetched_with_their_index(hub: Hub) -> None:
    opened = open_model("org/sharded")
    index = json.loads((tiny("qwen3_sharded") / "model.safetensors.index.json").read_text())
    weights = {name for name in hub.fetched() if "model" in name and name.endswith(("safetensors", "index.json"))}
    assert weights == {"model.safetensors.index.json", *index["weight_map"].values()}
    assert torch.equal(opened.module()(IDS)[0], open_model(tiny("qwen3_sharded")).module()(IDS)[0])


def test_a_sentencepiece_model_is_fetched(hub: Hub) -> None:
    assert open_checkpoint("org/pieces").folder.joinpath("tokenizer.model").read_bytes() == b"SentencePiece"


def test_bin_files_are_fetched_where_there_is_nothing_else(hub: Hub) -> None:
    opened = open_model("org/old")
    assert {name for name in hub.fetched() if name.endswith(".bin")} == {"pytorch_model.bin"}
    assert torch.equal(opened.module()(IDS)[0], open_model(tiny("llama")).module()(IDS)[0])


@pytest.mark.parametrize("revision", ["v2", commit_of(files_of(tiny("llama3_instruct")))])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, revision: str) -> None:
    found = open_model("org/llama", revision=revision).module()(IDS)[0]
    assert torch.equal(found, open_model(tiny("llama3_instruct")).module()(IDS)[0])
    assert torch.equal(open_model("org/llama").module()(IDS)[0], open_model(tiny("llama")).module()(IDS)[0])


def test_the_cache_goes_where_it_is_asked_to(hub: Hub, tmp_path: Path) -> None:
    opened = open_checkpoint("org/llama", cache_dir=tmp_path / "elsewhere")
    assert opened.folder.is_relative_to(tmp_path / "elsewhere")
    assert not (tmp_path / "hub").exists()


# ------------------------------------------------------------------ once
def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub) -> None:
    open_checkpoint("org/llama")
    assert hub.fetched()
    open_checkpoint("org/llama")
    assert hub.fetched() == set()
    commit = commit_of({**REST, **files_of(tiny("llama"))})
    open_checkpoint("org/llama", revision=commit)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["org/llama", "org/old", "org/sharded"])
def test_offline_the_cache_serves_and_nothing_is_asked(hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_model(name).module()(IDS)[0]
    hub.requests.clear()
    assert torch.equal(open_model(name, offline=True).module()(IDS)[0], expected)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(open_model(name).module()(IDS)[0], expected)
    assert hub.requests == []


def test_the_cache_serves_when_the_hub_is_out_of_order(hub: Hub) -> None:
    open_checkpoint("org/llama")
    hub.status = 500
    assert open_checkpoint("org/llama").config


# ------------------------------------------------------------------ tokens
def test_a_token_goes_to_the_hub_and_nowhere_else(hub: Hub) -> None:
    open_checkpoint("org/secret", token="hf_secret")
    assert {request.token for request in hub.requests if not request.storage} == {"hf_secret"}
    assert {request.token for request in hub.requests if request.storage} == {None}
    assert any(request.storage for request in hub.requests)


def test_no_token_is_sent_where_none_is_given(hub: Hub) -> None:
    open_checkpoint("org/llama")
    assert {request.token for request in hub.requests} == {None}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_private_repository_needs_its_token(hub: Hub, token: str | None) -> None:
    assert "not on the Hub (or private: pass a token, HF_TOKEN)" in refused("org/secret", token=token)


def test_a_gated_repository_needs_its_terms_accepted(hub: Hub) -> None:
    assert "is gated; accept its terms on the Hub" in refused("org/gated", token="hf_other")
    assert open_checkpoint("org/gated", token="hf_gated").config


def test_a_token_that_is_no_header_is_refused(hub: Hub) -> None:
    assert "could not be fetched" in refused("org/llama", token="hf_\nline")


# ------------------------------------------------------------------ what goes wrong
def test_what_is_not_on_the_hub_is_refused(hub: Hub) -> None:
    assert "is no folder here and not on the Hub" in refused("org/nothing")
    assert "has no revision 'v3'" in refused("org/llama", revision="v3")
    assert "not whole in the cache, and the Hub is off" in refused("org/llama", offline=True)
    assert "org/weightless holds no weights" in refused("org/weightless")
    assert "org/empty has no config.json" in refused("org/empty")
    message = refused("org/ggufs")
    assert "as GGUF only (m-f16-00001-of-00002.gguf, m-q4_k_m.gguf, m-q8_0.gguf)" in message
    assert "hf download org/ggufs m-f16-00001-of-00002.gguf" in message


def test_a_hub_that_is_out_of_reach_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 500
    assert "500" in refused("org/llama")
    hub.status = 200  # a page of some other server
    assert "could not be fetched" in refused("org/llama")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub is out of reach" in refused("org/llama")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_download_that_breaks_off_is_refused_and_goes_on_later(hub: Hub, name: str) -> None:
    served = hub.repositories["org/llama"].files[name]
    hub.breaks[name] = len(served) // 20
    assert "could not be fetched" in refused("org/llama")
    assert "not whole in the cache" in refused("org/llama", offline=True)
    hub.breaks.clear()
    hub.requests.clear()
    opened = open_model("org/llama")
    assert (opened.checkpoint.folder / name).read_bytes() == served
    assert name in hub.fetched()


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.breaks["model.safetensors"] = 200_000
    assert open_model("org/llama").module()(IDS)
    ranges = [request.range for request in hub.requests if request.storage and request.range]
    assert ranges == ["bytes=200000-", "bytes=400000-"]


def test_a_repository_cannot_write_outside_the_cache(hub: Hub, tmp_path: Path) -> None:
    assert "could not be fetched" in refused("org/evil")
    assert not list(tmp_path.rglob("*evil.safetensors"))


def test_a_path_that_is_not_there_asks_no_hub(hub: Hub) -> None:
    for source in ("./org/llama", "/org/llama", "a/b/c", "~/llama"):
        with pytest.raises(CheckpointError, match="does not exist"):
            open_checkpoint(source)
    assert hub.requests == []


# ------------------------------------------------------------------ the environment
OPEN = """
import sys
from isoform.errors import IsoformError
from isoform.reference.model import open_model
try:
    print(len(open_model(sys.argv[1]).weights))
except IsoformError as error:
    print(error)
"""


def test_the_hubs_variables_are_honoured(hub: Hub, tmp_path: Path) -> None:
    def run(source: str, **variables: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **variables}
        command = [sys.executable, "-c", OPEN, source]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout.strip()

    expected = str(len(open_model(tiny("llama")).weights))
    assert "the Hub is off" in run("org/secret", HF_HUB_OFFLINE="1", HF_TOKEN="hf_secret")
    assert hub.requests == []
    assert run("org/secret", HF_HUB_OFFLINE="0", HF_TOKEN="hf_secret") == expected
    asked = [request for request in hub.requests if "org/secret" in request.path]
    assert {request.token for request in asked} == {"hf_secret"}
    hub.requests.clear()
    assert run("org/secret", HF_HUB_OFFLINE="1") == expected
    assert hub.requests == []
