"""Predictions of an image beside its annotations, and which detection matches which object."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray, areas, intersections, iou_matrix

IOU_THRESHOLD = 0.5
"""IoU from which a detection matches an object, in localization accuracy and mAP@.5."""

UNMATCHED = -1


@dataclass(frozen=True, slots=True)
class ImageResult:
    """Annotations and predictions of one image: N objects, M detections; boxes in pixels of the upright image.

    Where only the class of an object is known, `true_has_box` is False and its row of boxes is meaningless. A crowd is
    a box around many objects that were not annotated one by one: it is not an object, and detections inside it are
    ignored (COCO's `iscrowd`).
    """

    true_labels: tuple[str, ...]
    true_boxes_xyxy_px: NDArray[np.float64]
    """(N, 4)."""
    true_has_box: NDArray[np.bool_]
    """(N,)."""
    true_is_crowd: NDArray[np.bool_]
    """(N,)."""
    labels: tuple[str, ...]
    """M labels, highest score first, like the scores and boxes."""
    scores: tuple[float, ...]
    boxes_xyxy_px: NDArray[np.float64]
    """(M, 4)."""

    def __post_init__(self) -> None:
        num_objects, num_detections = len(self.true_labels), len(self.labels)
        assert self.true_boxes_xyxy_px.shape == (num_objects, 4), self.true_boxes_xyxy_px.shape
        assert self.true_has_box.shape == self.true_is_crowd.shape == (num_objects,)
        assert len(self.scores) == num_detections
        assert self.boxes_xyxy_px.shape == (num_detections, 4), self.boxes_xyxy_px.shape

    def above(self, score_threshold: float) -> "ImageResult":
        """The same image with the detections of at least this score."""
        count = sum(score >= score_threshold for score in self.scores)
        if count == len(self.scores):
            return self
        boxes = self.boxes_xyxy_px[:count]
        return replace(self, labels=self.labels[:count], scores=self.scores[:count], boxes_xyxy_px=boxes)

    @property
    def object_labels(self) -> tuple[str, ...]:
        """Labels of the objects that are not crowds."""
        return tuple(label for label, crowd in zip(self.true_labels, self.true_is_crowd, strict=True) if not crowd)


@dataclass(frozen=True, slots=True)
class Matching:
    """Matches between the N objects and M detections of an image, at an IoU of 0.5."""

    matched_object: NDArray[np.intp]
    """(M,): index of the object that each detection matches, of any class; `UNMATCHED` if none."""
    is_true_positive: NDArray[np.bool_]
    """(M,): whether that object is of the detection's class."""
    is_ignored: NDArray[np.bool_]
    """(M,): neither true nor false positive: inside a crowd, or of a class that is annotated without a box."""
    is_ground_truth: NDArray[np.bool_]
    """(N,): objects with a box that are not crowds."""

    @property
    def found(self) -> NDArray[np.intp]:
        """Indices of the objects that a detection of their class matches."""
        return self.matched_object[self.is_true_positive]


def match(result: ImageResult) -> Matching:
    """Matches each detection, highest score first, to the free object of its class with the largest IoU, as COCO does.

    The remaining ones are matched the same way regardless of class: these are confusions.
    """
    labels, true_labels = np.array(result.labels, dtype=object), np.array(result.true_labels, dtype=object)
    is_ground_truth = result.true_has_box & ~result.true_is_crowd
    same = labels[:, None] == true_labels[None, :]
    overlaps = np.where(is_ground_truth, iou_matrix(result.boxes_xyxy_px, result.true_boxes_xyxy_px), 0)
    matched_object = np.full(len(labels), UNMATCHED, dtype=np.intp)
    is_free = is_ground_truth.copy()
    _assign(np.where(same, overlaps, 0), matched_object, is_free)
    is_true_positive = matched_object != UNMATCHED
    is_ignored = ~is_true_positive & (same & _may_cover(result)).any(axis=1)
    _assign(np.where(is_ignored[:, None], 0, overlaps), matched_object, is_free)
    return Matching(matched_object, is_true_positive, is_ignored, is_ground_truth)


def _assign(overlaps: FloatArray, matched_object: NDArray[np.intp], is_free: NDArray[np.bool_]) -> None:
    """Matches the detections that have no object yet; changes both arrays."""
    if not overlaps.size:
        return
    for index in np.flatnonzero((matched_object == UNMATCHED) & (overlaps.max(axis=1) >= IOU_THRESHOLD)):
        free = np.where(is_free, overlaps[index], 0)
        best = int(free.argmax())
        if free[best] >= IOU_THRESHOLD:
            matched_object[index] = best
            is_free[best] = False


def _may_cover(result: ImageResult) -> NDArray[np.bool_]:
    """(M, N): the object is a crowd around the detection, or has no box and may be anywhere."""
    inside = intersections(result.boxes_xyxy_px, result.true_boxes_xyxy_px)
    own = areas(result.boxes_xyxy_px)[:, None]
    share = np.divide(inside, own, out=np.zeros_like(inside), where=own > 0)
    return np.asarray(~result.true_has_box | (result.true_is_crowd & (share >= IOU_THRESHOLD)))


def is_single_object(results: Sequence[ImageResult]) -> bool:
    """Whether classes are compared per image: no box is annotated, or no image has two objects or detections."""
    if not any((result.true_has_box & ~result.true_is_crowd).any() for result in results):
        return True
    return all(len(result.object_labels) <= 1 and len(result.labels) <= 1 for result in results)
