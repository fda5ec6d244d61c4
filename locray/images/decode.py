"""Decoding of one image to an upright RGB array, or to an `ImageFailure`.

JPEGs are decoded by simplejpeg (libjpeg-turbo) in strict mode. Those it refuses (unusual sampling, CMYK, stray bytes
between markers, cut-off files) and all other formats are decoded by Pillow, and TIFF samples that Pillow misreads by
tifffile: an image is valid if one of them decodes it. Thread-safe.
"""

import io
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from locray.errors import ErrorCode
from locray.images import png, tiff
from locray.images.colour import ALPHA_BACKGROUND_RGB, to_rgb
from locray.images.exif import (
    UPRIGHT,
    bits_of_jpeg,
    orientation_of_exif,
    orientation_of_jpeg,
    swaps_sides,
    to_upright,
)
from locray.images.sniff import FORMATS, GIF, JPEG, PNG, TIFF, sniff_format
from locray.schema import MAX_SIDE_PX

if TYPE_CHECKING:
    # The process that decodes a single image starts quicker without pydantic.
    from locray.config import ImageLimits

_SCALE_FACTORS = (8, 4, 2)
"""Reductions that a JPEG decoder makes by using fewer DCT coefficients."""

_SIGNS_OF_A_CUT_FILE = ("truncated", "requires a buffer of")
"""Phrases in Pillow's messages; the second is from `struct`, about a header."""

_UNREAD_JPEG_BITS = frozenset({12, 16})
"""Sample precisions of the standard beside 8."""
_FAST_JPEG_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})


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
    """An upright RGB image.

    Attributes:
        image_hwc_u8: (H, W, 3) uint8, contiguous. A JPEG may have been decoded at 1/2, 1/4 or 1/8 of its size.
        width_px: Full width of the upright image, whatever the scale of `image_hwc_u8`.
        height_px: Full height of the upright image.
        format: A name in `sniff.FORMATS`.
        orientation: EXIF orientation of the file, 1 to 8, already applied.
    """

    image_hwc_u8: NDArray[np.uint8]
    width_px: int
    height_px: int
    format: str
    orientation: int


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why an image could not be decoded; its format and upright size if they are known."""

    code: ErrorCode
    message: str
    format: str | None = None
    width_px: int | None = None
    height_px: int | None = None


_Decoder = Callable[[bytes, DecodeLimits, int | None], DecodedImage | ImageFailure]
"""Takes the arguments of `decode_image`, and may raise."""


def decode_image(
    data: bytes, limits: DecodeLimits, *, min_longer_side_px: int | None = None
) -> DecodedImage | ImageFailure:
    """Decodes one image of any format in `sniff.FORMATS`. Never raises.

    Args:
        data: The whole file.
        limits: Checked before any pixel is decoded.
        min_longer_side_px: If given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its longer side keeps at least
            this many pixels and its shorter side at least one. If None, every image is decoded at full size.
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
        return _DECODERS[name](data, limits, min_longer_side_px)
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise nearly every type there is on broken data
        return _failure(error, data, name)


def _decode_fast_jpeg(
    data: bytes, limits: DecodeLimits, min_longer_side_px: int | None
) -> DecodedImage | ImageFailure | None:
    """Decodes with simplejpeg; None if it refuses the file."""
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


def _decode_jpeg(data: bytes, limits: DecodeLimits, min_longer_side_px: int | None) -> DecodedImage | ImageFailure:
    fast = _decode_fast_jpeg(data, limits, min_longer_side_px)
    return fast or _decode_with_pillow(data, JPEG, limits, min_longer_side_px)


def _decode_png(data: bytes, limits: DecodeLimits, _: int | None) -> DecodedImage | ImageFailure:
    try:
        return _decode_with_pillow(data, PNG, limits)
    except Exception:
        pixels_only = png.with_pixel_chunks_only(data)
        if pixels_only is not None:
            with suppress(Exception):
                return _decode_with_pillow(pixels_only, PNG, limits)
        raise


def _decode_tiff(data: bytes, limits: DecodeLimits, _: int | None) -> DecodedImage | ImageFailure:
    image = tiff.describe(data)
    if image is None or image.is_read_by_pillow:
        try:
            return _decode_with_pillow(data, TIFF, limits)
        except Exception:
            if image is None:
                raise
    width, height = _upright_size(image.width_px, image.height_px, image.orientation)
    if width * height > limits.max_pixels:
        return _too_many_pixels(TIFF, width, height, limits)
    if image.reason is not None:
        return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, f"{image}: {image.reason}", TIFF, width, height)
    try:
        rgb = tiff.read_rgb(data, image)
    except tiff.UnknownRangeError as error:
        return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, f"{image}: {error}", TIFF, width, height)
    return DecodedImage(to_upright(rgb, image.orientation), width, height, TIFF, image.orientation)


