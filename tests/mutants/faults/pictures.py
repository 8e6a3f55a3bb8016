"""Faults in classifiers, backbones and models of masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.vision.shifted_windows import Windows
from tests.mutants.faults.planted import (
    CONVOLUTIONS,
    FLOATS_ONLY,
    Fault,
    forward,
    on,
    part,
    setting,
    swap,
)
from tests.mutants.planting import Checkpoint, Definition, Tensors

UNPLACED = r"^f32 noise"
"""Of a fault in a decoder whose heads run after every layer: its ONNX graph is not bisected, a case alone is named."""


def classes_exchanged(tensors: Tensors) -> None:
    for leaf in ("weight", "bias"):
        key = f"model.transformer_module.decoder.class_embed.{leaf}"
        tensors[key] = tensors[key][[1, 0, *range(2, len(tensors[key]))]]


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


def heads_of_masks_exchanged(tensors: Tensors) -> None:
    for layer in ("proj_in", "layers.0", "proj_out"):
        one, other = (f"mask_decoder.output_hypernetworks_mlps.{n}.{layer}" for n in (1, 2))
        swap(one, other)(tensors)


def without_shortcut(module: nn.Module) -> None:
    layer: Any = part(module, "stages.1.0")
    layer.shortcut.forward = lambda x: 0 * F.conv2d(x, layer.shortcut.conv.weight, None, layer.shortcut.conv.stride)


FAULTS: tuple[Fault, ...] = (
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
