"""Every image once an epoch, the same batches again after a failure, boxes where the pixels are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locray.datasets.records import Annotation, Record
from locray.images.decode import DecodeLimits
from locray.models.contract import NO_OBJECT
from locray.training.augment import Augmentation
from locray.training.samples import BOXES, IMAGES, LABEL_IDS, OUTCOME_NAMES, OUTCOMES, BatchMaker, Order, Packed

LIMITS = DecodeLimits(2**24, 2**24)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 9)))
def test_every_image_comes_once_an_epoch(num_images, batch_size, num_workers, seed):
    order = Order(num_images, batch_size, num_workers, seed)
    batches = [order.rows(3, step, worker) for step in range(order.num_steps) for worker in range(num_workers)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_images))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= -(-batch_size // num_workers)


def test_epochs_and_seeds_differ_and_repeat():
    def rows(seed, epoch):
        return Order(50, 50, 1, seed).rows(epoch, 0, 0).tolist()

    assert rows(0, 1) == rows(0, 1)
    assert len({tuple(rows(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def record(uri, *objects, size=(120, 80)):
    return Record(str(uri), tuple(Annotation(*found) for found in objects), *size)


@pytest.fixture
def picture(tmp_path):
    """A 120x80 picture with a white rectangle at (30, 20, 70, 60)."""
    pixels = np.zeros((80, 120, 3), dtype=np.uint8)
    pixels[20:60, 30:70] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def maker(records, augmentation=None, size=64, classes=("Bolt", "Nut")):
    packed = Packed.of(tuple(records), classes)
    return BatchMaker(packed, Order(len(packed), 8, 1, None), size, LIMITS, augmentation, seed=0)


def bright(image):
    rows, columns = np.nonzero(image.min(axis=2) > 200)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_boxes_lie_on_their_pixels(picture):
    batch = maker([record(picture, ("Nut", (30, 20, 70, 60)))])(0, 0, 0)
    assert batch[IMAGES].shape == (1, 64, 64, 3)
    assert batch[LABEL_IDS].tolist() == [[1]]
    assert np.abs(batch[BOXES][0, 0] - bright(batch[IMAGES][0])).max() <= 1


def test_boxes_written_for_a_copy_of_another_size_are_scaled(picture):
    batch = maker([record(picture, ("Nut", (60, 40, 140, 120)), size=(240, 160))])(0, 0, 0)
    assert np.abs(batch[BOXES][0, 0] - bright(batch[IMAGES][0])).max() <= 1


@pytest.mark.parametrize("epoch", range(6))
def test_boxes_lie_on_their_pixels_when_augmented(picture, epoch):
    augmentation = Augmentation(rotation_degrees=0, flip="both", colour=0)
    batch = maker([record(picture, ("Nut", (30, 20, 70, 60)))], augmentation)(epoch, 0, 0)
    assert np.abs(batch[BOXES][0, 0] - bright(batch[IMAGES][0])).max() <= 1.5


def test_a_batch_is_a_function_of_its_place(picture):
    records = [record(picture, ("Nut", (30, 20, 70, 60)))] * 3
    first, again, other = (maker(records, Augmentation())(epoch, 0, 0) for epoch in (4, 4, 5))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first[IMAGES], other[IMAGES])
    assert not np.array_equal(first[IMAGES][0], first[IMAGES][1])


def test_the_largest_object_comes_first_and_spare_places_are_empty(picture):
    records = [record(picture, ("Bolt", (0, 0, 5, 5)), ("Nut", (30, 20, 70, 60))), record(picture)]
    batch = maker(records)(0, 0, 0)
    assert batch[LABEL_IDS].tolist() == [[1, 0], [NO_OBJECT, NO_OBJECT]]


def test_broken_and_missing_images_are_told_apart_and_spoil_nothing(picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    names = ["picture.png", "broken.png", "empty.jpg", "missing.jpg"]
    batch = maker([record(tmp_path / name, ("Nut", (30, 20, 70, 60))) for name in names])(0, 0, 0)
    assert [OUTCOME_NAMES[outcome] for outcome in batch[OUTCOMES]] == ["ok", "truncated", "empty_file", "not_found"]
    assert batch[IMAGES][0].max() == 255
    assert batch[IMAGES][1:].max() == 0
