"""Whether scores can be taken for probabilities, and which score to cut at. Called by evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.metrics.matching import match, one_object_each
from locray.metrics.results import ImageResult

NUM_BINS = 15
"""As in the paper."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The detections whose score lies in one part of [0, 1]; there is at least one."""

    low: float
    high: float
    count: int
    mean_score: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability of scores (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    `error` is the expected calibration error: the mean distance between score and share of right detections, over the
    bins, weighted by their detections. Bins without detections are left out.
    """

    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class BestThreshold:
    """The score threshold with the highest F1 over all classes, and what is reached there."""

    score_threshold: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class Judged:
    """All detections that are right or wrong, and how many there were to find."""

    scores: NDArray[np.float64]
    is_true_positive: NDArray[np.bool_]
    num_ground_truth: int


def judge(results: Sequence[ImageResult]) -> Judged:
    """Tells right from wrong.

    Where images show one object each (`one_object_each`), the best detection is right if its class is; otherwise a
    detection is right that lies on an object of its class with an IoU of at least 0.5 (`match`).
    """
    one_each = one_object_each(results)
    scores: list[NDArray[np.float64]] = []
    right: list[NDArray[np.bool_]] = []
    to_find = 0
    for result in results:
        own_scores = np.array(result.scores, dtype=np.float64)
        if one_each:
            shown = result.object_labels
            is_judged = np.arange(len(own_scores)) < int(bool(shown) or not result.true_is_crowd.any())
            is_true_positive = np.array([label in shown for label in result.labels], dtype=np.bool_)
            to_find += bool(shown)
        else:
            matching = match(result)
            is_judged, is_true_positive = matching.is_judged, matching.is_true_positive
            to_find += int(matching.is_to_find.sum())
        scores.append(own_scores[is_judged])
        right.append(is_true_positive[is_judged])
    if not scores:
        return Judged(np.zeros(0), np.zeros(0, dtype=np.bool_), 0)
    return Judged(np.concatenate(scores), np.concatenate(right), to_find)


def calibration(judged: Judged, num_bins: int = NUM_BINS) -> Calibration:
    """Bins of equal width; error 0 where nothing was detected."""
    edges = np.linspace(0, 1, num_bins + 1)
    bin_of = np.clip(np.ceil(judged.scores * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for index in np.unique(bin_of):
        inside = bin_of == index
        bins.append(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(inside.sum()),
                mean_score=float(judged.scores[inside].mean()),
                accuracy=float(judged.is_true_positive[inside].mean()),
            )
        )
    distances = sum(one.count * abs(one.accuracy - one.mean_score) for one in bins)
    return Calibration(distances / max(1, len(judged.scores)), tuple(bins))


def best_cut(judged: Judged) -> BestThreshold | None:
    """None where nothing was right."""
    if not judged.is_true_positive.any():
        return None
    order = np.argsort(-judged.scores, kind="stable")
    scores = judged.scores[order]
    right = np.cumsum(judged.is_true_positive[order])
    said = np.arange(1, len(scores) + 1)
    f1 = 2 * right / (said + judged.num_ground_truth)
    # A threshold takes all detections of a score or none.
    is_last_of_its_score = np.append(scores[1:] != scores[:-1], True)
    best = int(np.where(is_last_of_its_score, f1, 0).argmax())
    return BestThreshold(
        float(scores[best]),
        float(f1[best]),
        float(right[best] / said[best]),
        float(right[best] / judged.num_ground_truth),
    )
