import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.exif import (
    boxes_in_upright_frame,
    boxes_to_upright,
    first_ifd,
    orientation_of_exif,
    orientation_of_jpeg,
    to_upright,
)
from tests.helpers.orientations import ALL, AS_STORED, ORIENTATION, exif_block, stored, upright_picture

LIMITS = DecodeLimits(max_bytes=50_000_000, max_pixels=64_000_000)


def decoded(data: bytes, **options) -> DecodedImage:
    image = decode_image(data, LIMITS, **options)
    assert isinstance(image, DecodedImage), image
    assert image.image_hwc_u8.flags.c_contiguous
    assert image.image_hwc_u8.flags.writeable
    return image


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_format_is_turned_upright(image_format, orientation):
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if image_format == "JPEG" else {}
    stored(orientation).save(buffer, image_format, exif=exif_block(orientation), **options)

    image = decoded(buffer.getvalue())

    assert (image.width_px, image.height_px) == (64, 32)
    assert image.image_hwc_u8.shape == (32, 64, 3)
    centres = image.image_hwc_u8[8::16, 16::32].astype(int)
    expected = np.asarray(upright_picture())[8::16, 16::32].astype(int)
    assert np.abs(centres - expected).max() < 40


@pytest.mark.parametrize("orientation", ALL)
def test_upright_arrays_are_exact(orientation):
    array = np.asarray(stored(orientation))

    assert np.array_equal(to_upright(array, orientation), np.asarray(upright_picture()))


@pytest.mark.parametrize("orientation", ALL)
def test_scaled_decoding_of_a_turned_jpeg_reports_the_full_upright_size(orientation):
    buffer = io.BytesIO()
    stored(orientation).save(buffer, "JPEG", exif=exif_block(orientation))

    image = decoded(buffer.getvalue(), min_longer_side_px=32)

    assert (image.width_px, image.height_px) == (64, 32)
    assert image.image_hwc_u8.shape == (16, 32, 3)


@pytest.mark.parametrize("shape", ["landscape", "portrait"])
def test_camera_files_of_all_orientations_show_the_same_picture(real_data, shape):
    files = [real_data / "exif/orientation" / f"{shape}_{number}.jpg" for number in ALL]
    images = [decoded(file.read_bytes()).image_hwc_u8.mean(axis=2) for file in files]

    assert {orientation_of_jpeg(file.read_bytes()) for file in files} == set(ALL)
    for one, other in itertools.combinations(images, 2):
        assert one.shape == other.shape
        # The shots differ in exposure: they correlate by 0.97, but by 0.5 at most if turned or mirrored wrongly.
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


def test_imagemagick_keeps_exif_in_a_png_text():
    turned = exif_block(3).tobytes()
    texts = PngInfo()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(turned):8}\n{turned.hex()}\n")
    broken = PngInfo()
    broken.add_text("Raw profile type exif", "\nexif\n8\nnot hex")
    files = [io.BytesIO(), io.BytesIO()]
    stored(3).save(files[0], "PNG", pnginfo=texts)
    upright_picture().save(files[1], "PNG", pnginfo=broken)

    for file in files:
        assert np.array_equal(decoded(file.getvalue()).image_hwc_u8, np.asarray(upright_picture()))


def test_camera_files_have_the_orientation_that_pillow_reads(real_data):
    files = sorted((real_data / "exif").rglob("*.jpg"))
    assert len(files) > 50
    for file in files:
        if file.parent.name == "invalid":
            continue
        with Image.open(file) as image:
            expected = image.getexif().get(ORIENTATION, 1)
        assert orientation_of_jpeg(file.read_bytes()) == (expected if expected in ALL else 1), file.name


def test_files_with_invalid_exif_are_decoded(real_data):
    files = sorted((real_data / "exif/invalid").glob("*.jpg"))
    assert files
    for file in files:
        image = decoded(file.read_bytes())
        with Image.open(file) as by_pillow:
            expected = ImageOps.exif_transpose(by_pillow)
        assert np.array_equal(image.image_hwc_u8, np.asarray(expected)), file.name


