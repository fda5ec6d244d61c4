"""Compares a contender's labels with those of the plain network: its speed only counts if they agree.

The plain network decodes every JPEG at full size and predicts one image at a time, in float32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.peers.job import BOX, NOTHING_FOUND
from benchmarks.peers.network import columns_of
from locray import read_predictions, schema
from locray.boxes import Letterbox, areas
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.letterbox import letterbox_image
from locray.models.artifact import load_artifact

MIN_SHARE = 0.99
MIN_IOU = 0.9
_LIMITS = DecodeLimits(max_bytes=2**31, max_pixels=2**31)


@dataclass(frozen=True, slots=True)
class Predictions:
    """The best detection of each image, by the name of its file."""

    label_ids: dict[str, int]
    boxes_xyxy_px: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far predictions agree with the expected ones."""

    same_rows: bool
    same_class: float
    """Share of the images with the same class."""
    same_box: float
    """Share of the images whose boxes have an IoU of 0.9 or more."""

    @property
    def is_valid(self) -> bool:
        """Whether the labels are right, so that the contender's measurements count."""
        return self.same_rows and min(self.same_class, self.same_box) >= MIN_SHARE


def predict_plainly(folder: Path, model: str) -> Predictions:
    """The plain network's predictions for the images of a folder."""
    artifact = load_artifact(model)
    size = artifact.info.input_size
    parts = []
    for path in sorted(folder.iterdir()):
        decoded = decode_image(path.read_bytes(), _LIMITS)
        assert isinstance(decoded, DecodedImage), f"{path}: {decoded}"
        square = letterbox_image(decoded.image_hwc_u8, Letterbox.fit(decoded.width_px, decoded.height_px, size))
        with torch.inference_mode():
            predicted = artifact.model.predict(torch.from_numpy(square).permute(2, 0, 1)[None])
        sizes = [(decoded.width_px, decoded.height_px)]
        parts.append(pa.table(columns_of(predicted, [str(path)], sizes, size, artifact.info.score_threshold)))
    return _predictions(pa.concat_tables(parts).to_pylist())


def read_rows(folder: Path) -> Predictions:
    """Reads the Parquet files that a script has written."""
    return _predictions(
        pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).to_pylist()
    )


def read_table(folder: Path) -> Predictions:
    """Reads the table that `locray label` has written."""
    names = [schema.IMAGE_URI, schema.DETECTIONS]
    rows = read_predictions(folder).to_table(columns=names).to_pylist()
    return _predictions([{schema.IMAGE_URI: row[schema.IMAGE_URI], **_best(row[schema.DETECTIONS])} for row in rows])


def _best(detections: list[dict[str, Any]] | None) -> dict[str, Any]:
    return detections[0] if detections else {schema.LABEL_ID: NOTHING_FOUND} | dict.fromkeys(BOX, 0.0)


def _predictions(rows: list[dict[str, Any]]) -> Predictions:
    names = [unquote(row[schema.IMAGE_URI]).rsplit("/", 1)[-1] for row in rows]
    return Predictions(
        {name: int(row[schema.LABEL_ID]) for name, row in zip(names, rows, strict=True)},
        {name: np.array([row[edge] for edge in BOX], float) for name, row in zip(names, rows, strict=True)},
    )


def compare(found: Predictions, expected: Predictions) -> Agreement:
    """Compares predictions with the expected ones. A missing image counts as disagreement."""
    names = list(expected.label_ids)
    classes = [found.label_ids.get(name) == expected.label_ids[name] for name in names]
    boxes = [name in found.label_ids and _same_box(found, expected, name) for name in names]
    same_rows = found.label_ids.keys() == expected.label_ids.keys()
    return Agreement(same_rows, float(np.mean(classes)), float(np.mean(boxes)))


def _same_box(found: Predictions, expected: Predictions, name: str) -> bool:
    if expected.label_ids[name] == NOTHING_FOUND:
        return found.label_ids[name] == NOTHING_FOUND
    a, b = found.boxes_xyxy_px[name], expected.boxes_xyxy_px[name]
    corners = np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])
    common = float(areas(corners))
    union = float(areas(a)) + float(areas(b)) - common
    return union > 0 and common / union >= MIN_IOU
