"""The drawings of docs/vision.md: one for each task that can be drawn, over photographs.

    python -m tests.docs.drawings PHOTOS

PHOTOS is a folder with scikit-image's data (`skimage/data`, and its stereo pair with the true disparities). No trained
model is needed. Keypoints and matches are those of checkpoints with random filters, made here; depth is the true one;
the other answers are written by hand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from isoform import api

OUT = Path(__file__).parents[2] / "docs" / "assets" / "drawings"
FOCAL, BASELINE, OFFSET = 994.978, 0.193001, 31.086  # of the stereo pair: pixels, metres, pixels
WIDEST = 1100  # pixels
SHARPNESS, ALIKE = 2000, 0.994  # of the transport: what cosines are multiplied by, and the least one that matches

Outline = Sequence[tuple[float, float]]


def boxes(photos: Path) -> Any:
    found = [
        ("motorcycle", 0.98, (92, 36, 685, 453)),
        ("bench", 0.93, (40, 92, 285, 309)),
        ("bicycle", 0.64, (0, 88, 140, 231)),
        ("bottle", 0.71, (399, 52, 420, 93)),
    ]
    sides = "xmin", "ymin", "xmax", "ymax"
    answer = [{"score": s, "label": label, "box": dict(zip(sides, box, strict=True))} for label, s, box in found]
    return photos / "motorcycle_left.png", answer


def ellipse(x: float, y: float, across: float, down: float) -> Outline:
    """By its middle and its half axes."""
    turns = np.linspace(0, 2 * np.pi, 90)
    return [(x + across * np.cos(t), y + down * np.sin(t)) for t in turns]


def inside(size: tuple[int, int], *outlines: Outline) -> Any:
    picture = Image.new("L", size)
    pen = ImageDraw.Draw(picture)
    for outline in outlines:
        pen.polygon([(round(x), round(y)) for x, y in outline], fill=255)
    return np.asarray(picture) > 0


def masks(photos: Path) -> Any:
    path = photos / "coffee.png"
    size = Image.open(path).size
    rim = ellipse(290, 113, 117, 95)
    body = [(174, 130), (182, 180), (205, 222), (244, 268), (262, 280), (300, 283), (330, 270), (362, 232), (405, 140)]
    handle = [(222, 228), (258, 236), (248, 270), (238, 298), (222, 308), (204, 302), (196, 286), (204, 254)]
    bowl = [(327, 290), (330, 265), (345, 250), (372, 236), (392, 246), (405, 268), (402, 296), (384, 318), (358, 326)]
    spoon = [(336, 317), *bowl]
    stem = [(372, 240), (384, 200), (400, 160), (408, 118), (398, 76), (410, 66), (424, 74), (416, 108), (384, 238)]
    saucer = ellipse(279, 225, 201, 161)
    cup = inside(size, rim, body, handle)
    silver = inside(size, spoon, stem) & ~inside(size, rim, body)
    plate = inside(size, saucer) & ~cup & ~silver
    coffee = inside(size, ellipse(287, 146, 82, 48)) & inside(size, ellipse(290, 113, 100, 80))
    return path, {"masks": [plate, cup, coffee, silver], "scores": [0.98, 0.97, 0.94, 0.91]}


def segments(photos: Path) -> Any:
    from sklearn.datasets import load_sample_image

    picture = Image.fromarray(load_sample_image("china.jpg"))
    size = picture.size
    tower = (
        *((196, 32), (214, 32), (216, 62), (262, 96), (320, 124), (318, 134), (296, 136), (297, 160), (328, 176)),
        *((328, 186), (318, 190), (320, 228), (352, 256), (340, 272), (342, 304), (372, 336), (340, 366), (300, 400)),
        *((150, 360), (74, 340), (82, 290), (62, 272), (68, 260), (96, 246), (98, 190), (84, 184), (86, 170)),
        *((120, 158), (120, 138), (96, 128), (96, 112), (130, 100), (180, 74), (194, 62)),
    )
    left = (
        *((0, 145), (6, 180), (40, 185), (60, 205), (74, 232), (40, 258), (24, 290), (40, 320), (76, 345), (140, 335)),
        *((180, 352), (210, 385), (250, 388), (290, 405), (298, 427), (0, 427)),
    )
    right = (
        *((330, 427), (330, 385), (372, 345), (400, 318), (470, 290), (510, 280), (550, 275), (568, 300), (560, 240)),
        *((546, 222), (560, 190), (575, 160), (605, 136), (640, 150), (640, 427)),
    )
    shore = [(0, 208), (100, 214), (330, 206), (470, 204), (560, 206), (640, 206), (640, 427), (0, 427)]
    building, trees = inside(size, tower), inside(size, left, right)
    trees &= ~building | inside(size, left) & (np.indices(trees.shape)[0] > 340)
    building &= ~trees
    building[400:, 285:335] |= ~trees[400:, 285:335]
    water = inside(size, shore) & ~building & ~trees
    sky = ~(building | trees | water)
    found = {"sky": sky, "water": water, "building": building, "tree": trees}
    return picture, [{"score": None, "label": label, "mask": mask} for label, mask in found.items()]


def pose(photos: Path) -> Any:
    """What the picture shows of a body: the left wrist is behind the helmet, the hips are below the edge."""
    places = [(222, 122), (247, 102), (202, 100), (272, 112), (179, 110), (318, 258), (108, 250), (350, 352), (42, 398)]
    seen = {**dict(enumerate(places)), 10: (146, 498)}
    scores = np.array([0.97, 0.98, 0.97, 0.81, 0.84, 0.90, 0.91, 0.62, 0.78, 0.74])
    points = [list(place) for place in seen.values()]
    return photos / "astronaut.png", [{"keypoints": points, "scores": scores, "labels": np.array(list(seen))}]


def depth(photos: Path) -> Any:
    """Metres, of the pair's true disparities."""
    disparity = np.load(photos / "motorcycle_disp.npz")["arr_0"]
    known = np.isfinite(disparity)
    metres = np.where(known, FOCAL * BASELINE / (np.where(known, disparity, 1) + OFFSET), np.nan)
    return photos / "motorcycle_left.png", {"predicted_depth": metres}