def jpeg_with_exif(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    upright_picture().save(buffer, "JPEG")
    segment = b"Exif\0\0" + exif
    return b"\xff\xd8\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + buffer.getvalue()[2:]


def test_an_orientation_is_read_in_both_byte_orders_and_as_any_integer():
    little_short = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    big_short = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    little_long = b"II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    signed = [little_short[:12] + bytes([kind]) + little_short[13:] for kind in (6, 8, 9)]
    for exif in (little_short, big_short, little_long, *signed):
        assert orientation_of_exif(exif) == 6
        assert decoded(jpeg_with_exif(exif)).image_hwc_u8.shape == (64, 32, 3)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_does_not_exist_counts_as_upright(value):
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([value, 0, 0, 0]) + b"\0\0\0\0"

    assert orientation_of_exif(exif) == 1
    assert decoded(jpeg_with_exif(exif)).image_hwc_u8.shape == (32, 64, 3)


TIFF_LIKE = st.builds(
    bytes.__add__, st.sampled_from([b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0"]), st.binary(max_size=80)
)


@given(TIFF_LIKE)
def test_invalid_exif_never_fails_an_image(exif):
    assert all(isinstance(value, int) for values in first_ifd(exif).values() for value in values)
    assert orientation_of_exif(exif) in ALL
    assert sorted(decoded(jpeg_with_exif(exif)).image_hwc_u8.shape[:2]) == [32, 64]


@given(st.binary(max_size=200))
def test_jpeg_segments_accept_any_bytes(data):
    assert orientation_of_jpeg(b"\xff\xd8" + data) in ALL


rectangles = st.tuples(st.integers(0, 20), st.integers(0, 11), st.integers(1, 20), st.integers(1, 11))


@given(st.sampled_from(ALL), rectangles)
def test_boxes_turn_with_their_pixels(orientation, rectangle):
    width, height = 21, 12
    left, top, right, bottom = rectangle[0], rectangle[1], rectangle[0] + rectangle[2], rectangle[1] + rectangle[3]
    right, bottom = min(right, width), min(bottom, height)
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[top:bottom, left:right] = 255

    box = boxes_to_upright(np.array([left, top, right, bottom], dtype=float), orientation, width, height)

    rows, columns = np.nonzero(to_upright(picture, orientation)[..., 0])
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("orientation", ALL)
def test_boxes_of_the_stored_image_where_the_frame_does_not_tell(orientation):
    upright = np.array([8.0, 4, 40, 30])
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    image[4:30, 8:40] = 255
    transpose = AS_STORED[orientation]
    laid_down = Image.fromarray(image) if transpose is None else Image.fromarray(image).transpose(transpose)
    rows, columns = np.nonzero(np.asarray(laid_down)[..., 0])
    as_stored = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)
    shares = as_stored / np.array([*laid_down.size, *laid_down.size])
    for boxes, frame in ((as_stored, (0, 0)), (shares, (1, 1)), (as_stored, laid_down.size)):
        found = boxes_in_upright_frame(boxes, frame, (64, 32), orientation, is_stored=True)
        assert found == pytest.approx(upright)
    if orientation >= 5:  # the frame shows that they are upright
        assert np.array_equal(boxes_in_upright_frame(upright, (64, 32), (64, 32), orientation, is_stored=True), upright)


@pytest.mark.parametrize("orientation", ALL)
def test_boxes_of_the_stored_image_are_recognised_by_frame(orientation):
    """A box annotated as stored at half the size, and one annotated upright, give the same result."""
    upright = np.array([[8.0, 4, 40, 30], [0, 0, 64, 32]])
    stored_frame = stored(orientation).size
    corners = np.zeros((32, 64, 3), dtype=np.uint8)
    corners[4:30, 8:40] = 255
    transpose = AS_STORED[orientation]
    laid_down = Image.fromarray(corners) if transpose is None else Image.fromarray(corners).transpose(transpose)
    rows, columns = np.nonzero(np.asarray(laid_down)[..., 0])
    as_stored = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 2.0

    assert np.array_equal(boxes_in_upright_frame(upright, (64, 32), (64, 32), orientation), upright)
    assert np.array_equal(boxes_in_upright_frame(upright / 4, (16, 8), (64, 32), orientation), upright)
    assert np.array_equal(boxes_in_upright_frame(upright, (0, 0), (64, 32), orientation), upright)
    shares = upright / np.array([64, 32, 64, 32])
    assert np.array_equal(boxes_in_upright_frame(shares, (1, 1), (64, 32), orientation), upright)
    if orientation >= 5:  # for the others the two can't be distinguished
        half = (stored_frame[0] / 2, stored_frame[1] / 2)
        assert np.array_equal(boxes_in_upright_frame(as_stored, half, (64, 32), orientation), upright[0])


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_a_file_is_reported(image_format, orientation):
    buffer = io.BytesIO()
    stored(orientation).save(buffer, image_format, exif=exif_block(orientation))
    assert decoded(buffer.getvalue()).orientation == orientation


@pytest.mark.parametrize("name", ["landscape", "portrait"])
@pytest.mark.parametrize("orientation", ALL)
def test_the_orientation_of_a_camera_file_is_reported(real_data, name, orientation):
    image = decoded((real_data / "exif/orientation" / f"{name}_{orientation}.jpg").read_bytes())
    assert image.orientation == orientation
