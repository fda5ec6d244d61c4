"""Matching of detections and objects, by hand and compared with COCO's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from locray.metrics.classification import class_metrics, confusion_matrix
from locray.metrics.detection import detection_metrics
from locray.metrics.results import UNMATCHED, is_single_object, match
from tests.helpers.metric_results import BOX, FAR, HALF, result
from tests.helpers.random_images import random_image


def test_an_object_is_found_once_by_the_best_score_of_its_class() -> None:
    matching = match(result([("a", BOX)], [("b", 0.9, BOX), ("a", 0.8, HALF), ("a", 0.7, BOX)]))
    assert matching.matched_object.tolist() == [UNMATCHED, 0, UNMATCHED]
    assert matching.is_true_positive.tolist() == [False, True, False]
    assert not matching.is_ignored.any()


def test_remaining_matches_are_confusions() -> None:
    matching = match(result([("a", BOX), ("b", FAR)], [("b", 0.9, BOX), ("b", 0.8, FAR)]))
    assert matching.matched_object.tolist() == [0, 1]
    assert matching.is_true_positive.tolist() == [False, True]


def test_detections_in_crowds_or_of_boxless_classes_are_ignored() -> None:
    found = [("a", 0.9, BOX), ("b", 0.8, BOX), ("c", 0.7, FAR)]
    matching = match(result([("a", (0, 0, 100, 100)), ("c", None)], found, crowds={0}))
    assert matching.is_ignored.tolist() == [True, False, True]
    assert matching.matched_object.tolist() == [UNMATCHED] * 3
    assert not matching.is_ground_truth.any()


def test_single_objects() -> None:
    one, two = result([("a", BOX)], [("a", 0.9, BOX)]), result([("a", BOX), ("a", FAR)], [])
    many = [("a", 0.9, BOX), ("a", 0.8, BOX)]
    assert is_single_object([one, result([], [])])
    assert not is_single_object([one, two])
    assert not is_single_object([one, result([("a", BOX)], many)])
    assert is_single_object([result([("a", None), ("b", None)], many)])


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=10)
def test_curve_ends_at_recall_and_matrix_holds_the_hits(seed: int) -> None:
    """The recall of faster-coco-eval equals the recall of our matching."""
    random = np.random.default_rng(seed)
    results = [random_image(random, num_detections=12) for _ in range(30)]
    average_precision = detection_metrics(results).classes
    matrix = confusion_matrix(results)
    rows = {row.label: row for row in class_metrics(results, average_precision)}
    for one in average_precision:
        row = rows[one.label]
        assert row.recall is not None
        reached = np.flatnonzero(one.precision_at_recall)
        highest = reached[-1] / 100 if len(reached) else 0
        assert highest <= row.recall + 1e-9 < highest + 0.01 + 1e-6
        index = matrix.labels.index(one.label)
        assert matrix.counts[index, index] == pytest.approx(row.recall * matrix.counts[index].sum())
