"""Thumbnails, captions and colours of pictures."""

import base64
import io

import numpy as np
from PIL import Image

from locray.report.page import Picture, PictureBox, hues, hues_of, picture_values


def picture(*boxes, size=(40, 60)):
    return Picture("a.jpg", np.full((*size, 3), 200, dtype=np.uint8), boxes)


def shown(*boxes, size=(40, 60), **options):
    return picture_values(picture(*boxes, size=size), hues(box.label for box in boxes), **options)


def test_thumbnails_are_small_and_boxes_stay_in_picture_pixels():
    found = shown(PictureBox("disc", None, (1.04, 2.0, 31.0, 22.0)), size=(400, 600), side_px=90)
    assert Image.open(io.BytesIO(base64.b64decode(found["data"]))).size == (90, 60)
    assert (found["width"], found["height"]) == (600, 400)
    assert [found["boxes"][0][name] for name in ("x", "y", "width", "height")] == [1.0, 2.0, 30.0, 20.0]


def test_annotations_are_counted_and_predictions_listed_with_their_scores():
    box = (0.0, 0.0, 5.0, 5.0)
    found = shown(
        PictureBox("red", None, box),
        PictureBox("red", None, box),
        PictureBox("blue", None, box, dashed=True),
        PictureBox("red", 0.5, box),
    )
    captions = [(caption["label"], caption["note"], caption["dashed"]) for caption in found["captions"]]
    assert captions == [("red", "x 2", False), ("blue", "", True), ("red", "0.50", False)]
    assert [rectangle["dashed"] for rectangle in found["boxes"]] == [False, False, True, False]


def test_an_object_without_a_box_is_named_and_not_drawn():
    found = shown(PictureBox("ship", None, None))
    assert found["boxes"] == []
    assert found["captions"][0]["label"] == "ship"


def test_every_label_has_a_colour_of_its_own():
    pictures = [picture(*(PictureBox(f"class {index}", None, None) for index in range(20)))]
    assert len(set(hues_of(pictures).values())) == 20
    assert hues(["b", "a"]) == hues(["a", "b", "b"])
