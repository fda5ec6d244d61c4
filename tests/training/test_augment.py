"""Boxes bound the pixels of their objects after each transform, and after all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from locray import boxes
from locray.config import AugmentationOptions
from locray.images.letterbox import PAD_VALUE
from locray.training.augment import Augmenter, Mix, Objects, Scene
from locray.training.augment.colour import ColourChange
from locray.training.augment.crops import Placement, full_window, random_tile, random_window
from locray.training.augment.transforms import flip, rotate, rotate_boxes, shift
from tests.helpers.scenes import BACKGROUND, draw, extent_of, pixels_of, scenes, share_inside

SIDE = 64
NOTHING = AugmentationOptions(crop=0, rotation=0, flip="none", colour=0)
SEEDS = st.integers(0, 2**32)


def generator(seed):
    return np.random.default_rng(seed)


def augmented(augmentation, scene, seed, tiles=(), donor=None, side=SIDE):
    image = np.zeros((side, side, 3), dtype=np.uint8)
    return Scene(image, Augmenter(augmentation, side)(scene, tiles, donor, image, generator(seed)))


def differs(scene, label_id=0):
    """Returns the largest distance between an edge of the box and that of the pixels."""
    (box,) = scene.objects.boxes_xyxy_px[scene.objects.label_ids == label_id]
    return np.abs(box - extent_of(scene.image_hwc_u8, label_id)).max()


# Transforms that move whole pixels are exact; scaling may be off by one pixel.


@given(scenes(), SEEDS)
def test_a_crop_shows_most_of_the_object_and_clips_its_box(scene, seed):
    left, top, right, bottom = window = random_window(scene, generator(seed))
    placement = Placement(window, (0, 0, right - left, bottom - top))
    seen = Scene(placement.pixels(scene.image_hwc_u8, None), placement.objects(scene.objects))
    assert differs(seen) <= 1e-9
    assert boxes.areas(seen.objects.boxes_xyxy_px)[0] >= 0.8 * boxes.areas(scene.objects.boxes_xyxy_px)[0]


@given(scenes(), SEEDS)
def test_the_box_of_a_cropped_object_is_tight(scene, seed):
    seen = augmented(AugmentationOptions(crop=1, rotation=0, flip="none", colour=0), scene, seed)
    assert differs(seen) <= 1.5


@pytest.mark.slow
@given(st.tuples(*(scenes(label_id=label_id) for label_id in range(4))), SEEDS)
def test_the_boxes_of_a_mosaic_are_tight(four, seed):
    seen = augmented(NOTHING, four[0], seed, tiles=four[1:])
    assert sorted(seen.objects.label_ids.tolist()) == [0, 1, 2, 3]
    assert all(differs(seen, label_id) <= 1.5 for label_id in range(4))


@given(scenes(), st.integers(8, 60), st.integers(8, 60), SEEDS)
def test_a_tile_lies_in_its_area(scene, width, height, seed):
    area = (3, 5, 3 + width, 5 + height)
    tile = random_tile(scene, area, generator(seed))
    assert tile.target == area or tile.window == full_window(scene.image_hwc_u8)
    image = np.full((SIDE + 5, SIDE + 5, 3), PAD_VALUE, dtype=np.uint8)
    objects = tile.draw(scene, image, None)
    image[5 : 5 + height, 3 : 3 + width] = PAD_VALUE
    assert (image == PAD_VALUE).all()
    assert len(objects) == 1


@given(scenes(width=SIDE), st.booleans(), st.booleans())
def test_the_box_of_a_flipped_object_is_exact(scene, horizontally, vertically):
    seen = flip(scene, horizontally=horizontally, vertically=vertically)
    assert differs(seen) == 0
    back = flip(seen, horizontally=horizontally, vertically=vertically)
    assert np.array_equal(back.image_hwc_u8, scene.image_hwc_u8)


@given(scenes(width=SIDE), st.integers(-20, 20), st.integers(-20, 20))
def test_the_box_of_a_shifted_object_is_exact(scene, right_px, down_px):
    seen = shift(scene, right_px, down_px)
    if len(seen.objects):
        left = round(float(boxes.areas(seen.objects.boxes_xyxy_px)[0]))
        assert left >= 0.3 * boxes.areas(scene.objects.boxes_xyxy_px)[0]
    moved = np.clip(scene.objects.boxes_xyxy_px[0] + [right_px, down_px, right_px, down_px], 0, SIDE)
    assert np.array_equal(seen.objects.boxes_xyxy_px, moved[None][: len(seen.objects)])
    expected = np.full_like(scene.image_hwc_u8, PAD_VALUE)
    for y in range(SIDE):
        if 0 <= y - down_px < SIDE:
            row = scene.image_hwc_u8[y - down_px]
            expected[y, max(0, right_px) : SIDE + min(0, right_px)] = row[max(0, -right_px) : SIDE - max(0, right_px)]
    assert np.array_equal(seen.image_hwc_u8, expected)


# After a rotation, the box fits a shape between ellipse and rectangle.

WIDENED = np.array([-1, -1, 1, 1])
"""One pixel, for blended edges."""
LOOSEST = 2 ** (1 / 1.5 - 1 / 2)
"""Largest side of the box relative to that of a rotated ellipse: 1.12."""
TIGHTEST = 2 ** (1 / 1.5 - 1)
"""Smallest side of the box relative to that of a rotated rectangle: 0.79."""


@given(scenes(width=SIDE, edge=16, largest=20, rounds=[True]), st.floats(-180, 180))
def test_the_box_of_a_rotated_ellipse_is_not_much_too_large(scene, degrees):
    seen = rotate(scene, degrees)
    box, pixels = seen.objects.boxes_xyxy_px[0], extent_of(seen.image_hwc_u8, 0)
    assert (box[:2] <= pixels[:2] + 1).all()
    assert (box[2:] >= pixels[2:] - 1).all()
    assert (box[2:] - box[:2] <= LOOSEST * (pixels[2:] - pixels[:2]) + 2).all()


@given(scenes(width=SIDE, edge=16, largest=20, rounds=[False]), st.floats(-180, 180))
def test_a_rotated_rectangle_loses_only_its_corners(scene, degrees):
    seen = rotate(scene, degrees)
    box, pixels = seen.objects.boxes_xyxy_px[0], extent_of(seen.image_hwc_u8, 0)
    assert np.abs((box[:2] + box[2:]) - (pixels[:2] + pixels[2:])).max() <= 3
    assert (box[2:] - box[:2] >= TIGHTEST * (pixels[2:] - pixels[:2]) - 2).all()
    assert (box[2:] - box[:2] <= pixels[2:] - pixels[:2] + 2).all()


@given(scenes(width=SIDE), st.sampled_from([-180, -90, 0, 90, 180]))
def test_quarter_turns_are_exact(scene, degrees):
    assert differs(rotate(scene, degrees)) <= 1


@given(scenes(width=SIDE), st.floats(-45, 45))
def test_a_rotation_that_would_hide_the_object_is_skipped(scene, degrees):
    seen = rotate(scene, degrees)
    turned = rotate_boxes(scene.objects.boxes_xyxy_px, degrees, SIDE)
    hidden = boxes.areas(np.clip(turned, 0, SIDE))[0] < 0.8 * boxes.areas(turned)[0]
    assert (seen is scene) == hidden


def test_pixels_are_rotated_as_by_torchvision():
    pixels = generator(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    ours = rotate(Scene(pixels, Objects.none()), 20).image_hwc_u8
    theirs = v2.functional.rotate(
        torch.from_numpy(pixels).permute(2, 0, 1), 20, v2.InterpolationMode.BILINEAR, fill=[PAD_VALUE] * 3
    )
    middle = slice(SIDE // 4, 3 * SIDE // 4)  # at the edge, torchvision's is darker than both image and fill colour
    assert np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())[middle, middle].max() <= 1
    assert (ours[0, 0] == PAD_VALUE).all()


# Colours.


@given(st.floats(0.7, 1.3), st.floats(0.7, 1.3), st.floats(0.7, 1.3))
def test_colours_change_as_in_torchvision(brightness, contrast, saturation):
    pixels = generator(1).integers(70, 140, (20, 30, 3), dtype=np.uint8)  # so that no intermediate value is clipped
    theirs = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    theirs = v2.functional.adjust_brightness(theirs, brightness)
    theirs = v2.functional.adjust_contrast(theirs, contrast)
    theirs = v2.functional.adjust_saturation(theirs, saturation)
    ours = ColourChange(brightness, contrast, saturation)(pixels)
    assert np.abs(ours - theirs.permute(1, 2, 0).numpy() * 255).max() <= 1.5


@pytest.mark.parametrize("grey", [0, 1, 150, 215, 235, 255])
def test_a_bright_image_is_not_washed_out(grey):
    pixels = np.full((20, 30, 3), grey, dtype=np.uint8)
    brightened = ColourChange(1.5, 1, 1)(pixels)
    assert abs(int(brightened[0, 0, 0]) - min(1.5 * grey, max(grey, 220))) <= 1
    assert (ColourChange(0.8, 1, 1)(pixels) == round(0.8 * grey)).all()


def test_colour_changes_leave_padding_and_boxes_alone():
    scene = draw(90, 64, (0, (20, 20, 60, 50), False))
    plain, coloured = (
        augmented(AugmentationOptions(crop=0, rotation=0, flip="none", colour=colour), scene, 3) for colour in (0, 0.5)
    )
    assert np.array_equal(plain.objects.boxes_xyxy_px, coloured.objects.boxes_xyxy_px)
    assert not np.array_equal(plain.image_hwc_u8, coloured.image_hwc_u8)
    assert (coloured.image_hwc_u8[:5] == PAD_VALUE).all()


# All transforms.


@pytest.mark.slow
@pytest.mark.parametrize(("is_round", "least_share"), [(True, 0.99), (False, 0.97)])
@settings(max_examples=150)
@given(st.data(), st.booleans(), st.booleans(), SEEDS)
def test_boxes_bound_their_objects_after_all_changes(is_round, least_share, data, is_mosaic, is_pasted, seed):
    five = [data.draw(scenes(label_id=label_id, rounds=(is_round,))) for label_id in range(5)]
    chosen = AugmentationOptions(crop=0.7, rotation=15, flip="both", colour=0)
    seen = augmented(chosen, five[0], seed, five[1:4] if is_mosaic else (), five[4] if is_pasted else None, side=96)
    assert boxes.is_valid(seen.objects.boxes_xyxy_px).all()
    assert (seen.objects.boxes_xyxy_px >= 0).all()
    assert (seen.objects.boxes_xyxy_px <= 96).all()
    assert 0 in seen.objects.label_ids
    for label_id, box in zip(seen.objects.label_ids, seen.objects.boxes_xyxy_px, strict=True):
        assert share_inside(seen.image_hwc_u8, label_id, box + WIDENED) >= least_share


@given(scenes(), SEEDS)
def test_the_same_generator_gives_the_same_input(scene, seed):
    first, again = (augmented(AugmentationOptions(), scene, seed) for _ in range(2))
    assert np.array_equal(first.image_hwc_u8, again.image_hwc_u8)
    assert np.array_equal(first.objects.boxes_xyxy_px, again.objects.boxes_xyxy_px)


def test_each_change_happens_to_its_share_of_the_images():
    scene = draw(90, 64, (0, (36, 25, 52, 37), True))

    def share_changed(**changes):
        options = {"crop": 0, "rotation": 0, "flip": "none", "colour": 0} | changes
        inputs = [augmented(AugmentationOptions(**options), scene, seed).image_hwc_u8 for seed in range(200)]
        plain = augmented(NOTHING, scene, 0).image_hwc_u8
        return np.mean([not np.array_equal(image, plain) for image in inputs])

    assert share_changed() == 0
    assert 0.6 <= share_changed(crop=0.7) <= 0.8
    assert 0.4 <= share_changed(rotation=10) <= 0.6
    assert 0.4 <= share_changed(flip="horizontal") <= 0.6
    assert 0.65 <= share_changed(flip="both") <= 0.85
    assert share_changed(colour=0.3) >= 0.95


def test_the_largest_object_comes_first_in_every_input():
    four = [draw(90, 64, (label_id, (20, 20, 32 + 9 * label_id, 40), False)) for label_id in range(4)]
    for seed in range(20):
        areas = boxes.areas(augmented(AugmentationOptions(), four[0], seed, tiles=four[1:]).objects.boxes_xyxy_px)
        assert len(areas) >= 3
        assert (np.diff(areas) <= 0).all()


def test_pasted_objects_keep_their_labels():
    donor = draw(90, 64, (1, (20, 20, 40, 40), False))
    for seed in range(20):
        seen = augmented(AugmentationOptions(colour=0), draw(90, 64, (0, (36, 25, 52, 37), False)), seed, donor=donor)
        assert (1 in seen.objects.label_ids) == (pixels_of(seen.image_hwc_u8, 1).sum() > 20)
        assert 0 in seen.objects.label_ids


def test_an_image_without_objects_may_be_cropped_anywhere():
    seen = augmented(AugmentationOptions(crop=1), Scene(draw(90, 64).image_hwc_u8, Objects.none()), 0)
    assert len(seen.objects) == 0


# Objects with a class but no box.


def class_only(width, height):
    pixels = generator(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Scene(pixels, Objects(np.zeros((1, 4)), np.array([4]), np.array([False])))


@pytest.mark.parametrize("size", [(32, 32), (320, 200)])
def test_a_class_without_a_box_survives_all_changes(size):
    for seed in range(30):
        seen = augmented(AugmentationOptions(flip="both", rotation=30), class_only(*size), seed, side=32)
        assert seen.objects.label_ids.tolist() == [4]
        assert not seen.objects.has_box.any()


def test_small_images_are_shifted_and_larger_ones_cropped():
    chosen = AugmentationOptions(crop=1, rotation=0, flip="none", colour=0)
    small = class_only(32, 32)
    shifts = set()
    for seed in range(60):
        image = augmented(chosen, small, seed, side=32).image_hwc_u8
        inner = image[8:24, 8:24]
        found = [
            (x, y)
            for x in range(-4, 5)
            for y in range(-4, 5)
            if np.array_equal(inner, small.image_hwc_u8[8 - y : 24 - y, 8 - x : 24 - x])
        ]
        assert len(found) == 1
        shifts.update(found)
    assert {x for x, _ in shifts} == {y for _, y in shifts} == set(range(-4, 5))
    windows = [random_window(class_only(320, 200), generator(seed)) for seed in range(100)]
    areas = np.array([(right - left) * (bottom - top) / (320 * 200) for left, top, right, bottom in windows])
    aspects = np.array([(right - left) / (bottom - top) * 200 / 320 for left, top, right, bottom in windows])
    assert 0.2 <= areas.min() <= 0.35
    assert 0.9 <= areas.max() <= 1
    assert 0.7 <= aspects.min() <= aspects.max() <= 1.4


def test_a_class_without_a_box_is_never_mixed():
    augmenter = Augmenter(AugmentationOptions(mosaic=1, copy_paste=1), SIDE)
    assert augmenter.mix(generator(0), 3, 10, lambda row: row != 3) == Mix()
    for seed in range(20):
        mix = augmenter.mix(generator(seed), 3, 10, lambda row: row % 2 == 1)
        assert len(mix.tiles) == 3
        assert mix.donor is not None
        assert all(row % 2 == 1 for row in mix.rows)


def test_the_whole_image_is_letterboxed_when_nothing_is_changed():
    scene = draw(90, 60, (0, (30, 20, 60, 40), False))
    seen = augmented(NOTHING, scene, 0, side=90)
    assert np.array_equal(seen.image_hwc_u8[15:75], scene.image_hwc_u8)
    assert (seen.image_hwc_u8[:15] == PAD_VALUE).all()
    assert (seen.image_hwc_u8[75:] == PAD_VALUE).all()
    assert seen.objects.boxes_xyxy_px.tolist() == [[30, 35, 60, 55]]
    assert full_window(scene.image_hwc_u8) == (0, 0, 90, 60)
    assert (seen.image_hwc_u8[20, 0] == BACKGROUND).all()
