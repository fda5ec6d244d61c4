"""Calibration of scores, and the score threshold with the best F1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.metrics.results import ImageResult, is_single_object, match

NUM_BINS = 15
"""As in the paper."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The detections with a score in one interval of [0, 1]; at least one."""

    low: float
    high: float
    count: int
    mean_score: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability of scores (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    `error` is the expected calibration error: the mean distance between score and accuracy over the bins, weighted by
    their detections. Empty bins are left out.
    """

    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class BestThreshold:
    """The score threshold with the highest F1 over all classes, and its precision and recall."""

    score_threshold: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class ScoredDetections:
    """All true and false positives, and the number of objects to be found."""

    scores: NDArray[np.float64]
    is_true_positive: NDArray[np.bool_]
    num_ground_truth: int


def score_detections(results: Sequence[ImageResult]) -> ScoredDetections:
    """The detections that count, of all images.

    For single objects (`is_single_object`) the best detection is a true positive if its class is right. Otherwise a
    detection is one if it matches an object of its class with an IoU of at least 0.5 (`match`).
    """
    single = is_single_object(results)
    scores: list[NDArray[np.float64]] = []
    true_positives: list[NDArray[np.bool_]] = []
    num_ground_truth = 0
    for result in results:
        own_scores = np.array(result.scores, dtype=np.float64)
        if single:
            shown = result.object_labels
            counts = np.arange(len(own_scores)) < int(bool(shown) or not result.true_is_crowd.any())
            is_true_positive = np.array([label in shown for label in result.labels], dtype=np.bool_)
            num_ground_truth += bool(shown)
        else:
            matching = match(result)
            counts, is_true_positive = ~matching.is_ignored, matching.is_true_positive
            num_ground_truth += int(matching.is_ground_truth.sum())
        scores.append(own_scores[counts])
        true_positives.append(is_true_positive[counts])
    if not scores:
        return ScoredDetections(np.zeros(0), np.zeros(0, dtype=np.bool_), 0)
    return ScoredDetections(np.concatenate(scores), np.concatenate(true_positives), num_ground_truth)


def calibration(detections: ScoredDetections, num_bins: int = NUM_BINS) -> Calibration:
    """Calibration over bins of equal width; error 0 if there are no detections."""
    edges = np.linspace(0, 1, num_bins + 1)
    bin_of = np.clip(np.ceil(detections.scores * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for index in np.unique(bin_of):
        inside = bin_of == index
        bins.append(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(inside.sum()),
                mean_score=float(detections.scores[inside].mean()),
                accuracy=float(detections.is_true_positive[inside].mean()),
            )
        )
    distances = sum(one.count * abs(one.accuracy - one.mean_score) for one in bins)
    return Calibration(distances / max(1, len(detections.scores)), tuple(bins))


def best_threshold(detections: ScoredDetections) -> BestThreshold | None:
    """The threshold with the highest F1; None if there is no true positive."""
    if not detections.is_true_positive.any():
        return None
    order = np.argsort(-detections.scores, kind="stable")
    scores = detections.scores[order]
    true_positives = np.cumsum(detections.is_true_positive[order])
    positives = np.arange(1, len(scores) + 1)
    f1 = 2 * true_positives / (positives + detections.num_ground_truth)
    # A threshold takes all detections of a score or none.
    is_last_of_its_score = np.append(scores[1:] != scores[:-1], True)
    best = int(np.where(is_last_of_its_score, f1, 0).argmax())
    return BestThreshold(
        float(scores[best]),
        float(f1[best]),
        float(true_positives[best] / positives[best]),
        float(true_positives[best] / detections.num_ground_truth),
    )
