"""Which type each tensor of a file gets: llama.cpp's mixes, so that `q4_k_m` means here what it means there.

A mix has a base type, and rules that give some tensors more bits (or fewer) by what they are and how deep they lie. The
rules are those of src/llama-quant.cpp in https://github.com/ggml-org/llama.cpp; the tests compare with its own files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from isoform.errors import InputError, UnsupportedExport
from isoform.exporters.gguf.types import BYTES_PER_WEIGHT, NUMBERS
from isoform.formats import FLOATS

BLOCKS = {name: block for name, (_, block, _) in NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class Mix:
    """`file_type` is llama.h's LLAMA_FTYPE; `base` the type of a tensor that no rule names."""

    file_type: int
    base: str


MIXES = {
    "f32": Mix(0, "F32"),
    "f16": Mix(1, "F16"),
    "bf16": Mix(32, "BF16"),
    "q4_0": Mix(2, "Q4_0"),
    "q4_1": Mix(3, "Q4_1"),
    "q5_0": Mix(8, "Q5_0"),
    "q5_1": Mix(9, "Q5_1"),
    "q8_0": Mix(7, "Q8_0"),
    "q2_k": Mix(10, "Q2_K"),
    "q2_k_s": Mix(21, "Q2_K"),
    "q3_k_s": Mix(11, "Q3_K"),
    "q3_k_m": Mix(12, "Q3_K"),
    "q3_k_l": Mix(13, "Q3_K"),
    "q4_k_s": Mix(14, "Q4_K"),
    "q4_k_m": Mix(15, "Q4_K"),
    "q5_k_s": Mix(16, "Q5_K"),
    "q5_k_m": Mix(17, "Q5_K"),
    "q6_k": Mix(18, "Q6_K"),
    "iq1_s": Mix(24, "IQ1_S"),
    "iq1_m": Mix(31, "IQ1_M"),
    "iq2_xxs": Mix(19, "IQ2_XXS"),
    "iq2_xs": Mix(20, "IQ2_XS"),
    "iq2_s": Mix(28, "IQ2_XS"),
    "iq2_m": Mix(29, "IQ2_S"),
    "iq3_xxs": Mix(23, "IQ3_XXS"),
    "iq3_xs": Mix(22, "IQ3_S"),
    "iq3_s": Mix(26, "IQ3_S"),
    "iq3_m": Mix(27, "IQ3_S"),
    "iq4_nl": Mix(25, "IQ4_NL"),
    "iq4_xs": Mix(30, "IQ4_XS"),
    "tq1_0": Mix(36, "TQ1_0"),
    "tq2_0": Mix(37, "TQ2_0"),
    "mxfp4": Mix(38, "MXFP4"),
    "mxfp4_moe": Mix(38, "MXFP4"),
}
"""By the names of llama-quantize, in lower case. `mxfp4` alone is ours: every matrix, where `mxfp4_moe` has Q8_0."""

ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""llama-quantize's short names."""

CONVERTED = (*FLOATS, "q8_0")
"""What llama.cpp's converter writes by itself."""

