"""Image files that are broken in different ways."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from locray.errors import ErrorCode

_BOMB_SIDE_PX = 30_000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PAGE = """<!DOCTYPE html>
<html><head><title>403 Forbidden</title></head>
<body><h1>Forbidden</h1><p>Your session has expired. Request {number}.</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class BrokenKind:
    """A kind of broken file.

    Attributes:
        make: Makes the bytes of a file.
        suffix: File name extension, without the dot.
        code: Error code that a labelling run must report.
    """

    make: Callable[[np.random.Generator], bytes]
    suffix: str
    code: ErrorCode


def _truncated_jpeg(rng: np.random.Generator) -> bytes:
    """An interrupted upload."""
    data = _noise(rng, "JPEG")
    return data[: int(len(data) * rng.uniform(0.3, 0.8))]


def _web_page(rng: np.random.Generator) -> bytes:
    """An error page that was saved as an image."""
    return _PAGE.format(number=rng.integers(1_000_000)).encode()


def _random_bytes(rng: np.random.Generator) -> bytes:
    return b"\0" + rng.bytes(int(rng.integers(500, 5000)))


def _damaged_png(rng: np.random.Generator) -> bytes:
    """A PNG whose compressed pixels were overwritten, with correct lengths."""
    data = bytearray(_noise(rng, "PNG"))
    pixels = data.index(b"IDAT") + 4
    data[pixels : pixels + 64] = bytes(64)
    return bytes(data)


def _ppm(rng: np.random.Generator) -> bytes:
    """A valid image in an unsupported format."""
    return _noise(rng, "PPM")


def _bomb(_: np.random.Generator) -> bytes:
    """A small PNG that declares 900 million pixels."""
    header = struct.pack(">IIBBBBB", _BOMB_SIDE_PX, _BOMB_SIDE_PX, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _noise(rng: np.random.Generator, pillow_format: str) -> bytes:
    data = io.BytesIO()
    pixels = rng.integers(0, 256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, pillow_format)
    return data.getvalue()


BROKEN = (
    BrokenKind(lambda _: b"", "jpg", ErrorCode.EMPTY_FILE),
    BrokenKind(_truncated_jpeg, "jpg", ErrorCode.TRUNCATED),
    BrokenKind(_web_page, "jpg", ErrorCode.UNSUPPORTED_FORMAT),
    BrokenKind(_damaged_png, "png", ErrorCode.CORRUPT),
    BrokenKind(_bomb, "png", ErrorCode.TOO_MANY_PIXELS),
    BrokenKind(_random_bytes, "jpg", ErrorCode.UNSUPPORTED_FORMAT),
    BrokenKind(_ppm, "jpg", ErrorCode.UNSUPPORTED_FORMAT),
)
"""All kinds of broken files."""
