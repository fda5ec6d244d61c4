"""What every metric is computed from: the annotations of an image beside its predictions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IOU_OF_A_HIT = 0.5
"""Overlap from which a box counts as found, in localization and in mAP@.5."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What an image shows and what was predicted. N objects, M detections; boxes in pixels of the upright image.

    Where only the class of an object is known, `true_has_box` is False and its row of the boxes means nothing. A crowd
    is a box around many objects that were not annotated one by one: no object itself, and what is found inside it is
    neither right nor wrong (COCO's `iscrowd`).
    """

    true_labels: tuple[str, ...]
    true_boxes_xyxy_px: NDArray[np.float64]
    """(N, 4)."""
    true_has_box: NDArray[np.bool_]
    """(N,)."""
    true_is_crowd: NDArray[np.bool_]
    """(N,)."""
    labels: tuple[str, ...]
    """M labels, highest score first, as the scores and the boxes."""
    scores: tuple[float, ...]
    boxes_xyxy_px: NDArray[np.float64]
    """(M, 4)."""

    def __post_init__(self) -> None:
        num_objects, num_detections = len(self.true_labels), len(self.labels)
        assert self.true_boxes_xyxy_px.shape == (num_objects, 4), self.true_boxes_xyxy_px.shape
        assert self.true_has_box.shape == self.true_is_crowd.shape == (num_objects,)
        assert len(self.scores) == num_detections
        assert self.boxes_xyxy_px.shape == (num_detections, 4), self.boxes_xyxy_px.shape

    @property
    def object_labels(self) -> tuple[str, ...]:
        """The labels of the objects that are no crowds."""
        return tuple(label for label, crowd in zip(self.true_labels, self.true_is_crowd, strict=True) if not crowd)
