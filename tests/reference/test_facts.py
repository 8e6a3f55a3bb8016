"""The facts of a model: the same from a checkpoint, from its bundle, and from a bundle that states none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from isoform.errors import CheckpointError
from isoform.exporters.bundle import export
from isoform.json_files import JsonObject
from isoform.manifest import Manifest
from isoform.reference.card import Task
from isoform.reference.classes import IMAGE_PROCESSORS, class_facts
from isoform.reference.facts import STATED, exported_facts, facts_of
from isoform.reference.families import all_families
from isoform.reference.model import open_model
from isoform.reference.tokenizers.classes import AS_STORED, TOKENIZERS
from isoform.steps import STEPS, load_step

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("automatic-speech-recognition", "moonshine"),
        ("automatic-speech-recognition", "wav2vec2_ctc"),
        ("feature-extraction", "bert"),
        ("fill-mask", "roberta"),
        ("image-to-text", "blip_caption"),
        ("zero-shot-image-classification", "siglip"),
    ],
)
def test_a_bundle_has_the_facts_of_its_checkpoint(task: str, name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny(name), task)
    facts = json.loads(json.dumps(facts_of(model)))
    export(model, ["torchscript"], tmp_path / "bundle")
    stored = Manifest.read(tmp_path / "bundle").facts
    assert {**stored, "steps": facts["steps"]} == facts
    assert exported_facts(tmp_path / "bundle", tmp_path / "bundle", task) == facts

    manifest = json.loads((tmp_path / "bundle" / "isoform.json").read_text(encoding="utf-8"))
    old = {key: value for key, value in manifest.items() if key not in ("facts", "steps")}
    (tmp_path / "bundle" / "isoform.json").write_text(json.dumps(old), encoding="utf-8")
    derived = exported_facts(tmp_path / "bundle", tmp_path / "bundle", task)
    assert json.loads(json.dumps(derived)) == facts, "a bundle without facts has those of its config.json"
    assert json.loads(json.dumps(exported_facts(Path("model.onnx"), tmp_path / "bundle", task))) == facts


def test_every_task_whose_card_states_facts_is_listed() -> None:
    silent = {spec.name: spec.default for spec in fields(Task)}
    stating = {
        task.name
        for family in all_families()
        for task in family.tasks
        if task.facts is not silent["facts"] or task.steps is not silent["steps"]
    }
    assert stating == set(STATED)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "BertTokenizer"), ("gemma3_b", "GemmaTokenizer"), ("qwen2", "Qwen2Tokenizer"), ("llama3_instruct", "")],
)
def test_a_tokenizer_is_read_as_its_class_does(name: str, kind: str, tiny: Tiny) -> None:
    settings = JsonObject.read(tiny(name) / "tokenizer_config.json")
    want = TOKENIZERS[kind].facts(settings) if kind else AS_STORED
    assert class_facts(tiny(name))["tokenizer"] == want
    assert json.loads(json.dumps(want)) == want


def test_a_bundle_that_names_the_rebuilding_reads_its_tokenizer_as_before(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("bert"), "feature-extraction")
    export(model, ["torchscript"], tmp_path / "bundle")
    path = tmp_path / "bundle" / "isoform.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["facts"]["tokenizer"] = {"rebuild": "word_pieces", "tokens": {"cls_token": "x"}, "padding_side": "right"}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    facts = exported_facts(tmp_path / "bundle", tmp_path / "bundle", "feature-extraction")
    assert facts["tokenizer"] == class_facts(tiny("bert"))["tokenizer"]


def test_a_class_belongs_to_the_checkpoint_and_not_to_its_family(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("vit_cls"), tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessorFast"}))
    assert class_facts(folder)["image_processor"] == IMAGE_PROCESSORS["CLIPImageProcessor"]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "OwlImageProcessor"}))
    assert "'OwlImageProcessor' is not supported; is " in class_facts(folder)["image_processor"]["refused"]
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        class_facts(folder)
    assert "image_processor" not in class_facts(folder, strict=False)


def test_sound_has_no_image_processor(tiny: Tiny) -> None:
    assert set(class_facts(tiny("wav2vec2_ctc"))) == {"characters"}
    assert set(class_facts(tiny("whisper"))) == {"tokenizer"}


def test_a_text_begins_with_its_token_and_its_prompt() -> None:
    assert "begin_text" in STEPS
    step = load_step("begin_text")
    assert step.run({"tokens": np.zeros((2, 0), np.int64)}, start=7)["tokens"].tolist() == [[7], [7]]
    assert step.run({"tokens": np.array([[3, 4]])}, start=7)["tokens"].tolist() == [[7, 3, 4]]
