"""The encoder-decoders of text compute what transformers computes: in one pass, padded, in steps, and as texts."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.errors import InputError, UnsupportedModel
from isoform.reference.model import Model, open_model
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import GenerationConfig
from isoform.runtimes.open import open_path, open_session
from tests.exports import exported
from tests.oracle import SEQUENCE_TO_SEQUENCE, listed, tiny
from tests.reference.tokenizers.making import change

RELATIVES = ("bart", "m2m", "marian", "mbart", "nllb", "pegasus")
ORDER = 1e-5  # of the largest value: float32 sums of some hundred terms through up to seven layers, in another order
READING = ("bart_mnli", "bart_qa", "bart_base", "mbart_seqcls")
GENERATING = tuple(
    name for name in listed(SEQUENCE_TO_SEQUENCE) if name.partition("_")[0] in RELATIVES and name not in READING
)


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(tiny(name) / "golden.safetensors")


@cache
def oracle(name: str) -> Any:
    import transformers

    kind = getattr(transformers, model(name).checkpoint.config["architectures"][0])
    return kind.from_pretrained(tiny(name), dtype=torch.float32).eval()


@cache
def module(name: str) -> Any:
    return model(name).module()


def same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ORDER * max(float(expected.abs().max()), 0.1)


def ids_of(name: str, rows: int, length: int) -> Tensor:
    vocabulary: int = model(name).config.vocabulary or 0
    return torch.randint(5, vocabulary - 9, (rows, length), generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize("name", GENERATING)
def test_states_and_logits_are_those_of_transformers(name: str) -> None:
    known = golden(name)
    ids, mask, target = (known[f"in.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids"))
    real = mask.bool()
    same(module(name).encoder(ids, mask)[0][real], known["out.encoder_last_hidden_state"][real])
    same(module(name)(ids, mask, target)[0], known["out.logits"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", GENERATING)
def test_padded_rows_give_in_steps_what_each_gives_alone(name: str, side: str) -> None:
    lengths = (11, 7, 1)
    ids, target = ids_of(name, 3, 11), ids_of(name, 3, 6)
    mask, cuts = torch.zeros_like(ids), []
    for row, length in enumerate(lengths):
        cuts.append(slice(11 - length, None) if side == "left" else slice(0, length))
        mask[row, cuts[-1]] = 1
    (states,) = module(name).encoder(ids, mask)
    found: list[Tensor] = []
    past: tuple[Tensor, ...] = ()
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        switch = (*past, torch.ones(1, dtype=torch.bool)) if past else ()
        logits, *present = module(name).decoder(target[:, start:stop], mask, states, *switch)
        if past:
            assert all(made.shape[2] == 0 for n, made in enumerate(present) if n % 4 > 1), "computed once"
        past = tuple(past[n] if past and n % 4 > 1 else made for n, made in enumerate(present))
        found.append(logits)
    together = torch.cat(found, 1)
    for row, cut in enumerate(cuts):
        alone = ids[row : row + 1, cut]
        with torch.no_grad():
            wanted = oracle(name)(input_ids=alone, decoder_input_ids=target[row : row + 1]).logits
        same(together[row : row + 1], wanted)


def on_graphs() -> list[Any]:
    """Two of them on graphs in the gate; the others are nightly."""
    quick = ("bart_b", "onnxruntime"), ("marian_b", "torchscript")
    pairs = [(name, backend) for name in GENERATING for backend in ("onnxruntime", "torchscript")]
    return [pytest.param(*pair, marks=() if pair in quick else (pytest.mark.nightly,)) for pair in pairs]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("name", "backend"), [*((name, "torch") for name in GENERATING), *on_graphs()])
def test_texts_are_those_of_transformers(name: str, backend: str, beams: int) -> None:
    start, end = oracle(name).config.decoder_start_token_id, oracle(name).config.eos_token_id
    options: dict[str, Any] = {"max_length": 12, "min_length": 4, "num_beams": beams, "no_repeat_ngram_size": 3}
    rows = [ids_of(name, 1, length)[0].tolist() for length in (9, 5)]
    config = GenerationConfig(**options, eos_token_id=(end,), forced_eos_token_id=(end,))
    graphs = None if backend == "torch" else open_path(exported(name), backend)[0]
    session: Any = graphs or open_session(model(name), "torch")
    with session:
        ids, mask = np.full((2, 9), 1), np.zeros((2, 9), np.int64)
        for n, row in enumerate(rows):
            ids[n, : len(row)], mask[n, : len(row)] = row, 1
        decoder = session.decoder(session.encode({"input_ids": ids, "attention_mask": mask}))
        found = generate(decoder, [[start]] * 2, config, context=model(name).config.context)
    for row, text in zip(rows, found, strict=True):
        wanted = oracle(name).generate(
            torch.tensor([row]), **options, do_sample=False, early_stopping=False, forced_bos_token_id=None,
            forced_eos_token_id=end, bad_words_ids=None,
        )[0].tolist()  # fmt: skip
        assert [start, *text.made] == wanted


def changed(name: str, folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    shutil.copytree(tiny(name), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    save_file({**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors")
    return folder


def test_copies_of_the_table_are_accepted_and_other_tables_refused(tmp_path: Path) -> None:
    """Old checkpoints store the shared table three or four times."""
    table = load_file(tiny("bart") / "model.safetensors")["model.shared.weight"]
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    copies = changed("bart", tmp_path / "copies", {key: table.clone() for key in names})
    known = golden("bart")
    inputs = [known[f"in.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids")]
    opened = open_model(copies)
    same(opened.module()(*inputs)[0], known["out.logits"])
    assert opened.parts[1].tied == {"head.weight": "embed.weight"}
    with pytest.raises(UnsupportedModel, match=r"model.shared.weight and model.decoder.embed_tokens.weight differ"):
        open_model(changed("bart", tmp_path / "other", {names[1]: table.flip(0)}))


def test_a_checkpoint_without_a_bias_of_the_logits_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("bart_b"), folder)
    tensors = load_file(folder / "model.safetensors")
    bias = tensors.pop("final_logits_bias")
    save_file(tensors, folder / "model.safetensors")
    known = golden("bart_b")
    inputs = [known[f"in.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids")]
    assert float(bias.abs().max()) > 0.01
    same(open_model(folder).module()(*inputs)[0] + bias, known["out.logits"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("normalize_before", True), ("normalize_embedding", False), ("static_position_embeddings", True)],
)
def test_another_arrangement_of_the_layers_is_refused(key: str, value: bool, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=key):
        open_model(changed("bart", tmp_path / "model", {}, **{key: value}))


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize("name", READING)
def test_a_head_reads_the_decoders_states_as_in_transformers(name: str) -> None:
    known, ports = golden(name), model(name).signature.outputs
    ids, mask = known["in.input_ids"], known["in.attention_mask"]
    for port, found in zip(ports, module(name)(ids, mask), strict=True):
        wanted, real = known[f"out.{port.name}"], mask.bool()
        same(*((x[real] for x in (found, wanted)) if found.shape[:2] == mask.shape else (found, wanted)))
    if name == "bart_base":
        return
    trunk = open_model(tiny(name), task="feature-extraction").module()
    with torch.no_grad():
        wanted = oracle(name).model(input_ids=ids, attention_mask=mask).last_hidden_state
    same(trunk(ids, mask)[0][mask.bool()], wanted[mask.bool()])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", READING)
def test_padding_changes_no_head(name: str, side: str) -> None:
    """transformers would begin a row that is padded on the left with its padding."""
    end: int = model(name).config.eos_token_id  # type: ignore[attr-defined]
    rows = [[*ids_of(name, 1, length)[0].tolist(), end, 7] for length in (8, 4, 1)]
    ids, mask = torch.full((3, 10), 1), torch.zeros((3, 10), dtype=torch.int64)
    for n, row in enumerate(rows):
        cut = slice(10 - len(row), None) if side == "left" else slice(0, len(row))
        ids[n, cut], mask[n, cut] = torch.tensor(row), 1
    together = module(name)(ids, mask)
    for n, row in enumerate(rows):
        with torch.no_grad():
            wanted = oracle(name)(input_ids=torch.tensor([row]))
        for port, found in zip(model(name).signature.outputs, together, strict=True):
            mine = found[n : n + 1]
            same(mine[mask[n : n + 1].bool()][None] if found.shape[1:2] == (10,) else mine, wanted[port.name])


def test_the_last_of_several_ends_is_classified() -> None:
    ids = torch.tensor([[0, 9, 2, 2, 11, 12, 2, 30]])
    with torch.no_grad():
        wanted = oracle("bart_mnli")(input_ids=ids).logits
    same(module("bart_mnli")(ids)[0], wanted)
    assert float((module("bart_mnli")(ids[:, :4])[0] - wanted).abs().max()) > 0.01


def test_a_text_without_an_end_is_not_classified(tmp_path: Path) -> None:
    """transformers refuses it too, and rows of unlike counts of ends, each of which has an answer here."""
    import isoform

    bare = changed("bart_mnli", tmp_path / "bare", {})
    change(bare / "tokenizer.json", post_processor=None)
    change(bare / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(InputError, match=r"without the token '</s>' cannot be classified by this model"):
        isoform.pipeline("text-classification", str(bare), backend="torch")("a word")
    pipe = isoform.pipeline("text-classification", str(tiny("bart_mnli")), backend="torch")
    pair = {"text": "A cat.", "text_pair": "A dog."}
    alone, mixed = pipe(pair), pipe(["A cat.", pair], batch_size=2)[1]
    assert mixed["label"] == alone["label"]
    assert abs(mixed["score"] - alone["score"]) < 1e-5
