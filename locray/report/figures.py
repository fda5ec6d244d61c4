"""Pictures with boxes as figures of a page: a thumbnail and vector boxes over it. Called by the pages."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_SIDE_PX = 360
_HUES = 360
_GOLDEN_ANGLE = 137.5
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Box:
    """An object of a picture.

    Attributes:
        label: Its class.
        score: Of a prediction; None for an annotation.
        xyxy_px: Corners in pixels of the picture that it lies on; None where the class alone is known.
        dashed: How it is drawn, to tell two kinds of boxes apart.
    """

    label: str
    score: float | None
    xyxy_px: tuple[float, float, float, float] | None
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright image with its objects. `image_hwc_u8` is (height, width, 3); the boxes are in its pixels."""

    name: str
    image_hwc_u8: NDArray[np.uint8]
    boxes: tuple[Box, ...]


def hues(labels: Iterable[str]) -> dict[str, int]:
    """A colour for each label, in degrees of the colour circle, neighbours far apart."""
    return {label: round(index * _GOLDEN_ANGLE) % _HUES for index, label in enumerate(sorted(set(labels)))}


def hues_of(pictures: Iterable[Picture]) -> dict[str, int]:
    """A colour for each label that the pictures show."""
    return hues(box.label for picture in pictures for box in picture.boxes)


def figure(picture: Picture, hue_of_label: Mapping[str, int], side_px: int = THUMBNAIL_SIDE_PX) -> dict[str, Any]:
    """What the macro `figure` of `parts.html` draws.

    Args:
        picture: The image and its boxes.
        hue_of_label: From `hues`, for every label of the picture.
        side_px: The thumbnail is at most so wide and high.

    Returns:
        `name`; `data`, the thumbnail as base64 of a JPEG; `width` and `height` of the full picture; `boxes` in its
        pixels, which SVG scales; `captions`, a line for each object that has a score and one for each other label.
    """
    height, width = picture.image_hwc_u8.shape[:2]
    thumbnail = Image.fromarray(picture.image_hwc_u8)
    thumbnail.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return {
        "name": picture.name,
        "data": base64.b64encode(buffer.getvalue()).decode(),
        "width": width,
        "height": height,
        "boxes": [_rectangle(box, box.xyxy_px, hue_of_label) for box in picture.boxes if box.xyxy_px is not None],
        "captions": _captions(picture.boxes, hue_of_label),
    }


def _rectangle(box: Box, xyxy_px: tuple[float, float, float, float], hue_of_label: Mapping[str, int]) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = xyxy_px
    return {
        "label": box.label,
        "hue": hue_of_label[box.label],
        "dashed": box.dashed,
        "x": round(xmin, 1),
        "y": round(ymin, 1),
        "width": round(xmax - xmin, 1),
        "height": round(ymax - ymin, 1),
    }


def _captions(boxes: Iterable[Box], hue_of_label: Mapping[str, int]) -> list[dict[str, Any]]:
    counts = Counter((box.label, box.dashed) for box in boxes if box.score is None)
    annotated = [
        {"label": label, "hue": hue_of_label[label], "dashed": dashed, "note": f"x {count}" if count > 1 else ""}
        for (label, dashed), count in counts.items()
    ]
    scored = [
        {"label": box.label, "hue": hue_of_label[box.label], "dashed": box.dashed, "note": f"{box.score:.2f}"}
        for box in boxes
        if box.score is not None
    ]
    return annotated + scored
