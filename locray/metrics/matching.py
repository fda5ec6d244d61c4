"""Which detection found which object. Called by the metrics that judge single detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray, areas, intersections, iou_matrix
from locray.metrics.results import IOU_OF_A_HIT, ImageResult

NOTHING = -1


@dataclass(frozen=True, slots=True)
class Matching:
    """What became of an image's N objects and M detections at an IoU of 0.5."""

    object_of: NDArray[np.intp]
    """(M,): the object that each detection lies on, `NOTHING` where on none."""
    is_true_positive: NDArray[np.bool_]
    """(M,): whether it is of the detection's own class."""
    is_judged: NDArray[np.bool_]
    """(M,): false for what is neither right nor wrong: found in a crowd, or of a class that is known without a box."""
    is_to_find: NDArray[np.bool_]
    """(N,): the objects with a box that are no crowds."""

    @property
    def found(self) -> NDArray[np.intp]:
        """The objects that a detection of their own class lies on."""
        return self.object_of[self.is_true_positive]


def match(result: ImageResult) -> Matching:
    """Gives each detection, best score first, the free object of its class that it overlaps most, as COCO does.

    What is left over on both sides is then matched in the same way whatever the classes: these are confusions.
    """
    labels, true_labels = np.array(result.labels, dtype=object), np.array(result.true_labels, dtype=object)
    is_to_find = result.true_has_box & ~result.true_is_crowd
    same = labels[:, None] == true_labels[None, :]
    overlaps = np.where(is_to_find, iou_matrix(result.boxes_xyxy_px, result.true_boxes_xyxy_px), 0)
    object_of = np.full(len(labels), NOTHING, dtype=np.intp)
    is_free = is_to_find.copy()
    _assign(np.where(same, overlaps, 0), object_of, is_free)
    is_true_positive = object_of != NOTHING
    is_judged = is_true_positive | ~(same & _is_vague(result)).any(axis=1)
    _assign(np.where(is_judged[:, None], overlaps, 0), object_of, is_free)
    return Matching(object_of, is_true_positive, is_judged, is_to_find)


def _assign(overlaps: FloatArray, object_of: NDArray[np.intp], is_free: NDArray[np.bool_]) -> None:
    """Fills in the objects of the detections that have none yet."""
    if not overlaps.size:
        return
    for index in np.flatnonzero((object_of == NOTHING) & (overlaps.max(axis=1) >= IOU_OF_A_HIT)):
        free = np.where(is_free, overlaps[index], 0)
        nearest = int(free.argmax())
        if free[nearest] >= IOU_OF_A_HIT:
            object_of[index] = nearest
            is_free[nearest] = False


def _is_vague(result: ImageResult) -> NDArray[np.bool_]:
    """(M, N): a crowd that holds the detection, or an object that may be anywhere."""
    inside = intersections(result.boxes_xyxy_px, result.true_boxes_xyxy_px)
    own = areas(result.boxes_xyxy_px)[:, None]
    share = np.divide(inside, own, out=np.zeros_like(inside), where=own > 0)
    return np.asarray(~result.true_has_box | (result.true_is_crowd & (share >= IOU_OF_A_HIT)))


def one_object_each(results: Sequence[ImageResult]) -> bool:
    """Whether the question is what an image shows, and not what all lies where in it.

    So it is where no image has more than one object and one detection, and where no box is annotated at all.
    """
    if not any((result.true_has_box & ~result.true_is_crowd).any() for result in results):
        return True
    return all(len(result.object_labels) <= 1 and len(result.labels) <= 1 for result in results)
