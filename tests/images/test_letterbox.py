import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from locray.boxes import Letterbox
from locray.images.letterbox import PAD_VALUE, letterbox_image

SIDES = st.integers(min_value=1, max_value=600)


def inner(out, letterbox: Letterbox):
    """The part of the input that the image covers."""
    top, left = letterbox.pad_top_px, letterbox.pad_left_px
    return out[top : top + letterbox.scaled_height_px, left : left + letterbox.scaled_width_px]


@given(width=SIDES, height=SIDES, side=st.integers(min_value=16, max_value=256))
def test_the_image_is_inside_and_padding_around_it(width, height, side):
    letterbox = Letterbox.fit(width, height, side)
    image = np.full((height, width, 3), (10, 200, 30), dtype=np.uint8)

    out = letterbox_image(image, letterbox)

    assert out.shape == (side, side, 3)
    assert out.dtype == np.uint8
    assert (inner(out, letterbox) == (10, 200, 30)).all()
    inner(out, letterbox)[...] = PAD_VALUE
    assert (out == PAD_VALUE).all()


@st.composite
def rectangles(draw):
    """Size of an image, and a rectangle in it with sides of at least a tenth of the image's."""
    width, height = draw(st.integers(100, 900)), draw(st.integers(100, 900))
    xmin = draw(st.integers(0, width * 8 // 10))
    ymin = draw(st.integers(0, height * 8 // 10))
    xmax = draw(st.integers(xmin + width // 10, width))
    ymax = draw(st.integers(ymin + height // 10, height))
    return width, height, (xmin, ymin, xmax, ymax)


def covered_box(out, letterbox: Letterbox):
    """Returns the box of a white rectangle on black, in fractions of a pixel: a half covered pixel is half white."""
    white = np.zeros(out.shape[:2])
    inner(white, letterbox)[...] = inner(out, letterbox)[..., 0] / 255
    columns, rows = white.max(axis=0), white.max(axis=1)

    def ends(line):
        middle = int(np.flatnonzero(line > 0.95).mean())
        return middle - line[:middle].sum(), middle + line[middle:].sum()

    (xmin, xmax), (ymin, ymax) = ends(columns), ends(rows)
    return np.array([xmin, ymin, xmax, ymax])


@settings(deadline=None)
@given(rectangles(), st.sampled_from([224, 320]), st.sampled_from([1, 2, 4]))
def test_a_rectangle_lands_where_the_letterbox_says(scene, side, reduced_by):
    width, height, box = scene
    xmin, ymin, xmax, ymax = (edge * reduced_by for edge in box)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    letterbox = Letterbox.fit(width * reduced_by, height * reduced_by, side)

    out = letterbox_image(pixels, letterbox)

    expected = letterbox.to_input(np.array([xmin, ymin, xmax, ymax], dtype=float))
    assert np.abs(covered_box(out, letterbox) - expected).max() < 0.75


def test_it_writes_into_a_row_of_a_batch():
    batch = np.full((3, 32, 32, 3), 7, dtype=np.uint8)
    image = np.zeros((20, 10, 3), dtype=np.uint8)

    out = letterbox_image(image, Letterbox.fit(10, 20, 32), batch[1])

    assert np.shares_memory(out, batch)
    assert (batch[0] == 7).all()
    assert (batch[2] == 7).all()
    assert not (batch[1] == 7).any()
    assert np.array_equal(batch[1], letterbox_image(image, Letterbox.fit(10, 20, 32)))


def test_an_image_of_the_right_size_is_copied_exactly():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    assert np.array_equal(letterbox_image(image, Letterbox.fit(32, 32, 32)), image)


def test_shrinking_is_antialiased():
    stripes = np.zeros((640, 640, 3), dtype=np.uint8)
    stripes[:, ::2] = 255

    assert np.abs(letterbox_image(stripes, Letterbox.fit(640, 640, 64)).astype(int) - 127).max() <= 8


@pytest.mark.parametrize("out", [np.zeros((32, 31, 3), np.uint8), np.zeros((32, 32, 3), np.float32)])
def test_a_buffer_of_another_shape_or_type_is_an_assertion(out):
    with pytest.raises(AssertionError):
        letterbox_image(np.zeros((8, 8, 3), np.uint8), Letterbox.fit(8, 8, 32), out)


@given(width=SIDES, height=SIDES, side=st.integers(min_value=16, max_value=256))
def test_it_resizes_like_pillow_to_one_grey_level(width, height, side):
    letterbox = Letterbox.fit(width, height, side)
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = (letterbox.scaled_width_px, letterbox.scaled_height_px)

    by_pillow = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    apart = np.abs(inner(letterbox_image(image, letterbox), letterbox).astype(int) - by_pillow)
    assert apart.max() <= 2
    assert (apart > 1).sum() <= 3 + apart.size // 1000
