"""Metrics of the best detection of each image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from locray.boxes import iou_matrix
from locray.metrics.results import IOU_THRESHOLD, ImageResult


@dataclass(frozen=True, slots=True)
class LocalizationMetrics:
    """Metrics of the highest-scored detection of each image, in [0, 1]; an image without a detection counts as wrong.

    Localization accuracy is that of the ImageNet challenge (Russakovsky et al., 2015, https://arxiv.org/abs/1409.0575)
    with one guess per image: the right class, and an IoU of at least 0.5 with an object of this class.
    """

    class_accuracy: float
    """Over images that show an object."""
    mean_iou: float
    """Over images that show an object with a box: the largest IoU with any of them."""
    localization_accuracy: float
    """Over the same images as `mean_iou`."""


def localization_metrics(results: Sequence[ImageResult]) -> LocalizationMetrics:
    """Class accuracy, mean IoU and localization accuracy; 0 where there are no such images."""
    right_class, ious, hits = [], [], []
    for result in results:
        is_object = ~result.true_is_crowd
        is_boxed = is_object & result.true_has_box
        if not is_object.any():
            continue
        found = result.labels[0] if result.labels else None
        same = np.array([label == found for label in result.true_labels])
        right_class.append(bool((same & is_object).any()))
        if not is_boxed.any():
            continue
        if found is None:
            ious.append(0.0)
            hits.append(False)
            continue
        overlaps = iou_matrix(result.boxes_xyxy_px[:1], result.true_boxes_xyxy_px)[0]
        ious.append(float(overlaps[is_boxed].max()))
        hits.append(bool((overlaps[is_boxed & same] >= IOU_THRESHOLD).any()))
    return LocalizationMetrics(_mean(right_class), _mean(ious), _mean(hits))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
