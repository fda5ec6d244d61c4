"""Formats of images, recognised by content.

A new format is one line in `FORMATS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from locray.images.exif import first_ifd

JPEG = "jpeg"
PNG = "png"
GIF = "gif"
TIFF = "tiff"

_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_TIFF_DATA_TAGS = ((273, 279), (324, 325))
"""Tags of offsets and byte counts, of strips and of tiles."""


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """One format.

    Attributes:
        pillow_class: Reads it. Used instead of `Image.open`, which tries other formats, too, and raises or warns about
            large images before their size is known.
        matches: Whether a file has this format.
        ends_early: Whether a broken file is cut off, for formats whose Pillow class doesn't always say so.
    """

    pillow_class: type[ImageFile]
    matches: Callable[[bytes], bool]
    ends_early: Callable[[bytes], bool] = lambda _: False


def sniff_format(data: bytes) -> str | None:
    """The name in `FORMATS` of the format of a file; None if it is none of them."""
    return next((name for name, image_format in FORMATS.items() if image_format.matches(data)), None)


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _is_bmp(data: bytes) -> bool:
    """`BM` alone is too weak: any text may begin with it."""
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES


def _is_avif(data: bytes) -> bool:
    """An ISO media file with an AVIF brand: HEIC uses the same container."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), len(data))
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    return not _AVIF_BRANDS.isdisjoint(brands)


def _jpeg_ends_early(data: bytes) -> bool:
    """Whether there is no end-of-image marker in the second half: the first may hold that of a thumbnail."""
    return data.find(b"\xff\xd9", len(data) // 2) < 0


def _webp_ends_early(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") > len(data)


def _tiff_ends_early(data: bytes) -> bool:
    """Whether the first directory, or the pixels that it points to, lie beyond the end."""
    tags = first_ifd(data)
    parts = [
        offset + count
        for offsets, counts in _TIFF_DATA_TAGS
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
    ]
    return max(parts, default=math.inf) > len(data)


def _avif_ends_early(data: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 0:
            return False  # by the standard, this box extends to the end of the file
        at += max(length, 8)
    return at != len(data)


FORMATS: dict[str, ImageFormat] = {
    JPEG: ImageFormat(JpegImageFile, lambda data: data.startswith(b"\xff\xd8\xff"), _jpeg_ends_early),
    PNG: ImageFormat(PngImageFile, lambda data: data.startswith(b"\x89PNG\r\n\x1a\n")),
    "webp": ImageFormat(WebPImageFile, _is_webp, _webp_ends_early),
    GIF: ImageFormat(GifImageFile, lambda data: data.startswith((b"GIF87a", b"GIF89a"))),
    "bmp": ImageFormat(BmpImageFile, _is_bmp),
    TIFF: ImageFormat(
        TiffImageFile, lambda data: data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")), _tiff_ends_early
    ),
    "avif": ImageFormat(AvifImageFile, _is_avif, _avif_ends_early),
}
"""The formats that can be labelled. `jpeg` includes MPO, the multi-picture JPEG of phones: its first picture."""
