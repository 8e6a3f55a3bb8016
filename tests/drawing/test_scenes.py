"""What is drawn of each task's answer, where, and in which colours; answers that have not the task's form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import isoform
from isoform.drawing.layout import Canvas, labels
from isoform.drawing.marks import Area, Box, Dot, Line, Note, Scene, Subject
from isoform.drawing.overlay import THROUGH
from isoform.drawing.palette import COLOURS, INK, NOTHING, colour_of, depth_colours, is_dashed
from isoform.drawing.raster import raster
from isoform.drawing.scenes import SCENES, scene
from isoform.drawing.skeleton import JOINTS, LIMBS
from isoform.errors import InputError

WIDTH, HEIGHT = 640, 480
PICTURE = Image.new("RGB", (WIDTH, HEIGHT), (200, 200, 200))
BOX = {"xmin": 100, "ymin": 120, "xmax": 300, "ymax": 360}
DETECTED = [
    {"score": 0.9, "label": "cat", "box": BOX},
    {"score": 0.6, "label": "dog", "box": {"xmin": 400, "ymin": 50, "xmax": 500, "ymax": 90}},
    {"score": 0.7, "label": "cat", "box": {"xmin": 0, "ymin": 0, "xmax": 640, "ymax": 480}},
]


def disc(x: int, y: int, radius: int) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    found: np.ndarray[Any, Any] = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    return found


def segment(label: str, mask: Any, score: float | None = 0.5) -> dict[str, Any]:
    return {"score": score, "label": label, "mask": Image.fromarray((mask * 255).astype(np.uint8))}


ANSWERS: dict[str, Any] = {
    "depth-estimation": {"predicted_depth": np.linspace(1, 9, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH), "depth": None},
    "document-question-answering": [{"score": 0.8, "answer": "of 42", "start": 1, "end": 2}],
    "image-segmentation": [segment("cup", disc(200, 200, 90)), segment("spoon", disc(500, 300, 60), None)],
    "keypoint-detection": {"keypoints": [[10.0, 20.0], [600.5, 470.0]], "scores": [1, 1], "descriptors": None},
    "keypoint-matching": [
        {"keypoint_image_0": {"x": 50, "y": 60}, "keypoint_image_1": {"x": 70, "y": 80}, "score": 0.4}
    ],
    "mask-generation": {"masks": [disc(200, 200, 30), disc(220, 220, 90)], "scores": np.array([0.9, 0.8])},
    "object-detection": DETECTED,
    "pose-estimation": [
        {
            "keypoints": [[20.0 * n + 100, 15.0 * n + 100] for n in range(17)],
            "scores": [0.5] * 17,
            "labels": list(range(17)),
            "bbox": [0, 0, 1, 1],
        }
    ],
}
WORDS = (("Total", (100, 100, 200, 150)), ("of", (250, 100, 300, 150)), ("42", (320, 110, 400, 160)))


def subject(task: str) -> Subject:
    other = Image.new("RGB", (300, 500), (10, 10, 10))
    return Subject((PICTURE, other) if task == "keypoint-matching" else (PICTURE,), WORDS)


def drawn(task: str, answer: Any = None) -> Scene:
    return scene(task, subject(task), ANSWERS[task] if answer is None else answer)


def marks(found: Scene, kind: type) -> list[Any]:
    return [mark for mark in found.marks if isinstance(mark, kind)]


# ------------------------------------------------------------------ where and what
def test_boxes_stand_where_the_answer_says_the_surest_on_top_one_colour_a_class() -> None:
    boxes = marks(drawn("object-detection"), Box)
    assert [(b.left, b.top, b.right, b.bottom, b.label) for b in boxes] == [
        (400, 50, 500, 90, "dog 0.60"),
        (0, 0, 640, 480, "cat 0.70"),
        (100, 120, 300, 360, "cat 0.90"),
    ]
    assert boxes[1].colour == boxes[2].colour != boxes[0].colour
    pixels = np.asarray(raster(drawn("object-detection")))
    assert Canvas.of(WIDTH, HEIGHT).scale == 1 and pixels.shape == (HEIGHT, WIDTH, 3)
    for x, y in ((100, 240), (300, 240), (200, 120), (200, 360)):
        assert tuple(pixels[y, x]) == boxes[2].colour
        assert tuple(pixels[y + 9, x + 9]) == (200, 200, 200)


def test_masks_let_the_picture_through_and_have_edges() -> None:
    found = drawn("image-segmentation")
    areas = marks(found, Area)
    assert [area.label for area in areas] == ["cup 0.50", "spoon"]
    pixels = np.asarray(raster(found)).astype(int)
    inside = [round(200 + (c - 200) * THROUGH / 255) for c in areas[0].colour]
    assert np.abs(pixels[150, 150] - inside).max() <= 1
    row = pixels[200, 108:116]
    assert any(tuple(pixel) == areas[0].colour for pixel in row)
    assert tuple(pixels[20, 20]) == (200, 200, 200)
    several = drawn("image-segmentation", [segment("cup", disc(200, 200, 90)), segment("cup", disc(400, 200, 90))])
    assert len({area.colour for area in marks(several, Area)}) == 2


def test_of_generated_masks_the_smaller_are_on_top() -> None:
    sizes = [int(area.mask.sum()) for area in marks(drawn("mask-generation"), Area)]
    assert sizes == sorted(sizes, reverse=True)
    many = {"masks": [disc(200, 200, 9)] * 41, "scores": [1.0] * 41}
    assert {area.label for area in marks(drawn("mask-generation", many), Area)} == {""}


def test_keypoints_are_dots() -> None:
    found = drawn("keypoint-detection")
    assert [(dot.x, dot.y) for dot in marks(found, Dot)] == [(10, 20), (600.5, 470)]
    assert marks(found, Note)[0].text == "2 keypoints"
    assert tuple(np.asarray(raster(found))[20, 10]) == colour_of(0)


def test_matches_lead_from_one_picture_to_the_other_beside_it() -> None:
    found = drawn("keypoint-matching")
    assert found.picture.size == (WIDTH + 300, 500)
    (line,) = marks(found, Line)
    assert (line.start, line.end) == ((50, 60), (70 + WIDTH, 80))
    assert [(dot.x, dot.y) for dot in marks(found, Dot)] == [(50, 60), (70 + WIDTH, 80)]
    assert marks(found, Note)[0].text == "1 match"
    assert found.picture.getpixel((WIDTH - 1, HEIGHT + 5)) == NOTHING
    assert found.picture.getpixel((WIDTH, 0)) == (10, 10, 10)


def test_a_pose_has_limbs_between_the_points_that_were_found() -> None:
    assert len(marks(drawn("pose-estimation"), Line)) == len(LIMBS) == 19
    assert {JOINTS[n] for pair in LIMBS for n in pair} == set(JOINTS)
    pose = {key: value[5:] for key, value in ANSWERS["pose-estimation"][0].items() if key != "bbox"}
    lines = marks(drawn("pose-estimation", [pose]), Line)
    assert len(lines) == sum(a >= 5 and b >= 5 for a, b in LIMBS)
    assert ((100 + 20 * 15, 100 + 15 * 15), (100 + 20 * 13, 100 + 15 * 13)) in [(x.start, x.end) for x in lines]


def test_depths_become_colours_with_a_bar_that_says_which() -> None:
    found = drawn("depth-estimation")
    assert [(note.text, note.x) for note in marks(found, Note)] == [("1", 0), ("9", WIDTH)]
    pixels = np.asarray(found.picture)
    assert pixels.shape[0] == HEIGHT + HEIGHT // 12
    ends = depth_colours(np.array([[0.0, 1.0]]))[0]
    assert np.abs(pixels[0, 0].astype(int) - ends[0]).max() <= 2
    assert np.abs(pixels[HEIGHT - 1, -1].astype(int) - ends[1]).max() <= 2
    assert np.array_equal(pixels[-1, [0, -1]], ends)


def test_a_flat_depth_and_one_without_numbers_are_drawn() -> None:
    flat = np.asarray(drawn("depth-estimation", {"predicted_depth": np.full((4, 6), 2.0)}).picture)
    assert np.array_equal(flat[0, 0], depth_colours(np.zeros((1, 1)))[0, 0])
    values = np.full((HEIGHT, WIDTH), np.nan)
    assert tuple(np.asarray(drawn("depth-estimation", {"predicted_depth": values}).picture)[9, 9]) == NOTHING
    values[:, :320] = 3.0
    found = drawn("depth-estimation", {"predicted_depth": values})
    assert [note.text for note in marks(found, Note)] == ["3", "3"]


def test_depths_of_a_wide_range_are_coloured_by_their_logarithm() -> None:
    values = np.full((HEIGHT, WIDTH), 100.0)
    values[:, :300], values[:, 300:340] = 1.0, 10.0
    found = drawn("depth-estimation", {"predicted_depth": values})
    assert [note.text for note in marks(found, Note)] == ["1", "100, by logarithm"]
    middle = np.asarray(found.picture)[HEIGHT // 2, WIDTH // 2]
    assert np.array_equal(middle, depth_colours(np.array([[0.5]]))[0, 0])
    plain = drawn("depth-estimation", {"predicted_depth": values - 1.0})  # a 0 has no logarithm
    assert [note.text for note in marks(plain, Note)] == ["0", "99"]


def test_answers_about_a_page_lie_over_their_words() -> None:
    found = drawn("document-question-answering")
    boxes = [(box.left, box.top, box.right, box.bottom) for box in marks(found, Box)]
    assert boxes == [(160, 48, 192, 72), (204.8, 52.8, 256, 76.8)]
    assert [note.text for note in marks(found, Note)] == ["of 42 0.80"]
    assert not drawn("document-question-answering", [{"score": 1.0, "answer": "", "start": 0, "end": 0}]).marks


@pytest.mark.parametrize("task", sorted(SCENES))
def test_an_answer_that_found_nothing_is_the_picture(task: str) -> None:
    nothing: dict[str, Any] = {
        "depth-estimation": ANSWERS["depth-estimation"],
        "keypoint-detection": {"keypoints": [], "scores": [], "descriptors": []},
        "mask-generation": {"masks": [], "scores": []},
    }
    found = drawn(task, nothing.get(task, []))
    picture = raster(found)
    assert picture.size == found.picture.size
    if task not in ("depth-estimation", "keypoint-detection", "keypoint-matching"):
        assert np.array_equal(np.asarray(picture), np.asarray(PICTURE))


# ------------------------------------------------------------------ sizes and labels
@pytest.mark.parametrize("size", [(1, 1), (24, 16), (1, 10_000), (10_000, 1), (300, 200), (4000, 3000)])
def test_labels_are_on_the_canvas_and_large_enough_at_any_size(size: tuple[int, int]) -> None:
    width, height = size
    box = {"xmin": 0, "ymin": 0, "xmax": width, "ymax": height}
    answer = [{"score": 0.5, "label": name, "box": box} for name in ("a", "b" * 300, "some thing")]
    found = scene("object-detection", Subject((Image.new("RGB", size),)), answer)
    canvas = Canvas.of(*size)
    assert canvas.font >= 14 and canvas.font * 60 >= min(canvas.width, canvas.height)
    assert canvas.width >= width and canvas.height >= height
    for label in labels(found, canvas):
        assert label.x >= 0 and label.x + label.width <= canvas.width
        assert label.y >= 0 and label.y + label.height <= canvas.height
    if width * height < 10**6:
        assert raster(found).size == (canvas.width, canvas.height)


def test_labels_make_room_for_each_other() -> None:
    answer = [{"score": 0.9 - n / 10, "label": f"thing {n}", "box": BOX} for n in range(4)]
    canvas = Canvas.of(WIDTH, HEIGHT)
    placed = labels(scene("object-detection", Subject((PICTURE,)), answer), canvas)
    assert len(placed) == 4
    assert placed[0].text == "thing 0 0.90"  # the surest has the best place
    assert (placed[0].x, placed[0].y + placed[0].height) == (100, 120)
    assert all(a.overlap(b) == 0 for n, a in enumerate(placed) for b in placed[:n])


def test_labels_hide_no_words_of_another_answer() -> None:
    words = (("upper", (100, 500, 300, 550)), ("lower", (100, 560, 300, 610)))
    answer = [{"score": 0.6 - 0.4 * n, "answer": words[n][0], "start": n, "end": n} for n in (0, 1)]
    page = scene("document-question-answering", Subject((PICTURE,), words), answer)
    canvas = Canvas.of(*page.picture.size)
    first, second = labels(page, canvas)
    assert not first.overlap(second)
    for label in (first, second):
        for box in marks(page, Box):
            clear = label.y >= box.bottom or label.y + label.height <= box.top
            assert clear, (label.text, label.y, box.top)


def test_a_label_is_light_with_a_dark_edge_on_every_ground() -> None:
    for ground in ((255, 255, 255), (0, 0, 0), *COLOURS):
        picture = Image.new("RGB", (WIDTH, HEIGHT), ground)
        found = scene("object-detection", Subject((picture,)), [{"score": 0.9, "label": "cat", "box": BOX}])
        (label,) = labels(found, Canvas.of(WIDTH, HEIGHT))
        area = np.asarray(raster(found))[int(label.y) : int(label.y + label.height), int(label.x) + 20 :]
        shades = {tuple(pixel) for pixel in area[:, : int(label.width) - 20].reshape(-1, 3)}
        assert (255, 255, 255) in shades and INK in shades


def test_a_label_that_holds_control_characters_is_one_line() -> None:
    found = scene("object-detection", Subject((PICTURE,)), [{"score": 0.5, "label": "a\n\x00b\tc", "box": BOX}])
    assert labels(found, Canvas.of(WIDTH, HEIGHT))[0].text == "a b c 0.50"


# ------------------------------------------------------------------ colours
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""What linear RGB becomes. Machado et al. 2009, https://doi.org/10.1109/TVCG.2009.113, severity 1."""
TOLD_APART = 13.0
"""CIE76 distance of two colours: 2.3 is just noticeable side by side, and areas are apart from each other here."""


