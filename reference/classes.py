"""The Hub's classes of tokenizers and processors, as behaviours: what each does where its files do not say.

A class belongs to a checkpoint, not to a family: a `BertTokenizer` may stand beside any model. What a folder declares
is resolved once, when a checkpoint is opened or exported, into facts (JSON) that the manifest carries. The runtimes
read the facts and never see a class name:

    tokenizer        the parts of tokenizer.json that the class replaces (`reference.tokenizers`); tokens: named special
                     tokens; padding_side
    characters       of a CTC vocabulary: tokens
    image_processor  the settings of preprocessor_config.json that it leaves out; kind: which processor it is, where it
                     is not the plain one; depth: what becomes of a model's depths; boxes: what becomes of a detector's
                     logits

`refused` in their place is the reason why isoform cannot do what the class does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from isoform.errors import CheckpointError
from isoform.json_files import read_object
from isoform.reference.tokenizers.classes import OF_CHARACTERS, tokenizer_facts

Facts = dict[str, Any]

# ------------------------------------------------------------------ characters
_CHARACTERS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CHARACTERS: dict[str, Facts] = {name: {"tokens": _CHARACTERS} for name in OF_CHARACTERS}


def characters_facts(folder: Path) -> Facts | None:
    """How the folder's vocab.json is read as the characters of a CTC model; None where it has a tokenizer.json."""
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return None
    kind = read_object(folder / "tokenizer_config.json").get("tokenizer_class") or next(iter(CHARACTERS))
    reason = (
        f"the tokenizer class {kind} is not supported for speech recognition; isoform knows {next(iter(CHARACTERS))}"
    )
    return CHARACTERS.get(str(kind), {"refused": reason})


# ------------------------------------------------------------------ image processors
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