WORDS = {
    "markers": (164, 524, 348, 574),
    "=": (370, 536, 398, 572),
    "np.zeros_like(coins)": (422, 536, 964, 600),
}
"""Words of the page, in quarters of a pixel, from 40 pixels below its upper edge."""


def page(photos: Path) -> Any:
    path = photos / "page.png"
    width, height = Image.open(path).size
    words = [
        [
            word,
            [
                round(250 * left / width),
                round(1000 * (40 + top / 4) / height),
                round(250 * right / width),
                round(1000 * (40 + bottom / 4) / height),
            ],
        ]
        for word, (left, top, right, bottom) in WORDS.items()
    ]
    answer = [{"score": 0.83, "answer": " ".join(WORDS), "start": 0, "end": len(WORDS) - 1}]
    return {"image": str(path), "word_boxes": words}, answer


def detector(**settings: Any) -> Any:
    """SuperPoint with random filters; edges and corners excite them more than even grounds."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            else:
                torch.nn.init.kaiming_normal_(weight)
    return model


def saved(model: Any, folder: Path, kind: str, size: tuple[int, int]) -> Path:
    model.save_pretrained(folder)
    height, width = size
    settings = {"image_processor_type": kind, "do_resize": True, "size": {"height": height, "width": width}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_grayscale": True}))
    return folder


def keypoints(photos: Path) -> Any:
    path = photos / "rocket.jpg"
    with tempfile.TemporaryDirectory() as made:
        model = detector(keypoint_threshold=0.016, max_keypoints=200, nms_radius=8)
        folder = saved(model, Path(made), "SuperPointImageProcessor", (424, 640))
        return path, api.pipeline("keypoint-detection", folder)(str(path))


def matches(photos: Path) -> Any:
    """SuperGlue whose layers change nothing, so that it transports the detector's descriptors."""
    import torch
    import transformers

    pair = [str(photos / f"motorcycle_{side}.png") for side in ("left", "right")]
    inner = detector(keypoint_threshold=0.016, max_keypoints=600, nms_radius=8)
    settings = {"keypoint_detector_config": inner.config.to_dict(), "matching_threshold": 0.5}
    model = transformers.SuperGlueForKeypointMatching(transformers.SuperGlueConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            last = "mlp.1" in name or "keypoint_encoder.encoder.4" in name
            if last or name.startswith("final_projection"):
                weight.zero_()
        model.final_projection.final_proj.weight.copy_(torch.eye(256) * (16 * SHARPNESS) ** 0.5)
        model.bin_score.fill_(SHARPNESS * ALIKE)
    model.keypoint_detector = inner
    with tempfile.TemporaryDirectory() as made:
        folder = saved(model, Path(made), "SuperGlueImageProcessor", (496, 736))
        found = api.pipeline("keypoint-matching", folder)(pair)
    apart = [abs(one["keypoint_image_0"]["y"] - one["keypoint_image_1"]["y"]) for one in found]
    print(f"{len(found)} matches, {np.mean(np.array(apart) <= 2):.0%} on the same row within 2 pixels")
    return pair, found


ANSWERS: dict[str, Callable[[Path], Any]] = {
    "depth-estimation": depth,
    "document-question-answering": page,
    "image-segmentation": segments,
    "keypoint-detection": keypoints,
    "keypoint-matching": matches,
    "mask-generation": masks,
    "object-detection": boxes,
    "pose-estimation": pose,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("tasks", nargs="*", help="all when not said")
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for task in given.tasks or ANSWERS:
        picture, answer = ANSWERS[task](given.photos)
        drawn = api.draw(task, str(picture) if isinstance(picture, Path) else picture, answer)
        if drawn.width > WIDEST:
            drawn = drawn.resize((WIDEST, round(drawn.height * WIDEST / drawn.width)), Image.Resampling.LANCZOS)
        path = OUT / f"{task}.webp"
        drawn.save(path, quality=82, method=6)
        print(f"{path.name}: {drawn.width} x {drawn.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
