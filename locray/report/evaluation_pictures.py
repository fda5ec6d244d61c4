"""The images that a model fares worst on, with true and predicted boxes. Called by `report/evaluation.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from locray import storage
from locray.boxes import iou_matrix
from locray.datasets.records import Record
from locray.evaluation.figures import Figures
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.metrics.results import ImageResult, match
from locray.report.figures import THUMBNAIL_SIDE_PX, Box, Picture

NUM_PICTURES = 24
_MOST_SCORES = 6
"""Of more detections, the caption says how many there are of each class, and not each one's score."""


@dataclass(frozen=True, slots=True)
class Mistakes:
    """How bad the answer for one image is, and in words."""

    badness: float
    note: str


def worst_pictures(
    figures: Figures, records: Sequence[Record], results: Sequence[ImageResult], limits: DecodeLimits
) -> list[Picture]:
    """Up to `NUM_PICTURES` images with mistakes, the worst first; true boxes are dashed.

    Where images show many objects, only detections from the best score threshold on are counted and drawn. Images
    that can't be decoded are left out.

    Raises:
        StoreError: an image can't be read.
    """
    one_each = figures.confusion.per_image
    cut = 0.0 if one_each or figures.best_cut is None else figures.best_cut.score_threshold
    shown = [_from(result, cut) for result in results]
    mistakes = [_of_guess(result) if one_each else _of_objects(result) for result in shown]
    order = sorted(range(len(shown)), key=lambda index: (-mistakes[index].badness, index))
    pictures: list[Picture] = []
    for index in order:
        if len(pictures) == NUM_PICTURES or mistakes[index].badness == 0:
            break
        picture = _picture(records[index], shown[index], mistakes[index].note, limits)
        if picture is not None:
            pictures.append(picture)
    return pictures


def _from(result: ImageResult, min_score: float) -> ImageResult:
    """The result with the detections of at least a score alone."""
    count = sum(score >= min_score for score in result.scores)
    return replace(
        result,
        labels=result.labels[:count],
        scores=result.scores[:count],
        boxes_xyxy_px=result.boxes_xyxy_px[:count],
    )


def _of_guess(result: ImageResult) -> Mistakes:
    """Of the best detection: a wrong class weighs more than a box that lies badly, a confident one most."""
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


def _of_objects(result: ImageResult) -> Mistakes:
    """Each missed object counts 1, each wrong detection its score."""
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
    true = [
        Box(f"{label} (crowd)" if crowd else label, None, _corners(box * scale) if has_box else None, dashed=True)
        for label, box, has_box, crowd in zip(
            result.true_labels, result.true_boxes_xyxy_px, result.true_has_box, result.true_is_crowd, strict=True
        )
    ]
    each = len(result.scores) <= _MOST_SCORES
    found = [
        Box(label, score if each else None, _corners(box * scale))
        for label, score, box in zip(result.labels, result.scores, result.boxes_xyxy_px, strict=True)
    ]
    name = record.image_uri.rsplit("/", 1)[-1]
    return Picture(f"{name} · {note}", decoded.image_hwc_u8, (*true, *found))


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = (float(value) for value in box)
    return xmin, ymin, xmax, ymax