_ON = {"do_resize": True, "do_rescale": True, "do_normalize": True}
_CLIP = {
    **_ON,
    "do_convert_rgb": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {**_ON, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CROPPED = {"do_center_crop": True, "crop_size": 224}
_GRAY = {
    "kind": "gray",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": False,
    "image_mean": 0.0,
    "image_std": 1.0,
    "resample": 2,
    "size": {"height": 480, "width": 640},
}
_DETECTION = {
    **_ON,
    "kind": "detection",
    "resample": 2,
    "default_to_square": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_DETR = {
    **_DETECTION,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "longest_edge": 1333,
    "pads": True,
}
_SHORT = {"size": {"shortest_edge": 224}, "default_to_square": False}

_EDGES = {
    **_ON,
    "kind": "segmentation",
    "do_convert_rgb": True,
    "resample": 2,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "default_to_square": False,
}

IMAGE_PROCESSORS: dict[str, Facts] = {
    "BeitImageProcessor": {**_HALF, "resample": 3, "size": 224, "crop_size": 224},
    "BitImageProcessor": {**_CLIP, **_CROPPED, **_SHORT},
    "BlipImageProcessor": {**_CLIP, "size": 384},
    "CLIPImageProcessor": {**_CLIP, **_CROPPED, **_SHORT},
    "ConvNextImageProcessor": {
        **_HALF,
        "kind": "cropped_share",
        "resample": 3,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "crop_pct": 224 / 256,
    },
    "DeiTImageProcessor": {**_HALF, **_CROPPED, "resample": 3, "size": 256},
    "DPTImageProcessor": {
        **_HALF,
        "kind": "multiples",
        "depth": {"resample": "bicubic"},
        "resample": 3,
        "size": {"height": 384, "width": 384},
    },
    "DeformableDetrImageProcessor": {**_DETR, "boxes": {"scores": "sigmoid", "most": 100}},
    "DetrImageProcessor": {**_DETR, "boxes": {"scores": "softmax"}},
    "DepthProImageProcessor": {
        **_HALF,
        "kind": "normalized_first",
        "depth": {"inverse": True, "resample": "bilinear"},
        "resample": 2,
        "size": {"height": 1536, "width": 1536},
    },
    "RTDetrImageProcessor": {
        **_DETECTION,
        "do_normalize": False,
        "size": {"height": 640, "width": 640},
        "boxes": {"scores": "sigmoid"},
    },
    "SamImageProcessor": {
        **_ON,
        "kind": "longest_edge",
        "do_convert_rgb": True,
        "do_pad": True,
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "size": {"longest_edge": 1024},
        "pad_size": {"height": 1024, "width": 1024},
    },
    "LayoutLMv3ImageProcessor": {**_HALF, "kind": "document", "resample": 2, "size": 224, "apply_ocr": True},
    "Mask2FormerImageProcessor": {
        **_EDGES,
        "do_convert_rgb": False,
        "divisor": 32,
        "limited": True,
        "segments": {"instances": "masks", "scaled": 384},
    },
    "OneFormerImageProcessor": {
        **_EDGES,
        "segments": {"instances": "classes", "smooth": True},
    },
    "SegformerImageProcessor": {
        **_EDGES,
        "do_convert_rgb": False,
        "size": {"height": 512, "width": 512},
        "default_to_square": True,
        "segments": {},
    },
    "SiglipImageProcessor": {
        **_HALF,
        "do_convert_rgb": True,
        "resample": 3,
        "size": [224, 224],
        "default_to_square": False,
    },
    "SuperGlueImageProcessor": {**_GRAY, "do_grayscale": True},
    "SuperPointImageProcessor": {**_GRAY, "do_grayscale": False},
    "ViTImageProcessor": {**_HALF, "resample": 2, "size": 224},
    "VideoMAEImageProcessor": {**_HALF, **_CROPPED, **_SHORT, "resample": 2},
    "VitPoseImageProcessor": {
        **_ON,
        "kind": "person",
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "size": {"height": 256, "width": 192},
    },
    "YolosImageProcessor": {
        **_DETECTION,
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "longest_edge": 1333,
        "multiple": 16,
        "pads": True,
        "boxes": {"scores": "softmax"},
    },
}
"""What each processor does when its file does not say."""

_BY_MODEL = {
    "beit": "Beit",
    "blip": "Blip",
    "clip": "CLIP",
    "convnext": "ConvNext",
    "deit": "DeiT",
    "deformable_detr": "DeformableDetr",
    "depth_anything": "DPT",
    "depth_pro": "DepthPro",
    "detr": "Detr",
    "dinov2": "Bit",
    "dpt": "DPT",
    "layoutlmv3": "LayoutLMv3",
    "mask2former": "Mask2Former",
    "oneformer": "OneFormer",
    "resnet": "ConvNext",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetr",
    "sam": "Sam",
    "segformer": "Segformer",
    "siglip": "Siglip",
    "superglue": "SuperGlue",
    "superpoint": "SuperPoint",
    "swin": "ViT",
    "videomae": "VideoMAE",
    "vit": "ViT",
    "vitpose": "VitPose",
    "yolos": "Yolos",
}
"""model_type -> its processor, for folders whose file does not name one."""

_OF_SOUND = ("Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor")


def image_processor_facts(folder: Path) -> Facts | None:
    """The defaults of the folder's image processor; None where it describes none."""
    found: Any = read_object(folder / PROCESSOR_FILES[0]).get("image_processor")
    if not isinstance(found, Mapping):
        if not (folder / PROCESSOR_FILES[1]).is_file():
            return None
        found = read_object(folder / PROCESSOR_FILES[1])
    kind = found.get("image_processor_type") or found.get("feature_extractor_type")
    if kind in _OF_SOUND:
        return None
    if kind is None:
        kind = f"{_BY_MODEL.get(str(read_object(folder / 'config.json').get('model_type')), '')}ImageProcessor"
    name = str(kind).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    near = get_close_matches(name, IMAGE_PROCESSORS, 3)
    meant = (
        f"is {' or '.join(near)} meant?" if near else f"{len(IMAGE_PROCESSORS)} others are, such as ViTImageProcessor"
    )
    reason = f"the image processor {kind!r:.60} is not supported; {meant}"
    return IMAGE_PROCESSORS.get(name, {"refused": reason})


# ------------------------------------------------------------------ all of them
_FACTS: dict[str, Callable[[Path], Facts | None]] = {
    "characters": characters_facts,
    "image_processor": image_processor_facts,
    "tokenizer": tokenizer_facts,
}


def class_facts(folder: Path, *, strict: bool = True) -> Facts:
    """The facts of all classes that a model's folder declares, by kind.

    Raises CheckpointError for a file that cannot be read; unless `strict`, its facts are left out instead.
    """
    facts: Facts = {}
    for name, resolve in _FACTS.items():
        try:
            found = resolve(Path(folder))
        except CheckpointError:
            if strict:
                raise
            continue
        if found is not None:
            facts[name] = found
    return facts
