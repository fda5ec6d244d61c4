"""Every image once per epoch, reproducible batches, boxes on their pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from locray.config import AugmentationOptions
from locray.datasets.records import Annotation, Record
from locray.models.interface import NO_OBJECT
from locray.training.batches import (
    BOXES,
    HAS_BOX,
    IMAGES,
    LABEL_IDS,
    NUM_OUTSIDE,
    OUTCOME_NAMES,
    OUTCOMES,
    BatchMaker,
)
from locray.training.packed import BatchOrder, PackedRecords
from tests.helpers.scenes import COLOURS, draw, extent_of

EXIF_ORIENTATION = 0x112


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 9)))
def test_every_image_comes_once_per_epoch(num_images, batch_size, num_workers, seed):
    order = BatchOrder(num_images, batch_size, num_workers, seed)
    batches = [order.rows(3, step, worker) for step in range(order.num_steps) for worker in range(num_workers)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_images))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= -(-batch_size // num_workers)


def test_epochs_and_seeds_differ_and_repeat():
    def rows(seed, epoch):
        return BatchOrder(50, 50, 1, seed).rows(epoch, 0, 0).tolist()

    assert rows(0, 1) == rows(0, 1)
    assert len({tuple(rows(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def record(uri, *objects, size=(120, 80)):
    return Record(str(uri), tuple(Annotation(*found) for found in objects), *size)


@pytest.fixture
def picture(tmp_path):
    """Returns a 120x80 picture with a white rectangle at (30, 20, 70, 60)."""
    pixels = np.zeros((80, 120, 3), dtype=np.uint8)
    pixels[20:60, 30:70] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def maker(records, options=None, size=64, classes=("Bolt", "Nut")):
    packed = PackedRecords.of(tuple(records), classes)
    return BatchMaker(
        packed,
        BatchOrder(len(packed), 8, 1, None),
        options or AugmentationOptions(),
        size,
        augmented=options is not None,
    )


def bright(image):
    rows, columns = np.nonzero(image.min(axis=2) > 200)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_boxes_lie_on_their_pixels(picture):
    batch = maker([record(picture, ("Nut", (30, 20, 70, 60)))])(0, 0, 0)
    assert batch[IMAGES].shape == (1, 64, 64, 3)
    assert batch[LABEL_IDS].tolist() == [[1]]
    assert np.abs(batch[BOXES][0, 0] - bright(batch[IMAGES][0])).max() <= 1


def test_boxes_of_a_copy_of_another_size_are_scaled(picture):
    batch = maker([record(picture, ("Nut", (60, 40, 140, 120)), size=(240, 160))])(0, 0, 0)
    assert np.abs(batch[BOXES][0, 0] - bright(batch[IMAGES][0])).max() <= 1


@pytest.mark.parametrize("epoch", range(6))
def test_boxes_lie_on_their_pixels_when_augmented(picture, epoch):
    options = AugmentationOptions(rotation=0, flip="both", colour=0)
    batch = maker([record(picture, ("Nut", (30, 20, 70, 60)))], options)(epoch, 0, 0)
    assert np.abs(batch[BOXES][0, 0] - bright(batch[IMAGES][0])).max() <= 1.5


def test_a_batch_depends_on_its_place_alone(picture):
    records = [record(picture, ("Nut", (30, 20, 70, 60)))] * 3
    first, again, other = (maker(records, AugmentationOptions())(epoch, 0, 0) for epoch in (4, 4, 5))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first[IMAGES], other[IMAGES])
    assert not np.array_equal(first[IMAGES][0], first[IMAGES][1])


def test_the_largest_object_comes_first_and_the_rest_is_padding(picture):
    records = [record(picture, ("Bolt", (0, 0, 5, 5)), ("Nut", (30, 20, 70, 60))), record(picture)]
    batch = maker(records)(0, 0, 0)
    assert batch[LABEL_IDS].tolist() == [[1, 0], [NO_OBJECT, NO_OBJECT]]


def test_broken_and_missing_images_have_outcomes_of_their_own(picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    names = ["picture.png", "broken.png", "empty.jpg", "missing.jpg"]
    batch = maker([record(tmp_path / name, ("Nut", (30, 20, 70, 60))) for name in names])(0, 0, 0)
    assert [OUTCOME_NAMES[outcome] for outcome in batch[OUTCOMES]] == ["ok", "truncated", "empty_file", "not_found"]
    assert batch[IMAGES][0].max() == 255
    assert batch[IMAGES][1:].max() == 0


def test_has_box_says_which_objects_have_a_box(picture):
    records = [
        record(picture, ("Nut", (30, 20, 70, 60)), ("Bolt", None)),
        record(picture, ("Bolt", None)),
        record(picture),
    ]
    for options in (None, AugmentationOptions()):
        batch = maker(records, options)(0, 0, 0)
        assert batch[LABEL_IDS].tolist() == [[1, 0], [0, NO_OBJECT], [NO_OBJECT, NO_OBJECT]]
        assert batch[HAS_BOX].tolist() == [[True, False], [False, False], [False, False]]
        assert batch[HAS_BOX].dtype == bool
        assert (batch[BOXES][~batch[HAS_BOX]] == 0).all()


def test_normalised_boxes_follow_their_image(picture):
    batch = maker([record(picture, ("Nut", (0.25, 0.25, 0.75, 0.75)), size=(1, 1))], size=120)(0, 0, 0)
    assert batch[BOXES][0, 0].tolist() == [30, 40, 90, 80]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("is_upright", [False, True])
def test_boxes_lie_on_the_pixels_of_a_rotated_camera_image(tmp_path, orientation, is_upright):
    """Boxes written for the picture as stored, or for the upright one."""
    stored = draw(120, 80, (2, (20, 10, 60, 34), False))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    image = Image.fromarray(stored.image_hwc_u8)
    image.save(tmp_path / "camera.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "camera.png"))
    if is_upright or upright.size == image.size:  # mirroring keeps the frame
        image = upright
    box = tuple(extent_of(np.asarray(image), 2))
    made = maker([record(tmp_path / "camera.png", ("Nut", box), size=image.size)], size=120)(0, 0, 0)
    assert np.array_equal(made[BOXES][0, 0], extent_of(made[IMAGES][0], 2))


def test_a_box_that_leaves_its_image_is_clipped(picture):
    batch = maker([record(picture, ("Nut", (90, -10, 150, 60)), size=(None, None))], size=120)(0, 0, 0)
    assert batch[BOXES][0, 0].tolist() == [90, 20, 120, 80]


def test_boxes_outside_an_image_without_a_frame_are_counted(picture):
    beside, inside = ("Nut", (130, 10, 150, 60)), ("Bolt", (30, 20, 70, 60))
    records = [record(picture, *found, size=(None, None)) for found in ([beside, inside, beside], [inside])]
    for options in (None, AugmentationOptions()):
        assert maker(records, options)(0, 0, 0)[NUM_OUTSIDE].tolist() == [2, 0]


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures, each with two objects of one colour."""
    records = []
    for index in range(8):
        scene = draw(120, 80, (index % 6, (10, 10, 40, 40), False), (index % 6, (60, 30, 100, 70), False))
        Image.fromarray(scene.image_hwc_u8).save(tmp_path / f"{index}.png")
        boxes = [tuple(box) for box in scene.objects.boxes_xyxy_px]
        records.append(record(tmp_path / f"{index}.png", *(("Nut", box) for box in boxes)))
    return records


