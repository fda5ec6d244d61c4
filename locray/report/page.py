"""A page of labelled pictures: one offline HTML file. Called by the demo."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_SIDE_PX = 360
_HUES = 360
_GOLDEN_ANGLE = 137.5


@dataclass(frozen=True, slots=True)
class Box:
    """A drawn box: corners in pixels of the picture that it lies on, text above it."""

    label: str
    score: float
    xyxy_px: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright image with its boxes. `image_hwc_u8` is (height, width, 3); the boxes are in its pixels."""

    name: str
    image_hwc_u8: NDArray[np.uint8]
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without labels, and why."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows, from top to bottom."""

    title: str
    summary: str
    facts: Mapping[str, str]
    pictures: Sequence[Picture]
    failures: Sequence[Failure]
    query: str


def render(page: Page) -> str:
    """The page as HTML. It refers to nothing outside itself; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("locray.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    labels = sorted({box.label for picture in page.pictures for box in picture.boxes})
    hues = {label: round(index * _GOLDEN_ANGLE) % _HUES for index, label in enumerate(labels)}
    return environment.get_template("page.html").render(
        page=page, pictures=[_figure(picture, hues) for picture in page.pictures]
    )


def _figure(picture: Picture, hues: Mapping[str, int]) -> dict[str, Any]:
    """A thumbnail as a data URI, and its boxes in the pixels of the full picture (SVG scales them)."""
    height, width = picture.image_hwc_u8.shape[:2]
    thumbnail = Image.fromarray(picture.image_hwc_u8)
    thumbnail.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=85)
    boxes = [
        {
            "label": box.label,
            "score": f"{box.score:.2f}",
            "hue": hues[box.label],
            "x": round(box.xyxy_px[0], 1),
            "y": round(box.xyxy_px[1], 1),
            "width": round(box.xyxy_px[2] - box.xyxy_px[0], 1),
            "height": round(box.xyxy_px[3] - box.xyxy_px[1], 1),
        }
        for box in picture.boxes
    ]
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"name": picture.name, "width": width, "height": height, "boxes": boxes, "data": data}
