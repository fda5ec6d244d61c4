"""TIFF samples of every kind beside the values that were written."""

import io
import struct

import numpy as np
import pytest
import tifffile

from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image

LIMITS = DecodeLimits(max_bytes=10**7, max_pixels=10**6)
HEIGHT, WIDTH = 16, 32
UNIT = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
"""Brightness of each pixel, 0 to 1."""
RGB = np.stack([UNIT, UNIT[::-1], UNIT[:, ::-1]], axis=2)


def written(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def levels(unit: np.ndarray, dtype: str, bits: int | None = None) -> np.ndarray:
    """Samples of a type whose range stands for 0 to 1."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return unit.astype(kind)
    bits = bits or 8 * kind.itemsize
    low = -(2 ** (bits - 1)) if kind.kind == "i" else 0
    return (np.rint(unit * (2**bits - 1)) + low).astype(kind)


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data, LIMITS)
    assert isinstance(image, DecodedImage), image
    assert image.image_hwc_u8.flags.c_contiguous
    assert image.image_hwc_u8.flags.writeable  # torch, which resizes it, accepts no other
    return image.image_hwc_u8


def check(data: bytes, expected_unit: np.ndarray, tolerance: float = 1.01) -> None:
    expected = expected_unit[..., None] if expected_unit.ndim == 2 else expected_unit
    assert np.abs(pixels(data) - expected * 255).max() <= tolerance


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16", "float32", "float64"])
def test_grey_of_every_type(photometric: str, dtype: str) -> None:
    check(written(levels(UNIT, dtype), photometric=photometric), UNIT if photometric == "minisblack" else 1 - UNIT)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_grey_of_every_number_of_bits(photometric: str, bits: int) -> None:
    samples = levels(UNIT, "uint8" if bits < 8 else "uint16", bits)
    data = written(samples, photometric=photometric, bitspersample=bits)
    unit = samples / (2**bits - 1)
    check(data, unit if photometric == "minisblack" else 1 - unit)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
def test_colour_of_every_type(dtype: str, planarconfig: str, byteorder: str) -> None:
    samples = levels(RGB, dtype)
    samples = samples if planarconfig == "contig" else np.moveaxis(samples, 2, 0)
    check(written(samples, photometric="rgb", planarconfig=planarconfig, byteorder=byteorder), RGB)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_is_composited_over_white(dtype: str, kind: str) -> None:
    alpha = UNIT[::-1, ::-1, None]
    over_white = RGB * alpha + 1 - alpha
    stored = RGB * alpha if kind == "assocalpha" else RGB
    data = written(levels(np.dstack([stored, alpha]), dtype), photometric="rgb", extrasamples=[kind])
    # In 8 bits, a colour multiplied by its alpha has lost digits.
    check(data, RGB if kind == "unspecified" else over_white, tolerance=2.01)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_with_alpha(dtype: str) -> None:
    alpha = UNIT[::-1]
    samples = levels(np.dstack([UNIT, alpha]), dtype)
    data = written(samples, extrasamples=["unassalpha"], planarconfig="contig")
    check(data, UNIT * alpha + 1 - alpha, tolerance=2.01)


@pytest.mark.parametrize("full", [255, 65535])
def test_palettes_with_entries_of_8_and_of_16_bits(full: int) -> None:
    palette = np.rint(np.random.default_rng(0).random((3, 256)) * full).astype(np.uint16)
    samples = (np.arange(HEIGHT * WIDTH) % 256).astype(np.uint8).reshape(HEIGHT, WIDTH)
    # tifffile writes the entries as they are.
    check(written(samples, photometric="palette", colormap=palette), np.moveaxis(palette[:, samples], 0, 2) / full)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_inks(dtype: str) -> None:
    inks = np.dstack([RGB, UNIT / 2])
    check(written(levels(inks, dtype), photometric="separated"), (1 - RGB) * (1 - UNIT[..., None] / 2), tolerance=2.01)


@pytest.mark.parametrize("bits", [8, 16])
def test_cielab(bits: int) -> None:
    """Mid-grey, and the red of sRGB: L 53.2, a 80.1, b 67.2 (D65; D50 differs by a few levels)."""
    lab = np.zeros((HEIGHT, WIDTH, 3))
    lab[:, : WIDTH // 2] = (53.585, 0, 0)
    lab[:, WIDTH // 2 :] = (54.29, 80.81, 69.89)
    scale = 2 ** (bits - 8)
    stored = np.dstack([lab[..., 0] / 100 * (2**bits - 1), lab[..., 1] * scale, lab[..., 2] * scale])
    samples = np.rint(stored).astype(np.int64).astype(f"uint{bits}")
    found = pixels(written(samples, photometric="cielab")).astype(int)
    assert np.abs(found[0, 0] - 128).max() <= 3
    assert np.abs(found[0, -1] - (255, 0, 0)).max() <= 10


def ycbcr(subsampling: int) -> bytes:
    """An uncompressed red picture in 8-bit YCbCr."""
    block = bytes([76] * subsampling**2 + [85, 255])
    body = block * (WIDTH // subsampling * (HEIGHT // subsampling))
    start = 8 + len(body)
    entries = [
        (256, 3, 1, WIDTH),
        (257, 3, 1, HEIGHT),
        (258, 3, 3, start + 2 + 12 * 10 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 6),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, HEIGHT),
        (279, 4, 1, len(body)),
        (530, 3, 2, subsampling | subsampling << 16),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", start) + body + directory + struct.pack("<IHHH", 0, 8, 8, 8)


@pytest.mark.parametrize("subsampling", [1, 2, 4])
def test_uncompressed_ycbcr_of_any_subsampling(subsampling: int) -> None:
    assert np.abs(pixels(ycbcr(subsampling)).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "lzma", "webp", "jpegxl"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_compressions(compression: str, dtype: str) -> None:
    if (compression, dtype) == ("webp", "uint16"):
        return
    arguments = {"lossless": True} if compression in ("webp", "jpegxl") else None
    check(written(levels(RGB, dtype), photometric="rgb", compression=compression, compressionargs=arguments), RGB)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_tiles_predictors_and_bigtiff(dtype: str) -> None:
    predictor = 3 if dtype == "float32" else 2
    samples, options = levels(UNIT, dtype), {"tile": (16, 16), "compression": "zlib", "predictor": predictor}
    check(written(samples, **options), UNIT)
    check(written(samples, **options, bigtiff=True), UNIT)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_orientations(orientation: int, dtype: str) -> None:
    from locray.images.exif import to_upright

    data = written(levels(RGB, dtype), photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    upright = to_upright(np.rint(RGB * 255).astype(np.uint8), orientation)
    assert np.abs(pixels(data).astype(int) - upright).max() <= 1


def test_integers_of_32_bits() -> None:
    """In the range of 16 bits they are taken so. Beyond it, unsigned ones have no known white."""
    check(written(levels(UNIT, "uint16").astype(np.uint32)), UNIT)
    image = decode_image(written(levels(UNIT, "uint32")), LIMITS)
    assert isinstance(image, ImageFailure)
    assert image.code is ErrorCode.UNSUPPORTED_FORMAT
    assert "unsigned samples of 32 bits: it is not known which sample is white" in image.message
    assert (image.width_px, image.height_px) == (WIDTH, HEIGHT)
    check(written(levels(UNIT, "int32")), UNIT)  # from the lowest to the highest


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (written(np.zeros((8, 8), np.complex64)), "complex"),
        (written(np.zeros((8, 8), np.uint16), photometric="cfa"), "colour filter array"),
        (written(np.zeros((8, 8, 5), np.uint8), photometric="separated", extratags=[(332, 3, 1, 2, True)]), "inks"),
    ],
    ids=["complex", "cfa", "inks"],
)
def test_samples_without_a_known_meaning_are_unsupported(data: bytes, told: str) -> None:
    image = decode_image(data, LIMITS)
    assert isinstance(image, ImageFailure)
    assert image.code is ErrorCode.UNSUPPORTED_FORMAT
    assert told in image.message


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_file_that_was_cut_off_is_truncated(dtype: str, compression: str | None) -> None:
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH, 3))
    data = written(levels(noise, dtype), photometric="rgb", compression=compression)
    for share in (0.9, 0.5):
        image = decode_image(data[: int(len(data) * share)], LIMITS)
        assert isinstance(image, ImageFailure)
        assert image.code is ErrorCode.TRUNCATED, image


def test_too_many_pixels() -> None:
    image = decode_image(written(np.zeros((2000, 600), np.int8)), LIMITS)
    assert isinstance(image, ImageFailure)
    assert image.code is ErrorCode.TOO_MANY_PIXELS
