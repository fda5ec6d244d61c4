"""Calibration and the best threshold, by hand and on scores that are true probabilities."""

import numpy as np
import pytest

from locray.metrics.calibration import ScoredDetections, best_threshold, calibration, score_detections
from tests.helpers.metric_results import BOX, FAR, result


def test_error_by_hand() -> None:
    detections = ScoredDetections(np.array([0.95, 0.95, 0.6, 0.0]), np.array([True, False, True, False]), 3)
    found = calibration(detections, num_bins=10)
    assert [(one.low, one.count, one.accuracy) for one in found.bins] == [
        (0, 1, 0),
        (pytest.approx(0.5), 1, 1),
        (pytest.approx(0.9), 2, 0.5),
    ]
    assert found.error == pytest.approx((0.0 + 0.4 + 2 * 0.45) / 4)


def test_probabilities_are_calibrated_and_overconfidence_is_not() -> None:
    random = np.random.default_rng(0)
    probabilities = random.random(20_000)
    right = random.random(20_000) < probabilities
    assert calibration(ScoredDetections(probabilities, right, 20_000)).error < 0.02
    assert calibration(ScoredDetections(np.sqrt(probabilities), right, 20_000)).error > 0.1


def test_a_score_of_one_lies_in_the_last_bin() -> None:
    (one,) = calibration(ScoredDetections(np.array([1.0]), np.array([True]), 1)).bins
    assert (one.high, one.mean_score, one.accuracy) == (1, 1, 1)


def test_the_best_threshold_by_hand() -> None:
    detections = ScoredDetections(np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, True, False, False]), 2)
    best = best_threshold(detections)
    assert best is not None
    assert (best.score_threshold, best.f1) == (0.8, pytest.approx(0.8))
    assert (best.precision, best.recall) == (pytest.approx(2 / 3), 1)
    assert best_threshold(ScoredDetections(np.array([0.9]), np.array([False]), 2)) is None


def test_which_detections_count() -> None:
    single = score_detections(
        [result([("a", BOX)], [("a", 0.9, FAR)]), result([], [("a", 0.4, BOX)]), result([("b", BOX)], [])]
    )
    assert single.scores.tolist() == [0.9, 0.4]
    assert (single.is_true_positive.tolist(), single.num_ground_truth) == ([True, False], 2)
    found = [("a", 0.9, FAR), ("a", 0.8, BOX)]
    many = score_detections([result([("a", BOX)], found), result([("a", BOX)], found[1:], crowds={0})])
    assert many.scores.tolist() == [0.9, 0.8]
    assert (many.is_true_positive.tolist(), many.num_ground_truth) == ([False, True], 1)
    nothing = score_detections([])
    assert (len(nothing.scores), nothing.num_ground_truth, calibration(nothing).error) == (0, 0, 0)
