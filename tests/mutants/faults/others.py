"""Faults in files and in models that are no tiny checkpoints."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.manifest import Artifact
from isoform.reference.model import Model, open_model
from isoform.reference.modules.relative import one_sided_buckets, two_sided_buckets
from isoform.reference.modules.rotary import inverse_frequencies
from tests.mutants.faults.planted import (
    FLOATS_ONLY,
    GRAPHS,
    LAYER,
    NOT_LOOKED_INTO,
    SINGLE,
    Fault,
    activation,
    distances_one_late,
    forward,
    on,
    padding_ignored,
    part,
    setting,
    swap,
    wrong_epsilon,
)
from tests.mutants.planting import FORMS, Checkpoint, Config, Definition, InFile, Tensors

FILES = tuple(form for form in FORMS if form.startswith("gguf"))


def every_norm_offset(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = tensors[name] - 1


def rope(**values: Any) -> Callable[[Config], None]:
    """Rotary settings, in whichever spelling the config has them."""

    def change(config: Config) -> None:
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(config.get(key), dict):
                config[key] = {**config[key], **{k: v for k, v in values.items() if k in config[key]}}
        config.update({k: v for k, v in values.items() if k in config})

    return change


def untie(config: Config) -> None:
    config["tie_word_embeddings"] = False


def own_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0).clone()


def queries_and_keys_swapped(module: nn.Module) -> None:
    q, k = part(module, "layers.1.attn.q"), part(module, "layers.1.attn.k")
    q.forward, k.forward = (lambda x: F.linear(x, k.weight, k.bias)), (lambda x: F.linear(x, q.weight, q.bias))


def gate_and_up_swapped(module: nn.Module) -> None:
    mlp = part(module, "layers.1.mlp")
    mlp.forward = lambda x: mlp.down(mlp.act(mlp.up(x)) * mlp.gate(x))


def cache_not_extended(module: nn.Module) -> None:
    attention = part(module, "layers.1.attn")
    honest = attention.attend

    def attend(x: Tensor, bias: Tensor, cache: Any, angles: Any) -> Tensor:
        y = honest(x, bias, cache, angles)
        (past, *_), (k, v) = cache.past, cache.present
        cache.present = torch.cat((past, k[:, :, past.shape[2] :] * 0), 2), v
        return y

    attention.attend = attend


def positions_one_late(module: nn.Module) -> None:
    honest = module.forward
    module.forward = lambda ids, mask, positions, *past: honest(ids, mask, positions + 1, *past)


def windows_ignored(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(replace(kind, window=None) for kind in kinds)  # type: ignore[assignment]


def scores_uncapped(module: nn.Module) -> None:
    attention = part(module, "layers.1.attn")
    attention.heads = replace(attention.heads, softcap=0.0)


def logits_uncapped(module: nn.Module) -> None:
    module.logit_softcap = 0.0  # type: ignore[assignment]


def scaling_forgotten(module: nn.Module) -> None:
    found = part(module, "ropes.rope")
    head_dim, settings = found.rotated, found.settings
    found.frequencies = inverse_frequencies(head_dim, replace(settings, kind="default"))


def scale_of_scores(module: nn.Module) -> None:
    attention = part(module, "layers.1.attn")
    attention.heads = replace(attention.heads, scale=attention.heads.settings[2] * 1.01)


def stored(bundle: Path, artifact: Artifact, model: Model, name: str) -> tuple[Path, int, int]:
    """The file that holds a weight, and where: offset and size."""
    path = bundle / artifact.files[0].path
    if path.suffix == ".gguf":
        info = open_model(path).checkpoint.info(name)
        return path, info.offset, info.nbytes
    if path.suffix == ".onnx":
        graph = onnx.load(str(path), load_external_data=False).graph
        tensor = next(t for t in graph.initializer if t.name in (name, f"{name}.data"))
        entry = {item.key: item.value for item in tensor.external_data}
        return path.parent / entry["location"], int(entry["offset"]), int(entry["length"])
    held = model.weights[name].load().numpy().tobytes()
    return path, path.read_bytes().index(held), len(held)


def packed_weight_off_by_one(bundle: Path, artifact: Artifact, model: Model) -> None:
    """The lowest bit of one byte in the middle of a weight's data."""
    path, offset, size = stored(bundle, artifact, model, "layers.1.mlp.down.weight")
    flip(path, offset + size // 2)
    repack(path)


def one_nan(bundle: Path, artifact: Artifact, model: Model) -> None:
    """The sixth value of a norm, which is float32 in every form."""
    path, offset, _ = stored(bundle, artifact, model, "layers.1.attn_norm.weight")
    with path.open("r+b") as stream:
        stream.seek(offset + 20)
        stream.write(struct.pack("<f", float("nan")))
    repack(path)


def flip(path: Path, where: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(where)
        byte = stream.read(1)[0]
        stream.seek(where)
        stream.write(bytes([byte ^ 1]))


def repack(path: Path) -> None:
    """Give an archive whose records were changed in place the checksums that go with them."""
    if not zipfile.is_zipfile(path):
        return
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            start = entry.header_offset
            name, extra = (int.from_bytes(content[start + at : start + at + 2], "little") for at in (26, 28))
            begin = start + 30 + name + extra
            sum_ = zlib.crc32(content[begin : begin + entry.file_size]).to_bytes(4, "little")
            old = entry.CRC.to_bytes(4, "little")
            if sum_ != old:
                content[:] = content.replace(old, sum_)
    path.write_bytes(content)


def without_a_merge(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    del merges[len(merges) // 2]
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("'system'", "'developer'"), encoding="utf-8")


def page_distances_dropped(module: nn.Module) -> None:
    """The distances from bottom to bottom add nothing."""
    table = part(module, "y_distance")
    honest = table.forward
    table.forward = lambda places, scale: 0 * honest(places, scale)


def distances_on_the_page_one_late(module: nn.Module) -> None:
    table = part(module, "x_distance.buckets")
    table.numbers = table.numbers.roll(1)


def sides_of_boxes_exchanged(module: nn.Module) -> None:
    layout = part(module, "layout")
    honest = layout.forward
    layout.forward = lambda bbox: honest(torch.cat((bbox[..., 1:2], bbox[..., :1], bbox[..., 3:], bbox[..., 2:3]), -1))


def patches_by_columns(module: nn.Module) -> None:
    """The boxes of the patches as if their first axis went across."""
    boxes: Any = module.patch_boxes
    side = round((len(boxes) - 1) ** 0.5)
    turned = boxes[1:].unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1)
    module.patch_boxes = torch.cat((boxes[:1], turned))


def patches_joined_without_a_norm(module: nn.Module) -> None:
    part(module, "joint_norm").forward = lambda x: x


def distances_forgotten(module: nn.Module) -> None:
    attention = part(module, "layers.0.attn")
    honest = attention.bias
    attention.bias = lambda places: 0 * honest(places)


def distances_of_the_other_side(module: nn.Module) -> None:
    """A decoder's buckets for an encoder, and the other way round."""
    table = part(module, "buckets")
    both = int(table.numbers[-1]) > 0  # of a key far behind the query
    table.numbers = (one_sided_buckets if both else two_sided_buckets)(int(table.numbers.max()) + 1, table.far)


def distances_of_the_first_layer(module: nn.Module) -> None:
    part(module, "layers.1.attn").bias = part(module, "layers.0.attn").bias


def head_unscaled(module: nn.Module) -> None:
    part(module, "").scale = 1.0


FAULTS: tuple[Fault, ...] = (
    # stored
    Fault(
        "q and k swapped in the file",
        "square llama",
        Checkpoint(swap(f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.k_proj")),
        (r"^layers\.1\.attn\.[qk](\.weight)?$",),
    ),
    Fault(
        "bias dropped",
        "wide qwen2",
        Checkpoint(on(f"{LAYER}.self_attn.k_proj.bias", torch.zeros_like)),
        (r"^layers\.1\.attn\.k(\.bias)?$",),
    ),
    Fault(
        "square weight transposed",
        "square llama",
        Checkpoint(on(f"{LAYER}.self_attn.o_proj.weight", lambda x: x.T)),
        (r"^layers\.1\.attn\.out(\.weight)?$",),
    ),
    Fault(
        "gate and up swapped in the file",
        "wide qwen2",
        Checkpoint(swap(f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj")),
        (r"^layers\.1\.mlp\.(gate|up)(\.weight)?$",),
    ),
    Fault(
        "NaN in a weight",
        "wide qwen2",
        InFile(one_nan),
        (r"^layers\.1\.attn_norm(\.weight)?$",),
    ),
    Fault(
        "one block off by one",
        "wide qwen2",
        InFile(packed_weight_off_by_one),
        (r"^layers\.1\.mlp\.down(\.weight)?$",),
    ),
    Fault(
        "norms stored without their offset",
        "wide gemma2",
        Checkpoint(every_norm_offset),
        (r"^layers\.0\.\w*norm(\.weight)?$",),
    ),
    Fault(
        "tied head not tied",
        "wide gemma2",
        Checkpoint(own_head, untie),
        (r"^head$",),
        GRAPHS,
        "llama.cpp has no separate head for this architecture, and the exporter refuses",
    ),
    # constants
    Fault(
        "epsilon of the norms",
        "wide qwen2",
        Checkpoint(config=setting(rms_norm_eps=1e-4)),
        (r"layers\.0\.attn_norm$", r"epsilon$"),
    ),
    Fault(
        "rotary base",
        "wide qwen2",
        Checkpoint(config=rope(rope_theta=12345.0)),
        (r"^ropes\.rope$", r"layers\.0\.rotary", r"rope\.freq_base$"),
    ),
    Fault(
        "rotary scaling",
        "wide llama",
        Checkpoint(config=rope(factor=4.0)),
        (r"^ropes\.rope$", r"layers\.0\.rotary", r"rope"),
    ),
    Fault(
        "window one token longer",
        "wide gemma3",
        Checkpoint(config=lambda config: config.update(sliding_window=config["sliding_window"] + 1)),
        (r"what goes into layers\.0\.attn\.out", r"sliding_window$"),
    ),
    Fault(
        "windows ignored",
        "wide gemma2",
        Checkpoint(config=setting(sliding_window=4096)),
        (r"what goes into layers\.0\.attn\.out", r"sliding_window$"),
    ),
    Fault(
        "soft-cap of the scores",
        "wide gemma2",
        Checkpoint(config=setting(attn_logit_softcapping=1e4)),
        (r"what goes into layers\.0\.attn\.out", r"softcapping$"),
    ),
    Fault(
        "soft-cap of the logits",
        "wide gemma2",
        Checkpoint(config=setting(final_logit_softcapping=1e4)),
        (r"^logits$", r"softcapping$"),
    ),
    # computed
    Fault(
        "q and k swapped in the graph",
        "square llama",
        Definition(queries_and_keys_swapped),
        (r"layers\.1\.attn\.[qk]$",),
        GRAPHS,
    ),
    Fault(
        "bias forgotten in the graph",
        "wide qwen2",
        Definition(forward("layers.1.attn.k", lambda k, _: lambda x: F.linear(x, k.weight))),
        (r"layers\.1\.attn\.k(\.bias)?$",),
        GRAPHS,
    ),
    Fault(
        "gate and up swapped in the graph",
        "wide qwen2",
        Definition(gate_and_up_swapped),
        (r"what goes into layers\.1\.mlp\.down",),
        GRAPHS,
    ),
    Fault("epsilon of one norm", "wide qwen2", Definition(wrong_epsilon), (r"layers\.1\.mlp_norm$",), GRAPHS),
    Fault(
        "norm with a second offset",
        "wide gemma2",
        Definition(forward("layers.1.attn_norm", lambda norm, _: lambda x: norm.__class__.forward(norm, x) + x * 1e-3)),
        (r"layers\.1\.attn_norm$",),
        GRAPHS,
    ),
    Fault("positions one late", "wide llama", Definition(positions_one_late), (r"^ropes\.rope$",), GRAPHS),
    Fault(
        "padding ignored", "wide qwen2", Definition(padding_ignored), (r"what goes into layers\.0\.attn\.out",), GRAPHS
    ),
    Fault("scaling forgotten", "wide llama", Definition(scaling_forgotten), (r"^ropes\.rope$",), GRAPHS),
    Fault(
        "scores scaled by 1 % more",
        "wide qwen2",
        Definition(scale_of_scores),
        (r"what goes into layers\.1\.attn\.out",),
        GRAPHS,
    ),
    Fault(
        "scores uncapped in one layer",
        "wide gemma2",
        Definition(scores_uncapped),
        (r"what goes into layers\.1\.attn\.out",),
        GRAPHS,
    ),
    Fault("logits uncapped", "wide gemma2", Definition(logits_uncapped), (r"^logits$",), GRAPHS),
    Fault(
        "windows forgotten in the graph",
        "wide gemma3",
        Definition(windows_ignored),
        (r"what goes into layers\.0\.attn\.out",),
        GRAPHS,
    ),
    Fault(
        "stale cache",
        "wide qwen2",
        Definition(cache_not_extended),
        (r"^present\.1\.key$", r"layers\.1\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "GELU by erf instead of tanh",
        "wide gemma2",
        Definition(activation(F.gelu)),
        (r"what goes into layers\.1\.mlp\.down",),
        GRAPHS,
    ),
    Fault(
        "GELU instead of SiLU",
        "wide llama",
        Definition(activation(F.gelu)),
        (r"what goes into layers\.1\.mlp\.down",),
        GRAPHS,
    ),
    *(
        Fault(
            f"{name}, T5's {side}",
            f"{side} {source}",
            Definition(change),
            (r"layers\.0\.attn\.out$", r"^layers\.0\.attn", r"^layers\.0$", r"^buckets$"),
            SINGLE if side == "encoder" else FLOATS_ONLY,
            "" if side == "encoder" else NOT_LOOKED_INTO,
        )
        for side, source in (("encoder", "t5"), ("decoder", "t5_v1_1"))
        for name, change in (
            ("no bias by distance", distances_forgotten),
            ("buckets of the other side", distances_of_the_other_side),
            ("distances one late", distances_one_late),
        )
    ),
    Fault(
        "padding ignored, T5's encoder",
        "encoder t5",
        Definition(padding_ignored),
        (r"layers\.0\.attn\.out$",),
        SINGLE,
    ),
    Fault(
        "padding of the encoder states ignored, T5's decoder",
        "decoder t5",
        Definition(padding_ignored),
        (r"layers\.0\.cross\.out$", r"^layers\.0$"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "tied head unscaled, T5's decoder",
        "decoder t5",
        Definition(head_unscaled),
        (r"^head$", r"what goes into head"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "one table of distances for all layers, UMT5",
        "encoder umt5_b",
        Definition(distances_of_the_first_layer),
        (r"layers\.1\.attn\.out$", r"^layers\.1\.attn"),
        SINGLE,
    ),
    # words, boxes and patches, LayoutLMv3
    *(
        Fault(
            f"{name}, LayoutLMv3",
            f"tiny {source}",
            Definition(change),
            places,
            SINGLE,
            "its rows are no whole blocks",
        )
        for name, source, change, places in (
            (
                "no distance on the page",
                "layoutlmv3_qa",
                page_distances_dropped,
                (r"^y_distance$", r"layers\.0\.attn\.out$"),
            ),
            (
                "distances on the page one late",
                "layoutlmv3_qa_b",
                distances_on_the_page_one_late,
                (r"^x_distance(\.buckets)?$", r"layers\.0\.attn\.out$"),
            ),
            ("x and y of boxes exchanged", "layoutlmv3_tokcls", sides_of_boxes_exchanged, (r"^layout(\.x)?$",)),
            (
                "patches by columns",
                "layoutlmv3_qa",
                patches_by_columns,
                (r"^[xy]_distance$", r"layers\.0\.attn\.out$"),
            ),
            (
                "patches without their norm",
                "layoutlmv3",
                patches_joined_without_a_norm,
                (r"^joint_norm(\.weight)?$", r"what goes into layers\.0\.attn\.q$"),
            ),
        )
    ),
    # read
    Fault(
        "a merge removed beside the model",
        "wide qwen2",
        Checkpoint(files=without_a_merge, beside=True),
        (r"tokenizer\.json|token", r"tokenizer\.ggml"),
    ),
    Fault(
        "chat template altered",
        "wide qwen2",
        Checkpoint(files=other_template, beside=True),
        (r"template|tokenizer_config|\[", r"tokenizer\.chat_template"),
    ),
    Fault(
        "a merge removed in the file",
        "wide qwen2",
        Checkpoint(files=without_a_merge),
        (r"tokenizer\.ggml\.merges",),
        FILES,
    ),
)
