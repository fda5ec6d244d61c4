"""Files that no picture can be had from, each broken in its own way. Called by `locray.demo.images`."""

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
class Broken:
    """A way to be broken: its bytes, the ending of the file's name, and what a labelling run has to call it."""

    make: Callable[[np.random.Generator], bytes]
    ending: str
    code: ErrorCode


def _cut_jpeg(rng: np.random.Generator) -> bytes:
    """An upload that stopped."""
    whole = _noise(rng, "JPEG")
    return whole[: int(len(whole) * rng.uniform(0.3, 0.8))]


def _web_page(rng: np.random.Generator) -> bytes:
    """What a download saves when it should have failed."""
    return _PAGE.format(number=rng.integers(1_000_000)).encode()


def _random_bytes(rng: np.random.Generator) -> bytes:
    return b"\0" + rng.bytes(int(rng.integers(500, 5000)))


def _damaged_png(rng: np.random.Generator) -> bytes:
    """A PNG whose compressed pixels were overwritten, every length still right."""
    data = bytearray(_noise(rng, "PNG"))
    pixels = data.index(b"IDAT") + 4
    data[pixels : pixels + 64] = bytes(64)
    return bytes(data)


def _ppm(rng: np.random.Generator) -> bytes:
    """A sound picture in a format that is not labelled."""
    return _noise(rng, "PPM")


def _bomb(_: np.random.Generator) -> bytes:
    """A PNG of some bytes that claims 900 million pixels."""
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
    Broken(lambda _: b"", "jpg", ErrorCode.EMPTY_FILE),
    Broken(_cut_jpeg, "jpg", ErrorCode.TRUNCATED),
    Broken(_web_page, "jpg", ErrorCode.UNSUPPORTED_FORMAT),
    Broken(_damaged_png, "png", ErrorCode.CORRUPT),
    Broken(_bomb, "png", ErrorCode.TOO_MANY_PIXELS),
    Broken(_random_bytes, "jpg", ErrorCode.UNSUPPORTED_FORMAT),
    Broken(_ppm, "jpg", ErrorCode.UNSUPPORTED_FORMAT),
)
"""Every way, with the code that it leads to."""
