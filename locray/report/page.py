"""Parts of all pages: templates, and pictures with boxes. Pages are offline: one HTML file that refers to nothing else.

The template of a page extends `base.html`, which holds the style, and draws with the macros of `macros.html`.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_SIDE_PX = 360
_HUES = 360
_GOLDEN_ANGLE = 137.5
_JPEG_QUALITY = 85


def render_template(name: str, **values: Any) -> str:
    """Renders a template of this folder. All text is escaped; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("locray.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


@dataclass(frozen=True, slots=True)
class PictureBox:
    """An object of a picture.

    Attributes:
        label: Its class.
        score: Score of a prediction; None for an annotation.
        xyxy_px: Corners in pixels of the picture; None where only the class is known.
        dashed: Whether its outline is dashed, to tell annotations from predictions.
    """

    label: str
    score: float | None
    xyxy_px: tuple[float, float, float, float] | None
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright image (H, W, 3) uint8 and its objects, with boxes in its pixels."""

    name: str
    image_hwc_u8: NDArray[np.uint8]
    boxes: tuple[PictureBox, ...]


def hues(labels: Iterable[str]) -> dict[str, int]:
    """A hue per label, in degrees; neighbours in the alphabet are far apart."""
    return {label: round(index * _GOLDEN_ANGLE) % _HUES for index, label in enumerate(sorted(set(labels)))}


def hues_of(pictures: Iterable[Picture]) -> dict[str, int]:
    """A hue per label of the pictures."""
    return hues(box.label for picture in pictures for box in picture.boxes)


def picture_values(
    picture: Picture, hue_of_label: Mapping[str, int], side_px: int = THUMBNAIL_SIDE_PX
) -> dict[str, Any]:
    """Arguments of the macro `figure` of `macros.html`.

    Args:
        picture: The image and its boxes.
        hue_of_label: From `hues`, for every label of the picture.
        side_px: Largest width and height of the thumbnail.

    Returns:
        `name`; `data`, the thumbnail as base64 of a JPEG; `width` and `height` of the full picture; `boxes` in its
        pixels, which SVG scales; `captions`, one line per object with a score, and one per label of the others.
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
        "boxes": [_rectangle(box, hue_of_label) for box in picture.boxes if box.xyxy_px is not None],
        "captions": _captions(picture.boxes, hue_of_label),
    }


def _rectangle(box: PictureBox, hue_of_label: Mapping[str, int]) -> dict[str, Any]:
    assert box.xyxy_px is not None
    xmin, ymin, xmax, ymax = box.xyxy_px
    return {
        "label": box.label,
        "hue": hue_of_label[box.label],
        "dashed": box.dashed,
        "x": round(xmin, 1),
        "y": round(ymin, 1),
        "width": round(xmax - xmin, 1),
        "height": round(ymax - ymin, 1),
    }


def _captions(boxes: Iterable[PictureBox], hue_of_label: Mapping[str, int]) -> list[dict[str, Any]]:
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