ALL = AugmentationOptions(flip="both", mosaic=0.5, copy_paste=0.5)


def test_mixed_images_depend_on_seed_epoch_and_record_alone(pictures):
    made = maker(pictures, ALL)
    together = made.batch_of(range(8), 3)
    alone = [made.batch_of([row], 3) for row in (7, 2, 5, 0)]
    for row, batch in zip((7, 2, 5, 0), alone, strict=True):
        assert np.array_equal(together[IMAGES][row], batch[IMAGES][0])
        count = (batch[LABEL_IDS][0] != NO_OBJECT).sum()
        assert count == (together[LABEL_IDS][row] != NO_OBJECT).sum()
        assert np.array_equal(together[BOXES][row, :count], batch[BOXES][0, :count])


def test_a_batch_has_room_for_all_objects_of_a_mosaic(pictures):
    batch = maker(pictures, AugmentationOptions(crop=0, rotation=0, colour=0, mosaic=1))(0, 0, 0)
    counts = (batch[LABEL_IDS] != NO_OBJECT).sum(axis=1)
    assert batch[LABEL_IDS].shape[1] == counts.max() > 4
    assert batch[BOXES].shape[:2] == batch[HAS_BOX].shape == batch[LABEL_IDS].shape
    assert len(maker(pictures)(0, 0, 0)[LABEL_IDS][0]) == 2
    labels_seen = {tuple(image[y, x]) for image in batch[IMAGES][:1] for y in range(64) for x in range(64)}
    assert len(labels_seen & set(map(tuple, COLOURS))) > 1


def test_an_image_is_used_alone_if_one_of_its_mosaic_is_broken(pictures, tmp_path):
    for index in range(1, 8):
        (tmp_path / f"{index}.png").write_bytes(b"not an image")
    batch = maker(pictures, AugmentationOptions(crop=0, rotation=0, colour=0, mosaic=1, copy_paste=1))(0, 0, 0)
    assert [OUTCOME_NAMES[outcome] for outcome in batch[OUTCOMES]] == ["ok"] + ["unsupported_format"] * 7
    assert (batch[LABEL_IDS][0] != NO_OBJECT).sum() >= 1
    assert (batch[LABEL_IDS][1:] == NO_OBJECT).all()


def test_classes_without_boxes_are_never_mixed(pictures):
    records = [*pictures[:3], record(pictures[3].image_uri, ("Bolt", None))]
    made = maker(records, AugmentationOptions(crop=0, rotation=0, colour=0, flip="none", mosaic=1, copy_paste=1))
    plain = maker(records)
    for epoch in range(10):
        batch = made(epoch, 0, 0)
        assert np.array_equal(batch[IMAGES][3], plain(epoch, 0, 0)[IMAGES][3])
        assert (batch[LABEL_IDS][:3] != 0).all()
