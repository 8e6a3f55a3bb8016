"""A bundle's tokenizer_config.json says whether BOS and EOS are added, for clients that go by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import isoform
from isoform.reference.classes import class_facts
from isoform.reference.tokenizers.ends import added_ends, stated_ends
from tests.reference.tokenizers.making import MADE, OF_WORDS, change, save

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "bos", "eos"),
    [
        ("bert", False, False),
        ("gemma2", True, False),
        ("gemma3_b", True, False),
        ("llama3_instruct", True, False),
        ("llama_b", True, False),
        ("qwen2", False, False),
    ],
)
def test_what_the_post_processor_adds_is_found(name: str, bos: bool, eos: bool, tiny: Tiny) -> None:
    facts = class_facts(tiny(name))["tokenizer"]
    assert added_ends(tiny(name), facts) == {"add_bos_token": bos, "add_eos_token": eos}


@pytest.mark.parametrize("name", [name for name in MADE if name not in OF_WORDS])
def test_it_is_what_transformers_does_with_a_text(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save(name, tmp_path)
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs("house")["input_ids"]
    ends = {"add_bos_token": ids[0] == theirs.bos_token_id, "add_eos_token": ids[-1] == theirs.eos_token_id}
    assert added_ends(folder, class_facts(folder)["tokenizer"]) == ends


@pytest.mark.parametrize("stored", [None, False, True])
def test_a_bundle_states_it_and_reads_as_before(stored: Any, tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama_b"), tmp_path / "m"))
    change(folder / "tokenizer_config.json", add_bos_token=stored, add_eos_token=None)
    isoform.export(folder, tmp_path / "bundle", to=["torchscript"])
    found = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert found["add_bos_token"] is True
    assert not found.get("add_eos_token")
    own = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in found.items() if key != "add_bos_token"} == {
        key: value for key, value in own.items() if key != "add_bos_token"
    }
    assert (stated_ends(folder, class_facts(folder)["tokenizer"]) is None) == (stored is True)
