"""COCO's average precision (Lin et al., 2014, https://arxiv.org/abs/1405.0312), computed by faster-coco-eval."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from locray.metrics.results import ImageResult

RECALL_LEVELS = np.linspace(0, 1, 101)
"""Recall levels at which COCO samples the precision-recall curve."""

_ALL_AREAS, _AT_IOU_50, _MAX_DETECTIONS = 0, 0, -1
_NO_OBJECTS = -1
"""COCO's value for a class without objects."""


@dataclass(frozen=True, slots=True)
class ClassAveragePrecision:
    """Average precision of one annotated class, in [0, 1]."""

    label: str
    ap_50_95: float
    ap_50: float
    precision_at_recall: NDArray[np.float64]
    """(101,): highest precision at IoU 0.5 with at least each recall of `RECALL_LEVELS`; 0 if it isn't reached."""


@dataclass(frozen=True, slots=True)
class DetectionMetrics:
    """Mean average precision over the classes that are annotated with boxes, in [0, 1].

    `map_small`, `map_medium` and `map_large` are of objects under 32^2, up to 96^2 and over 96^2 pixels; None if there
    are none.
    """

    map_50_95: float
    map_50: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    classes: tuple[ClassAveragePrecision, ...]
    """Sorted by label."""


def mean_average_precision(results: Sequence[ImageResult]) -> tuple[float, float]:
    """mAP@[.5:.95] and mAP@.5; both 0 if nothing is annotated with a box."""
    metrics = detection_metrics(results)
    return metrics.map_50_95, metrics.map_50


def detection_metrics(results: Sequence[ImageResult]) -> DetectionMetrics:
    """Average precision overall, by object size and by class.

    Detections in an image without objects are false positives. Where an object is annotated without a box, further
    boxes of its class are unknown: detections of this class that overlap no annotated box are ignored.
    """
    labels = sorted({label for result in results for label in (*result.true_labels, *result.labels)})
    annotations, detections = _coco_annotations(results, labels), _coco_detections(results, labels)
    annotated = {entry["category_id"] for entry in annotations if not entry["iscrowd"]}
    if not annotated:
        return DetectionMetrics(0.0, 0.0, None, None, None, ())
    if not detections:
        nothing = np.zeros(len(RECALL_LEVELS))
        small, medium, large = _precision_without_detections(annotations)
        none_found = tuple(ClassAveragePrecision(labels[number - 1], 0.0, 0.0, nothing) for number in sorted(annotated))
        return DetectionMetrics(0.0, 0.0, small, medium, large, none_found)
    truth = {
        "images": [{"id": image_id} for image_id in range(1, len(results) + 1)],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, 1)],
        "annotations": annotations,
    }
    # The library prints while it indexes.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval_faster(coco, coco.loadRes(detections), iouType="bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU thresholds, recall levels, classes, area ranges)
    return _metrics(np.asarray(evaluation.eval["precision"])[..., _MAX_DETECTIONS], labels)


def _metrics(precision_trka: NDArray[np.float64], labels: Sequence[str]) -> DetectionMetrics:
    overall = precision_trka[..., _ALL_AREAS]
    classes = tuple(
        ClassAveragePrecision(
            label,
            float(overall[:, :, index].mean()),
            float(overall[_AT_IOU_50, :, index].mean()),
            overall[_AT_IOU_50, :, index],
        )
        for index, label in enumerate(labels)
        if overall[0, 0, index] != _NO_OBJECTS
    )
    small, medium, large = (_mean(precision_trka[..., area]) for area in (1, 2, 3))
    return DetectionMetrics(_mean(overall) or 0.0, _mean(overall[_AT_IOU_50]) or 0.0, small, medium, large, classes)


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision != _NO_OBJECTS]
    return float(known.mean()) if known.size else None


def _precision_without_detections(annotations: Sequence[dict[str, Any]]) -> list[float | None]:
    """0 for each of the three sizes that occurs, None for the others."""
    areas = np.array([entry["area"] for entry in annotations if not entry["iscrowd"]])
    limits = ((0, 32**2), (32**2, 96**2), (96**2, np.inf))
    return [0.0 if ((areas >= low) & (areas <= high)).any() else None for low, high in limits]


def _coco_annotations(results: Sequence[ImageResult], labels: Sequence[str]) -> list[dict[str, Any]]:
    number_of = {label: number for number, label in enumerate(labels, 1)}
    annotations: list[dict[str, Any]] = []
    for image_id, result in enumerate(results, 1):
        around = _box_around(result)
        for index, label in enumerate(result.true_labels):
            has_box = bool(result.true_has_box[index])
            bbox = _xywh(result.true_boxes_xyxy_px[index]) if has_box else around
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": number_of[label],
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(result.true_is_crowd[index] or not has_box),
                }
            )
    return annotations


def _coco_detections(results: Sequence[ImageResult], labels: Sequence[str]) -> list[dict[str, Any]]:
    number_of = {label: number for number, label in enumerate(labels, 1)}
    return [
        {"image_id": image_id, "category_id": number_of[label], "bbox": _xywh(box), "score": float(score)}
        for image_id, result in enumerate(results, 1)
        for label, score, box in zip(result.labels, result.scores, result.boxes_xyxy_px, strict=True)
    ]


def _box_around(result: ImageResult) -> list[float]:
    """A box around all detections of the image: as a crowd, it makes COCO ignore them."""
    if not result.labels:
        return [0.0, 0.0, 1.0, 1.0]
    boxes = result.boxes_xyxy_px
    return _xywh(np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]))


def _xywh(box_xyxy: NDArray[np.float64]) -> list[float]:
    xmin, ymin, xmax, ymax = (float(value) for value in box_xyxy)
    return [xmin, ymin, xmax - xmin, ymax - ymin]
