"""PNG files: transparent colours at every depth, and metadata that costs no picture."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image

LIMITS = DecodeLimits(max_bytes=10**8, max_pixels=10**6)
GREY, RGB, PALETTE = 0, 2, 3
WHITE = (255, 255, 255)


def chunk(name: bytes, body: bytes, *, broken: bool = False) -> bytes:
    checksum = zlib.crc32(name + body) ^ broken
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def png(depth: int, colour_type: int, rows: list[bytes], width: int, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def first_row(data: bytes) -> list[tuple[int, ...]]:
    image = decode_image(data, LIMITS)
    assert isinstance(image, DecodedImage), image
    return [tuple(map(int, pixel)) for pixel in image.image_hwc_u8[0]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_every_depth(depth: int) -> None:
    """Black, and the lightest grey but one, in turn transparent."""
    largest = 2**depth - 1
    levels = [0, largest - 1]
    packed = "".join(f"{level:0{depth}b}" for level in levels).ljust(8, "0")
    row = int(packed, 2).to_bytes(len(packed) // 8, "big")
    seen = [(round(level * 255 / largest),) * 3 for level in levels]
    for place, key in enumerate(levels):
        found = first_row(png(depth, GREY, [row], 2, chunk(b"tRNS", struct.pack(">H", key))))
        expected = [WHITE if level == key else colour for level, colour in zip(levels, seen, strict=True)]
        assert found == expected, place


def test_a_transparent_grey_of_16_bits_is_no_other_grey() -> None:
    row = struct.pack(">HHH", 0x1234, 0x1235, 0xFFFF)
    found = first_row(png(16, GREY, [row], 3, chunk(b"tRNS", struct.pack(">H", 0x1234))))
    assert found == [WHITE, (18, 18, 18), WHITE]


@pytest.mark.parametrize(("depth", "letter"), [(8, "B"), (16, "H")])
def test_a_transparent_colour_is_no_other_colour(depth: int, letter: str) -> None:
    colours = [(1, 2, 3), (1, 2, 4), (200, 100, 50)]
    if depth == 16:
        colours = [(0x0102, 0x0304, 0x0506), (0x0102, 0x0304, 0x0507), (0xC8C8, 0x6464, 0x3232)]
    row = b"".join(struct.pack(f">3{letter}", *colour) for colour in colours)
    found = first_row(png(depth, RGB, [row], 3, chunk(b"tRNS", struct.pack(">3H", *colours[0]))))
    full = 2**depth - 1
    assert found == [WHITE, *(tuple(round(value * 255 / full) for value in colour) for colour in colours[1:])]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_entries_of_a_palette(depth: int) -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    row = int("".join(f"{index:0{depth}b}" for index in (0, 1)).ljust(8, "0"), 2)
    data = png(depth, PALETTE, [row.to_bytes(max(1, depth // 4), "big")], 2, palette, chunk(b"tRNS", bytes([0, 255])))
    assert first_row(data) == [WHITE, (200, 100, 50)]


RED_ROW = bytes([255, 0, 0]) * 2
BOMB = zlib.compress(bytes(5_000_000))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"tEXt", b"Comment\0" + b"a" * 3_000_000),
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\7" + BOMB),
        *(
            chunk(name, b"anything", broken=True)
            for name in (b"tEXt", b"iCCP", b"gAMA", b"pHYs", b"eXIf", b"tIME", b"prIv")
        ),
        chunk(b"pHYs", b"short"),
        chunk(b"gAMA", b""),
        chunk(b"acTL", b"no"),
    ],
    ids=lambda data: data[4:8].decode(),
)
def test_metadata_costs_no_picture(metadata: bytes) -> None:
    assert first_row(png(8, RGB, [RED_ROW], 2, metadata)) == [(255, 0, 0)] * 2


def test_the_orientation_survives_damaged_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunks = chunk(b"tEXt", b"x", broken=True) + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    image = decode_image(png(8, RGB, [RED_ROW], 2, chunks), LIMITS)
    assert isinstance(image, DecodedImage)
    assert (image.orientation, image.width_px, image.height_px) == (6, 1, 2)


@pytest.mark.parametrize("name", [b"PLTE", b"IHDR", b"tRNS"])
def test_a_wrong_checksum_of_what_pixels_need_is_corrupt(name: bytes) -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    data = bytearray(png(8, PALETTE, [b"\0\1"], 2, palette, chunk(b"tRNS", bytes([0, 255]))))
    at = data.index(name)
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length] ^= 1
    image = decode_image(bytes(data), LIMITS)
    assert isinstance(image, ImageFailure)
    assert image.code in (ErrorCode.CORRUPT, ErrorCode.TRUNCATED)


def test_the_canvas_around_the_first_frame_of_a_gif_is_transparent() -> None:
    frame = Image.new("P", (4, 2), 1)
    frame.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    buffer = BytesIO()
    frame.save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", 6, 5)  # the canvas
    data[11] = 2  # the background colour: blue
    at = data.index(b",")
    data[at + 1 : at + 5] = struct.pack("<HH", 1, 2)  # the place of the frame
    image = decode_image(bytes(data), LIMITS)
    assert isinstance(image, DecodedImage)
    expected = np.full((5, 6, 3), 255)
    expected[2:4, 1:5] = (255, 0, 0)
    assert np.array_equal(image.image_hwc_u8, expected)
