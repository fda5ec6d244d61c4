"""Mosaics and pasted objects: images, covered objects, and boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locray import boxes
from locray.training.augment import Mix, Objects, Scene
from locray.training.augment.mixing import MAX_COVERED, draw_mosaic, paste_objects
from tests.helpers.scenes import COLOURS, draw, extent_of, pixels_of, scenes

SIDE = 96
AREA = (0, 0, SIDE, SIDE)
HALVES = (slice(0, 30), slice(66, 96))
SEEDS = st.integers(0, 2**32)


def generator(seed):
    return np.random.default_rng(seed)


def pasted(donor, scene, seed, area=AREA):
    """Returns a new input with objects pasted into it."""
    canvas = Scene(scene.image_hwc_u8.copy(), scene.objects)
    return Scene(canvas.image_hwc_u8, paste_objects(donor, canvas, area, generator(seed), None))


@settings(max_examples=200)
@given(scenes(label_id=1, width=120, height=80, rounds=[False]), SEEDS)
def test_the_box_of_a_pasted_object_is_tight(donor, seed):
    seen = pasted(donor, draw(SIDE, SIDE), seed)
    assert len(seen.objects) == 1
    assert np.abs(seen.objects.boxes_xyxy_px[0] - extent_of(seen.image_hwc_u8, 1)).max() <= 1.5


@pytest.mark.slow
@settings(max_examples=200)
@given(
    scenes(label_id=0, width=SIDE, height=SIDE, rounds=[False]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=3, max_size=3),
    SEEDS,
)
def test_pasted_objects_cover_little_of_any_other(scene, corners, seed):
    donor = draw(100, 100, *((1 + place, (x, y, x + 25, y + 25), False) for place, (x, y) in enumerate(corners)))
    before = pixels_of(scene.image_hwc_u8, 0).sum()
    seen = pasted(donor, scene, seed)
    assert pixels_of(seen.image_hwc_u8, 0).sum() >= (1 - MAX_COVERED) * before - 1
    assert np.array_equal(seen.objects.boxes_xyxy_px[0], scene.objects.boxes_xyxy_px[0])
    assert boxes.is_valid(seen.objects.boxes_xyxy_px).all()


@given(scenes(label_id=1), SEEDS)
def test_pasted_objects_stay_in_their_area(donor, seed):
    area = (10, 20, 80, 70)
    seen = pasted(donor, draw(SIDE, SIDE), seed, area)
    rows, columns = np.nonzero((seen.image_hwc_u8 != draw(SIDE, SIDE).image_hwc_u8).any(axis=2))
    assert columns.min() >= 10
    assert columns.max() < 80
    assert rows.min() >= 20
    assert rows.max() < 70


def test_a_neighbour_that_is_pasted_along_keeps_its_label():
    donor = draw(100, 100, (1, (10, 10, 60, 60), False), (2, (30, 30, 50, 50), False))
    found = {tuple(pasted(donor, draw(SIDE, SIDE), seed).objects.label_ids.tolist()) for seed in range(30)}
    assert any(label_ids[:2] == (1, 2) for label_ids in found)
    assert all(2 in label_ids for label_ids in found)


def test_edges_are_hard_in_some_images_and_blended_in_others():
    donor = draw(100, 100, (1, (30, 30, 60, 60), False))
    donor.image_hwc_u8[(donor.image_hwc_u8 != COLOURS[1]).any(axis=2)] = 0
    kinds = set()
    for seed in range(30):
        pixels = pasted(donor, draw(SIDE, SIDE), seed).image_hwc_u8[..., 2]
        kinds.add(bool(((pixels > 30) & (pixels < 90)).any()))
    assert kinds == {False, True}


def test_objects_that_would_be_too_small_are_not_pasted():
    tiny = draw(1000, 1000, (1, (10, 10, 20, 20), False))
    assert len(pasted(tiny, draw(SIDE, SIDE), 0).objects) == 0


def test_each_corner_of_a_mosaic_has_an_image_in_random_order():
    four = [draw(90, 64, (label_id, (30, 20, 60, 40), True)) for label_id in range(4)]
    corners_of_first = set()
    for seed in range(40):
        image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        objects = draw_mosaic(four, image, generator(seed), None)
        assert all(image[rows, columns].any() for rows in HALVES for columns in HALVES)
        assert objects.label_ids.tolist() == [0, 1, 2, 3]
        centre = (objects.boxes_xyxy_px[0, :2] + objects.boxes_xyxy_px[0, 2:]) / 2
        corners_of_first.add(tuple((centre > SIDE / 2).tolist()))
    assert len(corners_of_first) == 4


def test_the_right_share_of_images_is_mixed():
    mixes = [Mix.sample(generator(seed), 50, lambda _: True, 0.25, 0.5) for seed in range(2000)]
    assert 0.22 <= np.mean([bool(mix.tiles) for mix in mixes]) <= 0.28
    assert 0.45 <= np.mean([mix.donor is not None for mix in mixes]) <= 0.55
    assert {len(mix.rows) for mix in mixes} == {0, 1, 3, 4}
    assert {row for mix in mixes for row in mix.rows} == set(range(50))


def test_nothing_is_mixed_if_no_record_can_be():
    assert Mix.sample(generator(0), 50, lambda _: False, 1, 1) == Mix()


def test_an_image_without_objects_can_be_mixed():
    empty = Scene(draw(90, 64).image_hwc_u8, Objects.none())
    assert len(pasted(empty, draw(SIDE, SIDE), 0).objects) == 0
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    assert len(draw_mosaic([empty] * 4, image, generator(0), None)) == 0
