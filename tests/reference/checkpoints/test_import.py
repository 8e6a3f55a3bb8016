"""A GGUF file becomes a Hub checkpoint again, which transformers takes and continues as llama.cpp does."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from isoform import api
from isoform.errors import CheckpointError, InputError
from isoform.exporters import gguf
from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.checkpoints.opening import open_checkpoint
from isoform.reference.model import Model, open_model
from isoform.reference.rules import Fold, Stack, Tail, WeightNorm
from isoform.reference.weights import hub_names
from tests.cli.test_bad_input import run
from tests.exports import for_llamacpp
from tests.reference.checkpoints.test_saving import in_transformers, inputs_of

Tiny = Callable[[str], Path]

DECODERS = (
    *("llama", "llama_b", "llama3_instruct", "llama3_instruct_b", "mistral_full", "qwen2", "qwen2_b", "qwen3_b"),
    "qwen2_yarn",
    *("qwen3_moe", "qwen3_sharded", "gemma", "gemma_b", "gemma2", "gemma2_b", "gemma3_b", "gemma3_new"),
    *("gpt2", "granite", "granite_b", "mixtral", "mixtral_b", "olmo2", "olmo2_b", "phi4", "phi4_mini", "smollm3"),
)
ENCODERS = (
    "bert_embed",
    "bert_seqcls_b",
    "distilbert_base",
    "distilbert_seqcls",
    "embedding_gemma",
    "modernbert_seqcls",
    "roberta_seqcls",
    "xlm_roberta_b",
)
NAMES = (*DECODERS, *ENCODERS)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PROMPTS = ("The secret model is", "Hello world, 12 and 345")


def exported(model: Model, folder: Path, kind: str = "f32") -> Path:
    [artifact] = gguf.write(model, folder, [kind])
    return folder / artifact.files[0].path


def same_tensors(a: Path, b: Path) -> None:
    """Types, shapes and bytes of every tensor of two GGUF files."""
    one, two = read_gguf(a).tensors, read_gguf(b).tensors
    assert {n: (i.dtype, i.shape) for n, i in one.items()} == {n: (i.dtype, i.shape) for n, i in two.items()}
    left, right = a.read_bytes(), b.read_bytes()
    for name, info in one.items():
        other = two[name]
        assert left[info.offset :][: info.nbytes] == right[other.offset :][: other.nbytes], name


# ------------------------------------------------------------------ round trips
@pytest.mark.parametrize("name", NAMES)
def test_hub_to_gguf_to_hub_gives_equal_tensors(tiny: Tiny, tmp_path: Path, name: str) -> None:
    source = for_llamacpp(tiny(name))
    api.import_gguf(exported(source, tmp_path), tmp_path / "hub")
    again = open_model(tmp_path / "hub")
    assert type(again.family) is type(source.family)
    assert again.weights.keys() == source.weights.keys()
    rules = hub_names(source.weights, source.family.rules)
    for key, weight in again.weights.items():
        stored, wanted = again.checkpoint[weight.hub], source.checkpoint[source.weights[key].hub].float()
        if isinstance(rules[key][1], Fold):  # 1 + weight was rounded on the way, as in every GGUF file of its kind
            assert torch.allclose(stored, wanted, rtol=0, atol=2.0**-23), key  # half an ulp of up to 4
        elif isinstance(rules[key][1], Tail | Stack):  # no rows before the first position; every expert
            assert torch.equal(weight.load(), source.weights[key].load().float()), key
        else:
            assert torch.equal(stored, wanted), key


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["llama3_instruct", "qwen2", "gemma3_b", "bert_embed"])
def test_gguf_to_hub_to_gguf_gives_equal_bytes_and_metadata(tiny: Tiny, tmp_path: Path, name: str, kind: str) -> None:
    before = exported(for_llamacpp(tiny(name)), tmp_path / "a", kind)
    api.import_gguf(before, tmp_path / "hub")  # in float32, which holds both of the narrow types
    after = exported(open_model(tmp_path / "hub"), tmp_path / "b", kind)
    same_tensors(before, after)
    one, two = read_gguf(before).metadata, read_gguf(after).metadata
    free = {"general.name", "general.basename", "general.size_label", "general.finetune", "general.version"}
    silence = dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"), False)  # means the same
    for key in (one.keys() | two.keys()) - free:
        assert one.get(key, silence.get(key)) == two.get(key, silence.get(key)), key


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m", "q5_0", "iq4_nl"])
@pytest.mark.parametrize("name", ["llama", "gemma3_b", "bert_embed"])
def test_a_quantized_file_comes_back_as_it_dequantizes(tiny: Tiny, tmp_path: Path, name: str, kind: str) -> None:
    import gguf as reader

    before = exported(for_llamacpp(tiny(name)), tmp_path / "a", kind)
    api.import_gguf(before, tmp_path / "hub")
    after = exported(open_model(tmp_path / "hub"), tmp_path / "b", "f32")
    wide = {tensor.name: tensor for tensor in reader.GGUFReader(after).tensors}
    narrow = reader.GGUFReader(before).tensors
    assert {tensor.name for tensor in narrow} == set(wide)
    for tensor in narrow:
        expected = reader.dequantize(np.array(tensor.data), tensor.tensor_type)
        assert np.array_equal(expected, wide[tensor.name].data), tensor.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_the_one_asked_for(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    file = exported(for_llamacpp(tiny("gemma2_b")), tmp_path)
    written = api.import_gguf(file, tmp_path / "hub", dtype=dtype)
    hub, source = open_checkpoint(tmp_path / "hub"), open_model(file)
    assert {hub.info(key).dtype for key in hub} == {dtype.upper()}
    assert hub.config["dtype"] == str(DTYPES[dtype]).removeprefix("torch.")
    assert written["dtype"] == dtype
    again = open_model(tmp_path / "hub")
    for key, (_, rule) in hub_names(source.weights, source.family.rules).items():
        assert not isinstance(rule, WeightNorm)
        expected = rule.save(source.weights[key].load())[0].to(DTYPES[dtype])
        assert torch.equal(hub[again.weights[key].hub], expected), key


def test_norms_come_back_exactly_from_what_the_hub_can_hold() -> None:
    """(1 + w) - 1 + 1 is 1 + w for every float32 w: the second trip changes nothing."""
    rule = Fold("a", "b", 1.0)
    draw = np.random.default_rng(0)
    w = torch.from_numpy((draw.normal(size=200_000) * 10.0 ** draw.integers(-9, 3, 200_000)).astype(np.float32))
    (once,) = rule.load(w)
    assert torch.equal(rule.load(*rule.save(once))[0], once)


def test_shards_of_a_split_file_are_read_as_one(tiny: Tiny, tmp_path: Path) -> None:
    source = for_llamacpp(tiny("qwen2"))
    whole = exported(source, tmp_path)
    first, *rest = split(whole, tmp_path, 3)
    api.import_gguf(whole, tmp_path / "a")
    api.import_gguf(first, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert open_checkpoint(first).files() == [first, *rest]
    with pytest.raises(CheckpointError, match=f"open the first, .*{first.name}"):
        open_checkpoint(rest[0])
    moved = rest[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(CheckpointError, match=f"{rest[1].name} is missing"):
        open_checkpoint(first)
    rest[1].write_bytes(rest[0].read_bytes())
    with pytest.raises(CheckpointError, match="another shard of"):
        open_checkpoint(first)
    rest[1].write_bytes(whole.read_bytes())
    with pytest.raises(CheckpointError, match="is no part of"):
        open_checkpoint(first)
    with pytest.raises(CheckpointError, match="found by their names"):
        open_checkpoint(moved)


def split(path: Path, folder: Path, count: int) -> list[Path]:
    """The file in shards, as llama.cpp's gguf-split writes them: all metadata in the first."""
    import gguf as reader

    source = reader.GGUFReader(path)
    arch = read_gguf(path).metadata["general.architecture"]
    paths = [folder / f"split-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    for n, shard in enumerate(paths):
        writer = reader.GGUFWriter(shard, arch)
        for field in source.fields.values() if n == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kinds = field.types
                writer.add_key_value(field.name, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
        writer.add_uint16("split.no", n)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(source.tensors))
        for tensor in source.tensors[n::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


# ------------------------------------------------------------------ what transformers makes of it
@pytest.mark.parametrize("name", NAMES)
def test_transformers_takes_every_key_and_gives_the_same_outputs(tiny: Tiny, tmp_path: Path, name: str) -> None:
    source = for_llamacpp(tiny(name))
    api.import_gguf(exported(source, tmp_path), tmp_path / "hub")
    inputs = inputs_of(name)
    outputs, notes = in_transformers(tmp_path / "hub", **inputs)
    if "bert" in name and not name.startswith(("distil", "modern")):  # llama.cpp keeps no pooler
        assert notes.pop("missing_keys") == {"pooler.dense.weight", "pooler.dense.bias"}
    assert notes == {}
    real = inputs["attention_mask"].bool()
    expected = source.module()(**inputs)[0][real]
    found = (outputs.last_hidden_state if name in ENCODERS else outputs.logits)[real]
    assert (found - expected).abs().max() <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_continues_as_llamacpp_does(tiny: Tiny, tmp_path: Path, name: str) -> None:
    import transformers

    file = exported(for_llamacpp(tiny(name)), tmp_path)
    api.import_gguf(file, tmp_path / "hub")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    assert model.dtype == torch.float32
    with api.pipeline("text-generation", file, backend="llamacpp") as pipe:
        for prompt in PROMPTS:
            (answer,) = pipe(prompt, do_sample=False, max_new_tokens=12)
            inputs = tokenizer(prompt, return_tensors="pt")
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
            assert prompt + tokenizer.decode(ids, skip_special_tokens=True) == answer["generated_text"]


@pytest.mark.parametrize("name", ["llama3_instruct", "qwen2", "gemma3_b"])
def test_the_chat_template_comes_back(tiny: Tiny, tmp_path: Path, name: str) -> None:
    import transformers

    api.import_gguf(exported(for_llamacpp(tiny(name)), tmp_path), tmp_path / "hub")
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    before, after = (transformers.AutoTokenizer.from_pretrained(f) for f in (tiny(name), tmp_path / "hub"))
    assert after.chat_template == before.chat_template
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(("name", "width"), [("bert_embed", 40), ("distilbert_base", 48)])
def test_sentence_transformers_embeds_as_before(tiny: Tiny, tmp_path: Path, name: str, width: int) -> None:
    """Pooling is stored in GGUF files, and its width comes from there: config.json may call it another name."""
    from sentence_transformers import SentenceTransformer

    source = Path(shutil.copytree(tiny(name), tmp_path / "source"))
    for part in ("modules.json", "1_Pooling/config.json", "2_Normalize", "sentence_bert_config.json"):
        (source / part).parent.mkdir(exist_ok=True)
        if (tiny("bert_embed") / part).is_dir():
            (source / part).mkdir(exist_ok=True)
        else:
            shutil.copyfile(tiny("bert_embed") / part, source / part)
    pooling = source / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": width}))
    api.import_gguf(exported(for_llamacpp(source), tmp_path), tmp_path / "hub")
    texts = ["How do I boil an egg?", "Paris"]
    before, after = (SentenceTransformer(str(f), device="cpu").encode(texts) for f in (source, tmp_path / "hub"))
    assert after.shape == (2, width)
    assert np.allclose(before, after, rtol=0, atol=1e-6)
    assert np.allclose(np.linalg.norm(after, axis=1), 1, atol=1e-6)


def test_sampling_and_ends_come_back(tiny: Tiny, tmp_path: Path) -> None:
    api.import_gguf(exported(for_llamacpp(tiny("llama3_instruct")), tmp_path), tmp_path / "hub")
    before, after = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (tiny("llama3_instruct"), tmp_path / "hub")
    )
    for key in ("do_sample", "temperature", "top_p", "bos_token_id"):
        assert after[key] == before[key]
    assert set(before["eos_token_id"]) <= set(after["eos_token_id"])


@pytest.mark.parametrize("name", ["llama3_instruct", "qwen2", "gemma3_b", "mistral_full", "gemma2"])
def test_generation_ends_where_llamacpp_ends(tiny: Tiny, tmp_path: Path, name: str) -> None:
    file = exported(for_llamacpp(tiny(name)), tmp_path)
    program = (
        "import sys\nfrom isoform.runtimes.backends.llamacpp.api import Api\napi = Api()\n"
        "api.ffi.cdef('bool llama_vocab_is_eog(const void * vocab, int32_t token);')\n"
        "params = api.lib.llama_model_default_params()\nparams.vocab_only = True\n"
        "vocab = api.lib.llama_model_get_vocab(api.lib.llama_model_load_from_file(sys.argv[1].encode(), params))\n"
        "count = api.lib.llama_vocab_n_tokens(vocab)\n"
        "print(*(n for n in range(count) if api.lib.llama_vocab_is_eog(vocab, n)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    ends = GgufCheckpoint(file).read_json("generation_config.json")["eos_token_id"]
    assert {int(word) for word in done.stdout.split()} == set(ends if isinstance(ends, list) else [ends])


# ------------------------------------------------------------------ the command, and what is wrong
def test_the_command_says_what_it_wrote(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(for_llamacpp(tiny("qwen2")), tmp_path)
    assert run(monkeypatch, "import", file, "--out", tmp_path / "hub", "--dtype", "bf16", "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written["family"] == "qwen2"
    assert {entry["path"]: entry["size"] for entry in written["files"]} == {
        path.name: path.stat().st_size for path in (tmp_path / "hub").iterdir()
    }
    assert run(monkeypatch, "import", file, "--out", tmp_path / "again") == 0
    assert "model.safetensors" in capsys.readouterr().out


def test_no_tensor_is_held_whole(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = exported(for_llamacpp(tiny("llama")), tmp_path, "q8_0")
    api.import_gguf(file, tmp_path / "whole")
    monkeypatch.setattr("isoform.reference.checkpoints.safetensors_writer.PIECE", 1)
    monkeypatch.delattr(GgufCheckpoint, "__getitem__")
    monkeypatch.setattr(GgufCheckpoint, "__abstractmethods__", frozenset(), raising=False)
    api.import_gguf(file, tmp_path / "rows")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "rows" / "model.safetensors"
    ).read_bytes()


def broken(tiny: Tiny, folder: Path, what: str) -> Path:
    """A GGUF file with something wrong."""
    file = exported(for_llamacpp(tiny("qwen2")), folder)
    content = bytearray(file.read_bytes())
    info = read_gguf(file).tensors["blk.0.ffn_up.weight"]
    if what == "cut":
        content = content[: info.offset]
    elif what == "vocabulary":
        content = content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz")
    else:
        content[info.offset : info.offset + 4] = struct.pack("<f", {"nan": np.nan, "large": 1e6}[what])
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("what", "dtype", "words"),
    [
        ("nan", "f32", "up_proj.weight holds values that are not finite"),
        ("large", "f16", "up_proj.weight holds 1e+06, which float16 cannot"),
        ("cut", "f32", "is truncated"),
        ("vocabulary", "f32", "no tokenizer.ggml.tokens"),
    ],
)
def test_a_broken_file_is_one_line_and_leaves_nothing(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    dtype: str,
    words: str,
) -> None:
    file = broken(tiny, tmp_path / "in", what)
    capsys.readouterr()
    assert run(monkeypatch, "import", file, "--out", tmp_path / "hub", "--dtype", dtype) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{file}", "--out", "{full}"), "not an empty folder"),
        (("{file}", "--out", "{new}", "--dtype", "q8_0"), "'q8_0' is not known"),
        (("{full}", "--out", "{new}"), "is no .gguf file"),
        (("{gone}", "--out", "{new}"), "is not there"),
    ],
)
def test_a_wrong_request_is_one_line(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    places = {"file": exported(for_llamacpp(tiny("qwen2")), tmp_path / "in"), "full": tmp_path / "in"}
    places |= {"new": tmp_path / "new", "gone": tmp_path / "gone.gguf"}
    capsys.readouterr()
    assert run(monkeypatch, "import", *(argument.format(**places) for argument in arguments)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_architecture_without_a_family_is_named(tiny: Tiny, tmp_path: Path) -> None:
    from isoform.errors import UnsupportedModel

    file = exported(for_llamacpp(tiny("qwen2")), tmp_path)
    file.write_bytes(file.read_bytes().replace(b"qwen2", b"mamba"))
    with pytest.raises(UnsupportedModel, match="'mamba' is not supported"):
        api.import_gguf(file, tmp_path / "hub")
    with pytest.raises(InputError, match="choose from f32, f16, bf16"):
        api.import_gguf(file, tmp_path / "hub", dtype="int8")
