"""What the tokenizers of the Hub answer with: ids, token types (which of two texts a token is from), and a mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isoform.json_files import read_object
from isoform.reference.tokenizers.classes import tokenizer_class

_TYPES_FIRST = ("input_ids", "token_type_ids", "attention_mask")
_MASK_FIRST = ("input_ids", "attention_mask", "token_type_ids")

INPUTS: Mapping[str, tuple[str, ...]] = {
    "BertTokenizer": _TYPES_FIRST,
    "CanineTokenizer": _MASK_FIRST,
    "ConvBertTokenizer": _TYPES_FIRST,
    "DPRContextEncoderTokenizer": _TYPES_FIRST,
    "DPRQuestionEncoderTokenizer": _TYPES_FIRST,
    "DebertaTokenizer": _MASK_FIRST,
    "DebertaV2Tokenizer": _MASK_FIRST,
    "ElectraTokenizer": _TYPES_FIRST,
    "FNetTokenizer": ("input_ids", "token_type_ids"),
    "LayoutLMTokenizer": _TYPES_FIRST,
    "LayoutLMv3Tokenizer": ("input_ids", "attention_mask", "bbox"),
    "LxmertTokenizer": _TYPES_FIRST,
    "MobileBertTokenizer": _TYPES_FIRST,
    "SqueezeBertTokenizer": _TYPES_FIRST,
    "TapasTokenizer": _MASK_FIRST,
}
"""Class of transformers 5 -> its `model_input_names`, where they are not those of `USUAL`."""

USUAL = ("input_ids", "attention_mask")


def input_names(folder: Path) -> tuple[str, ...]:
    """The `model_input_names` of the tokenizer in a folder: those of its file, else those of its class."""
    settings = read_object(folder / "tokenizer_config.json")
    stated = settings.get("model_input_names")
    if isinstance(stated, list) and all(isinstance(name, str) for name in stated):
        return tuple(stated)
    return INPUTS.get(tokenizer_class(folder), USUAL)
