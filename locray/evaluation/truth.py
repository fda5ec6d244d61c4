"""An image's annotations beside its predictions, in one frame. Called by the readers of predictions."""

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
from locray.images.exif import UPRIGHT, boxes_in_upright_frame
from locray.metrics.results import ImageResult

_NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Predictions beside annotations, for every image of a data set."""

    model_id: str
    config_hash: str
    results: list[ImageResult]
    """In the order of the data set's records. An image that could not be labelled has no detections."""
    errors: dict[str, int]
    """Images that could not be labelled, by code."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Objects that turned out to lie beside their image once its size was known, by reason."""


class Comparison:
    """Puts annotations beside predictions, image by image, and counts what can't be compared.

    Args:
        limits: For the rare image that has to be opened again, to see how it was turned.
        min_score: Detections that score less are left out.
        strict: Whether what can't be compared is an error.
    """

    def __init__(self, limits: DecodeLimits, *, min_score: float = 0.0, strict: bool = False) -> None:
        self._limits = limits
        self._min_score = min_score
        self._strict = strict
        self.errors: Counter[str] = Counter()
        """Images that could not be labelled, by code."""
        self.skipped: Counter[str] = Counter()
        """Objects, by reason."""

    def result(self, record: Record, row: Mapping[str, Any]) -> ImageResult:
        """The annotations of a record that lie in its image, cut to it, beside the detections of its row.

        Args:
            record: The annotations.
            row: Of `schema.PREDICTED_SCHEMA` or of the predictions table.

        Raises:
            StoreError: an image that has to be opened again can't be read.
            UsageError: `strict`, and the image could not be labelled, or a box lies wholly beside it.
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
                f"{record.image_uri}: could not be labelled ({code}). Expected images that can all be used, as "
                "--strict asks for: mend the image or take it out of the split, or evaluate without it."
            )
        self.errors[code] += 1

    def _count_outside(self, record: Record, row: Mapping[str, Any], kept: NDArray[np.bool_]) -> None:
        if self._strict:
            first = record.objects[int(np.flatnonzero(~kept)[0])]
            corners = " ".join(f"{value:g}" for value in first.box_xyxy_px or ())
            raise UsageError(
                f"{record.where or record.image_uri}, box of {first.label!r}: {corners} in an image of "
                f"{row[schema.WIDTH]} x {row[schema.HEIGHT]}: {SkipReason.OUTSIDE_BOX}. Expected annotations that can "
                "all be used, as --strict asks for: correct them, or leave them out by evaluating without it."
            )
        self.skipped[str(SkipReason.OUTSIDE_BOX)] += int((~kept).sum())


def _in_image(
    row: Mapping[str, Any], record: Record, boxes_xyxy: NDArray[np.float64], limits: DecodeLimits
) -> NDArray[np.float64]:
    """The record's boxes in pixels of the upright image, cut to it; one that lies beside it has no area left.

    As they are where the image was never decoded: then its size is not known.
    """
    width, height = row[schema.WIDTH], row[schema.HEIGHT]
    if width is None or height is None or not len(boxes_xyxy):
        return boxes_xyxy
    frame_width, frame_height = record.width_px or width, record.height_px or height
    on_its_side = (frame_width - frame_height) * (width - height) < 0
    orientation = _orientation(record.image_uri, limits) if on_its_side else UPRIGHT
    upright = boxes_in_upright_frame(boxes_xyxy, (frame_width, frame_height), (width, height), orientation)
    return np.asarray(boxes.clip(upright, width, height), dtype=np.float64)


def _orientation(image_uri: str, limits: DecodeLimits) -> int:
    """EXIF's orientation of an image, which rows of predictions don't hold."""
    decoded = decode_image(storage.read_bytes(image_uri), limits, min_longer_side_px=1)
    return decoded.orientation if isinstance(decoded, DecodedImage) else UPRIGHT
