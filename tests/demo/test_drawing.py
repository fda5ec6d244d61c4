"""Drawn pictures: exact boxes, shapes that fill the right share of them, colours far from the background."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.demo import drawing
from locray.demo.drawing import MIN_CONTRAST, OBJECT_SHARES, SHAPES, SIDES_PX, draw_sample

seeds = st.integers(0, 2**32)
labels = st.sampled_from(sorted(SHAPES))


def rng_of(seed):
    return np.random.default_rng(seed)


def outline_of(seed, label):
    """The first steps of `draw_sample`: returns size, outline, and the generator in its state after them."""
    rng = rng_of(seed)
    width, height = rng.integers(*SIDES_PX, size=2, endpoint=True)
    return int(width), int(height), drawing._placed(rng, SHAPES[label](rng), int(width), int(height)), rng


@given(seeds, labels)
def test_the_box_is_exact_to_a_quarter_pixel(seed, label):
    width, height, outline, _ = outline_of(seed, label)
    image, box = draw_sample(rng_of(seed), label)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    exact = (*outline.min(axis=0), *outline.max(axis=0))
    assert np.abs(np.subtract(box, exact)).max() <= 0.375, "half a sample of rounding beside the quarter"
    assert 0 <= box[0] < box[2] <= width
    assert 0 <= box[1] < box[3] <= height


@given(seeds, labels)
def test_the_longer_side_has_its_share_of_the_image(seed, label):
    image, (xmin, ymin, xmax, ymax) = draw_sample(rng_of(seed), label)
    share = max(xmax - xmin, ymax - ymin) / min(image.shape[:2])
    low, high = OBJECT_SHARES
    assert low - 0.01 <= share <= high + 0.01


@pytest.mark.slow
def test_the_shape_is_drawn_inside_its_box():
    num_without_shadow = 0
    for seed in range(80):
        label = sorted(SHAPES)[seed % len(SHAPES)]
        width, height, _, rng = outline_of(seed, label)
        ground = drawing._background(rng, width, height).clip(0, 255)
        image, (xmin, ymin, xmax, ymax) = draw_sample(rng_of(seed), label)
        changed = np.abs(image.astype(float) - ground).max(axis=2)
        inside = np.zeros((height, width), dtype=bool)
        inside[math.floor(ymin) : math.ceil(ymax), math.floor(xmin) : math.ceil(xmax)] = True
        if changed[~inside].max() > 10:  # more than grain: a shadow
            continue
        num_without_shadow += 1
        rows, columns = np.nonzero(changed > 25)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(seen, (xmin, ymin, xmax, ymax))).max() < 4, (seed, label)
    assert num_without_shadow > 15


@given(seeds, st.sampled_from(sorted(SHAPES)), st.tuples(*[st.integers(0, 255)] * 3))
def test_a_colour_is_far_from_any_plain_background(seed, label, plain):
    ground = np.broadcast_to(np.array(plain, dtype=np.float32), (60, 80, 3))
    colour = drawing._contrasting_colour(rng_of(seed), label, ground, (20, 10, 50, 40))
    assert np.linalg.norm(colour - np.array(plain)) >= MIN_CONTRAST


@pytest.mark.slow
def test_shapes_differ_from_busy_backgrounds():
    """There is a margin, since shading and grain reduce contrast and some backgrounds have every colour."""
    contrasts = []
    for seed in range(150):
        label = sorted(SHAPES)[seed % len(SHAPES)]
        width, height, outline, rng = outline_of(seed, label)
        ground = drawing._background(rng, width, height)
        image, _ = draw_sample(rng_of(seed), label)
        x, y = outline.mean(axis=0).astype(int)
        contrasts.append(np.linalg.norm(image[y, x] - ground[y, x]))
    assert np.mean(np.array(contrasts) > MIN_CONTRAST * 0.75) > 0.95


def test_pictures_depend_on_the_seed():
    first, again, other = (draw_sample(rng_of(seed), "star")[0] for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_shapes_differ_in_how_much_of_their_box_they_fill():
    """A network needs their edges to tell them apart: size and position are not enough."""
    filled = {}
    for label in SHAPES:
        shares = []
        for seed in range(20):
            *_, outline, _ = outline_of(seed, label)
            x, y = outline.T
            area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
            shares.append(area / np.prod(np.ptp(outline, axis=0)))
        filled[label] = np.mean(shares)
    assert filled["disc"] > filled["square"] > filled["triangle"] > filled["star"]
    assert filled["cross"] < filled["square"]
