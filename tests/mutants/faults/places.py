"""Faults in models of keypoints, poses, depths and videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.mutants.faults.planted import (
    CONVOLUTIONS,
    FLOATS_ONLY,
    NOT_LOOKED_INTO,
    SINGLE,
    Fault,
    forward,
    left_out,
    on,
    part,
    setting,
    swap,
)
from tests.mutants.planting import Checkpoint, Definition, Tensors


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


FAULTS: tuple[Fault, ...] = (
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
        "states without their norm, Depth Anything",
        "tiny depth_anything",
        Checkpoint(config=lambda config: config["backbone_config"].update(apply_layernorm=False)),
        (r"^backbone\.norm", r"goes into reassemble\.\d\.project", r"^backbone$"),
        FLOATS_ONLY,
    ),
)
