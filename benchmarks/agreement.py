"""Whether a contender labels as the plain network does: without that, its speed says nothing. Called by `labelling`.

The plain way: every JPEG decoded at full size, one image after the other, float32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from deltalake import DeltaTable
from numpy.typing import NDArray

from benchmarks.peers.job import BOX, NOTHING_FOUND
from benchmarks.peers.network import columns_of
from locray import schema
from locray.boxes import Letterbox, areas
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.letterbox import letterbox_image
from locray.models.artifact import load_artifact

LEAST_SHARE = 0.99
LEAST_IOU = 0.9
_LIMITS = DecodeLimits(max_bytes=2**31, max_pixels=2**31)


@dataclass(frozen=True, slots=True)
class Answers:
    """The best detection of each image, by the name of its file."""

    label_ids: dict[str, int]
    boxes_xyxy_px: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two sets of answers side by side."""

    same_rows: bool
    same_class: float
    """Share of the images with the same class."""
    same_box: float
    """Share of the images whose boxes have an IoU of 0.9 or more."""

    @property
    def counts(self) -> bool:
        """Whether figures of a contender that agrees so much may be shown."""
        return self.same_rows and min(self.same_class, self.same_box) >= LEAST_SHARE


def reference(folder: Path, model: str) -> Answers:
    """What the network says of each image of a folder."""
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
    return _answers(pa.concat_tables(parts).to_pylist())


def read_rows(folder: Path) -> Answers:
    """What a script has written."""
    return _answers(pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).to_pylist())


def read_table(folder: Path) -> Answers:
    """What `locray label` has written."""
    names = [schema.IMAGE_URI, schema.DETECTIONS]
    rows = DeltaTable(str(folder)).to_pyarrow_table(columns=names).to_pylist()
    return _answers([{schema.IMAGE_URI: row[schema.IMAGE_URI], **_best(row[schema.DETECTIONS])} for row in rows])


def _best(detections: list[dict[str, Any]] | None) -> dict[str, Any]:
    return detections[0] if detections else {schema.LABEL_ID: NOTHING_FOUND} | dict.fromkeys(BOX, 0.0)


def _answers(rows: list[dict[str, Any]]) -> Answers:
    names = [unquote(row[schema.IMAGE_URI]).rsplit("/", 1)[-1] for row in rows]
    return Answers(
        {name: int(row[schema.LABEL_ID]) for name, row in zip(names, rows, strict=True)},
        {name: np.array([row[edge] for edge in BOX], float) for name, row in zip(names, rows, strict=True)},
    )


def compare(found: Answers, wanted: Answers) -> Agreement:
    """How far answers agree with the reference. An image that is missing agrees in nothing."""
    names = list(wanted.label_ids)
    classes = [found.label_ids.get(name) == wanted.label_ids[name] for name in names]
    boxes = [name in found.label_ids and _same_box(found, wanted, name) for name in names]
    same_rows = found.label_ids.keys() == wanted.label_ids.keys()
    return Agreement(same_rows, float(np.mean(classes)), float(np.mean(boxes)))


def _same_box(found: Answers, wanted: Answers, name: str) -> bool:
    if wanted.label_ids[name] == NOTHING_FOUND:
        return found.label_ids[name] == NOTHING_FOUND
    a, b = found.boxes_xyxy_px[name], wanted.boxes_xyxy_px[name]
    corners = np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])
    common = float(areas(corners))
    union = float(areas(a)) + float(areas(b)) - common
    return union > 0 and common / union >= LEAST_IOU
