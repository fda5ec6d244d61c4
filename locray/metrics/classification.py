"""Each class on its own, and which is taken for which. Called by evaluation."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.metrics.detection import ClassPrecision
from locray.metrics.matching import NOTHING, match, one_object_each
from locray.metrics.results import ImageResult


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """What was there against what was said, counted in images or in objects."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    """(C + 1, C + 1): a row a true class, a column a predicted one; the last of each stands for nothing."""
    one_object_each: bool
    """Whether an image counts once, by its best detection; otherwise each object and each detection does."""


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How one class fares. A figure that nothing is known for is None; the others lie in [0, 1].

    Precision and recall are those of all detections at hand, that is, at the score threshold they were made with: at
    an IoU of 0.5, or by the best detection of each image where no box is annotated.
    """

    label: str
    objects: int
    ap_50_95: float | None
    ap_50: float | None
    precision: float | None
    recall: float | None
    class_accuracy: float | None
    """Of the images that show the class, the share whose best detection names it."""


def confusion_matrix(results: Sequence[ImageResult]) -> ConfusionMatrix:
    """Over the classes that are annotated or predicted.

    Where images show one object each (`one_object_each`), the class of the best detection stands against the true
    one. Otherwise detections and objects are matched (`match`), and what is left over stands against nothing.
    """
    labels = _labels(results)
    index_of: dict[str | None, int] = {None: len(labels)} | {label: index for index, label in enumerate(labels)}
    one_each = one_object_each(results)
    pairs = _pairs_of_images(results) if one_each else _pairs_of_objects(results)
    counts = np.zeros((len(labels) + 1, len(labels) + 1), dtype=np.int64)
    for true, predicted in pairs:
        counts[index_of[true], index_of[predicted]] += 1
    return ConfusionMatrix(labels, counts, one_each)


def class_metrics(
    results: Sequence[ImageResult], average_precision: Sequence[ClassPrecision]
) -> tuple[ClassMetrics, ...]:
    """A row for each class that is annotated or predicted, by label.

    Args:
        results: The images.
        average_precision: Of these images, as `detection` gives it.
    """
    precision_of = {one.label: one for one in average_precision}
    objects = Counter(label for result in results for label in result.object_labels)
    images, named = _images_by_class(results)
    right, said, there = _judged_by_class(results) if precision_of else (named, _first_labels(results), images)
    rows = []
    for label in _labels(results):
        average = precision_of.get(label)
        rows.append(
            ClassMetrics(
                label=label,
                objects=objects[label],
                ap_50_95=average.ap_50_95 if average else None,
                ap_50=average.ap_50 if average else None,
                precision=_ratio(right, said, label),
                recall=_ratio(right, there, label),
                class_accuracy=_ratio(named, images, label),
            )
        )
    return tuple(rows)


def _labels(results: Sequence[ImageResult]) -> tuple[str, ...]:
    return tuple(sorted({label for result in results for label in (*result.object_labels, *result.labels)}))


def _ratio(part: Mapping[str, int], whole: Mapping[str, int], label: str) -> float | None:
    return part[label] / whole[label] if whole[label] else None


def _pairs_of_images(results: Sequence[ImageResult]) -> Iterator[tuple[str | None, str | None]]:
    for result in results:
        predicted = result.labels[0] if result.labels else None
        shown = result.object_labels
        if not shown and result.true_is_crowd.any():
            continue
        yield (predicted if predicted in shown else next(iter(shown), None)), predicted


def _pairs_of_objects(results: Sequence[ImageResult]) -> Iterator[tuple[str | None, str | None]]:
    for result in results:
        matching = match(result)
        missed = matching.is_to_find.copy()
        for label, found, is_judged in zip(result.labels, matching.object_of, matching.is_judged, strict=True):
            if found != NOTHING:
                missed[found] = False
                yield result.true_labels[found], label
            elif is_judged:
                yield None, label
        yield from ((result.true_labels[index], None) for index in np.flatnonzero(missed))


def _images_by_class(results: Sequence[ImageResult]) -> tuple[Counter[str], Counter[str]]:
    """Images that show each class, and those of them whose best detection names it."""
    images: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for result in results:
        shown = set(result.object_labels)
        images.update(shown)
        named.update(shown.intersection(result.labels[:1]))
    return images, named


def _first_labels(results: Sequence[ImageResult]) -> Counter[str]:
    return Counter(result.labels[0] for result in results if result.labels)


def _judged_by_class(results: Sequence[ImageResult]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Right detections, judged detections and objects to find of each class."""
    right: Counter[str] = Counter()
    said: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for result in results:
        matching = match(result)
        labels, true_labels = np.array(result.labels, dtype=object), np.array(result.true_labels, dtype=object)
        right.update(labels[matching.is_true_positive])
        said.update(labels[matching.is_judged])
        there.update(true_labels[matching.is_to_find])
    return right, said, there
