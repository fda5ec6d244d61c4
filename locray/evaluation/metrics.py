"""Metrics of localization and detection, from predictions and annotations in memory. Called by evaluation/run.py."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from locray.boxes import iou_matrix

IOU_OF_A_HIT = 0.5


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What an image shows and what was predicted. Boxes are (N, 4) float, pixels of the upright image."""

    true_labels: tuple[str, ...]
    true_boxes_xyxy_px: NDArray[np.float64]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    boxes_xyxy_px: NDArray[np.float64]
    """Highest score first."""


@dataclass(frozen=True, slots=True)
class LocalizationMetrics:
    """Of the highest-scored detection of each image that shows an object; an image without a detection counts as wrong.

    Localization accuracy is that of the ImageNet challenge (Russakovsky et al., 2015, https://arxiv.org/abs/1409.0575)
    with one guess: the right class and an IoU of at least 0.5 with an object of it.
    """

    class_accuracy: float
    mean_iou: float
    localization_accuracy: float


def localization(results: Sequence[ImageResult]) -> LocalizationMetrics:
    """Class accuracy, mean IoU and localization accuracy, each in [0, 1]; 0 where no image shows an object."""
    classes, ious, hits = [], [], []
    for result in results:
        if not result.true_labels:
            continue
        if not result.labels:
            classes.append(False)
            ious.append(0.0)
            hits.append(False)
            continue
        overlaps = iou_matrix(result.boxes_xyxy_px[:1], result.true_boxes_xyxy_px)[0]
        same = np.array([label == result.labels[0] for label in result.true_labels])
        classes.append(bool(same.any()))
        ious.append(float(overlaps.max()))
        hits.append(bool((overlaps[same] >= IOU_OF_A_HIT).any()))
    if not classes:
        return LocalizationMetrics(0.0, 0.0, 0.0)
    return LocalizationMetrics(float(np.mean(classes)), float(np.mean(ious)), float(np.mean(hits)))


def mean_average_precision(results: Sequence[ImageResult]) -> tuple[float, float]:
    """COCO's mAP@[.5:.95] and mAP@.5 over the classes that are annotated (Lin et al., 2014), by faster-coco-eval."""
    names = sorted({label for result in results for label in (*result.true_labels, *result.labels)})
    ids = {name: number for number, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id, result in enumerate(results, 1):
        for label, box in zip(result.true_labels, result.true_boxes_xyxy_px, strict=True):
            x, y, width, height = _xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[label],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        for label, score, box in zip(result.labels, result.scores, result.boxes_xyxy_px, strict=True):
            detections.append(
                {"image_id": image_id, "category_id": ids[label], "bbox": _xywh(box), "score": float(score)}
            )
    if not annotations or not detections:
        return 0.0, 0.0
    truth = {
        "images": [{"id": image_id} for image_id in range(1, len(results) + 1)],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval_faster(coco, coco.loadRes(detections), iouType="bbox", print_function=lambda *_: None)
        evaluation.run()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def _xywh(box_xyxy: NDArray[np.float64]) -> list[float]:
    xmin, ymin, xmax, ymax = (float(value) for value in box_xyxy)
    return [xmin, ymin, xmax - xmin, ymax - ymin]