NARROW_ROWS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What stands in for a type of 256 in a tensor whose rows are no multiple of that."""

SPARSE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
"""Types that make garbage without an importance matrix, and that ggml mostly refuses without one."""

# Small matrices that llama.cpp reads in float32 only, or that are too small to matter.
WHOLE = ("position_embd.weight", "token_types.weight")
DISTANCES = "attn_rel_b.weight"
WHOLE_PARTS = ("_norm.weight", "ffn_gate_inp.weight", DISTANCES, "ssm_conv1d", "shortconv.conv.weight")

LOW = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
"""Mixes around two bits, which have rules of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """What the rules ask of a model: layers, query heads per key head, experts (0 when dense), and whether llama.cpp
    calls it a 70B."""

    layers: int
    sharing: int = 1
    experts: int = 0
    large: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """One tensor as the rules see it: it is number `index` of `count` of its kind."""

    mix: str
    base: str
    model: Depths
    importance: bool
    index: int = 0
    count: int = 1

    @property
    def first_eighth(self) -> bool:
        return self.index < self.count // 8

    @property
    def first_sixteenth(self) -> bool:
        return self.index < self.count // 16

    @property
    def middle(self) -> bool:
        """Neither in the first nor in the last eighth."""
        return self.count // 8 <= self.index < 7 * self.count // 8

    @property
    def deserves_more(self) -> bool:
        """The first and the last eighth, and every third layer between."""
        return not self.middle or (self.index - self.count // 8) % 3 == 2

    @property
    def shared(self) -> bool:
        """Four or more query heads look at the same keys and values."""
        return self.model.sharing >= 4


def mix_name(name: str) -> str:
    """The key in `MIXES` for a name as llama-quantize takes it."""
    lower = name.lower()
    lower = ALIASES.get(lower, lower)
    if lower not in MIXES:
        raise InputError(f"GGUF type {name!r} is not written; choose from {', '.join(MIXES)}")
    return lower


def bytes_per_weight(name: str) -> float:
    """Of a mix's base type: a little less than a file of it takes."""
    return BYTES_PER_WEIGHT[MIXES[mix_name(name)].base]


def parse_overrides(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`regex=type` pairs, as llama-quantize's --tensor-type takes them: the regex is searched in a tensor's name."""
    found = []
    for text in texts:
        pattern, _, kind = text.rpartition("=")
        upper = kind.strip().upper()
        if not pattern or upper not in QUANTIZABLE:
            raise InputError(
                f"--override takes regex=type, not {text!r}; a type is one of {', '.join(QUANTIZABLE).lower()}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"--override {text!r}: {pattern!r} is no regular expression ({error})") from None
        found.append((pattern, upper))
    return tuple(found)


QUANTIZABLE = tuple(dict.fromkeys(name for name in (*(m.base for m in MIXES.values()), "IQ2_S")))
"""Types of single tensors that we write."""


def tensor_types(
    mix: str,
    shapes: Mapping[str, tuple[int, ...]],
    model: Depths,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    importance: Collection[str] | None = None,
) -> dict[str, str]:
    """GGUF tensor name -> ggml's type, for names with shapes in torch's order.

    `overrides` are (regex, type), the first that is found in a name deciding; `importance` are the tensors in the
    importance matrix, which changes some rules. Raises InputError for a type that needs one and an override that no
    tensor matches, UnsupportedExport when no tensor has rows long enough for the mix.
    """
    base = MIXES[mix].base
    chosen: dict[str, str] = {}
    counters: dict[str, int] = {}
    unused = dict(overrides)
    values = sum(_role(name) in VALUES for name in shapes)
    tied = "output.weight" not in shapes
    for name in sorted(shapes, key=_depth):
        shape = shapes[name]
        if not may_shrink(name, shape, mix):
            chosen[name] = "F32"
            continue
        kind = next((kind for pattern, kind in overrides if re.search(pattern, name)), None)
        if kind is not None:
            unused = {p: k for p, k in unused.items() if not re.search(p, name)}
        elif mix in CONVERTED:
            kind = base
        else:
            kind = _by_rule(mix, name, shape, model, counters, values, tied, importance is not None)
        chosen[name] = _that_fits(kind, shape[-1])
        _check_importance(mix, name, chosen[name], importance)
    if unused:
        raise InputError(f"--override {next(iter(unused))!r} matches no tensor that can be quantized")
    rows = [shape[-1] for shape in shapes.values() if len(shape) > 1]
    if mix not in CONVERTED and rows and all(BLOCKS[kind] == 1 for kind in chosen.values()):
        raise UnsupportedExport(
            f"{mix} packs values by {BLOCKS[base]} or 32, and no matrix has rows of a multiple of that (the longest "
            f"has {max(rows)} values); take f16 or f32"
        )
    return {name: chosen[name] for name in shapes}


def may_shrink(name: str, shape: Sequence[int], mix: str) -> bool:
    """Whether a tensor may be anything but float32. Norms, biases and small tables may not."""
    parts = [part for part in WHOLE_PARTS if part in name]
    if mix in CONVERTED and parts == [DISTANCES]:  # the converter does not know what llama-quantize knows
        return len(shape) > 1
    if not name.endswith("weight") or name in WHOLE or parts:
        return False
    if mix in CONVERTED:
        return len(shape) > 1
    return any(size > 1 for size in shape[:-1])  # ggml does not count axes of one element, the converter does


def needs_importance(mix: str, name: str, kind: str) -> bool:
    """Whether llama.cpp refuses this type for this tensor unless an importance matrix covers it."""
    if name in ("token_embd.weight", "output.weight"):
        return False
    return kind in SPARSE or (kind == "Q2_K" and mix == "q2_k_s")


def _check_importance(mix: str, name: str, kind: str, importance: Collection[str] | None) -> None:
    if importance is not None and name in importance:
        return
    # The embeddings are spared below, but ggml itself cannot make these three without weights.
    if needs_importance(mix, name, kind) or kind in ("IQ1_S", "IQ2_XXS", "IQ2_XS"):
        way_out = "give --imatrix FILE (`isoform imatrix` makes one from a text), or take a larger type"
        if importance is not None:
            way_out = "the one given does not weigh it; take a larger type for it, or an importance matrix that does"
        raise InputError(f"{mix} gives {name} the type {kind}, garbage without an importance matrix: {way_out}")


def _that_fits(kind: str, row: int) -> str:
    """The type itself, or what stands in for it in rows of this length; at last half precision, which fits any."""
    if row % BLOCKS[kind] == 0:
        return kind
    other = NARROW_ROWS.get(kind, "F16")
    return other if row % BLOCKS[other] == 0 else "F16"


def _depth(name: str) -> tuple[int, bytes]:
    """llama.cpp's order: what belongs to no layer, then layer by layer, by name within each."""
    return _layer(name), name.encode()


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


# ------------------------------------------------------------------ roles
VALUES = ("attn_qkv", "attn_kv_b", "attn_v")
"""Roles that hold an attention's values, the most sensitive of its matrices."""

_ROLES = (
    *(("attn_qkv.weight", "attn_qkv"), ("attn_kv_b.weight", "attn_kv_b"), ("attn_v.weight", "attn_v")),
    *(("attn_k.weight", "attn_k"), ("attn_q.weight", "attn_q"), ("attn_output.weight", "attn_output")),
    *(("ffn_up", "ffn_up"), ("ffn_gate", "ffn_gate"), ("ffn_down", "ffn_down")),
)


def _role(name: str) -> str:
    if name in ("output.weight", "token_embd.weight", "per_layer_token_embd.weight"):
        return "output" if name == "output.weight" else "embedding"
    return next((role for part, role in _ROLES if part in name), "")


def _by_rule(
    mix: str,
    name: str,
    shape: Sequence[int],
    model: Depths,
    counters: dict[str, int],
    values: int,
    tied: bool,
    importance: bool,
) -> str:
    """The type that the mix gives a tensor, before its rows are looked at."""
    role, base = _role(name), MIXES[mix].base
    if role == "output" or (tied and role == "embedding"):
        return _output(mix, base, shape[-1])
    if mix == "mxfp4_moe":
        return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
    if role == "embedding":
        return _EMBEDDING.get(mix, base)
    kinds = "attn_v" if role in VALUES else role
    index, counters[kinds] = counters.get(kinds, 0), counters.get(kinds, 0) + 1
    if kinds.startswith("ffn") and model.experts > 1 and mix not in LOW:
        index = _layer(name)  # experts of one layer are several tensors
    place = _Place(mix, base, model, importance, index, values if kinds == "attn_v" else model.layers)
    rules: Mapping[str, Callable[[_Place], str | None]] = _LOW_RULES if mix in LOW else _RULES
    rule = rules.get(kinds)
    return (rule(place) if rule else None) or base


# ------------------------------------------------------------------ rules
def _output(mix: str, base: str, row: int) -> str:
    """The output matrix, and an embedding that is one: the matrix that matters most."""
    if mix == "mxfp4_moe" or row % BLOCKS[base] or base == "Q8_0":
        return "Q8_0"
    return "Q5_K" if mix in (*LOW, "iq3_xxs") else "Q6_K"


_EMBEDDING = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs"), "Q2_K"),
    **dict.fromkeys(("iq2_s", "iq2_m", "iq3_xxs"), "IQ3_S"),
    **dict.fromkeys(("tq1_0", "tq2_0"), "Q4_K"),
}


def _low_values(p: _Place) -> str:
    if p.shared or p.model.experts >= 4:
        return "Q4_K"
    return "IQ3_S" if p.mix in ("iq2_s", "iq2_m") else "Q2_K"


def _low_down(p: _Place) -> str | None:
    if not p.first_eighth:
        return None
    return "IQ3_S" if p.mix in ("iq2_s", "iq2_m") else "Q2_K"


def _low_output(p: _Place) -> str | None:
    if p.model.experts == 8:
        return "Q5_K"
    return {"iq1_s": "IQ2_XXS", "iq1_m": "IQ2_XXS", "iq2_s": "IQ3_S", "iq2_m": "IQ3_S"}.get(p.mix)


def _values(p: _Place) -> str:
    if p.model.experts == 8:  # small beside eight experts
        return "Q8_0"
    kind = _values_of_a_small_one(p) or p.base
    return "Q5_K" if p.model.large and kind in ("Q3_K", "Q4_K") else kind


def _values_of_a_small_one(p: _Place) -> str | None:
    match p.mix:
        case "q2_k":
            return "Q4_K" if p.shared else "Q3_K"
        case "q2_k_s" | "iq3_xs" | "iq3_s":
            return "Q4_K" if p.shared else None
        case "iq3_xxs":
            return "Q4_K" if p.shared else "IQ3_XXS" if p.importance else "IQ3_S"
        case "iq3_m":
            return "Q4_K"
        case "q3_k_m":
            return "Q5_K" if p.index < 2 else "Q4_K"
        case "q3_k_l":
            return "Q5_K"
        case "iq4_nl" | "iq4_xs":
            return "Q5_K" if p.shared else None
        case "q4_k_m" | "q5_k_m":
            return "Q6_K" if p.deserves_more else None
        case "q4_k_s":
            return "Q5_K" if p.index < 4 else None
    return None


def _keys(p: _Place) -> str | None:
    return "Q8_0" if p.model.experts == 8 else _queries(p)


def _queries(p: _Place) -> str | None:
    return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(p.mix)


def _down(p: _Place) -> str | None:
    match p.mix:
        case "q2_k":
            return "Q3_K"
        case "q2_k_s":
            return "Q4_K" if p.first_eighth else None
        case "iq3_xxs" if not p.importance:
            return "Q4_K" if p.first_eighth else "Q3_K"
        case "q3_k_m":
            return "Q5_K" if p.first_sixteenth else "Q4_K"
        case "iq3_m":
            return "Q4_K" if p.first_eighth or (p.model.experts == 8 and p.deserves_more) else None
        case "q3_k_l":
            return "Q5_K"
        case "q4_k_m" | "q5_k_m":
            return "Q6_K" if p.deserves_more else None
        case "iq4_nl" | "iq4_xs" if not p.importance:
            return "Q5_K" if p.first_eighth else None
        case "q4_k_s":
            return "Q5_K" if p.first_eighth else None
        case "q4_0" | "q5_0" if p.importance:  # the first layers can go wrong even so
            return f"{p.base[:-1]}1" if p.first_eighth else None
    return None


_EIGHT_EXPERTS = (
    *("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m"),
    *("iq3_xxs", "iq3_xs", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs"),
)
"""Mixes that spend more on the output of the attention where it is small beside eight experts."""


def _attention_output(p: _Place) -> str | None:
    if p.model.experts == 8:
        return "Q5_K" if p.mix in _EIGHT_EXPERTS else None
    return {"q2_k": "Q3_K", "iq3_xxs": "IQ3_S", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K"}.get(p.mix)


def _gate_or_up(p: _Place) -> str | None:
    return "IQ3_XXS" if p.mix == "iq3_xs" and p.middle else None


_LOW_RULES: dict[str, Callable[[_Place], str | None]] = {
    "attn_v": _low_values,
    "attn_k": lambda p: "Q4_K" if p.model.experts == 8 else None,
    "ffn_down": _low_down,
    "attn_output": _low_output,
}
_RULES: dict[str, Callable[[_Place], str | None]] = {
    "attn_v": _values,
    "attn_k": _keys,
    "attn_q": _queries,
    "ffn_down": _down,
    "attn_output": _attention_output,
    "ffn_gate": _gate_or_up,
    "ffn_up": _gate_or_up,
}
