"""Drawn scenes whose objects are identified by colour."""

import numpy as np
from hypothesis import strategies as st

from locray.training.augment import Objects, Scene

COLOURS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [250, 20, 250], [20, 250, 250]])
"""Colours by label id: far apart, and far from the grey of background and padding."""

BACKGROUND = 100


def draw(width, height, *objects):
    """Returns a grey image with `objects`: (label id, box, whether it is round)."""
    image = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for label_id, (left, top, right, bottom), is_round in objects:
        across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
        inside = (across**2 + down**2 <= 1) if is_round else (np.maximum(abs(across), abs(down)) <= 1)
        image[inside] = COLOURS[label_id]
    boxes = np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    label_ids = np.array([label_id for label_id, _, _ in objects], dtype=np.int64)
    return Scene(image, Objects(boxes, label_ids, np.ones(len(objects), dtype=bool)))


@st.composite
def scenes(draw_, width=90, height=64, label_id=0, smallest=12, largest=30, edge=0, rounds=(False, True)):
    """A scene with one object."""
    object_width, object_height = draw_(st.integers(smallest, largest)), draw_(st.integers(smallest, largest))
    left = draw_(st.integers(edge, width - object_width - edge))
    top = draw_(st.integers(edge, height - object_height - edge))
    box = (left, top, left + object_width, top + object_height)
    return draw(width, height, (label_id, box, draw_(st.sampled_from(rounds))))


def pixels_of(image, label_id):
    """Returns the pixels of an object, (H, W) bool; of a blended edge, those covered by more than half."""
    distance = np.abs(image.astype(int) - COLOURS[label_id]).sum(axis=2)
    return distance < np.abs(COLOURS[label_id] - BACKGROUND).sum() / 2


def extent_of(image, label_id):
    """Returns the smallest box around the pixels of an object."""
    rows, columns = np.nonzero(pixels_of(image, label_id))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)


def share_inside(image, label_id, box):
    """Returns the share of an object's pixels whose centre is in a box."""
    rows, columns = np.nonzero(pixels_of(image, label_id))
    x, y = columns + 0.5, rows + 0.5
    return np.mean((box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3]))
