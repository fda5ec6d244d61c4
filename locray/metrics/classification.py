"""Metrics per class, and the confusion matrix."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.metrics.detection import ClassAveragePrecision
from locray.metrics.results import UNMATCHED, ImageResult, is_single_object, match


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Annotated classes against predicted ones, counted in images or in objects."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    """(C + 1, C + 1): one row per true class, one column per predicted class; the last of each stands for nothing."""
    per_image: bool
    """Whether an image counts once, by its best detection; otherwise every object and detection counts."""


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class, in [0, 1]; None where undefined.

    Precision and recall are those of the detections from a score threshold: at an IoU of 0.5, or by the best detection
    of each image if no box is annotated.
    """

    label: str
    objects: int
    ap_50_95: float | None
    ap_50: float | None
    precision: float | None
    recall: float | None
    class_accuracy: float | None
    """Share of the images with this class whose best detection is of it."""


def confusion_matrix(results: Sequence[ImageResult], score_threshold: float = 0.0) -> ConfusionMatrix:
    """Confusion matrix over the classes that are annotated or predicted.

    For single objects (`is_single_object`) the class of the best detection is compared with the true one. Otherwise
    detections of at least `score_threshold` are matched with objects (`match`), and unmatched ones count against
    nothing.
    """
    labels = _labels(results)
    index_of: dict[str | None, int] = {None: len(labels)} | {label: index for index, label in enumerate(labels)}
    single = is_single_object(results)
    counts = np.zeros((len(labels) + 1, len(labels) + 1), dtype=np.int64)
    counted = [result.above(score_threshold) for result in results]
    for true, predicted in _pairs_of_images(counted) if single else _pairs_of_objects(counted):
        counts[index_of[true], index_of[predicted]] += 1
    return ConfusionMatrix(labels, counts, single)


def class_metrics(
    results: Sequence[ImageResult], average_precision: Sequence[ClassAveragePrecision], score_threshold: float = 0.0
) -> tuple[ClassMetrics, ...]:
    """Metrics of every class that is annotated or predicted, sorted by label.

    Args:
        results: The images.
        average_precision: `detection_metrics(results).classes`.
        score_threshold: Of precision and recall.
    """
    precision_of = {one.label: one for one in average_precision}
    objects = Counter(label for result in results for label in result.object_labels)
    images, correct_images = _images_by_class(results)
    counted = [result.above(score_threshold) for result in results]
    if precision_of:
        true_positives, positives, ground_truth = _detections_by_class(counted)
    else:
        positives = Counter(result.labels[0] for result in counted if result.labels)
        ground_truth, true_positives = _images_by_class(counted)
    rows = []
    for label in _labels(results):
        average = precision_of.get(label)
        rows.append(
            ClassMetrics(
                label=label,
                objects=objects[label],
                ap_50_95=average.ap_50_95 if average else None,
                ap_50=average.ap_50 if average else None,
                precision=_ratio(true_positives, positives, label),
                recall=_ratio(true_positives, ground_truth, label),
                class_accuracy=_ratio(correct_images, images, label),
            )
        )
    return tuple(rows)


def _labels(results: Sequence[ImageResult]) -> tuple[str, ...]:
    return tuple(sorted({label for result in results for label in (*result.object_labels, *result.labels)}))


def _ratio(part: Mapping[str, int], whole: Mapping[str, int], label: str) -> float | None:
    return part[label] / whole[label] if whole[label] else None


def _pairs_of_images(results: Sequence[ImageResult]) -> Iterator[tuple[str | None, str | None]]:
    """True and predicted class of every image; None for nothing."""
    for result in results:
        predicted = result.labels[0] if result.labels else None
        shown = result.object_labels
        if not shown and result.true_is_crowd.any():
            continue
        yield (predicted if predicted in shown else next(iter(shown), None)), predicted


def _pairs_of_objects(results: Sequence[ImageResult]) -> Iterator[tuple[str | None, str | None]]:
    """True and predicted class of every match, missed object and false positive; None for nothing."""
    for result in results:
        matching = match(result)
        is_missed = matching.is_ground_truth.copy()
        for label, index, is_ignored in zip(result.labels, matching.matched_object, matching.is_ignored, strict=True):
            if index != UNMATCHED:
                is_missed[index] = False
                yield result.true_labels[index], label
            elif not is_ignored:
                yield None, label
        yield from ((result.true_labels[index], None) for index in np.flatnonzero(is_missed))


def _images_by_class(results: Sequence[ImageResult]) -> tuple[Counter[str], Counter[str]]:
    """Images that show each class, and those of them whose best detection is of it."""
    images: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for result in results:
        shown = set(result.object_labels)
        images.update(shown)
        correct.update(shown.intersection(result.labels[:1]))
    return images, correct


def _detections_by_class(results: Sequence[ImageResult]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """True positives, all positives, and ground-truth objects of each class."""
    true_positives: Counter[str] = Counter()
    positives: Counter[str] = Counter()
    ground_truth: Counter[str] = Counter()
    for result in results:
        matching = match(result)
        labels, true_labels = np.array(result.labels, dtype=object), np.array(result.true_labels, dtype=object)
        true_positives.update(labels[matching.is_true_positive])
        positives.update(labels[~matching.is_ignored])
        ground_truth.update(true_labels[matching.is_ground_truth])
    return true_positives, positives, ground_truth