def _decode_with_pillow(
    data: bytes, name: str, limits: DecodeLimits, min_longer_side_px: int | None = None
) -> DecodedImage | ImageFailure:
    _ignore_pillow_warnings()
    with FORMATS[name].pillow_class(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            upright_size = _upright_size(width, height, _orientation(image, data, name))
            return _too_many_pixels(name, *upright_size, limits)
        factor = scale_factor(width, height, min_longer_side_px)
        if factor > 1:
            image.draft(None, (width // factor, height // factor))  # no effect on formats other than JPEG
        frame = image.tile[0].extents if name == GIF else None
        image.load()
        orientation = _orientation(image, data, name)
        rgb = _rgb_of(image, data, name)
        width, height = _upright_size(width, height, orientation)
        if rgb is None:
            message = f"colour mode {image.mode} is not supported"
            return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, message, name, width, height)
        if frame is not None:
            rgb = _only_frame(rgb, frame)
        applied = orientation_of_exif(data) if name == TIFF else orientation
        return DecodedImage(to_upright(rgb, orientation), width, height, name, applied)


def _rgb_of(image: ImageFile, data: bytes, name: str) -> NDArray[np.uint8] | None:
    """The pixels (H, W, 3) of a loaded image; None if its colour mode is not supported."""
    if name == PNG:
        keyed = png.decode_16_bit_keyed(image, data)
        if keyed is not None:
            return keyed
        png.scale_transparent_colour(image, data)
    rgb = to_rgb(image)
    return None if rgb is None else np.array(rgb)


def _only_frame(rgb: NDArray[np.uint8], frame: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The canvas of a GIF (H, W, 3), transparent where its first frame does not cover it."""
    left, top, right, bottom = frame
    if (left, top, bottom, right) == (0, 0, *rgb.shape[:2]):
        return rgb
    canvas = np.empty_like(rgb)
    canvas[:] = ALPHA_BACKGROUND_RGB
    canvas[top:bottom, left:right] = rgb[top:bottom, left:right]
    return canvas


def _orientation(image: ImageFile, data: bytes, name: str) -> int:
    """The orientation that still has to be applied to a loaded image."""
    if name == JPEG:
        return orientation_of_jpeg(data)
    if name == TIFF:
        return UPRIGHT  # Pillow applies that of a TIFF itself, and gives the upright size from the start
    return orientation_of_exif(image.info.get("exif") or png.exif_in_text(image))


def scale_factor(width: int, height: int, min_longer_side_px: int | None) -> int:
    """Factor by which a JPEG is reduced while it is decoded: 8, 4, 2 or 1. Arguments as for `decode_image`."""
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
    if max(width, height) > MAX_SIDE_PX:  # by a broken header
        return ImageFailure(ErrorCode.TOO_MANY_PIXELS, message, name)
    return ImageFailure(ErrorCode.TOO_MANY_PIXELS, message, name, width, height)


def _failure(error: Exception, data: bytes, name: str) -> ImageFailure:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageFailure(ErrorCode.TOO_MANY_PIXELS, message, name)
    if FORMATS[name].ends_early(data) or any(sign in message.lower() for sign in _SIGNS_OF_A_CUT_FILE):
        return ImageFailure(ErrorCode.TRUNCATED, message, name)
    if name == JPEG and bits_of_jpeg(data) in _UNREAD_JPEG_BITS:
        return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, f"a JPEG of {bits_of_jpeg(data)} bits per sample", name)
    return ImageFailure(ErrorCode.CORRUPT, message, name)


_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""The filter that `_ignore_pillow_warnings` adds."""


def _ignore_pillow_warnings() -> None:
    """Ignores Pillow's own warnings about unusual files, such as unknown TIFF tags.

    `warnings.catch_warnings` is not thread-safe, so the filter is set for the whole process, and again whenever other
    code has put its own first: if that turned warnings into errors, valid images would fail.
    """
    if warnings.filters[:1] != [_PILLOW_FILTER]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _decoder(name: str) -> _Decoder:
    own = {JPEG: _decode_jpeg, PNG: _decode_png, TIFF: _decode_tiff}
    return own.get(name) or (lambda data, limits, _: _decode_with_pillow(data, name, limits))


_DECODERS = {name: _decoder(name) for name in FORMATS}
