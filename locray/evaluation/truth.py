"""An image's annotations beside its predictions, in one frame. Called by the readers of predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from locray import schema, storage
from locray.datasets.records import Record
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.exif import UPRIGHT, boxes_in_upright_frame
from locray.metrics.results import ImageResult

_EDGES = (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)
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


def image_result(record: Record, row: Mapping[str, Any], limits: DecodeLimits, min_score: float = 0.0) -> ImageResult:
    """The annotations of a record beside the detections of its row that score at least `min_score`.

    Args:
        record: The annotations.
        row: Of `schema.PREDICTED_SCHEMA` or of the predictions table.
        limits: For the rare image that has to be opened again, to see how it was turned.
        min_score: What to leave out.

    Raises:
        StoreError: such an image can't be read.
    """
    detections = [found for found in row[schema.DETECTIONS] or [] if found[schema.SCORE] >= min_score]
    corners = [annotation.box_xyxy_px or _NO_BOX for annotation in record.objects]
    return ImageResult(
        true_labels=tuple(annotation.label for annotation in record.objects),
        true_boxes_xyxy_px=_in_frame_of(row, record, np.array(corners, dtype=np.float64).reshape(-1, 4), limits),
        true_has_box=np.array([annotation.box_xyxy_px is not None for annotation in record.objects], dtype=np.bool_),
        true_is_crowd=np.array([annotation.is_crowd for annotation in record.objects], dtype=np.bool_),
        labels=tuple(found[schema.LABEL] for found in detections),
        scores=tuple(found[schema.SCORE] for found in detections),
        boxes_xyxy_px=np.array([[found[edge] for edge in _EDGES] for found in detections], dtype=np.float64).reshape(
            -1, 4
        ),
    )


def _in_frame_of(
    row: Mapping[str, Any], record: Record, boxes_xyxy: NDArray[np.float64], limits: DecodeLimits
) -> NDArray[np.float64]:
    """The record's boxes in pixels of the upright image, whose size the row knows if it was ever decoded."""
    upright, frame = (row[schema.WIDTH], row[schema.HEIGHT]), (record.width_px, record.height_px)
    if None in upright or None in frame or upright == frame or not len(boxes_xyxy):
        return boxes_xyxy
    (width, height), (frame_width, frame_height) = upright, (frame[0] or 0, frame[1] or 0)
    on_its_side = (frame_width - frame_height) * (width - height) < 0
    orientation = _orientation(record.image_uri, limits) if on_its_side else UPRIGHT
    return np.asarray(
        boxes_in_upright_frame(boxes_xyxy, (frame_width, frame_height), (width, height), orientation),
        dtype=np.float64,
    )


def _orientation(image_uri: str, limits: DecodeLimits) -> int:
    """EXIF's orientation of an image, which rows of predictions don't hold."""
    decoded = decode_image(storage.read_bytes(image_uri), limits, min_longer_side_px=1)
    return decoded.orientation if isinstance(decoded, DecodedImage) else UPRIGHT
