"""Metrics on cases whose answers are known by hand."""

import numpy as np
import pytest

from locray.evaluation.metrics import ImageResult, localization, mean_average_precision


def result(
    truth: list[tuple[str, tuple[float, ...]]], found: list[tuple[str, float, tuple[float, ...]]]
) -> ImageResult:
    return ImageResult(
        true_labels=tuple(label for label, _ in truth),
        true_boxes_xyxy_px=np.array([box for _, box in truth], dtype=float).reshape(-1, 4),
        labels=tuple(label for label, _, _ in found),
        scores=tuple(score for _, score, _ in found),
        boxes_xyxy_px=np.array([box for _, _, box in found], dtype=float).reshape(-1, 4),
    )


BOX = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def test_localization_by_hand() -> None:
    metrics = localization(
        [
            result([("a", BOX)], [("a", 0.9, BOX)]),
            result([("a", BOX)], [("b", 0.9, BOX)]),
            result([("a", BOX)], [("a", 0.9, HALF)]),
            result([("a", BOX)], [("a", 0.9, FAR)]),
            result([("a", BOX)], []),
            result([], [("a", 0.9, BOX)]),
        ]
    )
    assert metrics.class_accuracy == pytest.approx(3 / 5)
    assert metrics.mean_iou == pytest.approx((1 + 1 + 0.5 + 0 + 0) / 5)
    assert metrics.localization_accuracy == pytest.approx(2 / 5)


def test_a_hit_needs_the_class_of_the_object_that_it_overlaps() -> None:
    metrics = localization([result([("a", FAR), ("b", BOX)], [("a", 0.9, BOX)])])
    assert (metrics.class_accuracy, metrics.mean_iou, metrics.localization_accuracy) == (1.0, 1.0, 0.0)


def test_average_precision_of_a_perfect_and_of_a_useless_detector() -> None:
    truth = [("a", BOX), ("b", FAR)]
    assert mean_average_precision([result(truth, [("a", 0.9, BOX), ("b", 0.8, FAR)])]) == pytest.approx((1.0, 1.0))
    assert mean_average_precision([result(truth, [])]) == (0.0, 0.0)
    assert mean_average_precision([result(truth, [("c", 0.9, BOX)])]) == pytest.approx((0.0, 0.0))


def test_average_precision_counts_the_thresholds_that_a_box_passes() -> None:
    """IoU 0.5 passes the first of the ten thresholds only."""
    precision, at_half = mean_average_precision([result([("a", BOX)], [("a", 0.9, HALF)])])
    assert at_half == pytest.approx(1.0)
    assert precision == pytest.approx(0.1)


def test_a_false_alarm_above_a_hit_halves_precision() -> None:
    _, at_half = mean_average_precision([result([("a", BOX)], [("a", 0.9, FAR), ("a", 0.8, BOX)])])
    assert at_half == pytest.approx(0.5)


def test_nothing_at_all() -> None:
    metrics = localization([])
    assert (metrics.class_accuracy, metrics.mean_iou, metrics.localization_accuracy) == (0.0, 0.0, 0.0)
    assert mean_average_precision([]) == (0.0, 0.0)
