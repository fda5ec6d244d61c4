"""PNG files beyond Pillow: transparent colours at every depth, and metadata that never costs a picture."""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from locray.images.colour import ALPHA_BACKGROUND_RGB

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TEXT_EXIF = "Raw profile type exif"
_GREY, _RGB = 0, 2
_DEPTH_AT, _COLOUR_TYPE_AT = 24, 25
"""Positions in the file, whose first chunk is the header."""
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def with_pixel_chunks_only(data: bytes) -> bytes | None:
    """The file without chunks that no pixel needs, but for its EXIF; None if that changes nothing."""
    parts, is_changed = [SIGNATURE], False
    for name, start, end in _chunks(data):
        if name in _PIXEL_CHUNKS or (name == b"eXIf" and _is_sound(data, start, end)):
            parts.append(data[start:end])
        else:
            is_changed = True
    return b"".join(parts) if is_changed else None


def scale_transparent_colour(image: Image.Image, data: bytes) -> None:
    """Brings the transparent colour of a loaded grey image from the depth of the file to the 8 bits of Pillow's."""
    key = image.info.get("transparency")
    depth = data[_DEPTH_AT]
    if image.mode == "L" and isinstance(key, int) and depth < 8:  # noqa: PLR2004
        image.info["transparency"] = key * 255 // (2**depth - 1)


def decode_16_bit_keyed(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """The RGB pixels (H, W, 3) of a loaded 16-bit image with a transparent colour; None if it is another.

    Pillow keeps 8 of the 16 bits of a colour, which can't tell the transparent one from its neighbours.
    """
    key = image.info.get("transparency")
    if key is None or data[_DEPTH_AT] != 16 or data[_COLOUR_TYPE_AT] not in (_GREY, _RGB):  # noqa: PLR2004
        return None
    import imagecodecs  # here, since hardly any bucket holds such a file

    values: NDArray[np.uint16] = imagecodecs.png_decode(data)
    values = values.reshape(*values.shape[:2], -1)
    num_colours = 1 if data[_COLOUR_TYPE_AT] == _GREY else 3
    colours = values[..., :num_colours]
    is_key = (colours == np.atleast_1d(key)).all(axis=2)
    rgb = np.rint(np.broadcast_to(colours, (*is_key.shape, 3)) / 257).astype(np.uint8)
    rgb[is_key] = ALPHA_BACKGROUND_RGB
    return rgb


def exif_in_text(image: Image.Image) -> bytes:
    """EXIF as ImageMagick stored it before PNG had a chunk for it; empty without any.

    The text is a line break, type, length, and hexadecimal digits.
    """
    try:
        return bytes.fromhex("".join(str(image.info.get(_TEXT_EXIF, "")).split("\n")[3:]))
    except ValueError:
        return b""


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk, with its length and checksum; the last may end beyond the data."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def _is_sound(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
