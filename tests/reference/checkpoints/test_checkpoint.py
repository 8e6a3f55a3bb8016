"""A checkpoint opens lazily, and whatever is wrong with it is one clear line that names the thing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.reference.checkpoints.checkpoint import ITEM_BYTES
from isoform.reference.checkpoints.dtypes import DTYPES
from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.checkpoints.safetensors_file import read_header
from isoform.reference.config import Config, read_rope
from isoform.reference.model import open_model
from tests.oracle import tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))


def bert(folder: Path) -> Path:
    return Path(shutil.copytree(tiny("bert_seqcls"), folder, dirs_exist_ok=True))


def distilbert(folder: Path) -> Path:
    return Path(shutil.copytree(tiny("distilbert_seqcls"), folder, dirs_exist_ok=True))


def another(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(tiny(name), folder, dirs_exist_ok=True))


def refused(folder: Path | str, kind: type[IsoformError] = CheckpointError) -> str:
    """The message of opening and building; one line, and of this very kind."""
    with pytest.raises(IsoformError) as caught:
        open_model(folder).module()
    assert type(caught.value) is kind, caught.value
    message = str(caught.value)
    assert "\n" not in message
    assert 20 < len(message) < 600
    return message


def config(**changes: Any) -> Damage:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def without(*names: str) -> Damage:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in data.items() if key not in names}))

    return edit


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def edit(folder: Path) -> None:
        held = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
        change(held)
        save_file(held, folder / WEIGHTS)

    return edit


def written(path: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(path: Path, to: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(to)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Rewrite the JSON header of the safetensors file, the data left as it is."""

    def edit(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        text = change(entries)
        new = (text if isinstance(text, str) else json.dumps(entries)).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return edit


def entry(**changes: Any) -> Damage:
    return header(lambda entries: entries[NORM].update(changes))


def renamed(name: str) -> Damage:
    return header(lambda entries: entries.update({name: entries.pop(NORM)}))


def twice(entries: dict[str, Any]) -> str:
    return json.dumps(entries)[:-1] + f', "{NORM}": {json.dumps(entries[NORM])}}}'


def overlap(entries: dict[str, Any]) -> None:
    first = next(key for key in entries if key not in ("__metadata__", NORM) and entries[key]["shape"] == [64])
    entries[NORM]["data_offsets"] = entries[first]["data_offsets"]


def index(shards: Any) -> Damage:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
        (folder / INDEX).write_text(json.dumps(shards))

    return edit


def moved(file: str, **extra: str) -> Damage:
    """The weights under another name, with an index; `extra` adds entries to it."""

    def edit(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "model-1.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file) | extra}))

    return edit


TRUNCATED: dict[str, tuple[Damage, str]] = {
    "empty": (lambda f: cut(f / WEIGHTS, 0), "truncated or no safetensors file"),
    "in the length": (lambda f: cut(f / WEIGHTS, 5), "truncated or no safetensors file"),
    "in the header": (lambda f: cut(f / WEIGHTS, 700), "truncated or no safetensors file"),
    "in the data": (lambda f: cut(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1), "is truncated"),
    "a length without end": (written(WEIGHTS, b"\xff" * 4096), "truncated or no safetensors file"),
    "bytes at the end": (lambda f: cut(f / WEIGHTS, (f / WEIGHTS).stat().st_size + 3), "3 bytes that belong to no"),
}
HEADER: dict[str, tuple[Damage, str]] = {
    "no JSON": (written(WEIGHTS, struct.pack("<Q", 4) + b"oops"), "no readable safetensors header"),
    "a list": (written(WEIGHTS, struct.pack("<Q", 2) + b"[]"), "no readable safetensors header"),
    "deep nesting": (written(WEIGHTS, struct.pack("<Q", 200000) + b"[" * 200000), "no readable safetensors header"),
    "bad text": (written(WEIGHTS, struct.pack("<Q", 4) + b'"\xff\xfe"'), "no readable safetensors header"),
    "a tensor twice": (header(twice), "a name occurs twice"),
    "overlap": (header(overlap), "begins at byte"),
    "no offsets": (header(lambda e: e[NORM].pop("data_offsets")), "malformed"),
    "offsets reversed": (entry(data_offsets=[256, 0]), "malformed"),
    "negative offsets": (entry(data_offsets=[-256, 0]), "malformed"),
    "offsets past the end": (entry(data_offsets=[10**12, 10**12 + 256]), "begins at byte"),
    "fractional offsets": (entry(data_offsets=[0.5, 256.5]), "malformed"),
    "three offsets": (entry(data_offsets=[0, 1, 2]), "malformed"),
    "an entry that is a number": (header(lambda e: e.update({NORM: 3})), "malformed"),
    "an entry that is null": (header(lambda e: e.update({NORM: None})), "malformed"),
    "a shape of text": (entry(shape="abc"), "malformed"),
    "a negative shape": (entry(shape=[-8, -8]), "malformed"),
    "a shape without end": (entry(shape=[0, 10**30]), "malformed"),
    "a shape of another size": (entry(shape=[65]), "does not fill its 256 bytes"),
    "a dtype of another size": (entry(dtype="F16"), "does not fill its 256 bytes"),
    "an unknown dtype": (entry(dtype="F4"), "'F4', which isoform does not read"),
    "a dtype that is a list": (entry(dtype=["F32"]), "malformed"),
    "a name with a line break": (renamed("a\nb"), r"'a\nb' is malformed"),
    "a name with half a letter": (renamed("\ud800"), r"'\ud800' is malformed"),
}
KEYS: dict[str, tuple[Damage, str]] = {
    "missing": (tensors(lambda t: t.pop(NORM)), f"lacks {NORM}"),
    "five missing": (
        tensors(lambda t: [t.pop(key) for key in list(t) if "layers.0.mlp" in key or "layers.1.mlp" in key]),
        "and 2 more",
    ),
    "unknown": (tensors(lambda t: t.update(extra=torch.ones(2))), "no rule for extra"),
    "a layer too many": (
        tensors(lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.ones(2)})),
        "holds model.layers.3.mlp.up_proj.weight, which",
    ),
    "a bias too many": (tensors(lambda t: t.update({"model.norm.bias": torch.ones(64)})), "holds model.norm.bias"),
    "a wrong shape": (tensors(lambda t: t.update({NORM: torch.ones(7)})), f"{NORM} has shape [7], config.json asks"),
    "twice by two spellings": (tensors(lambda t: t.update({"norm.weight": t[NORM].clone()})), "the same parameter"),
    "quantized to 8-bit floats": (
        tensors(lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})),
        f"{NORM} is stored as float8_e4m3fn (a quantized checkpoint)",
    ),
    "quantized to integers": (
        tensors(lambda t: t.update({NORM: t[NORM].to(torch.int8)})),
        f"{NORM} is stored as int8 (a quantized checkpoint)",
    ),
    "truth values": (tensors(lambda t: t.update({NORM: t[NORM] > 0})), f"{NORM} is stored as bool"),
}
INDICES: dict[str, tuple[Damage, str]] = {
    "a missing shard": (moved("model-1.safetensors", x="model-2.safetensors"), "model-2.safetensors, which is missing"),
    "a missing key": (moved("model-1.safetensors", x="model-1.safetensors"), "places 'x' in model-1.safetensors"),
    "another kind of file": (moved("model-1.safetensors", x="config.json"), "config.json is truncated or no"),
    "the parent": (index({"weight_map": {"x": f"../{WEIGHTS}"}}), "points outside its folder"),
    "the parent, later": (index({"weight_map": {"x": f"sub/../../{WEIGHTS}"}}), "points outside its folder"),
    "a root": (index({"weight_map": {"x": "/etc/passwd"}}), "points outside its folder"),
    "a backslash": (index({"weight_map": {"x": f"..\\{WEIGHTS}"}}), "points outside its folder"),
    "a drive": (index({"weight_map": {"x": f"C:{WEIGHTS}"}}), "points outside its folder"),
    "nothing": (index({"weight_map": {"x": ""}}), "points outside its folder"),
    "a line break": (index({"weight_map": {"x": "a\nb"}}), "points outside its folder"),
    "the folder itself": (index({"weight_map": {"x": "./"}}), "points outside its folder"),
    "a number": (index({"weight_map": {"x": 1}}), "no weight_map"),
    "an empty map": (index({"weight_map": {}}), "no weight_map"),
    "a map that is a list": (index({"weight_map": ["x"]}), "no weight_map"),
    "no map": (index({"metadata": {}}), "no weight_map"),
    "a list": (index([]), "no weight_map"),
}
CONFIG: dict[str, tuple[Damage, str]] = {
    "none": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken": (written("config.json", "{"), "not readable JSON"),
    "empty": (written("config.json", ""), "not readable JSON"),
    "no text": (written("config.json", b"\xff\xfe\x00"), "not readable JSON"),
    "a list": (written("config.json", "[]"), "holds a list, not an object"),
    "null": (written("config.json", "null"), "has no config.json"),
    "nested without end": (written("config.json", "[" * 200000), "not readable JSON"),
    "a long number": (written("config.json", '{"vocab_size": ' + "9" * 5000 + "}"), "not readable JSON"),
    "no hidden_size": (without("hidden_size"), "no 'hidden_size', which LlamaConfig needs"),
    "text for a number": (config(hidden_size="64"), "hidden_size is '64', which is no valid int"),
    "a fraction": (config(hidden_size=64.5), "hidden_size is 64.5"),
    "a truth value for a number": (config(num_attention_heads=True), "num_attention_heads is True"),
    "a list for a number": (config(vocab_size=[1]), "vocab_size is [1]"),
    "a negative number": (config(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "no key heads": (config(num_key_value_heads=0), "num_key_value_heads is 0"),
    "key heads that do not divide": (config(num_key_value_heads=3), "8 attention heads cannot share 3"),
    "odd heads": (config(head_dim=7), "heads of 7 channels"),
    "more layers than tensors": (config(num_hidden_layers=10**9), "asks for 1000000000 layers"),
    "one layer more": (config(num_hidden_layers=4), "lacks model.layers.3."),
    "one layer less": (config(num_hidden_layers=2), "holds model.layers.2."),
    "a vocabulary without end": (config(vocab_size=10**30), "vocab_size is 1000000000000000000000000000000,"),
    "a model without end": (
        config(hidden_size=2**31 - 1, vocab_size=2**31 - 1, head_dim=2**30, num_attention_heads=2**30),
        "config.json: hidden_size is 2147483647, and the checkpoint holds",
    ),
    "another width": (config(hidden_size=32), "config.json asks for [459, 32]"),
    "eps is not a number": (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan, which is no valid float"),
    "eps is infinite": (config(rms_norm_eps=float("inf")), "rms_norm_eps is inf"),
    "eps is text": (config(rms_norm_eps="small"), "rms_norm_eps is 'small'"),
    "text for a truth value": (config(tie_word_embeddings="no"), "tie_word_embeddings is 'no', which is no valid bool"),
    "rope is a list": (config(rope_parameters=[1]), "rope_parameters is [1], not an object"),
    "rope theta is text": (config(rope_parameters={"rope_theta": "x"}), "malformed rotary settings"),
    "rope theta is negative": (config(rope_parameters={"rope_theta": -1}), "make no sense"),
    "rope factor is not a number": (
        config(rope_parameters={"rope_type": "linear", "factor": float("nan")}),
        "make no sense",
    ),
    "rope factor is zero": (config(rope_parameters={"rope_type": "linear", "factor": 0}), "make no sense"),
    "rope factor is huge": (config(rope_parameters={"rope_type": "linear", "factor": 10**400}), "malformed"),
    "rope factor is null": (config(rope_parameters={"rope_type": "linear", "factor": None}), "has no 'factor'"),
    "rope bands are crossed": (
        config(rope_parameters={"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}),
        "make no sense",
    ),
    "old rope scaling is text": (
        lambda f: (without("rope_parameters")(f), config(rope_scaling="linear")(f)),
        "rope_scaling is 'linear'",
    ),
    "architectures is text": (config(architectures="LlamaModel"), "architectures is 'LlamaModel', not a list"),
    "labels are a list": (lambda f: (bert(f), config(id2label=["a"])(f)), "id2label is ['a'], not an object"),
    "a width that heads do not divide": (
        lambda f: (bert(f), config(num_attention_heads=5)(f)),
        "hidden_size 48 is no multiple of num_attention_heads 5",
    ),
    "a width that heads do not divide, by other names": (
        lambda f: (distilbert(f), config(n_heads=5)(f)),
        "dim 48 is no multiple of n_heads 5",
    ),
    "groups of layers": (
        lambda f: (another("albert", f), config(num_hidden_groups=5)(f)),
        "num_hidden_groups 5 is more than num_hidden_layers 4",
    ),
    "layers that share their weights": (
        lambda f: (another("albert", f), config(num_hidden_layers=10**9)(f)),
        "1000000000 layers of 1 are more than 1000",
    ),
    "positions after no padding": (
        lambda f: (another("roberta", f), config(pad_token_id=None)(f)),
        "pad_token_id is null",
    ),
    "no positions after the padding": (
        lambda f: (another("roberta", f), config(pad_token_id=129)(f)),
        "pad_token_id 129 leaves no positions of max_position_embeddings 130",
    ),
    "layers, by another name": (lambda f: (distilbert(f), config(n_layers=10**9)(f)), "asks for 1000000000 layers"),
    "a pooling that nobody knows": (
        lambda f: (another("modernbert_cls", f), config(classifier_pooling="max")(f)),
        "classifier_pooling is 'max', neither 'cls' nor 'mean'",
    ),
    "ends of an answer": (
        lambda f: (another("modernbert_qa", f), config(id2label={"0": "a", "1": "b", "2": "c"})(f)),
        "id2label has 3 labels, and an answer has two ends",
    ),
}
UNSUPPORTED: dict[str, tuple[Damage, str]] = {
    "model_type": (
        config(model_type="perceiver"),
        "model_type 'perceiver' is not supported; `isoform models` lists the ",
    ),
    "no model_type": (without("model_type"), "model_type None is not supported"),
    "model_type is a list": (config(model_type=["llama"]), "model_type ['llama'] is not supported"),
    "architecture": (config(architectures=["LlamaForMultipleChoice"]), "'LlamaForMultipleChoice' is not"),
    "a choice among answers": (
        lambda f: (another("modernbert_cls", f), config(architectures=["ModernBertForMultipleChoice"])(f)),
        "'ModernBertForMultipleChoice' is not supported",
    ),
    "no rotary base": (
        lambda f: (another("modernbert_b", f), config(local_rope_theta=None)(f)),
        "local_rope_theta is null; write the rotary base",
    ),
    "architectures of numbers": (config(architectures=[1]), "1 is not supported"),
    "activation": (config(hidden_act="mish"), "activation 'mish' is not supported"),
    "activation, by another name": (
        lambda f: (distilbert(f), config(activation="mish")(f)),
        "activation 'mish' is not supported",
    ),
    "causal encoder": (lambda f: (distilbert(f), config(is_causal=True)(f)), "is_causal is true"),
    "unknown key": (config(swirl=3), "config.json: swirl = 3 is not known for this family"),
    "pruned heads": (
        lambda f: (distilbert(f), config(pruned_heads={"0": [1]})(f)),
        'pruned_heads is {"0": [1]}, and isoform computes this family with {} or [] or null only',
    ),
    "rope": (config(rope_parameters={"rope_type": "proportional"}), "rotary scaling 'proportional' is not supported"),
    "partial rope": (config(partial_rotary_factor=0.5), "partial rotary embedding"),
    "quantization": (config(quantization_config={"quant_method": "gptq"}), "is quantized ('gptq')"),
    "kind of layer": (
        lambda f: (
            shutil.copytree(tiny("qwen2_window"), f, dirs_exist_ok=True),
            config(layer_types=["chunked_attention"] * 4)(f),
        ),
        "layers of type 'chunked_attention'",
    ),
}


def named(*tables: dict[str, tuple[Damage, str]]) -> pytest.MarkDecorator:
    cases = [pytest.param(*case, id=name) for table in tables for name, case in table.items()]
    return pytest.mark.parametrize(("damage", "said"), cases)


@named(TRUNCATED, HEADER)
def test_a_damaged_safetensors_file_is_refused(damage: Damage, said: str, folder: Path) -> None:
    damage(folder)
    message = refused(folder)
    assert said in message
    assert WEIGHTS in message


@named(KEYS)
def test_keys_that_do_not_fit_are_refused(damage: Damage, said: str, folder: Path) -> None:
    damage(folder)
    assert said in refused(folder)


@named(INDICES)
def test_a_bad_index_is_refused(damage: Damage, said: str, folder: Path) -> None:
    damage(folder)
    assert said in refused(folder)


@named(CONFIG)
def test_a_bad_config_is_refused(damage: Damage, said: str, folder: Path) -> None:
    damage(folder)
    message = refused(folder)
    assert said in message
    assert "config.json" in message


@named(UNSUPPORTED)
def test_what_no_family_holds_is_refused(damage: Damage, said: str, folder: Path) -> None:
    damage(folder)
    assert said in refused(folder, UnsupportedModel)


def test_a_task_that_the_family_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="llama has no task 'fill-mask'; it has text-generation, text-class"):
        open_model(folder, task="fill-mask")


def test_a_head_that_the_checkpoint_lacks_is_refused(folder: Path) -> None:
    shutil.copytree(tiny("bert_ner"), folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=r"lacks qa_outputs\.bias, qa_outputs\.weight"):
        _ = open_model(folder, task="question-answering").weights


# ------------------------------------------------------------------ what is no checkpoint at all
def test_a_folder_has_no_revision(folder: Path) -> None:
    open_model(folder, revision="main")  # what scripts pass along
    with pytest.raises(CheckpointError, match="has no revision 'v2'; leave it out"):
        open_model(folder, revision="v2")


def test_a_path_that_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "llamacpp").mkdir()
    (tmp_path / "llamacpp" / "model-q8_0.gguf").write_bytes(b"GGUF")
    (tmp_path / "no_weights").mkdir()
    shutil.copyfile(folder / "config.json", tmp_path / "no_weights" / "config.json")
    (tmp_path / "lost").symlink_to(tmp_path / "gone")
    assert "is not a checkpoint; give its folder" in refused(folder / WEIGHTS)
    assert "empty has no config.json; give a checkpoint" in refused(tmp_path / "empty")
    assert "it holds model-q8_0.gguf: open that file" in refused(tmp_path / "llamacpp")
    assert "holds no weights" in refused(tmp_path / "no_weights")
    assert "does not exist" in refused(tmp_path / "lost")
    assert "does not exist" in refused(tmp_path / "nothing here")
    assert "does not exist" in refused("./nothing")
    assert "cannot be opened" in refused("x" * 300)
    assert "no folder here" in refused("nobody/nothing")
    assert "neither a file nor a Hub id" in refused("what is this")


# ------------------------------------------------------------------ pickles
class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["zip", "old", "raw", "raw 2", "nested"])
def test_a_pickle_is_never_executed(how: str, folder: Path, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", folder / "pytorch_model.bin"
    (folder / WEIGHTS).unlink()
    evil: Any = {"x": Malice(mark)}
    if how == "nested":
        evil = {"x": [{"y": (Malice(mark),)}]}
    if how.startswith("raw"):
        path.write_bytes(pickle.dumps(evil, 2 if how == "raw 2" else 4))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how != "old")
    assert "pytorch_model.bin" in refused(folder)
    assert not mark.exists()
    if how.startswith("raw"):  # the trap is a trap
        pickle.loads(path.read_bytes())  # noqa: S301
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


def as_pickles(folder: Path, *parts: str) -> None:
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if not parts:
        torch.save(held, folder / "pytorch_model.bin")
        return
    where = {key: parts[n % len(parts)] for n, key in enumerate(held)}
    for part in parts:
        torch.save({key: held[key] for key in held if where[key] == part}, folder / part)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("parts", [(), ("pytorch_model-1.bin", "pytorch_model-2.bin")])
def test_bin_files_open_like_safetensors(parts: tuple[str, ...], folder: Path) -> None:
    as_pickles(folder, *parts)
    ids = torch.tensor([[1, 5, 9]])
    opened = open_model(folder)
    assert torch.equal(opened.module()(ids)[0], open_model(tiny("llama")).module()(ids)[0])
    assert all(weight.source is None for weight in opened.weights.values())
    assert sorted(path.name for path in opened.checkpoint.files()) == (list(parts) or ["pytorch_model.bin"])


BIN: dict[str, tuple[Any, str]] = {
    "a list": ([torch.ones(2)], "holds a list, not named tensors"),
    "text among tensors": ({"x": "y"}, "'x' is a str, not a tensor"),
    "tensors of tensors": ({"optimizer": {"x": torch.ones(2)}}, "'optimizer' is a dict"),
    "a number as a name": ({1: torch.ones(2)}, "1 is a Tensor, not a tensor with a name"),
    "a line break in a name": ({"a\nb": torch.ones(2)}, r"'a\nb' is a Tensor"),
    "sparse": ({"x": torch.eye(3).to_sparse()}, "x is no plain tensor"),
    "complex": ({NORM: torch.ones(64, dtype=torch.complex64)}, "dtype torch.complex64, which isoform does not read"),
}


@pytest.mark.parametrize(("content", "said"), [pytest.param(*case, id=name) for name, case in BIN.items()])
def test_a_bin_file_of_other_things_is_refused(content: Any, said: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert said in refused(folder)


def test_a_broken_bin_file_is_refused(folder: Path) -> None:
    as_pickles(folder)
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for content in (b"", b"\x80", whole[:1000], whole[:-1], whole[: len(whole) // 2], b"PK\x03\x04" + whole[9:], b"{}"):
        path.write_bytes(content)
        assert "pytorch_model.bin" in refused(folder)


def test_a_missing_bin_shard_is_refused(folder: Path) -> None:
    as_pickles(folder, "pytorch_model-1.bin", "pytorch_model-2.bin")
    (folder / "pytorch_model-2.bin").unlink()
    assert "pytorch_model-2.bin is missing" in refused(folder)


# ------------------------------------------------------------------ what is sound
def test_every_dtype_of_safetensors_opens(tmp_path: Path) -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES
    held = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(held, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    assert set(opened) == set(held)
    for name, tensor in held.items():
        assert opened.info(name).dtype == name
        assert opened[name].dtype == tensor.dtype
        assert opened[name].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_empty_and_scalar_tensors_open(tmp_path: Path) -> None:
    held = {"none": torch.ones(0, 5), "one": torch.tensor(2.5), "some": torch.ones(3)}
    save_file(held, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    for name, tensor in held.items():
        assert opened[name].shape == tensor.shape
        assert torch.equal(opened[name], tensor)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_data_that_is_not_aligned_is_read_right(shift: int, folder: Path) -> None:
    header(lambda entries: json.dumps(entries) + " " * (shift + 8 - len(json.dumps(entries)) % 8))(folder)
    assert read_header(folder / WEIGHTS)[NORM].offset % 8 == shift
    opened, expected = open_checkpoint(folder), load_file(tiny("llama") / WEIGHTS)
    for key, tensor in expected.items():
        assert torch.equal(opened[key], tensor)
        assert opened[key].data_ptr() % 4 == 0


def test_a_source_says_where_the_bytes_lie(folder: Path) -> None:
    for weight in open_model(folder).weights.values():
        assert weight.source is not None
        with weight.source.path.open("rb") as stream:
            stream.seek(weight.source.offset)
            raw = stream.read(weight.source.nbytes)
        assert raw == weight.load().numpy().tobytes()


def test_a_folded_weight_has_no_source() -> None:
    weights = open_model(tiny("gemma2")).weights
    assert weights["norm.weight"].source is None
    assert weights["layers.0.attn.q.weight"].source is not None


def test_shards_hold_what_the_index_forgot(tmp_path: Path) -> None:
    """Nothing is skipped in silence: a tensor of a shard counts, whether the index names it or not."""
    source = Path(shutil.copytree(tiny("qwen3_sharded"), tmp_path / "sharded"))
    data = json.loads((source / INDEX).read_text())
    for key in [key for key in data["weight_map"] if key.endswith("q_proj.weight")]:
        del data["weight_map"][key]
    (source / INDEX).write_text(json.dumps(data))
    assert set(open_model(source).weights) == set(open_model(tiny("qwen3_sharded")).weights)


def test_a_folder_of_links_opens_as_the_hubs_cache_has_it(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for n, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(n))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(n))
    assert open_model(snapshot).module()(torch.tensor([[1, 2]]))


def test_sidecars_are_the_files_that_travel_with_a_model() -> None:
    names = [path.relative_to(tiny("bert_embed")).as_posix() for path in open_checkpoint(tiny("bert_embed")).sidecars()]
    assert {"config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= set(names)
    assert not any(name.endswith(".safetensors") for name in names)


def test_text_that_is_none_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not readable text"):
        open_checkpoint(folder).read_text("chat_template.jinja")
    assert open_checkpoint(folder).read_text("none.txt") is None


# ------------------------------------------------------------------ memory
MEASURE = """
import sys
from pathlib import Path
import torch
from isoform.reference.model import open_model

def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(fields[key].split()[0]) // 1024 for key in ("RssAnon", "RssFile")}

torch.ones(8) @ torch.ones(8, 8)
before = resident()
opened = open_model(sys.argv[1])
weights = opened.weights
print(*(resident()[key] - before[key] for key in ("RssAnon", "RssFile")))
module = opened.module()
print(*(resident()[key] - before[key] for key in ("RssAnon", "RssFile")))
module(torch.tensor([[1, 2, 3]]))
print(*(resident()[key] - before[key] for key in ("RssAnon", "RssFile")))
for name in weights:
    weights[name].release()
print(*(resident()[key] - before[key] for key in ("RssAnon", "RssFile")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_weights_stay_in_the_file_and_are_read_when_used(tmp_path: Path) -> None:
    """200 MB of float32: opening reads headers only, the module is the map itself, releasing gives the pages back."""
    shape = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 6, "vocab_size": 16000}
    data = {**json.loads((tiny("qwen2") / "config.json").read_text()), **shape}
    data |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "layer_types": None}
    (tmp_path / "config.json").write_text(json.dumps(data))
    from isoform.reference.text.qwen2 import FAMILY
    from isoform.reference.weights import hub_names

    with torch.device("meta"):
        module = FAMILY.tasks[0].built(FAMILY.config.from_dict(data))
    sizes = {key: tuple(p.shape) for key, p in module.named_parameters() if key != "head.weight"}
    generator = torch.Generator().manual_seed(0)
    held = {key: torch.randn(sizes[n], generator=generator) for n, (key, _) in hub_names(sizes, FAMILY.rules).items()}
    save_file(held, tmp_path / WEIGHTS)
    megabytes = (tmp_path / WEIGHTS).stat().st_size / 2**20
    assert 190 < megabytes < 260
    del held
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    opened, built, ran, released = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert sum(opened) < 20, "opening reads the header"
    assert sum(built) < 20, "the module is the map"
    assert ran[0] < 40, "running copies no weight"
    assert ran[1] > 0.6 * megabytes, "running reads them from the file"
    assert released[1] < 0.2 * megabytes, "releasing drops the pages"


def test_a_module_in_the_stored_dtype_shares_the_map() -> None:
    opened = open_model(tiny("qwen3_sharded"))
    same, other = opened.module(torch.bfloat16), opened.module(torch.float32)
    key = "layers.0.attn.q.weight"
    mapped = opened.weights[key].load().data_ptr()
    assert same.get_parameter(key).data_ptr() == mapped
    assert other.get_parameter(key).data_ptr() != mapped


def test_a_module_that_is_changed_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    module = open_model(folder).module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert (folder / WEIGHTS).read_bytes() == before
    assert open_model(folder).weights["norm.weight"].load().any()


# ------------------------------------------------------------------ whatever comes
@pytest.fixture(scope="module")
def small() -> dict[str, bytes]:
    """The bytes of a checkpoint small enough to damage anywhere."""
    return {name: (tiny("mistral_full") / name).read_bytes() for name in ("config.json", WEIGHTS)}


def survives(folder: Path, files: dict[str, bytes]) -> None:
    """It opens, or says in one line why not; no other exception comes out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        open_model(folder).module()(torch.tensor([[1, 2, 3]]))
    except IsoformError as error:
        assert "\n" not in str(error)
        str(error).encode()


fuzz = partial(settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)


def flipped(content: bytes, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(content)
    for where, value in flips:
        changed[min(int(where * len(changed)), len(changed) - 1)] = value
    return bytes(changed)


def cut_off(content: bytes, at: float | None) -> bytes:
    return content if at is None else content[: int(at * len(content))]


@fuzz(max_examples=300)
@given(flips=FLIPS, cut_at=st.none() | st.floats(0, 1))
def test_a_header_of_random_bytes_is_survived(
    small: dict[str, bytes], tmp_path: Path, flips: list[tuple[float, int]], cut_at: float | None
) -> None:
    raw = small[WEIGHTS]
    end = 8 + int.from_bytes(raw[:8], "little")
    survives(tmp_path / "x", {**small, WEIGHTS: cut_off(flipped(raw[:end], flips) + raw[end:], cut_at)})


@fuzz(max_examples=150)
@given(flips=FLIPS, cut_at=st.none() | st.floats(0, 1))
def test_a_config_of_random_bytes_is_survived(
    small: dict[str, bytes], tmp_path: Path, flips: list[tuple[float, int]], cut_at: float | None
) -> None:
    damaged = cut_off(flipped(small["config.json"], flips), cut_at)
    survives(tmp_path / "x", {**small, "config.json": damaged})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@fuzz(max_examples=150)
@given(data=st.data(), name=st.sampled_from(["bert", "gemma2_b", "gemma3_b", "gemma3_new", "llama", "qwen2_window"]))
def test_a_config_of_random_values_is_survived(tmp_path: Path, data: st.DataObject, name: str) -> None:
    config = json.loads((tiny(name) / "config.json").read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2)):
        config[key] = data.draw(JSON | st.integers(0, 70) | st.just({"rope_type": "llama3", "factor": 2}))
    weights = (tiny(name) / WEIGHTS).read_bytes()
    survives(tmp_path / "x", {"config.json": json.dumps(config).encode(), WEIGHTS: weights})


@fuzz(max_examples=100)
@given(flips=FLIPS, cut_at=st.none() | st.floats(0, 1))
def test_a_bin_file_of_random_bytes_is_survived(
    small: dict[str, bytes], tmp_path: Path, flips: list[tuple[float, int]], cut_at: float | None
) -> None:
    import io

    stream = io.BytesIO()
    torch.save({"model.norm.weight": torch.ones(36)}, stream)
    damaged = cut_off(flipped(stream.getvalue(), flips), cut_at)
    survives(tmp_path / "x", {"config.json": small["config.json"], "pytorch_model.bin": damaged})


@fuzz(max_examples=100)
@given(shards=JSON | st.dictionaries(st.text(max_size=8), st.text(max_size=12)).map(lambda d: {"weight_map": d}))
def test_an_index_of_random_values_is_survived(small: dict[str, bytes], tmp_path: Path, shards: Any) -> None:
    survives(tmp_path / "x", {"config.json": small["config.json"], INDEX: json.dumps(shards).encode()})


# ------------------------------------------------------------------ configurations by themselves
def test_a_null_is_none_where_it_may_be_and_the_default_elsewhere() -> None:
    from isoform.reference.text.gemma2 import Gemma2Config
    from isoform.reference.text.qwen2 import Qwen2Config

    gemma = Gemma2Config.from_dict({"final_logit_softcapping": None, "rms_norm_eps": None})
    assert (gemma.final_logit_softcapping, gemma.attn_logit_softcapping, gemma.rms_norm_eps) == (None, 50.0, 1e-6)
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 8)
    assert Qwen2Config.from_dict({**sizes, "num_attention_heads": 4, "sliding_window": None}).sliding_window is None
    assert Qwen2Config.from_dict({**sizes, "num_attention_heads": 4, "num_key_value_heads": None}).kv_heads == 4


def test_both_spellings_of_rotary_settings_are_read() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000}}
    nested = {"rope_parameters": {"full_attention": new["rope_parameters"], "sliding_attention": {"rope_theta": 1}}}
    assert read_rope(old) == read_rope(new) == read_rope(nested, "full_attention")
    assert read_rope(nested, "sliding_attention").theta == 1
    assert read_rope({}, theta=1e6).theta == 1e6
    assert read_rope({"rope_theta": 3, "rope_parameters": {"rope_type": "default"}}).theta == 3


def test_a_config_that_is_a_plain_dataclass_reads_its_fields() -> None:
    assert Config.from_dict({"model_type": "any"}) == Config()
