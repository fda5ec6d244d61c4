import io
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.sniff import FORMATS

LIMITS = DecodeLimits(max_bytes=5_000_000, max_pixels=1_000_000)
WIDTH, HEIGHT = 96, 64


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth noise: compressible, but not flat."""
    noise = np.random.default_rng(7).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


FILES = {name: saved(picture(), name.upper()) for name in FORMATS} | {
    "jpeg progressive": saved(picture(), "JPEG", progressive=True),
    "jpeg grey": saved(picture().convert("L"), "JPEG"),
    "jpeg CMYK": saved(picture().convert("CMYK"), "JPEG"),
    "png palette": saved(picture().convert("P"), "PNG"),
    "tiff deflate": saved(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": saved(picture(), "TIFF", compression="jpeg"),
    "big tiff": saved(picture(), "TIFF", big_tiff=True),
}


def failure_of(data: bytes, limits: DecodeLimits = LIMITS) -> ImageFailure:
    failure = decode_image(data, limits)
    assert isinstance(failure, ImageFailure)
    assert failure.message
    return failure


@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_those_of_pillow(name):
    image = decode_image(FILES[name], LIMITS)

    assert isinstance(image, DecodedImage), image
    with Image.open(io.BytesIO(FILES[name])) as by_pillow:
        assert np.array_equal(image.image_hwc_u8, np.asarray(by_pillow.convert("RGB")))
    assert (image.width_px, image.height_px) == (WIDTH, HEIGHT)
    assert image.format in FORMATS
    assert image.format in name
    assert image.image_hwc_u8.dtype == np.uint8
    assert image.image_hwc_u8.flags.c_contiguous
    assert image.image_hwc_u8.flags.writeable


def test_animations_give_their_first_frame_and_documents_their_first_page():
    others = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("lime", "blue")]
    first = Image.new("RGB", (WIDTH, HEIGHT), "red")
    for image_format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"):
        image = decode_image(saved(first, image_format, save_all=True, append_images=others), LIMITS)
        assert isinstance(image, DecodedImage), image_format
        assert np.abs(image.image_hwc_u8.astype(int) - (255, 0, 0)).max() <= 3, image_format


def test_no_bytes():
    assert failure_of(b"").code == ErrorCode.EMPTY_FILE


def test_too_many_bytes():
    data = FILES["png"]

    failure = failure_of(data, DecodeLimits(max_bytes=len(data) - 1, max_pixels=10**6))

    assert failure.code == ErrorCode.TOO_MANY_BYTES
    assert str(len(data)) in failure.message
    assert isinstance(decode_image(data, DecodeLimits(len(data), 10**6)), DecodedImage)


@pytest.mark.parametrize("name", FILES)
def test_too_many_pixels_are_refused_with_their_size(name):
    limit = WIDTH * HEIGHT

    failure = failure_of(FILES[name], DecodeLimits(max_bytes=10**6, max_pixels=limit - 1))

    assert failure.code == ErrorCode.TOO_MANY_PIXELS
    assert (failure.width_px, failure.height_px) == (WIDTH, HEIGHT)
    assert failure.format in name
    assert isinstance(decode_image(FILES[name], DecodeLimits(10**6, limit)), DecodedImage)


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = bytearray(FILES["png"])
    data[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    return bytes(data)


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(FILES["jpeg"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("data", [png_that_claims(60_000, 50_000), jpeg_that_claims(60_000, 50_000)])
def test_a_bomb_is_refused_by_its_header(data):
    failure = failure_of(data)

    assert failure.code == ErrorCode.TOO_MANY_PIXELS
    assert (failure.width_px, failure.height_px) == (60_000, 50_000)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_of_a_refused_image_is_that_of_the_upright_one(image_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), image_format, exif=exif)

    failure = failure_of(data, DecodeLimits(10**6, 100))

    expected = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
    assert (failure.width_px, failure.height_px) == expected


@pytest.mark.slow
def test_a_large_image_within_the_limit_is_decoded():
    side = 9_500  # 90 megapixels: more than Image.MAX_IMAGE_PIXELS
    data = saved(Image.new("1", (side, side)), "PNG")

    failure = failure_of(data, DecodeLimits(10**7, side * side - 1))
    assert (failure.code, failure.width_px) == (ErrorCode.TOO_MANY_PIXELS, side)
    image = decode_image(data, DecodeLimits(10**7, side * side))
    assert isinstance(image, DecodedImage)
    assert image.width_px == side


def test_other_formats_are_unsupported_whatever_they_contain():
    for image_format in ("PPM", "PCX", "TGA", "ICO", "DDS", "JPEG2000", "EPS"):
        assert failure_of(saved(picture(), image_format)).code == ErrorCode.UNSUPPORTED_FORMAT, image_format
    assert "3c 68 74 6d 6c" in failure_of(b"<html>no such image</html>").message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_off_is_truncated(name, share):
    data = FILES[name]
    failure = failure_of(data[: int(len(data) * share)])

    assert failure.code == ErrorCode.TRUNCATED, failure
    assert failure.format in name


def test_a_signature_alone_is_truncated():
    assert failure_of(FILES["png"][:8]).code == ErrorCode.TRUNCATED


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_jpeg_with_zeros_at_the_end_is_truncated(share):
    whole = FILES["jpeg"]
    kept = int(len(whole) * share)

    assert failure_of(whole[:kept] + bytes(len(whole) - kept)).code == ErrorCode.TRUNCATED


def test_a_jpeg_of_12_bits_is_unsupported():
    samples = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    failure = failure_of(imagecodecs.jpeg_encode(samples, bitspersample=12))
    assert (failure.code, failure.message) == (ErrorCode.UNSUPPORTED_FORMAT, "a JPEG of 12 bits per sample")


def test_a_complete_but_damaged_file_is_corrupt():
    png = bytearray(FILES["png"])
    png[60:80] = bytes(20)
    assert failure_of(bytes(png)).code == ErrorCode.CORRUPT

    jpeg = FILES["jpeg"]
    without_tables = jpeg.replace(b"\xff\xdb", b"\xff\xe5")
    assert failure_of(without_tables).code == ErrorCode.CORRUPT


def test_stray_bytes_that_pillow_ignores_change_nothing():
    jpeg = FILES["jpeg"]
    at = jpeg.index(b"\xff\xdb")
    expected = decode_image(jpeg, LIMITS)
    assert isinstance(expected, DecodedImage)

    for forgiven in (jpeg + b"\0\0some trailer", jpeg[:at] + b"\0\0\0" + jpeg[at:]):
        image = decode_image(forgiven, LIMITS)
        assert isinstance(image, DecodedImage), image
        assert np.array_equal(image.image_hwc_u8, expected.image_hwc_u8)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    min_longer_side_px=st.integers(1, 300),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_scaled_decoding_keeps_the_longer_side_and_the_proportion(width, height, min_longer_side_px, mode):
    data = saved(Image.new(mode, (width, height)), "JPEG")

    image = decode_image(data, LIMITS, min_longer_side_px=min_longer_side_px)

    assert isinstance(image, DecodedImage)
    assert (image.width_px, image.height_px) == (width, height)
    shapes = {factor: (-(-height // factor), -(-width // factor), 3) for factor in (1, 2, 4, 8)}
    allowed = [
        factor
        for factor in shapes
        if max(height, width) // factor >= min_longer_side_px and min(height, width) >= factor
    ]
    assert image.image_hwc_u8.shape == shapes[max(allowed, default=1)]


def test_a_scaled_decode_equals_the_full_one_made_smaller():
    data = saved(picture(512, 384), "JPEG", quality=95)
    full, scaled = decode_image(data, LIMITS), decode_image(data, LIMITS, min_longer_side_px=128)
    assert isinstance(full, DecodedImage)
    assert isinstance(scaled, DecodedImage)

    assert scaled.image_hwc_u8.shape == (96, 128, 3)
    expected = np.asarray(Image.fromarray(full.image_hwc_u8).reduce(4))
    assert np.abs(scaled.image_hwc_u8.astype(int) - expected).mean() < 3


def test_warnings_of_pillow_neither_fail_an_image_nor_leak():
    data = bytearray(saved(picture(), "TIFF", description="twenty characters long"))
    count_of_description = data.index(b"\x0e\x01\x02\0") + 4
    data[count_of_description + 2] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="larger than file"):
            Image.open(io.BytesIO(data))

        assert isinstance(decode_image(bytes(data), LIMITS), DecodedImage)


def check_outcome(data: bytes) -> None:
    outcome = decode_image(data, LIMITS, min_longer_side_px=16)
    if isinstance(outcome, DecodedImage):
        height, width, channels = outcome.image_hwc_u8.shape
        assert channels == 3
        assert 1 <= height <= outcome.height_px
        assert 1 <= width <= outcome.width_px
        assert outcome.width_px * outcome.height_px <= LIMITS.max_pixels
    else:
        assert isinstance(outcome, ImageFailure)
        assert outcome.message


NAMES = st.sampled_from(sorted(FILES))
POSITIONS = st.floats(min_value=0, max_value=1, exclude_max=True)


@settings(deadline=None)
@given(NAMES, POSITIONS)
def test_cut_files_never_raise(name, share):
    data = FILES[name]
    check_outcome(data[: int(len(data) * share)])


@settings(deadline=None, max_examples=300)
@given(NAMES, st.lists(st.tuples(POSITIONS, st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_damaged_files_never_raise(name, changes, in_header):
    data = bytearray(FILES[name])
    for share, byte in changes:
        data[int(min(len(data), 200 if in_header else len(data)) * share)] = byte
    check_outcome(bytes(data))


@settings(deadline=None)
@given(NAMES, POSITIONS, POSITIONS, st.binary(max_size=40))
def test_spliced_files_never_raise(name, one, other, inserted):
    data = FILES[name]
    start, end = sorted((int(len(data) * one), int(len(data) * other)))
    check_outcome(data[:start] + inserted + data[end:])


@given(st.binary(max_size=400))
def test_noise_never_raises(data):
    check_outcome(data)
