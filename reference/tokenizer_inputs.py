"""Which tokenizers of the Hub give the token types of a text (0 for the first of a pair, 1 for the second)."""

from __future__ import annotations

from pathlib import Path

from isoform.json_files import read_object
from isoform.reference.tokenizers.classes import tokenizer_class

TYPED = frozenset(("BertTokenizer", "CanineTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer", "MarkupLMTokenizer"))
"""The classes of transformers 5 whose calls give token_type_ids; `model_input_names` of a file overrules them."""


def gives_types(folder: Path) -> bool:
    """Whether the tokenizer in a folder gives token_type_ids without being asked."""
    settings = read_object(folder / "tokenizer_config.json")
    names = settings.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    declared = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    return declared in TYPED or tokenizer_class(folder) in TYPED
