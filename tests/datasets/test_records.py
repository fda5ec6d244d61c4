import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.datasets.builder import DatasetBuilder, clip_to_frame
from locray.datasets.fields import parse_number, parse_side_px
from locray.datasets.records import Annotation, ImageAnnotations, SkipReason
from locray.errors import UsageError

coordinates = st.floats(-500, 1500, width=32)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
sides = st.none() | st.integers(1, 1000)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 10, 20), SkipReason.EMPTY_BOX),
        ((10, 20, 30, 20), SkipReason.EMPTY_BOX),
        ((30, 10, 10, 20), SkipReason.INVERTED_BOX),
        ((10, 20, 30, 10), SkipReason.INVERTED_BOX),
        ((100, 10, 120, 20), SkipReason.OUTSIDE_BOX),
        ((-20, 10, 0, 20), SkipReason.OUTSIDE_BOX),
    ],
)
def test_unusable_boxes_have_a_reason(box, reason):
    assert clip_to_frame(box, 100, 80) == (reason, box)


def test_a_box_that_exceeds_its_frame_is_clipped():
    assert clip_to_frame((-5, 10, 130, 90), 100, 80) == (None, (0, 10, 100, 80))


def test_a_frame_of_unknown_size_still_begins_at_zero():
    assert clip_to_frame((-5, 10, 130, 9000), None, None) == (None, (0, 10, 130, 9000))


@given(boxes, sides, sides)
def test_kept_boxes_lie_in_their_frame_and_keeping_is_idempotent(box, width, height):
    reason, kept = clip_to_frame(box, width, height)
    if reason is not None:
        assert kept == box
        return
    xmin, ymin, xmax, ymax = kept
    assert 0 <= xmin < xmax <= (width or math.inf)
    assert 0 <= ymin < ymax <= (height or math.inf)
    assert clip_to_frame(kept, width, height) == (None, kept)


def test_the_builder_counts_boxes_and_images_by_reason():
    builder = DatasetBuilder("/data/cows", "train")
    described = ImageAnnotations(
        "a.jpg",
        (
            Annotation("cow", (0, 0, 10, 10)),
            Annotation("ant", (0, 0, 0, 10)),
            Annotation("bee", (90, 0, 120, 10)),
            Annotation("cow", (0, 5, 10, 5)),
        ),
        100,
        100,
    )
    builder.add("/data/cows/a.jpg", described)
    builder.add("/data/cows/b.jpg", ImageAnnotations("b.jpg", ()))
    for line in range(5):
        builder.skip(SkipReason.NO_IMAGE, f"labels.csv, line {line}")

    dataset = builder.build()

    assert (dataset.name, dataset.split) == ("cows", "train")
    assert [record.image_uri for record in dataset.records] == ["/data/cows/a.jpg", "/data/cows/b.jpg"]
    assert dataset.records[0].objects == (Annotation("cow", (0, 0, 10, 10)), Annotation("bee", (90, 0, 100, 10)))
    assert dataset.records[1].objects == ()
    assert dataset.classes == ("bee", "cow"), "a class of which no box is left is not one to learn"
    assert dataset.skipped == {"empty_box": 2, "no_image": 5}
    assert dataset.skip_examples == {
        "empty_box": (
            "/data/cows/a.jpg, object 2, box of 'ant': 0 0 0 10 in a frame of 100 x 100",
            "/data/cows/a.jpg, object 4, box of 'cow': 0 5 10 5 in a frame of 100 x 100",
        ),
        "no_image": ("labels.csv, line 0", "labels.csv, line 1", "labels.csv, line 2"),
    }
    assert dataset.num_clipped_boxes == 1


def test_a_split_without_a_usable_image_is_an_error():
    builder = DatasetBuilder("/data/cows", "train")
    builder.skip(SkipReason.NO_IMAGE, "labels.csv, image 'a.jpg'")
    with pytest.raises(UsageError, match=r"'train' of /data/cows.*1 x no_image. The first: labels.csv, image 'a.jpg'"):
        builder.build()


@pytest.mark.parametrize("text", [None, "", "  ", "twelve", "nan", "inf", "1e999"])
def test_errors_name_the_place_of_a_number(text):
    with pytest.raises(UsageError, match=r"labels.csv, line 3, field xmin: found"):
        parse_number(text, "labels.csv, line 3, field xmin")


@pytest.mark.parametrize(("text", "side"), [(None, None), (" ", None), ("0", None), ("640", 640), ("640.0", 640)])
def test_a_frame_may_be_unknown(text, side):
    assert parse_side_px(text, "field width") == side
