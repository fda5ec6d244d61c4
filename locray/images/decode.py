"""From the bytes of one image to an upright RGB array, or to the reason why not. Called by the decode stage.

JPEG, the bulk of every bucket, goes through simplejpeg (libjpeg-turbo). It is asked to be strict, so whatever it lets
pass is sound; what it refuses (odd sampling, CMYK, stray bytes between markers, cut files) goes to Pillow, which has
the last word: an image is good if Pillow decodes it. Everything here may run in many threads at once.
"""

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from locray.errors import ErrorCode
from locray.images.colour import to_rgb
from locray.images.exif import (
    UPRIGHT,
    orientation_of_exif,
    orientation_of_jpeg,
    swaps_sides,
    to_upright,
)
from locray.images.sniff import FORMATS, JPEG, TIFF, sniff_format

if TYPE_CHECKING:
    # The process that decodes a single image starts quicker without pydantic.
    from locray.config import ImageLimits

_SCALE_FACTORS = (8, 4, 2)
"""The reductions that a JPEG decoder does by taking fewer DCT coefficients."""

_LARGEST_GPU_JPEG_BYTES = 8 * 2**20
"""Files are passed on whole, a unit of them at once."""
_GPU_JPEG_COLOURS = frozenset({"YCbCr", "Gray"})
_MARKER_BASELINE = 0xC0

_PNG_TEXT_EXIF = "Raw profile type exif"

_FAST_JPEG_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})

