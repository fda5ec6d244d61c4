"""The images with the worst predictions, with annotated and predicted boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from locray import storage
from locray.boxes import iou_matrix
from locray.datasets.records import Record
from locray.evaluation.summary import EvaluationMetrics
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.metrics.results import ImageResult, match
from locray.report.page import THUMBNAIL_SIDE_PX, Picture, PictureBox

NUM_PICTURES = 24
_MAX_SCORES = 6
"""With more detections, the caption has their number per class instead of their scores."""


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Severity of the mistakes in one image, and their description."""

    severity: float
    note: str


def worst_pictures(
    metrics: EvaluationMetrics, records: Sequence[Record], results: Sequence[ImageResult], limits: DecodeLimits
) -> list[Picture]:
    """Up to `NUM_PICTURES` images with mistakes, the worst first; annotated boxes are dashed.

    Where images have several objects, only detections above the best score threshold are counted and drawn. Images
    that can't be decoded are left out.

    Raises:
        StoreError: an image can't be read.
    """
    per_image = metrics.confusion.per_image
    min_score = 0.0 if per_image or metrics.best_threshold is None else metrics.best_threshold.score_threshold
    shown = [_with_min_score(result, min_score) for result in results]
    mistakes = [_single_object_mistakes(result) if per_image else _object_mistakes(result) for result in shown]
    order = sorted(range(len(shown)), key=lambda index: (-mistakes[index].severity, index))
    pictures: list[Picture] = []
    for index in order:
        if len(pictures) == NUM_PICTURES or mistakes[index].severity == 0:
            break
        picture = _picture(records[index], shown[index], mistakes[index].note, limits)
        if picture is not None:
            pictures.append(picture)
    return pictures


def _with_min_score(result: ImageResult, min_score: float) -> ImageResult:
    """The result without the detections that score less."""
    count = sum(score >= min_score for score in result.scores)
    return replace(
        result,
        labels=result.labels[:count],
        scores=result.scores[:count],
        boxes_xyxy_px=result.boxes_xyxy_px[:count],
    )


def _single_object_mistakes(result: ImageResult) -> Mistakes:
    """Judges the best detection: a wrong class weighs more than an imprecise box, and most if its score is high."""
    objects = result.object_labels
    if not result.labels:
        return Mistakes(float(bool(objects)), "nothing found")
    score = result.scores[0]
    if not objects:
        return Mistakes(0.0 if result.true_is_crowd.any() else score, "nothing is there")
    if result.labels[0] not in objects:
        return Mistakes(1 + score, "wrong class")
    boxed = result.true_boxes_xyxy_px[result.true_has_box & ~result.true_is_crowd]
    if not len(boxed):
        return Mistakes(0.0, "")
    overlap = float(iou_matrix(result.boxes_xyxy_px[:1], boxed).max())
    return Mistakes(1 - overlap, f"IoU {overlap:.2f}")


def _object_mistakes(result: ImageResult) -> Mistakes:
    """A missed object counts 1, a wrong detection its score."""
    matching = match(result)
    missed = int(matching.is_ground_truth.sum()) - len(matching.found)
    is_wrong = ~matching.is_ignored & ~matching.is_true_positive
    return Mistakes(
        missed + float(np.array(result.scores)[is_wrong].sum()), f"{missed} missed, {int(is_wrong.sum())} wrong"
    )


def _picture(record: Record, result: ImageResult, note: str, limits: DecodeLimits) -> Picture | None:
    decoded = decode_image(storage.read_bytes(record.image_uri), limits, min_longer_side_px=THUMBNAIL_SIDE_PX)
    if not isinstance(decoded, DecodedImage):
        return None
    height, width = decoded.image_hwc_u8.shape[:2]
    scale = np.array([width / decoded.width_px, height / decoded.height_px] * 2)
    annotated = [
        PictureBox(
            f"{label} (crowd)" if crowd else label, None, _corners(box * scale) if has_box else None, dashed=True
        )
        for label, box, has_box, crowd in zip(
            result.true_labels, result.true_boxes_xyxy_px, result.true_has_box, result.true_is_crowd, strict=True
        )
    ]
    show_scores = len(result.scores) <= _MAX_SCORES
    predicted = [
        PictureBox(label, score if show_scores else None, _corners(box * scale))
        for label, score, box in zip(result.labels, result.scores, result.boxes_xyxy_px, strict=True)
    ]
    name = record.image_uri.rsplit("/", 1)[-1]
    return Picture(f"{name} · {note}", decoded.image_hwc_u8, (*annotated, *predicted))


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = (float(value) for value in box)
    return xmin, ymin, xmax, ymax
