"""Conversion of every colour mode to 8-bit RGB.

ICC profiles are not applied, as the usual tools don't apply them to training images either.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ALPHA_BACKGROUND_RGB = (255, 255, 255)
"""Background of transparent pixels: white, as in annotation tools and browsers, so that the model sees what the
annotator saw."""

_MAX_U16 = 65535
_BYTES_OF_U16 = 2


def to_rgb(image: Image.Image) -> Image.Image | None:
    """Converts a loaded image to mode RGB; None if its mode is not in `CONVERTERS`."""
    convert = CONVERTERS.get(image.mode)
    return None if convert is None else convert(image)


def _convert(image: Image.Image) -> Image.Image:
    """Pillow's own conversion, for modes without transparency."""
    return image.convert("RGB")


def _convert_keyed(image: Image.Image) -> Image.Image:
    """For modes without an alpha channel in which a colour or palette entries may be transparent (PNG, GIF)."""
    return _composite(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")


def _composite(image: Image.Image) -> Image.Image:
    """Composites straight alpha over `ALPHA_BACKGROUND_RGB`."""
    background = Image.new("RGBA", image.size, (*ALPHA_BACKGROUND_RGB, 255))
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def _composite_premultiplied_grey(image: Image.Image) -> Image.Image:
    """Pillow converts La to LA only."""
    return _composite(image.convert("LA"))


def _scale_u16(image: Image.Image) -> Image.Image:
    """16-bit grey, scaled, not clipped: 65535 becomes 255."""
    return _grey_to_rgb(np.asarray(image), 0, _MAX_U16)


def _scale_wide(image: Image.Image) -> Image.Image:
    """32-bit grey."""
    values = np.asarray(image)
    low, high = unit_range(values)
    return _grey_to_rgb(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)


def unit_range(values: NDArray[Any]) -> tuple[float, float]:
    """Black and white of samples of 32 or more bits, whose writers rarely use the whole range.

    Integers: from 0 to 65535 if all lie there, as most writers intend. Floats: from 0 to 1 if all lie there. Else from
    the lowest to the highest finite one.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    usual = 1.0 if values.dtype.kind == "f" else float(_MAX_U16)
    return (0.0, usual) if low >= 0 and high <= usual else (low, high)


def _grey_to_rgb(values_hw: NDArray[Any], low: float, high: float) -> Image.Image:
    """Grey values from `low` (black) to `high` (white); all black if both are equal."""
    levels: NDArray[np.floating[Any]] = values_hw.astype(
        np.float32 if values_hw.dtype.itemsize <= _BYTES_OF_U16 else np.float64
    )
    levels -= low
    levels *= 255 / (high - low) if high > low else 0
    return Image.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")


CONVERTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "1": _convert_keyed,
    "L": _convert_keyed,
    "P": _convert_keyed,
    "RGB": _convert_keyed,
    "LA": _composite,
    "PA": _composite,
    "RGBA": _composite,
    "RGBa": _composite,
    "La": _composite_premultiplied_grey,
    "RGBX": _convert,
    "CMYK": _convert,
    "YCbCr": _convert,
    "LAB": _convert,
    "HSV": _convert,
    "I;16": _scale_u16,
    "I;16L": _scale_u16,
    "I;16B": _scale_u16,
    "I;16N": _scale_u16,
    "I": _scale_wide,
    "F": _scale_wide,
}
"""Converter of each Pillow mode.

- `1`, `L`, `P`, `RGB`: black and white, grey, palette, colour; transparent colours and palette entries become white.
- `LA`, `PA`, `RGBA`: with an alpha channel, composited over white. `La`, `RGBa`: the same, premultiplied.
- `RGBX`: the fourth byte is padding.
- `CMYK`: without a profile, R = (255 - C) * (255 - K) / 255 and so on. Adobe's JPEGs store it inverted, or as YCCK.
  Pillow's JPEG reader undoes both, so 0 is no ink in every format. It treats CMYK JPEGs without Adobe's marker as
  inverted, too.
- `YCbCr`: JPEG's full-range BT.601. `LAB`: D50, to sRGB. `HSV`: all three from 0 to 255.
- `I;16`, `I;16L`, `I;16B`, `I;16N`: 16-bit grey in both byte orders. `I`: 32-bit. `F`: float.
"""
