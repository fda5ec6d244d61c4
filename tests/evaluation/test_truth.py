"""Boxes of annotations come into the frame of the predictions, whatever they were written in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from locray import schema
from locray.datasets.records import Annotation, Record
from locray.evaluation.truth import image_result
from locray.images.decode import DecodeLimits

LIMITS = DecodeLimits(2**26, 2**26)


def row(width: int | None, height: int | None, *scores: float) -> dict[str, Any]:
    edges = {schema.XMIN: 1.0, schema.YMIN: 2.0, schema.XMAX: 3.0, schema.YMAX: 4.0}
    detections = [{schema.LABEL: "a", schema.SCORE: score} | edges for score in scores]
    return {schema.WIDTH: width, schema.HEIGHT: height, schema.DETECTIONS: detections if width else None}


def true_box(frame: tuple[int | None, int | None], size: tuple[int | None, int | None], uri: str = "x") -> list[float]:
    record = Record(uri, (Annotation("a", (0.25, 0.25, 0.5, 1.0)),), *frame)
    return image_result(record, row(*size), LIMITS).true_boxes_xyxy_px[0].tolist()


def test_frames() -> None:
    as_written = [0.25, 0.25, 0.5, 1.0]
    assert true_box((None, None), (200, 100)) == as_written
    assert true_box((200, 100), (200, 100)) == as_written
    assert true_box((200, 100), (None, None)) == as_written
    assert true_box((1, 1), (200, 100)) == [50, 25, 100, 100]
    assert true_box((100, 50), (200, 100)) == [0.5, 0.5, 1, 2]


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_frame_on_its_side_is_turned_as_the_file_says(real_data: Path, orientation: int) -> None:
    uri = str(real_data / "exif" / "orientation" / f"landscape_{orientation}.jpg")
    upright = true_box((450, 600), (600, 450), uri)
    assert upright == pytest.approx(
        {
            1: [0.25 * 600 / 450, 0.25 * 450 / 600, 0.5 * 600 / 450, 450 / 600],
            6: [600 - 1.0, 0.25, 600 - 0.25, 0.5],
            8: [0.25, 450 - 0.5, 1.0, 450 - 0.25],
        }[orientation]
    )


def test_what_an_annotation_knows() -> None:
    record = Record(
        "x", (Annotation("a", None), Annotation("b", (0, 0, 1, 1), is_crowd=True), Annotation("b", (1, 1, 2, 2))), 9, 9
    )
    result = image_result(record, row(9, 9, 0.9, 0.4), LIMITS, min_score=0.5)
    assert result.true_labels == ("a", "b", "b")
    assert result.true_has_box.tolist() == [False, True, True]
    assert result.true_is_crowd.tolist() == [False, True, False]
    assert (result.labels, result.scores) == (("a",), (0.9,))
    np.testing.assert_array_equal(result.boxes_xyxy_px, [[1, 2, 3, 4]])


def test_an_image_that_failed_has_no_detections() -> None:
    assert image_result(Record("x", (), None, None), row(None, None), LIMITS).labels == ()
