"""The planted faults, as data: what each does to which forms, and where the bisection must point."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.manifest import Artifact
from isoform.reference.model import Model, open_model
from isoform.reference.modules import ops
from isoform.reference.modules.relative import one_sided_buckets, two_sided_buckets
from isoform.reference.modules.rotary import inverse_frequencies
from isoform.reference.vision.shifted_windows import Windows
from tests.mutants.planting import FORMS, Checkpoint, Config, Definition, InFile, Plant, Tensors

GRAPHS = tuple(form for form in FORMS if not form.startswith("gguf"))
SINGLE = ("onnx f32", "onnx int8", "torchscript f32")
FLOATS_ONLY = ("onnx f32", "torchscript f32")
UNPLACED = r"^f32 noise"
"""Of a fault in a decoder whose heads run after every layer: its ONNX graph is not bisected, a case alone is named."""
NOT_LOOKED_INTO = "a quantized part that reads encoder states is measured on rows alone, and not bisected"
FILES = tuple(form for form in FORMS if form.startswith("gguf"))


@dataclass(frozen=True)
class Fault:
    """`places` are regular expressions, one of which the place of the first departure must match, and that of every
    bisection of the graph; without a departure the note of the first failed result. `missing` says why a form is not
    among `forms`, where the fault could be there."""

    name: str
    source: str
    plant: Plant
    places: tuple[str, ...]
    forms: tuple[str, ...] = FORMS
    missing: str = ""


# ------------------------------------------------------------------ in the checkpoint: every form stores it
def swap(one: str, other: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for leaf in ("weight", "bias"):
            a, b = f"{one}.{leaf}", f"{other}.{leaf}"
            if a in tensors:
                tensors[a], tensors[b] = tensors[b], tensors[a]

    return change


def on(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return apply


def classes_exchanged(tensors: Tensors) -> None:
    for leaf in ("weight", "bias"):
        key = f"model.transformer_module.decoder.class_embed.{leaf}"
        tensors[key] = tensors[key][[1, 0, *range(2, len(tensors[key]))]]


def halves_of_experts_exchanged(tensors: Tensors) -> None:
    key = f"{LAYER}.mlp.experts.gate_up_proj"
    tensors[key] = tensors[key].roll(tensors[key].shape[1] // 2, 1)


def every_norm_offset(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = tensors[name] - 1


def setting(**values: Any) -> Callable[[Config], None]:
    return lambda config: config.update(values)


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


# ------------------------------------------------------------------ in the definition: graphs compute something else
def part(module: nn.Module, path: str) -> Any:
    return module.get_submodule(path)


def forward(path: str, make: Callable[[Any, nn.Module], Callable[..., Any]]) -> Callable[[nn.Module], None]:
    """Give a module another forward pass: `make` gets it and the whole."""

    def change(module: nn.Module) -> None:
        found = part(module, path) if path else module
        found.forward = make(found, module)

    return change


def takes_the_weight_of(other: str) -> Callable[[Any, nn.Module], Callable[..., Any]]:
    def make(found: Any, whole: nn.Module) -> Callable[..., Any]:
        return lambda x: F.linear(x, part(whole, other).weight, part(whole, other).bias)

    return make


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


def padding_ignored(module: nn.Module) -> None:
    honest = module.forward
    module.forward = lambda ids, mask, *rest: honest(ids, torch.ones_like(mask), *rest)


def learned_positions_one_late(found: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda ids: F.embedding(ids + 1, found.weight)


def wrong_epsilon(module: nn.Module) -> None:
    norm = part(module, "layers.1.mlp_norm" if hasattr(part(module, "layers.1"), "mlp_norm") else "layers.1.out_norm")
    norm.eps = norm.eps * 10 if norm.eps > 1e-9 else 1e-6


def windows_ignored(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(replace(kind, window=None) for kind in kinds)  # type: ignore[assignment]


def window_one_longer(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(replace(kind, window=kind.window and kind.window + 1) for kind in kinds)  # type: ignore[assignment]


def hides_one_later(module: nn.Module) -> None:
    window_one_longer(module)
    hide: Any = module.hide
    hide.window += 1


def offsets_the_other_way(module: nn.Module) -> None:
    attention = part(module, "encoder.layers.1.attn")
    attention.offsets = attention.offsets.T.contiguous()


def windows_one_patch_later(module: nn.Module) -> None:
    layer = part(module, "encoder.layers.0")
    honest, side = layer._windowed, layer.side

    def late(x: Tensor, window: int) -> Tensor:
        grid = x.unflatten(1, (side, side))
        moved = torch.cat((grid[:, 1:], grid[:, :1]), 1).flatten(1, 2)
        y = honest(moved, window).unflatten(1, (side, side))
        return torch.cat((y[:, -1:], y[:, :-1]), 1).flatten(1, 2)

    layer._windowed = late


def relative_positions_turned(module: nn.Module) -> None:
    attention: Any = part(module, "stages.1.layers.1.attn")
    attention.offsets = attention.offsets.T.contiguous()


def windows_not_shifted(stage: str) -> Callable[[nn.Module], None]:
    """Every second layer of a stage attends within the windows of the first."""

    def change(module: nn.Module) -> None:
        layer: Any = part(module, f"{stage}.layers.1")
        honest = layer.forward
        layer.forward = lambda x, windows, mask: honest(x, Windows(x, windows.side, 0, False), None)

    return change


def windows_not_masked(module: nn.Module) -> None:
    """What came round from the other side of a map is seen like a neighbour."""
    layer: Any = part(module, "stages.0.layers.1")
    honest = layer.forward
    layer.forward = lambda x, windows, mask: honest(x, windows, None)


def merged_in_another_order(module: nn.Module) -> None:
    """The lower left and the upper right position of a square in each other's place."""
    merge: Any = part(module, "merges.0")

    def forward(x: Tensor) -> Tensor:
        x = F.pad(x, [0, 0, 0, 1, 0, 1])
        upper, lower = x[:, 0:-1:2], x[:, 1::2]
        parts = upper[:, :, 0:-1:2], upper[:, :, 1::2], lower[:, :, 0:-1:2], lower[:, :, 1::2]
        y: Tensor = merge.reduce(merge.norm(torch.cat(parts, -1)))
        return y

    merge.forward = forward


def masks_everywhere(module: Any) -> None:
    """Every query sees the whole map."""
    for layer in module.decoder.layers:
        honest = layer.forward
        layer.forward = lambda x, places, key, value, bias, honest=honest: honest(x, places, key, value, bias * 0)


def masks_of_another_threshold(module: Any) -> None:
    """A cell belongs to a mask where its chance is 0.99, and not from a half on."""
    module.decoder.shown = 0.99


def rows_and_columns_of_points_exchanged(module: Any) -> None:
    attention = module.pixels.layers[0].attn
    honest = attention.forward

    def forward(x: Tensor, places: Tensor, centres: Tensor, maps: Any) -> Tensor:
        y: Tensor = honest(x, places, torch.stack((centres[..., 1], centres[..., 0]), -1), maps)
        return y

    attention.forward = forward


def queries_without_places(module: Any) -> None:
    layer = module.decoder.layers[1]
    honest = layer.forward
    layer.forward = lambda x, places, key, value, bias: honest(x, places * 0, key, value, bias)


def cells_turned(module: Any) -> None:
    module.cells = module.cells.flip(-1)


def corners_of_pixels(prompts: Any, _: nn.Module) -> Callable[..., Any]:
    """Points at the corner of their pixel and not in its middle."""
    honest = prompts.forward
    return lambda points, labels, positions: honest(points - 0.5, labels, positions)


def always_closed(prompts: Any, _: nn.Module) -> Callable[..., Any]:
    """Another token ends the points even where a box follows them."""
    honest = prompts.forward

    def encode(points: Tensor, labels: Tensor, positions: Any) -> tuple[Tensor, Tensor]:
        tokens, seen = honest(points, labels, positions)
        return tokens, torch.cat((seen[..., :-1], torch.ones_like(seen[..., -1:])), -1)

    return encode


def beside_no_mask(whole: Any, _: nn.Module) -> Callable[..., Any]:
    """The embedding that stands for no mask stays there beside a mask."""
    return lambda masks, image: (image + whole.embed(masks),)


