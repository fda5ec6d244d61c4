"""Annotated boxes are transformed to the frame of the predictions and clipped to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locray import schema
from locray.datasets.records import Annotation, Record
from locray.errors import UsageError
from locray.evaluation.comparison import Comparison
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.metrics.results import ImageResult
from locray.training.packed import PackedRecords

LIMITS = DecodeLimits(2**26, 2**26)


def row(width: int | None, height: int | None, *scores: float) -> dict[str, Any]:
    edges = {schema.XMIN: 1.0, schema.YMIN: 2.0, schema.XMAX: 3.0, schema.YMAX: 4.0}
    detections = [{schema.LABEL: "a", schema.SCORE: score} | edges for score in scores]
    return {
        schema.WIDTH: width,
        schema.HEIGHT: height,
        schema.ERROR_CODE: None if width else "truncated",
        schema.DETECTIONS: detections if width else None,
    }


def image_result(record: Record, row: dict[str, Any], min_score: float = 0.0) -> ImageResult:
    return Comparison(LIMITS, min_score=min_score).result(record, row)


def true_box(frame: tuple[int | None, int | None], size: tuple[int | None, int | None], uri: str = "x") -> list[float]:
    record = Record(uri, (Annotation("a", (0.25, 0.25, 0.5, 1.0)),), *frame)
    return image_result(record, row(*size)).true_boxes_xyxy_px[0].tolist()


def test_frames() -> None:
    as_written = [0.25, 0.25, 0.5, 1.0]
    assert true_box((None, None), (200, 100)) == as_written
    assert true_box((200, 100), (200, 100)) == as_written
    assert true_box((200, 100), (None, None)) == as_written
    assert true_box((1, 1), (200, 100)) == [50, 25, 100, 100]
    assert true_box((100, 50), (200, 100)) == [0.5, 0.5, 1, 2]


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_transposed_frame_is_rotated_by_exif(real_data: Path, orientation: int) -> None:
    uri = str(real_data / "exif" / "orientation" / f"landscape_{orientation}.jpg")
    upright = true_box((450, 600), (600, 450), uri)
    assert upright == pytest.approx(
        {
            1: [0.25 * 600 / 450, 0.25 * 450 / 600, 0.5 * 600 / 450, 450 / 600],
            6: [600 - 1.0, 0.25, 600 - 0.25, 0.5],
            8: [0.25, 450 - 0.5, 1.0, 450 - 0.25],
        }[orientation]
    )


def test_annotations_with_and_without_boxes() -> None:
    record = Record(
        "x", (Annotation("a", None), Annotation("b", (0, 0, 1, 1), is_crowd=True), Annotation("b", (1, 1, 2, 2))), 9, 9
    )
    result = image_result(record, row(9, 9, 0.9, 0.4), min_score=0.5)
    assert result.true_labels == ("a", "b", "b")
    assert result.true_has_box.tolist() == [False, True, True]
    assert result.true_is_crowd.tolist() == [False, True, False]
    assert (result.labels, result.scores) == (("a",), (0.9,))
    np.testing.assert_array_equal(result.boxes_xyxy_px, [[1, 2, 3, 4]])


def test_an_image_that_failed_has_no_detections() -> None:
    assert image_result(Record("x", (), None, None), row(None, None)).labels == ()


OUTSIDE, REACHING_OVER, WITHIN = (60.0, 10.0, 70.0, 20.0), (50.0, 30.0, 70.0, 45.0), (1.0, 2.0, 9.0, 8.0)


def test_boxes_without_a_frame_are_clipped_to_the_image() -> None:
    objects = [Annotation("a", OUTSIDE), Annotation("b", REACHING_OVER), Annotation("c", None), Annotation("d", WITHIN)]
    record = Record("x", (*objects, Annotation("a", OUTSIDE, is_crowd=True)), None, None)
    comparison = Comparison(LIMITS)
    result = comparison.result(record, row(60, 40))
    assert result.true_labels == ("b", "c", "d")
    assert result.true_boxes_xyxy_px[result.true_has_box].tolist() == [[50, 30, 60, 40], [*WITHIN]]
    assert not result.true_is_crowd.any()
    assert comparison.skipped == {"outside_box": 2}
    assert not comparison.errors


def test_boxes_stay_as_written_if_the_image_size_is_unknown() -> None:
    comparison = Comparison(LIMITS)
    result = comparison.result(Record("x", (Annotation("a", OUTSIDE),), None, None), row(None, None))
    assert result.true_boxes_xyxy_px.tolist() == [[*OUTSIDE]]
    assert (comparison.errors, comparison.skipped) == ({"truncated": 1}, {})


def test_strict_names_what_cannot_be_compared() -> None:
    comparison = Comparison(LIMITS, strict=True)
    objects = (Annotation("a", WITHIN), Annotation("b", OUTSIDE))
    named = Record("/x.jpg", objects, None, None, where="train.csv, image 'x.jpg'")
    for record, where in ((named, "train.csv, image 'x.jpg'"), (Record("/x.jpg", objects, None, None), "/x.jpg")):
        with pytest.raises(UsageError, match=f"^{where}, box of 'b': 60 10 70 20 in an image of 60 x 40: outside_box"):
            comparison.result(record, row(60, 40))
    with pytest.raises(UsageError, match=r"^/x.jpg: could not be labelled \(truncated\)\. Expected .*--strict"):
        comparison.result(named, row(None, None))
    assert len(comparison.result(named, row(80, 60)).true_labels) == 2


@pytest.mark.parametrize("frame", [(None, None), (60, None), (None, 40), (120, None), (60, 40), (120, 80)])
def test_training_and_evaluation_use_the_same_objects(tmp_path: Path, frame: tuple[int | None, int | None]) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "x.png")
    boxes = ((-5.0, -5.0, 200.0, 200.0), REACHING_OVER, WITHIN, OUTSIDE)
    record = Record("x", tuple(Annotation("a", box) for box in boxes), *frame)
    decoded = decode_image((tmp_path / "x.png").read_bytes(), LIMITS)
    assert isinstance(decoded, DecodedImage)
    learned = PackedRecords.of((record,), ("a",)).scene(0, decoded).objects
    looked_for = image_result(record, row(60, 40))
    assert sorted(learned.boxes_xyxy_px.tolist()) == sorted(looked_for.true_boxes_xyxy_px.tolist())
