"""The demo's files: reproducible, with exactly the errors that were written."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from locray.datasets import list_splits, read_dataset
from locray.demo import images
from locray.demo.broken import BROKEN
from locray.demo.drawing import SHAPES
from locray.demo.images import write_dataset, write_unlabelled
from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, decode_image

LIMITS = DecodeLimits(max_bytes=2**28, max_pixels=178_956_970)


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled")
    expected = write_unlabelled(folder, 300, 0.05, seed=1)
    return folder, expected


def test_the_data_set_is_read_back_with_its_splits(tmp_path):
    write_dataset(tmp_path, {"train": 20, "val": 5}, seed=3)
    assert list_splits(str(tmp_path), "csv") == ["train", "val"]
    dataset = read_dataset(str(tmp_path), "csv", "train")
    assert dataset.classes == tuple(sorted(SHAPES))
    assert (len(dataset.records), dataset.skipped, dataset.num_clipped_boxes) == (20, {}, 0)
    counts = Counter(annotation.label for record in dataset.records for annotation in record.objects)
    assert set(counts.values()) == {4}, "one object an image, the classes in turn"
    for record in dataset.records:
        with Image.open(record.image_uri) as image:
            assert image.format == "JPEG"
            assert image.size == (record.width_px, record.height_px)


@pytest.mark.slow
def test_the_seed_determines_every_byte(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_dataset(tmp_path / name / "data", {"val": 4}, seed)
        write_unlabelled(tmp_path / name / "images", 30, 0.2, seed)
    first, again, other = (files_below(tmp_path / name) for name in "abc")
    assert first == again
    assert first != other


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    write_dataset(tmp_path / "few", {"val": 2}, seed=3)
    write_dataset(tmp_path / "many", {"train": 2, "val": 3}, seed=3)
    few, many = files_below(tmp_path / "few/images"), files_below(tmp_path / "many/images")
    assert few.items() <= many.items()


@pytest.mark.slow
def test_decoding_reports_exactly_the_written_errors(unlabelled):
    folder, expected = unlabelled
    outcomes = [decode_image(data, LIMITS) for data in files_below(folder).values()]
    found = Counter(str(outcome.code) for outcome in outcomes if not isinstance(outcome, DecodedImage))
    assert len(outcomes) == 300
    assert found == expected
    assert sum(found.values()) == 15
    formats = Counter(outcome.format for outcome in outcomes if isinstance(outcome, DecodedImage))
    assert formats["jpeg"] > 5 * max(formats["png"], formats["webp"]), "JPEG is the bulk"
    assert min(formats["png"], formats["webp"]) > 5


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.make.__name__)
def test_each_kind_of_broken_file_has_its_code(kind):
    for seed in range(20):
        outcome = decode_image(kind.make(np.random.default_rng(seed)), LIMITS)
        assert not isinstance(outcome, DecodedImage)
        assert outcome.code == kind.code, outcome.message


def test_broken_files_cover_all_codes_that_files_can_have():
    assert {kind.code for kind in BROKEN} == {
        ErrorCode.EMPTY_FILE,
        ErrorCode.TRUNCATED,
        ErrorCode.UNSUPPORTED_FORMAT,
        ErrorCode.CORRUPT,
        ErrorCode.TOO_MANY_PIXELS,
    }


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_file_is_the_same_picture_upright(orientation):
    upright = np.zeros((48, 80, 3), dtype=np.uint8)
    upright[:24, :40] = (200, 60, 60)
    upright[24:, 40:] = (60, 60, 200)
    data = images._encoded(np.random.default_rng(0), Image.fromarray(upright), "jpg", orientation)
    decoded = decode_image(data, LIMITS)
    assert isinstance(decoded, DecodedImage)
    assert decoded.image_hwc_u8.shape == upright.shape
    assert np.abs(decoded.image_hwc_u8.astype(int) - upright).mean() < 6


def test_names_and_folders_are_those_of_real_buckets(unlabelled):
    folder, _ = unlabelled
    names = list(files_below(folder))
    for sign in (" ", "#", "%", "ñ", "写", "/"):
        assert any(sign in name for name in names), sign
    endings = {name.rpartition("/")[2].partition(".")[2] for name in names}
    assert {"", "jpg", "JPG", "png", "webp"} <= endings
    turned = 0
    for path in folder.rglob("*.jpg"):
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8\xff") and b"Exif\0\0" in data[:64]:
            turned += 1
    assert turned > 10
