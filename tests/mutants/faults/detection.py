"""Faults in detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.mutants.faults.planted import (
    FLOATS_ONLY,
    Fault,
    forward,
    on,
    swap,
)
from tests.mutants.planting import Checkpoint, Definition, Tensors


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


FAULTS: tuple[Fault, ...] = (
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
)
