"""Annotations and predictions of an image, in the same frame."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from locray import boxes, schema, storage
from locray.datasets.records import Record, SkipReason
from locray.errors import UsageError
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.exif import UPRIGHT, boxes_in_upright_frame, swaps_sides
from locray.metrics.results import ImageResult

_NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Predictions and annotations of every image of a data set.

    Attributes:
        model_id: The model of the predictions.
        config_hash: The configuration of the predictions.
        results: In the order of the data set's records. An image that could not be labelled has no detections.
        errors: Images that could not be labelled, by error code.
        skipped: Objects that can't be used, as the size of the image shows, by reason.
    """

    model_id: str
    config_hash: str
    results: list[ImageResult]
    errors: dict[str, int]
    skipped: dict[str, int] = field(default_factory=dict)


class Comparison:
    """Pairs the annotations of each image with its predictions, and counts what can't be compared.

    Args:
        limits: For the rare image that has to be decoded again to find its orientation.
        min_score: Detections with a lower score are left out.
        strict: Whether an image or an object that can't be compared is an error.
    """

    def __init__(self, limits: DecodeLimits, *, min_score: float = 0.0, strict: bool = False) -> None:
        self._limits = limits
        self._min_score = min_score
        self._strict = strict
        self.errors: Counter[str] = Counter()
        """Images that could not be labelled, by error code."""
        self.skipped: Counter[str] = Counter()
        """Objects that can't be used, by reason."""

    def result(self, record: Record, row: Mapping[str, Any]) -> ImageResult:
        """Annotations of a record, clipped to the image, and the detections of its row.

        Args:
            record: The annotations.
            row: A row of `schema.PREDICTED_SCHEMA` or of the predictions table.

        Raises:
            StoreError: an image that has to be decoded again can't be read.
            UsageError: with `strict`, the image could not be labelled, or a box lies wholly outside it.
        """
        if row[schema.ERROR_CODE]:
            self._count_error(record, row[schema.ERROR_CODE])
        corners = [annotation.box_xyxy_px or _NO_BOX for annotation in record.objects]
        boxes_xyxy = _in_image(row, record, np.array(corners, dtype=np.float64).reshape(-1, 4), self._limits)
        has_box = np.array([annotation.box_xyxy_px is not None for annotation in record.objects], dtype=np.bool_)
        kept = ~has_box | boxes.is_valid(boxes_xyxy)
        if not kept.all():
            self._count_outside(record, row, kept)
        objects = [record.objects[index] for index in np.flatnonzero(kept)]
        detections = [found for found in row[schema.DETECTIONS] or [] if found[schema.SCORE] >= self._min_score]
        return ImageResult(
            true_labels=tuple(annotation.label for annotation in objects),
            true_boxes_xyxy_px=boxes_xyxy[kept],
            true_has_box=has_box[kept],
            true_is_crowd=np.array([annotation.is_crowd for annotation in objects], dtype=np.bool_),
            labels=tuple(found[schema.LABEL] for found in detections),
            scores=tuple(found[schema.SCORE] for found in detections),
            boxes_xyxy_px=np.array(
                [[found[edge] for edge in schema.CORNERS] for found in detections], dtype=np.float64
            ).reshape(-1, 4),
        )

    def _count_error(self, record: Record, code: str) -> None:
        if self._strict:
            raise UsageError(
                f"{record.image_uri}: could not be labelled ({code}). Expected only usable images, because of "
                "--strict: repair the image, take it out of the split, or evaluate without --strict"
            )
        self.errors[code] += 1

    def _count_outside(self, record: Record, row: Mapping[str, Any], kept: NDArray[np.bool_]) -> None:
        if self._strict:
            first = record.objects[int(np.flatnonzero(~kept)[0])]
            corners = " ".join(f"{value:g}" for value in first.box_xyxy_px or ())
            raise UsageError(
                f"{record.where or record.image_uri}, box of {first.label!r}: {corners} in an image of "
                f"{row[schema.WIDTH]} x {row[schema.HEIGHT]}: {SkipReason.OUTSIDE_BOX}. Expected only usable "
                "annotations, because of --strict: correct them, or evaluate without --strict"
            )
        self.skipped[str(SkipReason.OUTSIDE_BOX)] += int((~kept).sum())


def _in_image(
    row: Mapping[str, Any], record: Record, boxes_xyxy: NDArray[np.float64], limits: DecodeLimits
) -> NDArray[np.float64]:
    """The record's boxes (M, 4) in pixels of the upright image, clipped to it; a box outside the image has no area.

    Unchanged where the image was never decoded, so that its size is unknown.
    """
    width, height = row[schema.WIDTH], row[schema.HEIGHT]
    if width is None or height is None or not len(boxes_xyxy):
        return boxes_xyxy
    frame = (record.width_px or width, record.height_px or height)
    is_transposed = (frame[0] - frame[1]) * (width - height) < 0
    orientation = _orientation(record.image_uri, limits) if is_transposed or record.is_stored else UPRIGHT
    if record.is_stored and swaps_sides(orientation):
        frame = (record.width_px or height, record.height_px or width)
    upright = boxes_in_upright_frame(boxes_xyxy, frame, (width, height), orientation, is_stored=record.is_stored)
    return np.asarray(boxes.clip(upright, width, height), dtype=np.float64)


def _orientation(image_uri: str, limits: DecodeLimits) -> int:
    """EXIF orientation of an image, which prediction rows don't hold."""
    decoded = decode_image(storage.read_bytes(image_uri), limits, min_longer_side_px=1)
    return decoded.orientation if isinstance(decoded, DecodedImage) else UPRIGHT
