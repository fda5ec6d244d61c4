"""What format some bytes are, by their content and never by a name. Called by `decode`.

A new format is one line in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from locray.images.exif import first_ifd, jpeg_segments

JPEG = "jpeg"
TIFF = "tiff"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_TIFF_DATA_TAGS = ((273, 279), (324, 325))
"""Offsets and byte counts: of the strips, of the tiles."""


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """One format: the Pillow class that reads it, how its bytes are known, and how one sees that some are missing.

    The class is called instead of `Image.open`, which would try other formats too, and which raises or warns about
    large images before a caller can see their size.
    """

    pillow_class: type[ImageFile]
    matches: Callable[[bytes], bool]
    ends_early: Callable[[bytes], bool]
    """Whether the structure of the (broken) file points behind its end. May be False for a file cut in its pixels."""


def sniff_format(data: bytes) -> str | None:
    """The name of the format in `FORMATS` that the bytes are in; None for everything else."""
    return next((name for name, image_format in FORMATS.items() if image_format.matches(data)), None)


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _is_bmp(data: bytes) -> bool:
    """`BM` alone is too weak a sign: any text may begin with it."""
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES


def _is_avif(data: bytes) -> bool:
    """An ISO file that names AVIF among its brands: HEIC uses the same container."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), len(data))
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    return not _AVIF_BRANDS.isdisjoint(brands)


def _jpeg_ends_early(data: bytes) -> bool:
    """No end-of-image marker after the first scan's header. Thumbnails have their own, but they lie before it."""
    header_end = max((end for _, _, end in jpeg_segments(data)), default=len(data))
    return data.find(b"\xff\xd9", header_end) < 0


def _png_ends_early(data: bytes) -> bool:
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND" or not kind.isalpha():
            return False
        at += 12 + length
    return True


def _webp_ends_early(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") > len(data)


def _gif_ends_early(data: bytes) -> bool:
    return not data.rstrip(b"\0").endswith(b";")


def _bmp_ends_early(data: bytes) -> bool:
    return int.from_bytes(data[10:14], "little") > len(data)


def _tiff_ends_early(data: bytes) -> bool:
    """The first directory, or the pixels that it points to, lie behind the end."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
        directory = int.from_bytes(data[4:8], order)
        num_entries = int.from_bytes(data[directory : directory + 2], order)
        if directory + 2 + 12 * num_entries > len(data):
            return True
    tags = first_ifd(data)
    return any(
        offset + count > len(data)
        for offsets, counts in _TIFF_DATA_TAGS
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
    )


def _avif_ends_early(data: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 0:
            return False  # by the standard: this box reaches to the end of the file, wherever that is
        at += max(length, 8)
    return at != len(data)


FORMATS: dict[str, ImageFormat] = {
    JPEG: ImageFormat(JpegImageFile, lambda data: data.startswith(b"\xff\xd8\xff"), _jpeg_ends_early),
    "png": ImageFormat(PngImageFile, lambda data: data.startswith(_PNG_SIGNATURE), _png_ends_early),
    "webp": ImageFormat(WebPImageFile, _is_webp, _webp_ends_early),
    "gif": ImageFormat(GifImageFile, lambda data: data.startswith((b"GIF87a", b"GIF89a")), _gif_ends_early),
    "bmp": ImageFormat(BmpImageFile, _is_bmp, _bmp_ends_early),
    TIFF: ImageFormat(
        TiffImageFile, lambda data: data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")), _tiff_ends_early
    ),
    "avif": ImageFormat(AvifImageFile, _is_avif, _avif_ends_early),
}
"""The formats that can be labelled. `jpeg` also stands for MPO, the multi-picture JPEG of phones: its first picture."""
