"""Metrics per class and the confusion matrix, on cases computed by hand."""

import numpy as np
import pytest

from locray.metrics.classification import class_metrics, confusion_matrix
from locray.metrics.detection import detection_metrics
from locray.metrics.results import ImageResult
from tests.helpers.metric_results import BOX, FAR, HALF, result


def table(results: list[ImageResult]) -> dict[str, tuple[float | None, ...]]:
    return {
        row.label: (row.objects, row.ap_50, row.precision, row.recall, row.class_accuracy)
        for row in class_metrics(results, detection_metrics(results).classes)
    }


def test_single_objects_count_once_per_image() -> None:
    matrix = confusion_matrix(
        [
            result([("a", BOX)], [("a", 0.9, FAR)]),
            result([("a", BOX)], [("b", 0.9, BOX)]),
            result([("b", BOX)], []),
            result([], [("b", 0.9, BOX)]),
            result([], []),
            result([("a", BOX)], [("a", 0.9, BOX)], crowds={0}),
        ]
    )
    assert matrix.labels == ("a", "b")
    assert matrix.per_image
    np.testing.assert_array_equal(matrix.counts, [[1, 1, 0], [0, 0, 1], [0, 1, 1]])


def test_many_objects_count_one_by_one() -> None:
    matrix = confusion_matrix(
        [
            result([("a", BOX), ("b", FAR)], [("b", 0.9, BOX), ("c", 0.8, (80, 80, 90, 90))]),
            result([("a", BOX)], [("a", 0.9, HALF), ("a", 0.8, BOX)]),
            result([("a", BOX)], [("a", 0.9, BOX)], crowds={0}),
        ]
    )
    assert matrix.labels == ("a", "b", "c")
    assert not matrix.per_image
    np.testing.assert_array_equal(matrix.counts, [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]])


def test_the_table_by_hand() -> None:
    rows = table(
        [
            result([("a", BOX), ("b", FAR)], [("a", 0.9, BOX), ("a", 0.8, FAR)]),
            result([("a", BOX)], [("c", 0.9, BOX), ("a", 0.1, FAR)]),
        ]
    )
    assert rows["a"] == (2, pytest.approx(51 / 101), pytest.approx(1 / 3), 0.5, 0.5)
    assert rows["b"] == (1, 0, None, 0, 0)
    assert rows["c"] == (0, None, 0, None, None)


def test_without_boxes_the_best_detection_decides() -> None:
    many = [("a", 0.9, BOX), ("b", 0.8, BOX)]
    rows = table([result([("a", None)], many), result([("b", None)], many), result([("b", None), ("a", None)], many)])
    assert rows["a"] == (2, None, 2 / 3, 1, 1)
    assert rows["b"] == (2, None, None, 0, 0)


def test_nothing_at_all() -> None:
    assert table([]) == {}
    np.testing.assert_array_equal(confusion_matrix([]).counts, [[0]])


def test_precision_recall_and_confusion_count_from_a_threshold() -> None:
    results = [
        result([("a", BOX), ("b", FAR)], [("a", 0.9, BOX), ("b", 0.2, FAR), ("a", 0.1, HALF)]),
        result([("a", BOX)], [("b", 0.3, BOX)]),
    ]
    average_precision = detection_metrics(results).classes
    at = {row.label: (row.precision, row.recall) for row in class_metrics(results, average_precision, 0.25)}
    assert at == {"a": (1, 0.5), "b": (0, 0)}
    matrix = confusion_matrix(results, 0.25)
    assert not matrix.per_image
    np.testing.assert_array_equal(matrix.counts, [[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert {row.ap_50 for row in class_metrics(results, average_precision, 0.25)} == {
        row.ap_50 for row in class_metrics(results, average_precision)
    }