_LARGEST_SIDE_PX = 2**31 - 1
"""What a table's column holds. A broken header may declare more: then the size counts as unknown."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Files and images above these sizes are refused before they are decoded."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def of(cls, config: "ImageLimits") -> Self:
        """The limits of a configuration (`--max-bytes`, `--max-pixels`)."""
        return cls(config.max_bytes, config.max_pixels)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright RGB picture.

    Attributes:
        image_hwc_u8: (H, W, 3) uint8, contiguous. A JPEG may have been decoded at 1/2, 1/4 or 1/8 of its size.
        width_px: The upright picture's full width, whatever the scale of `image_hwc_u8`.
        height_px: Its full height.
        format: A name of `sniff.FORMATS`.
        orientation: EXIF's, 1 to 8, as the file has it: how the stored picture was turned to become upright.
    """

    image_hwc_u8: NDArray[np.uint8]
    width_px: int
    height_px: int
    format: str
    orientation: int


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why there is no picture; format and upright size as far as they were known."""

    code: ErrorCode
    message: str
    format: str | None = None
    width_px: int | None = None
    height_px: int | None = None


def decode_image(
    data: bytes, limits: DecodeLimits, *, min_longer_side_px: int | None = None
) -> DecodedImage | ImageFailure:
    """Decode one image of any format in `sniff.FORMATS`. Raises nothing, whatever the bytes are.

    Args:
        data: The whole file.
        limits: Checked before any pixel is decoded.
        min_longer_side_px: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its longer
            side keeps at least this many pixels and its shorter one any. If None, every image comes at full size.
    """
    if not data:
        return ImageFailure(ErrorCode.EMPTY_FILE, "the file has no bytes")
    if len(data) > limits.max_bytes:
        message = f"{len(data)} bytes, more than the limit of {limits.max_bytes}"
        return ImageFailure(ErrorCode.TOO_MANY_BYTES, message)
    name = sniff_format(data)
    if name is None:
        message = f"not one of {', '.join(FORMATS)}: begins with {data[:8].hex(' ')}"
        return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, message)
    try:
        fast = _decode_fast_jpeg(data, limits, min_longer_side_px) if name == JPEG else None
        return fast or _decode_with_pillow(data, name, limits, min_longer_side_px)
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise nearly every type there is on broken data
        return _failure(error, data, name)


def _decode_fast_jpeg(
    data: bytes, limits: DecodeLimits, min_longer_side_px: int | None
) -> DecodedImage | ImageFailure | None:
    """The common JPEG; None for one that is left to Pillow."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if colours not in _FAST_JPEG_COLOURS:
            return None
        orientation = orientation_of_jpeg(data)
        if width * height > limits.max_pixels:
            return _too_many_pixels(JPEG, *_upright_size(width, height, orientation), limits)
        factor = scale_factor(width, height, min_longer_side_px)
        image = simplejpeg.decode_jpeg(
            data, "RGB", min_factor=factor, min_width=-(-width // factor), min_height=-(-height // factor), strict=True
        )
    except ValueError:
        return None
    width, height = _upright_size(width, height, orientation)
    return DecodedImage(to_upright(image, orientation), width, height, JPEG, orientation)


def _decode_with_pillow(
    data: bytes, name: str, limits: DecodeLimits, min_longer_side_px: int | None
) -> DecodedImage | ImageFailure:
    _ignore_pillow_warnings()
    with FORMATS[name].pillow_class(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            upright_size = _upright_size(width, height, _orientation(image, data, name))
            return _too_many_pixels(name, *upright_size, limits)
        factor = scale_factor(width, height, min_longer_side_px)
        if factor > 1:
            image.draft(None, (width // factor, height // factor))  # does nothing for formats that can't
        image.load()
        orientation = _orientation(image, data, name)
        rgb = to_rgb(image)
        width, height = _upright_size(width, height, orientation)
        if rgb is None:
            message = f"colour mode {image.mode} is not supported"
            return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, message, name, width, height)
        applied = orientation_of_exif(data) if name == TIFF else orientation
        return DecodedImage(to_upright(np.array(rgb), orientation), width, height, name, applied)


def _orientation(image: ImageFile, data: bytes, name: str) -> int:
    """The orientation that is still to be applied to a loaded image."""
    if name == JPEG:
        return orientation_of_jpeg(data)
    if name == TIFF:
        return UPRIGHT  # Pillow turns TIFF itself, and gives the upright size from the start
    exif = image.info.get("exif", b"")
    if not exif and _PNG_TEXT_EXIF in image.info:
        exif = _exif_of_png_text(str(image.info[_PNG_TEXT_EXIF]))
    return orientation_of_exif(exif)


def _exif_of_png_text(text: str) -> bytes:
    """ImageMagick's way from before PNG had a chunk for EXIF: a line break, the kind, the length, hex digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def scale_factor(width: int, height: int, min_longer_side_px: int | None) -> int:
    """By how much a JPEG is reduced while it is decoded: 8, 4, 2 or 1. Sides in pixels, as for `decode_image`."""
    if min_longer_side_px is None:
        return 1
    assert min_longer_side_px >= 1
    shorter, longer = sorted((width, height))
    fits = (factor for factor in _SCALE_FACTORS if longer // factor >= min_longer_side_px and shorter >= factor)
    return next(fits, 1)


def _upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if swaps_sides(orientation) else (width, height)


def _too_many_pixels(name: str, width: int, height: int, limits: DecodeLimits) -> ImageFailure:
    message = f"{width} x {height} pixels, more than the limit of {limits.max_pixels}"
    if max(width, height) > _LARGEST_SIDE_PX:
        return ImageFailure(ErrorCode.TOO_MANY_PIXELS, message, name)
    return ImageFailure(ErrorCode.TOO_MANY_PIXELS, message, name, width, height)


def _failure(error: Exception, data: bytes, name: str) -> ImageFailure:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageFailure(ErrorCode.TOO_MANY_PIXELS, message, name)
    if "truncated" in message.lower() or FORMATS[name].ends_early(data):
        return ImageFailure(ErrorCode.TRUNCATED, message, name)
    return ImageFailure(ErrorCode.CORRUPT, message, name)


_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""What `warnings.filterwarnings` makes of the call below."""


def _ignore_pillow_warnings() -> None:
    """Keep what Pillow's own lines have to say about odd files (TIFF tags above all) out of the logs.

    `warnings.catch_warnings` is not safe in threads, so the filter is set for the process, and set again where other
    code has put its own in front: were they errors there, sound images would fail.
    """
    if warnings.filters[:1] != [_PILLOW_FILTER]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