def lab(colour: tuple[int, ...], matrix: Any) -> np.ndarray[Any, Any]:
    """CIELAB of an sRGB colour as somebody sees it."""
    unit = np.array(colour) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))) @ linear
    x, y, z = np.cbrt(xyz / (0.9505, 1, 1.089))
    return np.array((116 * y - 16, 500 * (x - y), 200 * (y - z)))


@pytest.mark.parametrize("sight", BLINDNESS)
def test_colours_are_told_apart_by_colour_blind_people(sight: str) -> None:
    seen = [lab(colour, BLINDNESS[sight]) for colour in COLOURS]
    gaps = [float(np.linalg.norm(a - b)) for n, a in enumerate(seen) for b in seen[:n]]
    assert min(gaps) > TOLD_APART


def test_depths_get_lighter_for_everybody() -> None:
    colours = depth_colours(np.linspace(0, 1, 33)[None])[0]
    for matrix in BLINDNESS.values():
        light = [lab(tuple(int(part) for part in colour), matrix)[0] for colour in colours]
        assert np.diff(light).min() > 0
    assert light[-1] - light[0] > 60


def test_after_seven_colours_boxes_are_dashed() -> None:
    answer = [{"score": 0.5, "label": str(n), "box": BOX} for n in range(15)]
    boxes = {box.label.split()[0]: box for box in marks(drawn("object-detection", answer), Box)}
    assert boxes["0"].colour == boxes["7"].colour == boxes["14"].colour
    assert [boxes[n].dashed for n in ("0", "6", "7", "13", "14")] == [False, False, True, True, False]
    assert is_dashed(7) and not is_dashed(14)
    scene_of = Scene(PICTURE, [Box(100, 120, 300, 360, colour_of(0), dashed=True)])
    side = np.asarray(raster(scene_of))[120, 100:300]
    assert 0.3 < np.mean([tuple(pixel) == colour_of(0) for pixel in side]) < 0.7


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        ("text-classification", [], "text-classification has nothing to draw; these have: depth-estimation"),
        ("object-detection", DETECTED[0], "object-detection answers .*xmin"),
        ("object-detection", [{"score": 1, "label": "a"}], "object-detection answers"),
        ("object-detection", [{**DETECTED[0], "box": [1, 2, 3, 4]}], "object-detection answers"),
        ("object-detection", [{**DETECTED[0], "score": "x"}], "object-detection answers"),
        ("object-detection", [{**DETECTED[0], "box": {**BOX, "xmin": float("nan")}}], "no finite number"),
        ("object-detection", [DETECTED], "give the answer about one picture"),
        ("image-segmentation", [segment("a", np.ones((2, 3)))], "a mask of 3 x 2 is not of this picture"),
        ("mask-generation", {"masks": [disc(1, 1, 1)], "scores": []}, "mask-generation answers"),
        ("mask-generation", [], "mask-generation answers"),
        ("depth-estimation", {"predicted_depth": "far"}, "depth-estimation answers"),
        ("depth-estimation", {"predicted_depth": np.zeros((0, 4))}, "depth-estimation answers"),
        ("keypoint-detection", {"keypoints": [[1, 2, 3]]}, "keypoint-detection answers"),
        ("keypoint-detection", {"keypoints": [[1, float("inf")]]}, "keypoint-detection answers"),
        ("keypoint-matching", [{"keypoint_image_0": {"x": 1, "y": 2}}], "keypoint-matching answers"),
        ("pose-estimation", [{"keypoints": [[1, 2]], "scores": [], "labels": []}], "pose-estimation answers"),
        ("document-question-answering", [{"score": 1, "answer": "a", "start": 2, "end": 3}], "the page has 3; give"),
    ],
)
def test_an_answer_of_another_form_is_refused(task: str, answer: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scene(task, subject(task), answer)


def test_the_pictures_of_a_pair_are_two() -> None:
    with pytest.raises(InputError, match="keypoint-matching is drawn over 2 pictures, not 1"):
        scene("keypoint-matching", Subject((PICTURE,)), [])
    with pytest.raises(InputError, match="over a pair of pictures"):
        isoform.draw("keypoint-matching", PICTURE, [])
    with pytest.raises(InputError, match="nothing to draw"):
        isoform.draw("fill-mask", PICTURE, [])
    with pytest.raises(InputError, match="holds none as image"):
        isoform.draw("object-detection", {"picture": 1}, [])


def test_draw_takes_what_the_pipeline_takes() -> None:
    page = {"image": PICTURE, "word_boxes": [list(word) for word in WORDS]}
    found = isoform.draw("document-question-answering", page, ANSWERS["document-question-answering"])
    assert np.array_equal(np.asarray(found), np.asarray(raster(drawn("document-question-answering"))))
    pair = isoform.draw("keypoint-matching", [PICTURE, PICTURE], ANSWERS["keypoint-matching"])
    assert pair.size == (2 * WIDTH, HEIGHT)
    assert pair.mode == "RGB"
    torch = pytest.importorskip("torch")
    masks = {"masks": [torch.tensor(disc(200, 200, 30))], "scores": torch.tensor([0.9])}
    assert isoform.draw("mask-generation", PICTURE, masks).size == PICTURE.size
