"""A box still bounds its object after every transform."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from locray import boxes
from locray.training.augment import Augmentation, SquareTransforms, random_crop

SIDE = 64


@st.composite
def scenes(draw, width=SIDE, height=SIDE, edge=0):
    """A dark image with one bright rectangle, and the rectangle's box."""
    object_width, object_height = (draw(st.integers(6, 24)) for _ in range(2))
    left = draw(st.integers(edge, width - object_width - edge))
    top = draw(st.integers(edge, height - object_height - edge))
    image = np.full((height, width, 3), 20, dtype=np.uint8)
    image[top : top + object_height, left : left + object_width] = 250
    return image, np.array([[left, top, left + object_width, top + object_height]], dtype=np.float64)


def bounds_of_bright_pixels(image, threshold=200):
    rows, columns = np.nonzero(image.min(axis=2) > threshold)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)


@settings(max_examples=60, deadline=None)
@given(scenes(width=80, height=50), st.integers(0, 2**32))
def test_a_crop_keeps_most_of_the_object_and_its_box_exact(scene, seed):
    image, box = scene
    part, moved, kept = random_crop(image, box, np.random.default_rng(seed))
    assert kept.all()
    assert np.array_equal(bounds_of_bright_pixels(part), moved[0])
    assert boxes.areas(moved)[0] >= 0.8 * boxes.areas(box)[0]


@settings(max_examples=60, deadline=None)
@given(scenes(edge=2), st.floats(1, 30), st.sampled_from(["none", "horizontal", "both"]), st.integers(0, 2**62))
def test_a_box_bounds_its_object_after_rotation_and_flips(scene, degrees, flip, seed):
    transforms = SquareTransforms(Augmentation(degrees, flip, colour=False), SIDE)
    (image, moved), kept = transforms(scene, seed)
    assert kept.all()
    seen = bounds_of_bright_pixels(image)
    # Half a pixel: the threshold cuts through blended edges.
    assert (moved[0, :2] <= seen[:2] + 1).all()
    assert (moved[0, 2:] >= seen[2:] - 1).all()
    # And it is no larger than turning a rectangle makes it.
    width, height = scene[1][0, 2:] - scene[1][0, :2]
    angle = np.deg2rad(degrees)
    assert moved[0, 2] - moved[0, 0] <= width * 1 + height * np.sin(angle) + 1.5
    assert moved[0, 3] - moved[0, 1] <= height * 1 + width * np.sin(angle) + 1.5


@settings(max_examples=30, deadline=None)
@given(scenes(), st.integers(0, 2**62))
def test_flips_alone_are_exact(scene, seed):
    (image, moved), _ = SquareTransforms(Augmentation(0, "both", colour=False), SIDE)(scene, seed)
    assert np.array_equal(bounds_of_bright_pixels(image), moved[0])


@settings(max_examples=30, deadline=None)
@given(scenes(), st.integers(0, 2**62))
def test_boxes_stay_proper_and_inside(scene, seed):
    (image, moved), kept = SquareTransforms(Augmentation(45, "both"), SIDE)(scene, seed)
    assert image.shape == (SIDE, SIDE, 3)
    assert image.dtype == np.uint8
    assert boxes.is_proper(moved[kept]).all()
    assert (moved >= 0).all()
    assert (moved <= SIDE).all()


def test_the_same_seed_gives_the_same_image():
    scene = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), np.array([[5.0, 5, 20, 30]])
    transforms = SquareTransforms(Augmentation(), SIDE)
    first, again, other = (transforms(scene, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_every_flip_and_crop_happens_and_colours_change():
    image = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
    corner = np.array([[2.0, 2, 12, 12]])
    flips = SquareTransforms(Augmentation(0, "both", colour=False), SIDE)
    assert {tuple(flips((image, corner), seed)[0][1][0]) for seed in range(40)} == {
        (2, 2, 12, 12),
        (52, 2, 62, 12),
        (2, 52, 12, 62),
        (52, 52, 62, 62),
    }
    horizontal = SquareTransforms(Augmentation(0, "horizontal", colour=False), SIDE)
    assert len({tuple(horizontal((image, corner), seed)[0][1][0]) for seed in range(40)}) == 2
    nothing = SquareTransforms(Augmentation(0, "none", colour=False), SIDE)
    assert np.array_equal(nothing((image, corner), 0)[0][0], image)
    colours = SquareTransforms(Augmentation(0, "none", colour=True), SIDE)
    assert len({int(colours((image, corner), seed)[0][0][0, 0, 0]) for seed in range(10)}) > 5
    sizes = {random_crop(image, corner, np.random.default_rng(seed))[0].shape for seed in range(40)}
    assert len(sizes) > 10


def test_an_image_without_objects_may_be_cut_anywhere():
    image, nothing = np.zeros((SIDE, SIDE, 3), dtype=np.uint8), np.zeros((0, 4))
    _, moved, kept = random_crop(image, nothing, np.random.default_rng(1))
    (square, moved), kept = SquareTransforms(Augmentation(), SIDE)((image, nothing), 0)
    assert square.shape == (SIDE, SIDE, 3)
    assert moved.shape == (0, 4)
    assert kept.shape == (0,)
