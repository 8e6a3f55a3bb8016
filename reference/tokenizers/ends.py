"""Which of BOS and EOS a folder's tokenizer puts around a text, for clients that go by tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoform.json_files import JsonObject
from isoform.tokenization import assemble, checked, read_settings, read_tokenizer, text_of

CONFIG = "tokenizer_config.json"


def added_ends(folder: Path, facts: Mapping[str, Any]) -> dict[str, bool]:
    """{"add_bos_token": …, "add_eos_token": …}, as the post-processor does it; `facts` of the tokenizer's class."""
    path = folder / "tokenizer.json"
    tokenizer = read_tokenizer(path)
    with checked(f"{path} does not fit {CONFIG} ({{}}); fetch both again"):
        named = assemble(tokenizer, facts, read_settings(folder))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        row = tokenizer.encode("a")
    found = {}
    for name, at in (("bos", 0), ("eos", -1)):
        token = named[f"{name}_token"]
        known = token and row.tokens and row.special_tokens_mask[at] and row.tokens[at] == text_of(token)
        found[f"add_{name}_token"] = bool(known)
    return found


def stated_ends(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """The text of a tokenizer_config.json that says `added_ends`; None where the folder's own says so already.

    transformers goes by the post-processor of tokenizer.json; Transformers.js adds special tokens to a text to be
    continued only where one of the two settings is true.
    """
    own = JsonObject.read(folder / CONFIG)
    wrong = {key: value for key, value in added_ends(folder, facts).items() if bool(own.get(key)) != value}
    return json.dumps({**own, **wrong}, ensure_ascii=False, indent=2) if wrong else None
