"""Swin computes what transformers' code computes, of pictures of every size: as a classifier, and as a backbone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isoform.errors import CheckpointError, InputError
from isoform.reference.families import Tower, load_family
from isoform.reference.model import Model, open_model
from isoform.reference.vision.pyramids import pyramid_of
from isoform.reference.vision.shifted_windows import Windows, telling_sizes
from isoform.reference.vision.swin import FAMILY, RULES, SwinConfig
from isoform.runtimes.open import open_path
from tests.exports import exported
from tests.oracle import tiny

ORDER = 1e-5  # of the largest value: float32 sums in another order
SIZES = ((64, 64), (70, 93), (58, 130), (128, 64), (61, 59))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ORDER * float(expected.abs().max())


def noise(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@pytest.mark.parametrize("name", ["swin_cls", "swin_b"])
def test_pictures_of_every_size_equal_those_of_transformers(name: str) -> None:
    """Neither whole patches nor whole windows, and a last stage that is one window, which is not shifted."""
    import transformers

    kind = getattr(transformers, model(name).checkpoint.config["architectures"][0])
    ours = model(name).module()
    for height, width in SIZES:
        theirs = kind.from_pretrained(tiny(name)).eval()  # anew: a small picture changes its windows for good
        x = noise(2, height, width)
        with torch.inference_mode():
            close(ours(x)[0], theirs(pixel_values=x)[0])


@pytest.mark.parametrize("stages", [("stage1", "stage2", "stage3"), ("stem", "stage2"), ("stage1",)])
def test_a_backbone_gives_the_maps_of_transformers(stages: tuple[str, ...]) -> None:
    """Its windows are shifted on small maps as well, unlike the classifier's."""
    import transformers

    settings: dict[str, Any] = {
        "image_size": 48,
        "patch_size": 3,
        "embed_dim": 12,
        "depths": [2, 2, 2],
        "num_heads": [1, 2, 3],
        "window_size": 4,
        "out_features": list(stages),
    }
    torch.manual_seed(0)
    theirs = transformers.SwinBackbone(transformers.SwinConfig(**settings)).eval()
    for name, parameter in theirs.named_parameters():
        if "position" in name or "norms" in name:
            torch.nn.init.normal_(parameter)
    config = SwinConfig.from_dict({**settings, "model_type": "swin"})
    pyramid = pyramid_of(Tower(FAMILY, config))
    ours = pyramid.build(config, config.stages).eval()
    held: dict[str, torch.Tensor] = {}
    for key, value in _hub_keys(theirs.state_dict()).items():
        names = next(names for rule in RULES if (names := rule.match(key)) is not None)
        held |= dict.fromkeys(names, value)
    left = pyramid.left_out(config, config.stages)
    unused = {name for name in held if any(name == module or name.startswith(f"{module}.") for module in left)}
    ours.load_state_dict({name: value for name, value in held.items() if name not in unused})
    for height, width in ((48, 48), (10, 25)):
        x = noise(2, height, width)
        with torch.inference_mode():
            found, expected = ours(x), theirs(x).feature_maps
        assert len(found) == len(stages)
        for a, b, channels, stride in zip(
            found, expected, pyramid.channels(config, stages), pyramid.strides(config, stages), strict=True
        ):
            close(a, b)
            assert a.shape[1] == channels
            assert a.shape[2] == -(-height // stride)


def _hub_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names in memory -> those of files."""
    spelled = {
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "attention.relative_position_bias.relative": "attention.self.relative",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    result = {}
    for key, value in state.items():
        for ours, theirs in spelled.items():
            key = key.replace(ours, theirs)
        result[key] = value
    return result


def test_windows_are_split_and_joined_again() -> None:
    """Whatever the size and the shift, every position comes back to its place."""
    x = torch.randn(2, 7, 11, 3)
    for side in (1, 2, 4, 7, 16):
        for shift in (0, side // 2):
            windows = Windows(x, side, shift, False)
            assert torch.equal(windows.join(windows.split(x), x), x)


def test_a_mask_keeps_what_came_round_apart() -> None:
    windows = Windows(torch.zeros(1, 4, 4, 1), 2, 1, False)
    mask = windows.mask(torch.float32)
    assert mask is not None and mask.shape == (4, 1, 4, 4)
    assert not mask[0].any(), "the first window holds neighbours alone"
    assert (mask[3, 0] != 0).sum() == 12, "in the last one no two positions are neighbours"
    assert Windows(torch.zeros(1, 2, 4, 1), 2, 1, True).mask(torch.float32).eq(0).all()  # type: ignore[union-attr]
    assert Windows(torch.zeros(1, 2, 4, 1), 2, 0, True).mask(torch.float32) is None


@pytest.mark.parametrize(("stages", "side"), [(4, 7), (4, 12), (3, 4), (2, 2), (1, 1)])
def test_the_sizes_of_a_trace_tell_axes_apart(stages: int, side: int) -> None:
    (rows, more_rows), (columns, more_columns) = telling_sizes(stages, side)
    assert rows < more_rows and columns < more_columns
    for _ in range(stages):
        windows = {-(-size // side) for size in (rows, more_rows)}
        assert len(windows) == 2, "a number of windows that does not differ would be frozen"
        rows, more_rows = (rows + 1) // 2, (more_rows + 1) // 2


def test_one_graph_reads_every_size_and_batch() -> None:
    session, _ = open_path(exported("swin_cls"))
    module = model("swin_cls").module()
    with session:
        for batch, height, width in ((1, 4, 4), (7, 64, 64), (3, 70, 93), (1, 8, 130)):
            x = noise(batch, height, width)
            with torch.inference_mode():
                close(torch.from_numpy(session.run({"pixel_values": x.numpy()})["logits"]), module(x)[0])
        with pytest.raises(InputError, match="height 3 is too small"):
            session.run({"pixel_values": noise(1, 3, 40).numpy()})


def test_absolute_positions_have_one_size() -> None:
    session, _ = open_path(exported("swin_absolute"))
    golden = load_file(tiny("swin_absolute") / "golden.safetensors")
    with session:
        found = session.run({"pixel_values": golden["in.pixel_values"].numpy()})["logits"]
        close(torch.from_numpy(found), golden["out.logits"])
        with pytest.raises(InputError, match=r"pixel_values has shape \(1, 3, 44, 40\), not \(1, 3, 40, 40\)"):
            session.run({"pixel_values": noise(1, 44, 40).numpy()})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"depths": [2, 2]}, "must have a number above 0 for each stage"),
        ({"num_heads": [3, 6, 12, 0]}, "must have a number above 0 for each stage"),
        ({"image_size": 30, "use_absolute_embeddings": True}, "leaves pixels over"),
        ({"out_features": ["stage7"]}, "the stages are stem, stage1, stage2, stage3, stage4"),
        ({"num_layers": 5}, "num_layers is 5, depths has 4"),
        ({"window_size": 0}, "window_size is 0"),
        ({"depths": "many"}, "depths is 'many'"),
    ],
)
def test_configurations_without_meaning_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_family("swin").config.from_dict(data)