def the_single_mask_first(whole: Any, _: nn.Module) -> Callable[..., Any]:
    honest = whole.forward

    def decode(*inputs: Tensor) -> tuple[Tensor, ...]:
        scores, masks, one, single = honest(*inputs)
        return scores, torch.cat((single, masks[:, :, 1:]), 2), one, single

    return decode


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


def activation(act: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        part(module, "layers.1.mlp").act = act

    return change


# ------------------------------------------------------------------ in the files
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


# ------------------------------------------------------------------ what reads the text
def without_a_merge(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    del merges[len(merges) // 2]
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("'system'", "'developer'"), encoding="utf-8")


def large_epsilon(module: nn.Module) -> None:
    """One that shows: 1e-6 instead of 1e-12 moves states of size 1 by less than the order of a sum does."""
    part(module, "layers.1.out_norm").eps = 1e-3


def distances_one_late(module: nn.Module) -> None:
    table = part(module, "buckets")
    table.numbers = table.numbers.roll(1)


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


def every_distance_a_bucket(module: nn.Module) -> None:
    """The far distances all in the last bucket, and none on a logarithmic scale."""
    table, last = part(module, "buckets"), int(part(module, "buckets").numbers.max())
    table.numbers = (torch.arange(table.far, -table.far - 1, -1) + last // 2 + 1).clamp(0, last)


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


def begins_with_another_token(module: nn.Module) -> None:
    part(module, "").start = 5


def without_its_norm(module: nn.Module) -> None:
    part(module, "distance_norm").forward = lambda x: x


def places_exchanged(module: nn.Module) -> None:
    """In one layer the distances of keys are projected like those of queries."""
    attention = part(module, "layers.1.attn")
    attention.place_k.forward = lambda x: F.linear(x, attention.place_q.weight, attention.place_q.bias)


def head_without_activation(module: nn.Module) -> None:
    part(module, "mlm").act = lambda x: x


def thetas_swapped(module: nn.Module) -> None:
    kinds: Any = module.kinds
    other = {"rope": "local_rope", "local_rope": "rope"}
    module.kinds = tuple(replace(kind, rope=other[kind.rope]) for kind in kinds)  # type: ignore[assignment]


def first_layer_normed(module: nn.Module) -> None:
    part(module, "layers.0").attn_norm.forward = lambda x: F.layer_norm(x, x.shape[-1:])


def other_half_gated(module: nn.Module) -> None:
    mlp = part(module, "layers.1.mlp")

    def swapped(x: Tensor) -> Any:
        up, gate = mlp.gate_up(x).chunk(2, -1)
        return mlp.down(mlp.act(gate) * up)

    mlp.forward = swapped


def pooled_otherwise(module: nn.Module) -> None:
    module.pooling = {"cls": "mean", "mean": "cls"}[str(module.pooling)]  # type: ignore[assignment]


def last_slot(module: nn.Module) -> None:
    """Classify by what stands in the last slot, padding or not."""
    honest: Any = module
    module.forward = lambda ids, mask: (honest.classifier(honest.states(ids, mask)[:, -1]),)


def embeddings_unscaled(module: nn.Module) -> None:
    module.embed_scale = 1.0  # type: ignore[assignment]


def every_layer_rotated(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(replace(kind, rope="rope") for kind in kinds)  # type: ignore[assignment]


def one_side_seen(module: nn.Module) -> None:
    module.both_sides = False  # type: ignore[assignment]


def route_frozen(module: nn.Module) -> None:
    """The first experts for every token, as a trace over zeros would choose them."""
    router, used = part(module, "layers.1.mlp.router"), part(module, "layers.1.mlp").used
    closed = (torch.arange(router.weight.shape[0]) >= used).float() * -1e4

    def scores(x: Tensor) -> Tensor:
        return F.linear(x, router.weight) + closed.to(x)

    router.forward = scores


def experts_gate_swapped(module: nn.Module) -> None:
    """The stored matrices are honest; the graph takes ups for gates."""
    mlp = part(module, "layers.1.mlp")
    stacks = mlp.experts.up, mlp.experts.gate, mlp.experts.down

    def forward(x: Tensor) -> Tensor:
        weights = [stack.weight for stack in stacks]
        y: Tensor = ops.routed_experts(x, mlp.router(x), *weights, None, None, None, mlp.used, 1, 1.0, 0.0, 0.0)
        return y

    mlp.forward = forward


def classifier_without_activation(module: nn.Module) -> None:
    part(module, "classifier").act = lambda x: x


def without_bias(found: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda x: F.linear(x, found.weight)


def groups_in_turn(module: nn.Module) -> None:
    """Layers 0, 1, 0, 1 instead of 0, 0, 1, 1."""
    order: Any = module.order
    module.order = (*order[::2], *order[1::2])  # type: ignore[assignment]


def one_run_less(module: nn.Module) -> None:
    order: Any = module.order
    module.order = order[:-1]


def activation_of_shared_layers(module: nn.Module) -> None:
    part(module, "layers.0.inner.0.mlp").act = F.gelu


def biased_by_nothing(path: str) -> Callable[[nn.Module], None]:
    """Cross-attention of a layer over the padding of the encoder states too."""

    def change(module: nn.Module) -> None:
        cross = part(module, path)
        honest = cross.attend
        cross.attend = lambda x, states, bias=None, cache=None: honest(x, states, None, cache)

    return change


def left_out(path: str) -> Callable[[nn.Module], None]:
    """A module that gives what it gets."""
    return forward(path, lambda found, whole: lambda x: x)


def without_relu(head: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda x: head.conv2(head.conv1(x))


def another_channel(module: nn.Module) -> None:
    honest = module.forward
    module.forward = lambda pixel_values: honest(pixel_values[:, 1:])


def pixels_one_late(module: nn.Module) -> None:
    """The first class of a cell is left out instead of the last."""
    score: Any = part(module, "score")
    score.forward = (lambda honest: lambda x: honest(x).roll(-1, 1))(score.forward)


def of_any_length(module: nn.Module) -> None:
    """Descriptors that are not made unit vectors, but half as long."""
    honest = module.forward
    module.forward = lambda pixel_values: tuple(x * (n or 0.5) for n, x in enumerate(honest(pixel_values)[::-1]))[::-1]


def every_keypoint_is_real(module: nn.Module) -> None:
    honest = module.forward
    module.forward = lambda keypoints, scores, descriptors, mask: honest(
        keypoints, scores, descriptors, torch.ones_like(mask)
    )


def looks_at_its_own_picture(module: nn.Module) -> None:
    attention = part(module, "layers.1.attn")
    honest = attention.forward
    attention.forward = lambda x, source, bias: honest(x, x, bias)


def first_end(module: nn.Module) -> None:
    """The first of several end tokens is classified."""
    whole: Any = module

    def run(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        (states,) = whole.encoder(input_ids, attention_mask)
        x = whole.decoder(whole.moved(input_ids, attention_mask), attention_mask, states)
        ends = (input_ids == whole.head.end).to(attention_mask.dtype) * attention_mask
        return (
            whole.classifier(
                x.gather(1, ends.argmax(1).unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[-1])).squeeze(1)
            ),
        )

    whole.forward = run


def not_moved(module: nn.Module) -> None:
    whole: Any = module
    whole.moved = lambda input_ids, attention_mask: input_ids


def slower(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda positions: honest(positions) * 0.5


def one_late(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda positions: honest(positions + 1)


ENCODER, DECODER = (f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))


def positions_go_on(found: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda types, mask: (mask.cumsum(1) - 1).clamp(min=0, max=found.last)


def rows_and_columns_exchanged(found: Any, _: nn.Module) -> Callable[..., Any]:
    honest = found.forward

    def run(x: Tensor, types: Tensor, mask: Tensor) -> Any:
        column, row = types[..., 1:2], types[..., 2:3]
        return honest(x, torch.cat((types[..., :1], row, column, types[..., 3:]), -1), mask)

    return run


def cells_of_padding(found: Any, _: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda x, types, mask: honest(x, types, torch.ones_like(mask))


def other_settings(path: str, **values: Any) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for name, value in values.items():
            assert getattr(part(module, path), name) != value
            setattr(part(module, path), name, value)

    return change


SEQUENCES = ("onnx f32", "torchscript f32")
CONVOLUTIONS = "a model of convolutions has no matrix to quantize"
LAYER = "model.layers.1"
NARROW = (*GRAPHS, "gguf f32", "gguf q8_0"), "its rows are no multiple of 256"
SHARED = "encoder.albert_layer_groups.1.albert_layers.0"


def the_next_expert(mlp: Any, _: nn.Module) -> Callable[..., Any]:
    honest, count = mlp.forward, mlp.experts.weight.shape[0]
    return lambda x, dataset: honest(x, torch.where(dataset == count - 1, torch.zeros_like(dataset), dataset + 1))


def enlarged_by_the_nearest_cell(whole: nn.Module) -> None:
    head = part(whole, "head")
    for matrix in (head.down, head.across):
        matrix.copy_((matrix > 0.5).to(matrix.dtype))


def swapped_biases(tensors: Tensors) -> None:
    q, v = (f"videomae.encoder.layer.1.attention.attention.{letter}_bias" for letter in "qv")
    tensors[q], tensors[v] = tensors[v], tensors[q]


def first_frames(embed: Any, _: nn.Module) -> Callable[..., Any]:
    """Every tubelet shows its first frame twice."""
    honest = embed.forward
    return lambda x: honest(x.unflatten(1, (-1, 2))[:, :, :1].expand(-1, -1, 2, -1, -1, -1).flatten(1, 2))


def first_tubelet(whole: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda pixels: (whole.classifier(whole.pooled_norm(whole.encoder(pixels)[:, 0])),)


def masked_without_positions(whole: Any, _: nn.Module) -> Callable[..., Any]:
    def run(pixel_values: Tensor, visible: Tensor, masked: Tensor) -> tuple[Tensor]:
        x, places = whole.narrow(whole.encoder(pixel_values, visible)), whole.decoder_positions[0]
        count = x.shape[1]
        x = torch.cat((x + F.embedding(visible, places), whole.mask_token + F.embedding(masked, places * 0)), 1)
        for layer in whole.layers:
            x = layer(x)
        return (whole.head(whole.norm(x[:, count:])),)

    return run


def heads_of_masks_exchanged(tensors: Tensors) -> None:
    for layer in ("proj_in", "layers.0", "proj_out"):
        one, other = (f"mask_decoder.output_hypernetworks_mlps.{n}.{layer}" for n in (1, 2))
        swap(one, other)(tensors)


def joined_by_columns(module: nn.Module) -> None:
    tiles: Any = module.tiles[-1]  # type: ignore[index]
    honest, side = tiles.joined, tiles.side
    tiles.joined = lambda x: honest(x.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))


def cut_one_late(module: nn.Module) -> None:
    tiles: Any = module.tiles[-1]  # type: ignore[index]
    first, *others, last = tiles.spans
    tiles.spans = [(first[0], first[1] + 1), *others[:-1], (others[-1][0] + 1, others[-1][1]), last]


def strips_that_end_at_their_edges(module: nn.Module) -> None:
    module.beyond = 0  # type: ignore[assignment]


def variances_exchanged(tensors: Tensors) -> None:
    a, b = (f"fusion_stage.intermediate.1.residual_layer2.batch_norm{n}.running_var" for n in (1, 2))
    tensors[a], tensors[b] = tensors[b], tensors[a]


def anchors_of_the_next_cell(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward

    def faulty(like: Tensor, sizes: Any) -> Any:
        starts, real = honest(like, sizes)
        return torch.cat((starts[:, 1:], starts[:, :1]), 1), real

    return faulty


def corners_for_centres(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward

    def faulty(x: Tensor, boxes: Tensor, cells: Tensor, sizes: Any) -> Any:
        return honest(x, torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]), -1), cells, sizes)

    return faulty


def maps_in_reverse(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda x, boxes, cells, sizes: honest(x, boxes, cells, sizes[::-1])


def every_second_pixel(found: Any, whole: nn.Module) -> Callable[..., Any]:
    """Where the shortcut averages four."""

    def faulty(x: Tensor) -> Tensor:
        y = x
        for conv in found.convs:
            y = conv(y)
        return found.act(y + found.pooled_shortcut(x[:, :, ::2, ::2]))

    return faulty


def without_places(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda query, key, value: honest(value, value, value)


def padding_attended_to(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda query, key, value, bias: honest(query, key, value)


def boxes_of_the_first_layer_moved(tensors: Tensors) -> None:
    for name in ("bbox_embed.0.layers.2.bias", "model.decoder.bbox_embed.0.layers.2.bias"):
        on(name, lambda x: x + 0.2)(tensors)


def padding_sampled(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda x, around, cells, real, sizes: honest(x, around, cells, torch.ones_like(real), sizes)


def keys_for_values(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda query, key, value, bias: honest(query, key, key, bias)


def boxes_by_their_corners(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward

    def faulty(pixel_values: Tensor) -> Any:
        logits, boxes = honest(pixel_values)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        return logits, torch.cat((centre - half, centre + half), -1)

    return faulty


def without_shortcut(module: nn.Module) -> None:
    layer: Any = part(module, "stages.1.0")
    layer.shortcut.forward = lambda x: 0 * F.conv2d(x, layer.shortcut.conv.weight, None, layer.shortcut.conv.stride)


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
        "epsilon of the norms, encoder",
        "tiny bert_embed",
        Checkpoint(config=setting(layer_norm_eps=1e-4)),
        (r"^embed_norm$", r"epsilon$"),
        (*GRAPHS, "gguf f32", "gguf q8_0"),
        "its rows are no multiple of 256",
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
        "epsilon of one norm, encoder", "tiny bert_embed", Definition(wrong_epsilon), (r"layers\.1\.out_norm$",), GRAPHS
    ),
    Fault(
        "norm with a second offset",
        "wide gemma2",
        Definition(forward("layers.1.attn_norm", lambda norm, _: lambda x: norm.__class__.forward(norm, x) + x * 1e-3)),
        (r"layers\.1\.attn_norm$",),
        GRAPHS,
    ),
    Fault("positions one late", "wide llama", Definition(positions_one_late), (r"^ropes\.rope$",), GRAPHS),
    Fault(
        "learned positions one late",
        "tiny bert_embed",
        Definition(forward("position_embed", learned_positions_one_late)),
        (r"^position_embed$",),
        GRAPHS,
    ),
    Fault(
        "padding ignored", "wide qwen2", Definition(padding_ignored), (r"what goes into layers\.0\.attn\.out",), GRAPHS
    ),
    Fault(
        "padding ignored, encoder",
        "tiny bert_embed",
        Definition(padding_ignored),
        (r"^position_embed$", r"what goes into layers\.0\.attn\.out"),
        GRAPHS,
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
        "GELU by tanh instead of erf",
        "tiny bert_embed",
        Definition(activation(lambda x: F.gelu(x, approximate="tanh"))),
        (r"what goes into layers\.1\.mlp\.down",),
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
    # distances
    Fault(
        "distances one late, MPNet",
        "tiny mpnet_b",
        Definition(distances_one_late),
        (r"^distance_embed$", r"^buckets$", r"layers\.0\.attn\.out$"),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks",
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
    Fault(
        "begins with another token, T5 that classifies",
        "tiny t5_seqcls",
        Definition(begins_with_another_token),
        (r"decoder\.layers\.0\.attn_norm", r"decoder\.layers\.0"),
        SINGLE,
    ),
    Fault(
        "tied head unscaled, T5 in GGUF",
        "tiny t5",
        Checkpoint(config=lambda config: config.update(scale_decoder_outputs=False)),
        (r"head",),
        ("gguf f32", "gguf q8_0"),
        "it is a fault of the file that llama.cpp's own converter writes",
    ),
    Fault(
        "distances of two heads swapped, T5 in GGUF",
        "tiny t5",
        Checkpoint(
            on("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", lambda table: table.flip(1))
        ),
        (r"decoder\.layers\.0\.attn\.distance_embed",),
        ("gguf f32", "gguf q8_0"),
    ),
    Fault(
        "padding ignored, MPNet",
        "tiny mpnet_seqcls",
        Definition(padding_ignored),
        (r"^position_embed$", r"layers\.0\.attn\.out$"),
        GRAPHS,
    ),
    Fault(
        "head without its activation, MPNet",
        "tiny mpnet",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "no logarithm of distances, DeBERTa",
        "tiny deberta_b",
        Definition(every_distance_a_bucket),
        (r"^buckets$", r"layers\.0\.attn\.out$"),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "table of distances without its norm, DeBERTa",
        "tiny deberta",
        Definition(without_its_norm),
        (r"^distance_norm(\.weight)?$", r"layers\.0\.attn\.[qk]$", r"layers\.0\.attn\.out$"),
        GRAPHS,
    ),
    Fault(
        "places exchanged, DeBERTa",
        "tiny deberta_seqcls",
        Definition(places_exchanged),
        (r"layers\.1\.attn\.place_k(\.weight)?$", r"layers\.1\.attn\.out$"),
        GRAPHS,
    ),
    Fault(
        "padding ignored, DeBERTa",
        "tiny deberta_seqcls",
        Definition(padding_ignored),
        (r"layers\.0\.attn\.out$", r"^embed_norm$"),
        GRAPHS,
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
    Fault(
        "x and y of boxes exchanged, LayoutLMv3's file",
        "tiny layoutlmv3_seqcls",
        Checkpoint(swap("layoutlmv3.embeddings.x_position_embeddings", "layoutlmv3.embeddings.y_position_embeddings")),
        (r"layout\.[xy]",),
        SINGLE,
        "its rows are no whole blocks",
    ),
    # windows on both sides, ModernBERT
    Fault(
        "window one longer, ModernBERT",
        "tiny modernbert_b",
        Definition(hides_one_later),
        (r"layers\.1\.attn\.out$", r"^layers\.1$", r"^hide$"),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "thetas swapped, ModernBERT",
        "tiny modernbert",
        Definition(thetas_swapped),
        (r"layers\.0\.attn\.out$", r"^layers\.0\.rotary$"),
        GRAPHS,
    ),
    Fault(
        "first layer normed, ModernBERT",
        "tiny modernbert_mask",
        Definition(first_layer_normed),
        (r"layers\.0\.attn_norm$", r"layers\.0\.attn\.qkv$"),
        GRAPHS,
    ),
    Fault(
        "other half gated, ModernBERT",
        "tiny modernbert_ner",
        Definition(other_half_gated),
        # TorchScript: a layer that branches by the length of the text is taken as a whole
        (r"what goes into layers\.1\.mlp\.down", r"^layers\.1$"),
        GRAPHS,
    ),
    Fault(
        "pooled otherwise, ModernBERT",
        "tiny modernbert_seqcls",
        Definition(pooled_otherwise),
        (r"what goes into mlm\.dense|^mlm\.dense$|^logits$",),
        GRAPHS,
    ),
    Fault(
        "padding ignored, ModernBERT",
        "tiny modernbert_cls",
        Definition(padding_ignored),
        (r"layers\.0\.attn\.out$", r"^ropes\.rope$"),
        GRAPHS,
    ),
    # tables
    Fault(
        "positions go on from cell to cell, TAPAS",
        "tiny tapas_qa",
        Definition(forward("positions", positions_go_on)),
        (r"^positions$", r"^position_embed$"),
        GRAPHS,
    ),
    Fault(
        "ranks exchanged in the file, TAPAS",
        "tiny tapas",
        Checkpoint(swap("tapas.embeddings.token_type_embeddings_4", "tapas.embeddings.token_type_embeddings_5")),
        (r"^type_embeds\.[45]",),
        GRAPHS,
    ),
    Fault(
        "a type of tokens forgotten, TAPAS",
        "tiny tapas_seqcls_b",
        Definition(forward("type_embeds.6", lambda found, _: lambda types: 0 * F.embedding(types, found.weight))),
        (r"^type_embeds\.6$",),
        GRAPHS,
    ),
    Fault(
        "rows and columns exchanged in the means, TAPAS",
        "tiny tapas_qa",
        Definition(forward("cells", rows_and_columns_exchanged)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "padding in the means of cells, TAPAS",
        "tiny tapas_qa",
        Definition(forward("cells", cells_of_padding)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "the column outside the table may be chosen, TAPAS",
        "tiny tapas_qa",
        Definition(other_settings("cells", empty=True)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "one row less has cells of its own, TAPAS",
        "tiny tapas_sqa_b",
        Definition(other_settings("cells", rows=3)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "temperature forgotten, TAPAS",
        "tiny tapas_qa",
        Definition(other_settings("cells", temperature=1.0)),
        (r"^cells$",),
        GRAPHS,
    ),
    Fault(
        "aggregations in another order in the file, TAPAS",
        "tiny tapas_qa",
        Checkpoint(on("aggregation_classifier.weight", lambda weight: weight.roll(1, 0))),
        (r"^aggregation(\.weight)?$",),
        GRAPHS,
    ),
    # a family's own: its keys, its heads
    Fault(
        "q and k swapped in the file, DistilBERT",
        "tiny distilbert_base",
        Checkpoint(swap("transformer.layer.1.attention.q_lin", "transformer.layer.1.attention.k_lin")),
        (r"^layers\.1\.attn\.[qk](\.weight|\.bias)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "epsilon of one norm, DistilBERT",
        "tiny distilbert",
        Definition(large_epsilon),
        (r"layers\.1\.out_norm$",),
        GRAPHS,
    ),
    Fault(
        "learned positions one late, DistilBERT",
        "tiny distilbert_seqcls",
        Definition(forward("position_embed", learned_positions_one_late)),
        (r"^position_embed$",),
        GRAPHS,
    ),
    Fault(
        "padding ignored, DistilBERT",
        "tiny distilbert_qa",
        Definition(padding_ignored),
        (r"^position_embed$", r"what goes into layers\.0\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "GELU by tanh instead of erf, DistilBERT",
        "tiny distilbert",
        Definition(activation(lambda x: F.gelu(x, approximate="tanh"))),
        (r"what goes into layers\.1\.mlp\.down",),
        GRAPHS,
    ),
    Fault(
        "head without its activation, DistilBERT",
        "tiny distilbert",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "embeddings unscaled, Gemma",
        "tiny gemma",
        Definition(embeddings_unscaled),
        (r"^what goes into layers\.0\.attn_norm$",),
        GRAPHS,
    ),
    Fault(
        "multiplier of what layers add, Granite",
        "tiny granite",
        Checkpoint(config=setting(residual_multiplier=0.23)),
        (r"^what goes into layers\.0\.mlp_norm$", r"residual_scale$"),
        *NARROW,
    ),
    Fault(
        "multiplier of the scores, Granite",
        "tiny granite",
        Checkpoint(config=setting(attention_multiplier=0.125)),
        (r"what goes into layers\.0\.attn\.out", r"attention\.scale$"),
        *NARROW,
    ),
    Fault(
        "divisor of the logits, Granite",
        "tiny granite",
        Checkpoint(config=setting(logits_scaling=7.5)),
        (r"^logits$", r"logit_scale$"),
        *NARROW,
    ),
    Fault(
        "norm of q left out, OLMo 2",
        "tiny olmo2",
        Definition(forward("layers.1.attn.q_norm", lambda norm, _: lambda x: x)),
        (r"^layers\.1\.attn\.q_norm(\.weight)?$", r"layers\.1\.rotary", r"what goes into layers\.1\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "norm after the MLP left out, OLMo 2",
        "tiny olmo2",
        Definition(forward("layers.1.mlp_post_norm", lambda norm, _: lambda x: x)),
        (r"^layers\.1(\.mlp_post_norm\.weight)?$",),
        GRAPHS,
    ),
    Fault(
        "gate and up swapped in the file, Phi-4",
        "tiny phi4",
        Checkpoint(on(f"{LAYER}.mlp.gate_up_proj.weight", lambda x: x.roll(len(x) // 2, 0))),
        (r"^layers\.1\.mlp\.gate_up(\.weight)?$",),
        *NARROW,
    ),
    Fault(
        "positions in a layer without them, SmolLM3",
        "tiny smollm3",
        Definition(every_layer_rotated),
        (r"what goes into layers\.3\.attn\.out", r"layers\.3\.rotary", r"present\.3\.key"),
        GRAPHS,
    ),
    Fault(
        "last slot instead of last token, Qwen2 with a classifier",
        "tiny qwen2_seqcls",
        Definition(last_slot),
        (r"^(what goes into )?classifier$",),
        ("onnx f32", "torchscript f32"),
        "quantized forms are measured on rows alone, which have no padding",
    ),
    Fault(
        "queries, keys and values rotated in the file, GPT-2",
        "tiny gpt2",
        Checkpoint(on("h.1.attn.c_attn.weight", lambda x: x.roll(x.shape[0], 1))),
        (r"^layers\.1\.attn\.qkv(\.weight)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "q and k swapped in the file, RoBERTa",
        "tiny xlm_roberta_b",
        Checkpoint(swap("encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.key")),
        (r"^layers\.1\.attn\.[qk](\.weight|\.bias)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "square matrix transposed, GPT-2",
        "tiny gpt2",
        Checkpoint(on("h.1.attn.c_proj.weight", lambda x: x.T)),
        (r"^layers\.1\.attn\.out(\.weight)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "positions one early, RoBERTa",
        "tiny xlm_roberta_b",
        Checkpoint(config=setting(pad_token_id=0)),
        (r"^position_embed(\.weight)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "learned positions one late, GPT-2",
        "tiny gpt2",
        Definition(forward("position_embed", learned_positions_one_late)),
        (r"^position_embed$",),
        GRAPHS,
    ),
    Fault(
        "scores not scaled by the layer, GPT-2",
        "tiny gpt2_b",
        Checkpoint(config=setting(scale_attn_by_inverse_layer_idx=False)),
        (r"what goes into layers\.1\.attn\.out",),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks, and llama.cpp has no such scale",
    ),
    Fault(
        "one side seen instead of both",
        "tiny embedding_gemma_b",
        Definition(one_side_seen),
        (r"what goes into layers\.0\.attn\.out",),
        GRAPHS,
    ),
    Fault(
        "window one token longer to both sides",
        "tiny embedding_gemma_b",
        Definition(window_one_longer),
        (r"what goes into layers\.0\.attn\.out",),
        GRAPHS,
    ),
    Fault(
        "frozen expert route",
        "tiny qwen3_moe",
        Definition(route_frozen),
        (r"^layers\.1\.mlp",),
        GRAPHS,
    ),
    Fault(
        "frozen expert route, Mixtral",
        "tiny mixtral_b",
        Definition(route_frozen),
        (r"^layers\.1\.mlp",),
        GRAPHS,
    ),
    Fault(
        "experts gated by the other matrix, Mixtral",
        "tiny mixtral_b",
        Definition(experts_gate_swapped),
        (r"^layers\.1\.mlp",),
        GRAPHS,
    ),
    Fault(
        "gates and ups of the experts exchanged, Mixtral",
        "tiny mixtral_b",
        Checkpoint(halves_of_experts_exchanged),
        (r"^layers\.1\.mlp", r"^layers\.1$"),
        (*GRAPHS, "gguf f32", "gguf q8_0"),
        "its rows are no multiple of 256",
    ),
    Fault(
        "two experts exchanged in the file",
        "tiny qwen3_moe",
        Checkpoint(swap(f"{LAYER}.mlp.experts.2.down_proj", f"{LAYER}.mlp.experts.5.down_proj")),
        (r"^layers\.1\.mlp", r"^layers\.1$"),
        (*GRAPHS, "gguf f32", "gguf q8_0"),
        "its rows are no multiple of 256",
    ),
    Fault(
        "weights of the experts not divided by their sum",
        "tiny qwen3_moe",
        Checkpoint(config=setting(norm_topk_prob=False)),
        (r"^layers\.0\.mlp",),
        GRAPHS,
        "llama.cpp always divides, and the exporter refuses",
    ),
    Fault(
        "padding ignored, RoBERTa",
        "tiny xlm_roberta_qa",
        Definition(padding_ignored),
        (r"^position_embed$", r"what goes into layers\.0\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "head without its activation, RoBERTa",
        "tiny roberta",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "classifier without its activation, RoBERTa",
        "tiny roberta_seqcls",
        Definition(classifier_without_activation),
        (r"classifier\.out$",),
        GRAPHS,
    ),
    Fault(
        "embeddings projected without a bias, ELECTRA",
        "tiny electra_ner",
        Definition(forward("project", without_bias)),
        (r"^project(\.bias)?$",),
        GRAPHS,
    ),
    Fault(
        "head without its activation, ELECTRA",
        "tiny electra",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "classifier without its activation, ELECTRA",
        "tiny electra_seqcls",
        Definition(classifier_without_activation),
        (r"classifier\.out$",),
        GRAPHS,
    ),
    Fault(
        "q and k swapped in the file, ALBERT",
        "tiny albert_b",
        Checkpoint(swap(f"{SHARED}.attention.query", f"{SHARED}.attention.key")),
        (r"^layers\.1\.inner\.0\.attn\.[qk](\.weight|\.bias)?$",),
        ("onnx f32", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "groups of layers in turn, ALBERT",
        "tiny albert_ner",
        Definition(groups_in_turn),
        (r"layers\.[01]\.",),
        GRAPHS,
    ),
    Fault(
        "the last layer not run again, ALBERT",
        "tiny albert_seqcls",
        Definition(one_run_less),
        (r"layers\.0\.|pooler",),
        GRAPHS,
    ),
    Fault(
        "GELU by erf instead of tanh, ALBERT",
        "tiny albert",
        Definition(activation_of_shared_layers),
        (r"what goes into layers\.0\.inner\.0\.mlp\.down",),
        GRAPHS,
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
    # encoder-decoders
    Fault(
        "the rows before the positions are read, BART",
        "tiny bart",
        Checkpoint(on("model.decoder.embed_positions.weight", lambda x: x.roll(2, 0))),
        (r"^position_embed(\.weight)?$", r"goes into embed_norm"),
        SEQUENCES,
    ),
    Fault(
        "no norm after the embeddings, BART",
        "tiny bart_b",
        Definition(left_out("embed_norm"), "encoder"),
        (r"^embed_norm\.weight$", r"goes into layers\.0\.attn\.q"),
        SEQUENCES,
    ),
    Fault(
        "embeddings unscaled, BART",
        "tiny bart_b",
        Checkpoint(config=setting(scale_embedding=False)),
        (r"^embed$", r"^embed_norm$", r"goes into embed_norm"),
        SEQUENCES,
    ),
    Fault(
        "no bias of the logits, BART",
        "tiny bart_b",
        Definition(left_out("logits_bias"), "decoder"),
        (r"^logits_bias$", r"^logits", r"logits_bias\.bias"),
        SEQUENCES,
    ),
    Fault(
        "cross-attention over padding, BART",
        "tiny bart",
        Definition(biased_by_nothing("layers.1.cross"), "decoder"),
        (r"layers\.1(\.cross|$)",),
        SEQUENCES,
    ),
    Fault(
        "cross-attention over padding, mBART",
        "tiny mbart",
        Definition(biased_by_nothing("layers.0.cross"), "decoder"),
        (r"layers\.0(\.cross|$)",),
        SEQUENCES,
    ),
    Fault(
        "no last norm, mBART",
        "tiny mbart_50",
        Definition(left_out("norm"), "decoder"),
        (r"^norm\.weight$", r"goes into head"),
        SEQUENCES,
    ),
    Fault(
        "no relative positions, Swin",
        "tiny swin_cls",
        Checkpoint(on("swin.encoder.layers.0.blocks.1.attention.self.relative_position_bias_table", lambda x: x * 0)),
        (r"^stages\.0\.layers\.1\.attn(\.distance_embed)?$", r"goes into stages\.0\.layers\.1\.(attn\.out|mlp_norm)"),
        FLOATS_ONLY,
    ),
    Fault(
        "relative positions the other way, Swin",
        "tiny swin_b",
        Definition(relative_positions_turned),
        (r"^stages\.1\.layers\.1\.attn", r"goes into stages\.1\.layers\.1\.(attn\.out|mlp_norm)"),
        FLOATS_ONLY,
    ),
    Fault(
        "windows not shifted, Swin",
        "tiny swin_b",
        Definition(windows_not_shifted("stages.1")),
        (r"^stages\.1\.layers\.1", r"goes into stages\.1\.layers\.1\.(attn|mlp_norm)"),
        FLOATS_ONLY,
    ),
    Fault(
        "shifted windows not masked, Swin",
        "tiny swin_cls",
        Definition(windows_not_masked),
        (r"^stages\.0\.layers\.1", r"goes into stages\.0\.layers\.1\.(attn\.out|mlp_norm)"),
        FLOATS_ONLY,
    ),
    Fault(
        "squares merged in another order, Swin",
        "tiny swin_cls",
        Definition(merged_in_another_order),
        (r"^merges\.0", r"goes into merges\.0\.(norm|reduce)"),
        FLOATS_ONLY,
    ),
    Fault(
        "scores of two classes exchanged, OneFormer",
        "tiny oneformer",
        Checkpoint(classes_exchanged),
        (r"^decoder\.classifier(\.(weight|bias))?$", r"^class_queries_logits$"),
        FLOATS_ONLY,
    ),
    Fault(
        "queries that see the whole map, OneFormer",
        "tiny oneformer",
        Definition(masks_everywhere),
        (r"^decoder\.layers\.0", r"goes into decoder\.layers\.0\.cross", UNPLACED),
        FLOATS_ONLY,
    ),
    Fault(
        "masks of another threshold, OneFormer",
        "tiny oneformer",
        Definition(masks_of_another_threshold),
        (r"^decoder(\.layers\.[0-9])?", r"goes into decoder\.layers\.[0-9]\.cross", UNPLACED),
        FLOATS_ONLY,
    ),
    Fault(
        "rows and columns of points exchanged, OneFormer",
        "tiny oneformer_b",
        Definition(rows_and_columns_of_points_exchanged),
        (r"^pixels\.layers\.0", r"goes into pixels\.layers\.0\.attn\.out"),
        FLOATS_ONLY,
    ),
    Fault(
        "queries without positions, OneFormer",
        "tiny oneformer",
        Definition(queries_without_places),
        (r"^decoder\.layers\.1", r"goes into decoder\.layers\.1\.(cross|attn)", UNPLACED),
        FLOATS_ONLY,
    ),
    Fault(
        "levels of maps exchanged, OneFormer",
        "tiny oneformer_b",
        Checkpoint(on("model.transformer_module.level_embed.weight", lambda x: x.flip(0))),
        (r"^level_embed(\.weight)?$", r"^pixels$", r"goes into decoder\.layers\.0\.cross"),
        FLOATS_ONLY,
    ),
    Fault(
        "no relative positions of rows, SAM",
        "tiny sam",
        Checkpoint(on("vision_encoder.layers.1.attn.rel_pos_h", lambda x: x * 0)),
        (r"^encoder\.layers\.1\.attn\.row_embed", r"goes into encoder\.layers\.1\.attn\.out"),
        FLOATS_ONLY,
    ),
    Fault(
        "relative positions the other way, SAM",
        "tiny sam_b",
        Definition(offsets_the_other_way, "vision_encoder"),
        (r"goes into encoder\.layers\.1\.(attn\.out|mlp_norm)",),
        FLOATS_ONLY,
    ),
    Fault(
        "windows one patch later, SAM",
        "tiny sam",
        Definition(windows_one_patch_later, "vision_encoder"),
        (r"goes into encoder\.layers\.0\.(attn|mlp_norm)",),
        FLOATS_ONLY,
    ),
    Fault(
        "columns and rows of the cells' positions exchanged, SAM",
        "tiny sam",
        Definition(cells_turned, "vision_encoder"),
        (r"positions", r"image_positional_embeddings"),
        FLOATS_ONLY,
    ),
    Fault(
        "corners of a box exchanged, SAM",
        "tiny sam",
        Checkpoint(swap("prompt_encoder.point_embed.2", "prompt_encoder.point_embed.3")),
        (r"^prompts\.points\.[23](\.weight)?$", r"goes into layers\.0\.attn"),
        FLOATS_ONLY,
    ),
    Fault(
        "inside and outside exchanged, SAM",
        "tiny sam_b",
        Checkpoint(swap("prompt_encoder.point_embed.0", "prompt_encoder.point_embed.1")),
        (r"^prompts\.points\.[01](\.weight)?$", r"goes into layers\.0\.attn"),
        FLOATS_ONLY,
    ),
    Fault(
        "points at the corners of their pixels, SAM",
        "tiny sam",
        Definition(forward("prompts", corners_of_pixels), "prompt_encoder_mask_decoder"),
        (r"^positions$", r"^prompts$", r"goes into (positions|prompts|layers\.0\.attn)"),
        FLOATS_ONLY,
    ),
    Fault(
        "points closed before a box, SAM",
        "tiny sam",
        Definition(forward("prompts", always_closed), "prompt_encoder_mask_decoder"),
        (r"^prompts$", r"^layers\.0\.attn$", r"goes into layers\.0\.attn"),
        FLOATS_ONLY,
    ),
    Fault(
        "a mask beside no mask, SAM",
        "tiny sam",
        Definition(forward("", beside_no_mask), "mask_prompt"),
        (r"^no_mask(\.weight)?$", r"^prompted_embeddings$"),
        FLOATS_ONLY,
    ),
    Fault(
        "heads of two masks exchanged, SAM",
        "tiny sam_b",
        Checkpoint(heads_of_masks_exchanged),
        (r"^hyper\.[12]\.first(\.weight)?$", r"^pred_masks$"),
        FLOATS_ONLY,
    ),
    Fault(
        "the single mask among the several, SAM",
        "tiny sam",
        Definition(forward("", the_single_mask_first), "prompt_encoder_mask_decoder"),
        (r"^pred_masks$",),
        FLOATS_ONLY,
    ),
    Fault(
        "scores of the masks in another order, SAM",
        "tiny sam",
        Checkpoint(on("mask_decoder.iou_prediction_head.proj_out.weight", lambda x: x.roll(1, 0))),
        (r"^iou\.out(\.weight)?$", r"^iou_scores$"),
        FLOATS_ONLY,
    ),
    Fault(
        "sinusoids one late, Marian",
        "tiny marian",
        Definition(forward("position_embed", one_late), "encoder"),
        (r"^position_embed", r"goes into layers\.0", r"^layers\.0$"),
        SEQUENCES,
    ),
    Fault(
        "the encoder's table of embeddings is the decoder's, Marian",
        "tiny marian_b",
        Checkpoint(lambda tensors: tensors.update({ENCODER: tensors[DECODER].clone()})),
        (r"^embed(\.weight)?$",),
        SEQUENCES,
    ),
    Fault(
        "positions from the id of padding, M2M-100",
        "tiny m2m_100",
        Checkpoint(config=setting(pad_token_id=2)),
        (r"^position_embed", r"goes into layers\.0", r"^layers\.0$"),
        SEQUENCES,
    ),
    Fault(
        "sinusoids of the wrong length, NLLB",
        "tiny nllb",
        Definition(forward("position_embed", slower), "decoder"),
        (r"^position_embed", r"goes into layers\.0", r"^layers\.0$"),
        SEQUENCES,
    ),
    Fault(
        "stored sinusoids in another order, Pegasus",
        "tiny pegasus",
        Checkpoint(on("model.encoder.embed_positions.weight", lambda x: x.flip(1))),
        (r"^position_embed(\.weight)?$",),
        SEQUENCES,
    ),
    Fault(
        "the first end is classified, BART",
        "tiny bart_mnli",
        Definition(first_end),
        (r"goes into classifier", r"^classifier"),
        SEQUENCES,
    ),
    Fault(
        "the decoder reads the text in its place, BART",
        "tiny bart_qa",
        Definition(not_moved),
        (r"^decoder\.embed$", r"goes into decoder\.embed_norm"),
        SEQUENCES,
    ),
    # keypoints
    Fault(
        "two convolutions swapped in the file, SuperPoint",
        "tiny superpoint",
        Checkpoint(swap("encoder.conv_blocks.1.conv_a", "encoder.conv_blocks.1.conv_b")),
        (r"^layers\.1\.conv[12](\.weight|\.bias)?$",),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "another channel is read, SuperPoint",
        "tiny superpoint",
        Definition(another_channel),
        (r"layers\.0\.conv1$",),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "no ReLU in a head, SuperPoint",
        "tiny superpoint_b",
        Definition(forward("descriptor", without_relu)),
        (r"goes into descriptor\.conv2$",),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "pixels of a cell one late, SuperPoint",
        "tiny superpoint_b",
        Definition(pixels_one_late),
        (r"^scores$", r"^score$"),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "descriptors of another length, SuperPoint",
        "tiny superpoint",
        Definition(of_any_length),
        (r"^descriptors$",),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "q and k swapped in the file, SuperGlue",
        "tiny superglue_b",
        Checkpoint(swap("gnn.layers.1.attention.self.query", "gnn.layers.1.attention.self.key")),
        (r"^layers\.1\.attn\.[qk](\.weight|\.bias)?$",),
        FLOATS_ONLY,
        "its rows are no whole blocks",
    ),
    Fault(
        "padding seen, SuperGlue",
        "tiny superglue_b",
        Definition(every_keypoint_is_real, "matcher"),
        (r"layers\.0\.attn\.out$", r"^layers\.0$"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "keypoints look at their own picture, SuperGlue",
        "tiny superglue",
        Definition(looks_at_its_own_picture, "matcher"),
        (r"layers\.1\.attn", r"^layers\.1$"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "mean of a batch norm forgotten, SuperGlue",
        "tiny superglue",
        Checkpoint(on("gnn.layers.2.mlp.0.batch_norm.running_mean", lambda x: 0 * x)),
        (r"^layers\.2\.up", r"goes into layers\.2\.down"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "dustbin of another score, SuperGlue",
        "tiny superglue_b",
        Checkpoint(on("bin_score", lambda x: x + 0.01)),
        (r"dustbin$", r"^transport$"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "one iteration less, SuperGlue",
        "tiny superglue_b",
        Checkpoint(config=setting(sinkhorn_iterations=6)),
        (r"^transport$", r"^assignment$"),
        FLOATS_ONLY,
        NOT_LOOKED_INTO,
    ),
    Fault(
        "no position of the class token, VitPose",
        "tiny vitpose",
        Checkpoint(on("backbone.embeddings.position_embeddings", lambda x: torch.cat((x[:, :1] * 0, x[:, 1:]), 1))),
        (r"\.position_embed$", r"goes into layers\.0\.attn_norm"),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "left and right swapped in the file, VitPose",
        "tiny vitpose",
        Checkpoint(on("head.conv.weight", lambda x: x[[0, 2, 1, *range(3, len(x))]])),
        (r"^head(\.conv\.weight)?$",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "heatmaps enlarged by the nearest cell, VitPose",
        "tiny vitpose",
        Definition(enlarged_by_the_nearest_cell),
        (r"^head$",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "the expert of the next data set, VitPose",
        "tiny vitpose_b",
        Definition(forward("layers.1.mlp", the_next_expert)),
        (r"^layers\.1\.mlp",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "a mean of the batch norm altered, VitPose",
        "tiny vitpose_plus",
        Checkpoint(on("head.batchnorm1.running_mean", lambda x: x + 0.01)),
        (r"^head\.norm1",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "a mean of the batch norm altered, DETR",
        "tiny detr",
        Checkpoint(
            on(
                "model.backbone.conv_encoder.model.encoder.stages.2.layers.0.layer.1.normalization.running_mean",
                lambda x: x + 0.05,
            )
        ),
        (r"^backbone\.stages\.2\.0\.convs\.1",),
        FLOATS_ONLY,
    ),
    Fault(
        "padding attended to, DETR",
        "tiny detr",
        Definition(forward("encoder.1.attn", padding_attended_to)),
        (r"^encoder\.1\.attn", r"goes into encoder\.1\.attn\.out"),
        FLOATS_ONLY,
    ),
    Fault(
        "values told their places, DETR",
        "tiny detr_b",
        Definition(forward("layers.1.cross", keys_for_values)),
        (r"^layers\.1\.cross", r"goes into layers\.1\.cross"),
        FLOATS_ONLY,
    ),
    Fault(
        "levels in another order, Deformable DETR",
        "tiny deformable_detr",
        Checkpoint(on("model.level_embed", lambda x: x.flip(0))),
        (r"level_embed$", r"goes into encoder\.0\.attn"),
        FLOATS_ONLY,
    ),
    Fault(
        "padding sampled, Deformable DETR",
        "tiny deformable_detr",
        Definition(forward("encoder.1.attn", padding_sampled)),
        (r"^encoder\.1\.attn", r"goes into encoder\.1\.attn\.out"),
        FLOATS_ONLY,
    ),
    Fault(
        "boxes of the first layer moved, Deformable DETR",
        "tiny deformable_detr_b",
        Checkpoint(boxes_of_the_first_layer_moved),
        (r"^box_heads\.0\.layers\.2",),
        FLOATS_ONLY,
    ),
    Fault(
        "classes in another order, YOLOS",
        "tiny yolos",
        Checkpoint(on("class_labels_classifier.layers.2.weight", lambda x: x.roll(1, 0))),
        (r"^class_head\.layers\.2(\.weight)?$",),
        FLOATS_ONLY,
    ),
    Fault(
        "positions of another layer, YOLOS",
        "tiny yolos",
        Checkpoint(on("vit.encoder.mid_position_embeddings", lambda x: x.flip(0))),
        (r"between_embed$", r"goes into layers\.1\.attn_norm"),
        FLOATS_ONLY,
    ),
    Fault(
        "a frame frozen, VideoMAE",
        "tiny videomae_cls",
        Definition(forward("encoder.patch_embed", first_frames)),
        (r"^encoder\.patch_embed$",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "frames of a tubelet in another order, VideoMAE",
        "tiny videomae_cls",
        Checkpoint(on("videomae.embeddings.patch_embeddings.projection.weight", lambda x: x.flip(2))),
        (r"^encoder\.patch_embed(\.weight)?$",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "the first tubelet and not the mean, VideoMAE",
        "tiny videomae_cls",
        Definition(forward("", first_tubelet)),
        (r"^pooled_norm$", r"goes into (pooled_norm|classifier)"),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "classes in another order, VideoMAE",
        "tiny videomae_cls_b",
        Checkpoint(on("classifier.weight", lambda x: x.roll(1, 0))),
        (r"^classifier(\.weight)?$",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "bias of queries for that of values, VideoMAE",
        "tiny videomae_cls",
        Checkpoint(swapped_biases),
        (r"^encoder\.layers\.1\.attn\.[qv](\.bias)?$",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "no positions of masked tubelets, VideoMAE",
        "tiny videomae",
        Definition(forward("", masked_without_positions)),
        (r"goes into layers\.0\.attn_norm",),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "patches joined by columns, DepthPro",
        "tiny depth_pro",
        Definition(joined_by_columns),
        (r"goes into neck\.(scales|hooks)", r"^neck\.(scales|hooks)"),
        SINGLE,
    ),
    Fault(
        "the cut at a joint one cell late, DepthPro",
        "tiny depth_pro",
        Definition(cut_one_late),
        (r"goes into neck\.(scales|hooks)", r"^neck\.(scales|hooks)"),
        SINGLE,
    ),
    Fault(
        "a hook of the wrong layer, DepthPro",
        "tiny depth_pro",
        Checkpoint(config=setting(intermediate_hook_ids=[3, 2])),
        (r"goes into neck\.hooks", r"^neck\.hooks"),
        SINGLE,
    ),
    Fault(
        "the last states without their norm, DepthPro",
        "tiny depth_pro",
        Definition(left_out("patch.norm")),
        (r"^patch\.norm", r"goes into neck\.scales"),
        SINGLE,
    ),
    Fault(
        "strips that end at their edges, DepthPro",
        "tiny depth_pro",
        Definition(strips_that_end_at_their_edges),
        (r"^predicted_depth",),
        SINGLE,
    ),
    Fault(
        "variances exchanged, DepthPro",
        "tiny depth_pro_b",
        Checkpoint(variances_exchanged),
        (
            r"^fusion\.1\.residual2\.norm1\.var$",
            r"^fusion\.1\.residual2\.norm1",
            r"goes into fusion\.1\.residual2\.conv2",
        ),
        SINGLE,
    ),
    Fault(
        "the field of view without the picture, DepthPro",
        "tiny depth_pro_b",
        Definition(forward("fov.neck", lambda neck, _: lambda x: 0 * F.linear(x, neck.weight, neck.bias))),
        (r"^fov\.neck", r"goes into fov\.layers\.0"),
        ("torchscript f32",),
        missing="a graph does not tell the runs of a module over several strips apart, which come before",
    ),
    Fault(
        "anchors of the next cell, RT-DETR",
        "tiny rt_detr_v2",
        Definition(forward("anchors", anchors_of_the_next_cell)),
        (r"^anchors", r"^box_embed", r"goes into box_embed"),
        FLOATS_ONLY,
    ),
    Fault(
        "boxes by their corners, RT-DETR",
        "tiny rt_detr_v2_b",
        Definition(forward("", boxes_by_their_corners)),
        (r"pred_boxes",),
        FLOATS_ONLY,
    ),
    Fault(
        "corners for centres, RT-DETR",
        "tiny rt_detr_b",
        Definition(forward("layers.1.cross", corners_for_centres)),
        (r"^layers\.1\.cross", r"goes into layers\.1\.cross\.out"),
        FLOATS_ONLY,
    ),
    Fault(
        "maps in reverse, RT-DETR",
        "tiny rt_detr_v2",
        Definition(forward("layers.1.cross", maps_in_reverse)),
        (r"^layers\.1\.cross", r"goes into layers\.1\.cross\.out"),
        FLOATS_ONLY,
    ),
    Fault(
        "classes in another order, RT-DETR",
        "tiny rt_detr_b",
        Checkpoint(on("model.decoder.class_embed.1.weight", lambda x: x.roll(1, 0))),
        (r"^class_heads\.1(\.weight)?$",),
        FLOATS_ONLY,
    ),
    Fault(
        "places left out of the encoder, RT-DETR",
        "tiny rt_detr_b",
        Definition(forward("encoder.within.1.layers.0.attn", without_places)),
        (r"^encoder\.within\.1\.layers\.0\.attn", r"goes into encoder\.within\.1\.layers\.0\.attn\.q"),
        FLOATS_ONLY,
    ),
    Fault(
        "every second pixel for the mean, RT-DETR",
        "tiny rt_detr_v2",
        Definition(forward("backbone.stages.2.layers.0", every_second_pixel)),
        (r"^backbone\.stages\.2\.layers\.0",),
        FLOATS_ONLY,
    ),
    Fault(
        "a mean of the batch norm altered, RT-DETR",
        "tiny rt_detr_v2",
        Checkpoint(on("model.encoder.fpn_blocks.0.bottlenecks.1.conv2.norm.running_mean", lambda x: x + 0.01)),
        (r"^encoder\.up\.0\.blocks\.1",),
        FLOATS_ONLY,
    ),
    Fault(
        "batch norms exchanged, RT-DETR's ResNet",
        "tiny rt_detr_resnet",
        Checkpoint(
            swap("encoder.stages.0.layers.1.layer.0.normalization", "encoder.stages.0.layers.1.layer.1.normalization")
        ),
        (r"^stages\.0\.layers\.1\.convs\.[01]",),
        FLOATS_ONLY,
    ),
    Fault(
        "mean of a batch norm forgotten, ResNet",
        "tiny resnet_cls",
        Checkpoint(on("resnet.encoder.stages.1.layers.0.layer.1.normalization.running_mean", lambda x: 0 * x)),
        (r"^stages\.1\.0\.convs\.1", r"^stages\.1\.0$"),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "stride in the other convolution, ResNet",
        "tiny resnet_cls",
        Checkpoint(config=setting(downsample_in_bottleneck=True)),
        (r"stages\.1\.0\.convs", r"^stages\.1\.0$"),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "no shortcut, ResNet",
        "tiny resnet_b",
        Definition(without_shortcut),
        (r"^stages\.1\.0",),
        FLOATS_ONLY,
        CONVOLUTIONS,
    ),
    Fault(
        "scale of a branch forgotten, ConvNeXt",
        "tiny convnext_cls",
        Checkpoint(on("convnext.encoder.stages.2.layers.1.layer_scale_parameter", lambda x: 1 + 0 * x)),
        (r"^stages\.2\.layers\.1",),
        FLOATS_ONLY,
        "its rows are no whole blocks",
    ),
    Fault(
        "epsilon of the last norm, ConvNeXt",
        "tiny convnext_b",
        Checkpoint(config=setting(layer_norm_eps=1e-2)),
        (r"^norm$",),
        FLOATS_ONLY,
        "its rows are no whole blocks",
    ),
    Fault(
        "kernel turned, ConvNeXt",
        "tiny convnext_b",
        Checkpoint(on("encoder.stages.0.layers.1.dwconv.weight", lambda x: x.transpose(2, 3))),
        (r"^stages\.0\.layers\.1\.conv(\.weight)?$",),
        FLOATS_ONLY,
        "its rows are no whole blocks",
    ),
    Fault(
        "distances of patches turned, BEiT",
        "tiny beit_cls",
        Checkpoint(
            on(
                "beit.encoder.layer.1.attention.attention.relative_position_bias.relative_position_bias_table",
                lambda x: torch.cat((x[:-3].flip(0), x[-3:])),
            )
        ),
        (r"^distances\.1(\.table)?$", r"goes into layers\.(0$|1\.attn\.out)"),  # ONNX makes both numbers at first
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "no number from the class token, BEiT",
        "tiny beit_b",
        Checkpoint(
            on(
                "encoder.relative_position_bias.relative_position_bias_table",
                lambda x: torch.cat((x[:-3], x[-3:-2] * 0, x[-2:])),
            )
        ),
        (r"^shared(\.table)?$", r"goes into layers\.0\.attn\.out"),
        ("onnx f32", "torchscript f32"),
    ),
    Fault(
        "states without their norm, Depth Anything",
        "tiny depth_anything",
        Checkpoint(config=lambda config: config["backbone_config"].update(apply_layernorm=False)),
        (r"^backbone\.norm", r"goes into reassemble\.\d\.project", r"^backbone$"),
        FLOATS_ONLY,
    ),
    Fault(
        "keys of the wrong cells, SegFormer",
        "tiny segformer",
        Checkpoint(on("segformer.encoder.block.0.0.attention.self.sr.weight", lambda x: x.transpose(2, 3))),
        (r"^stages\.0\.layers\.0\.attn\.reduce(\.weight)?$",),
        FLOATS_ONLY,
    ),
    Fault(
        "places told by a turned kernel, SegFormer",
        "tiny segformer_cls",
        Checkpoint(on("segformer.encoder.block.2.0.mlp.dwconv.dwconv.weight", lambda x: x.transpose(2, 3))),
        (r"^stages\.2\.layers\.0\.mlp\.conv(\.weight)?$",),
        FLOATS_ONLY,
    ),
    Fault(
        "maps joined in the other order, SegFormer",
        "tiny segformer_b",
        Checkpoint(on("decode_head.linear_fuse.weight", lambda x: torch.cat(x.chunk(3, 1)[::-1], 1))),
        (r"^decoder(\.join)?(\.weight)?$", r"goes into segmenter"),
        FLOATS_ONLY,
    ),
    Fault(
        "mean of the batch norm forgotten, SegFormer",
        "tiny segformer",
        Checkpoint(on("decode_head.batch_norm.running_mean", lambda x: 0 * x)),
        (r"^decoder(\.norm)?(\.mean)?$", r"goes into segmenter"),
        FLOATS_ONLY,
    ),
)

WAITING: Mapping[str, str] = {
    "stale cache in GGUF": "llama.cpp keeps the cache; no file can change it",
    "padding ignored in GGUF": "llama.cpp gets rows without their padding; no file can change it",
}
"""Faults that cannot be planted yet, or not by a file."""
