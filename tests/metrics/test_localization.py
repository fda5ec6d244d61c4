"""Localization metrics on cases computed by hand."""

import pytest

from locray.metrics.localization import localization_metrics
from tests.helpers.metric_results import BOX, FAR, HALF, result


def test_localization_by_hand() -> None:
    metrics = localization_metrics(
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
    metrics = localization_metrics([result([("a", FAR), ("b", BOX)], [("a", 0.9, BOX)])])
    assert (metrics.class_accuracy, metrics.mean_iou, metrics.localization_accuracy) == (1.0, 1.0, 0.0)


def test_an_object_without_a_box_counts_for_its_class_only() -> None:
    metrics = localization_metrics(
        [
            result([("a", None)], [("a", 0.9, BOX)]),
            result([("a", None)], [("b", 0.9, (0, 0, 0.5, 0.5))]),
            result([("a", HALF)], [("a", 0.9, BOX)]),
        ]
    )
    assert metrics.class_accuracy == pytest.approx(2 / 3)
    assert (metrics.mean_iou, metrics.localization_accuracy) == (0.5, 1.0)


def test_a_crowd_is_no_object() -> None:
    metrics = localization_metrics(
        [
            result([("a", BOX)], [("a", 0.9, BOX)], crowds={0}),
            result([("a", BOX), ("b", FAR)], [("a", 0.9, BOX)], crowds={0}),
        ]
    )
    assert (metrics.class_accuracy, metrics.mean_iou, metrics.localization_accuracy) == (0, 0, 0)


def test_nothing_at_all() -> None:
    metrics = localization_metrics([])
    assert (metrics.class_accuracy, metrics.mean_iou, metrics.localization_accuracy) == (0.0, 0.0, 0.0)
