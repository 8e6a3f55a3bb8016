"""A detector whose backbone is stored as timm spells it computes what transformers computes with timm itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import open_model
from tests.oracle.checkpoints.case import normal, redrawn

SAME = 1e-9  # float64, of numbers that transformers 5.23 printed with timm 1.0.31
LOGITS = [
    *(0.5597792924395166, -0.2947366128399608, -1.3041491697531769),
    *(0.5335578361151936, -0.23215235526840722, -1.279545334965384),
    *(0.5164872868900272, -0.3506014648589605, -1.4032370510154386),
]
BOXES = [
    *(0.2924433867451149, 0.32958290869561585, 0.6794036179332379, 0.2800517338672679),
    *(0.2948962107939328, 0.32529682709430213, 0.6826284927190887, 0.29130506308739607),
    *(0.28891766476609226, 0.3194655496095726, 0.6861473433155293, 0.27729577908858294),
]
SIZES = {
    "model_type": "detr",
    "architectures": ["DetrForObjectDetection"],
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    "d_model": 16,
    "num_queries": 3,
    "id2label": {"0": "A", "1": "B"},
}
OLD = {"use_timm_backbone": True, "backbone": "resnet18", "backbone_config": None}
SPELLED = (
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"\.shortcut\.convolution", ".downsample.0"),
    (r"\.shortcut\.normalization", ".downsample.1"),
)


def _timm(key: str) -> str:
    """A key of transformers' ResNet as timm has it."""
    for pattern, name in SPELLED:
        key = re.sub(pattern, name, key)

    def counted(match: re.Match[str]) -> str:
        stage, layer, rest = int(match[1]), match[2], match[3]
        part = re.fullmatch(r"layer\.(\d+)\.(convolution|normalization)", rest)
        if part is not None:
            rest = f"{'conv' if part[2] == 'convolution' else 'bn'}{int(part[1]) + 1}"
        return f"layer{stage + 1}.{layer}.{rest}"

    return re.sub(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.\d+\.(?:convolution|normalization)|downsample\.\d)",
        counted,
        key,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that their names in timm's spelling determine."""
    import transformers

    folder = tmp_path_factory.mktemp("timm")
    resnet = transformers.ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage4"]
    )
    settings: dict[str, Any] = {key: value for key, value in SIZES.items() if key != "model_type"}
    config = transformers.DetrConfig(**settings, backbone_config=resnet, use_timm_backbone=False)
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    found = {_timm(key): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    drawn = {key: redrawn(key, tensor) if tensor.is_floating_point() else tensor for key, tensor in found.items()}
    save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**SIZES, **OLD}))
    return folder


def test_outputs_are_those_of_transformers_with_timm(stored: Path) -> None:
    module = open_model(stored).module(torch.float64)
    x = normal(1, 3, 64, 96).double()
    for mask in ((64, 96), (64, 64)):  # of a picture without padding: any size says so
        with torch.inference_mode():
            logits, boxes = module(x, torch.ones(1, *mask, dtype=torch.int64))
        assert (logits.flatten() - torch.tensor(LOGITS, dtype=torch.float64)).abs().max() < SAME
        assert (boxes.flatten() - torch.tensor(BOXES, dtype=torch.float64)).abs().max() < SAME


def test_it_is_saved_as_it_was_stored(stored: Path, tmp_path: Path) -> None:
    open_model(stored).save(tmp_path / "saved")
    with (
        safe_open(stored / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as b,
    ):
        left = {key for key in a.keys() if key.endswith("num_batches_tracked")}  # noqa: SIM118
        assert set(a.keys()) - left == set(b.keys())
        assert any(".layer1.0.conv1." in key for key in b.keys())  # noqa: SIM118


def config_of(**settings: Any) -> Any:
    return load_family("detr").config.from_dict({**SIZES, **settings})


def test_every_spelling_of_a_timm_backbone_is_one_configuration() -> None:
    plain = config_of(**OLD)
    assert (plain.stages, plain.pyramid.channels(plain.backbone_config, plain.stages)) == (("stage4",), (512,))
    kwargs = {"out_indices": [1, 2, 3, 4], "in_chans": 3}
    inner = {"model_type": "timm_backbone", "backbone": "resnet18", "features_only": True, "output_stride": None}
    indices = {"out_indices": [1, 2, 3, 4], "out_features": ["layer1", "layer2", "layer3", "layer4"]}
    for settings in (
        {**OLD, "backbone_kwargs": kwargs},
        {**OLD, "backbone": "resnet18.a1_in1k"},
        {"backbone": "resnet18"},
        {"backbone_config": {**inner, **indices}},
    ):
        assert config_of(**settings) == plain
    assert config_of().timm
    assert config_of().backbone_config.depths == (3, 4, 6, 3)  # resnet50 where no file says another
    last = config_of(backbone_config=inner)
    assert last.stages == plain.stages


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({**OLD, "backbone": "resnet26d"}, UnsupportedModel, "backbone is 'resnet26d' of timm; supported are resnet18"),
        ({**OLD, "backbone": 50}, CheckpointError, "backbone is 50"),
        ({**OLD, "dilation": True}, UnsupportedModel, "dilation is true"),
        ({**OLD, "backbone_kwargs": {"output_stride": 16}}, UnsupportedModel, "output_stride is 16"),
        ({**OLD, "backbone_kwargs": {"drop_path_rates": 1}}, UnsupportedModel, "drop_path_rates = 1"),
        ({**OLD, "backbone_kwargs": {"out_indices": [0, 5]}}, CheckpointError, "stages go from 1 to 4"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18", "out_features": ["layer2"]}},
            CheckpointError,
            "out_features of the backbone is",
        ),
        ({"backbone_config": {"model_type": "timm_backbone"}}, CheckpointError, "backbone"),
        ({"backbone_config": {"model_type": "resnet"}, "backbone": "resnet18"}, UnsupportedModel, "give one of them"),
        ({"use_timm_backbone": False, "backbone": "microsoft/resnet-50"}, UnsupportedModel, "give one of them"),
    ],
)
def test_backbones_without_meaning_are_refused(
    settings: dict[str, Any], kind: type[IsoformError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        config_of(**settings)
