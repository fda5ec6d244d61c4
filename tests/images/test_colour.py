import io

import numpy as np
import pytest
from PIL import Image

from locray.errors import ErrorCode
from locray.images.colour import ALPHA_BACKGROUND_RGB, CONVERTERS, to_rgb
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image

LIMITS = DecodeLimits(max_bytes=10_000_000, max_pixels=1_000_000)

RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
PINK = (255, 127, 127)
"""Half transparent red over white."""

PIXELS = [
    ("1", 0, BLACK),
    ("1", 255, WHITE),
    ("L", 77, (77, 77, 77)),
    ("LA", (77, 255), (77, 77, 77)),
    ("LA", (77, 0), ALPHA_BACKGROUND_RGB),
    ("LA", (0, 128), (127, 127, 127)),
    ("La", (77, 255), (77, 77, 77)),
    ("La", (0, 0), ALPHA_BACKGROUND_RGB),
    ("La", (64, 128), (191, 191, 191)),
    ("RGB", (10, 200, 30), (10, 200, 30)),
    ("RGBA", (10, 200, 30, 255), (10, 200, 30)),
    ("RGBA", (255, 0, 0, 128), PINK),
    ("RGBA", (10, 200, 30, 0), ALPHA_BACKGROUND_RGB),
    ("RGBa", (10, 200, 30, 255), (10, 200, 30)),
    ("RGBa", (128, 0, 0, 128), PINK),
    ("RGBX", (10, 200, 30, 0), (10, 200, 30)),
    ("CMYK", (0, 0, 0, 0), WHITE),
    ("CMYK", (0, 255, 255, 0), RED),
    ("CMYK", (0, 0, 0, 255), BLACK),
    ("YCbCr", (76, 85, 255), RED),
    ("YCbCr", (150, 128, 128), (150, 150, 150)),
    ("HSV", (85, 255, 255), GREEN),
    ("HSV", (0, 0, 90), (90, 90, 90)),
    ("LAB", (128, 128, 128), (119, 119, 119)),
    ("I;16", 65535, WHITE),
    ("I;16", 32768, (128, 128, 128)),
    ("I;16", 256, (1, 1, 1)),
    ("I;16L", 65535, WHITE),
    ("I;16L", 256, (1, 1, 1)),
    ("I;16B", 65535, WHITE),
    ("I;16B", 256, (1, 1, 1)),
    ("I;16N", 65535, WHITE),
    ("I;16N", 256, (1, 1, 1)),
    ("I", 65535, WHITE),
    ("I", 32768, (128, 128, 128)),
    ("F", 1.0, WHITE),
    ("F", 0.5, (128, 128, 128)),
    ("F", 0.0, BLACK),
]


@pytest.mark.parametrize(("mode", "pixel", "expected"), PIXELS)
def test_one_colour_in_every_mode(mode, pixel, expected):
    rgb = to_rgb(Image.new(mode, (5, 3), pixel))

    assert rgb is not None
    assert (rgb.mode, rgb.size) == ("RGB", (5, 3))
    assert np.abs(np.asarray(rgb).astype(int) - expected).max() <= 1


def test_every_mode_of_pillow_has_a_converter():
    assert sorted(CONVERTERS) == sorted(Image.MODES)


def palette_image(mode: str) -> Image.Image:
    """Left column red, right column green."""
    image = Image.new(mode, (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1 if mode == "P" else (1, 255))
    image.putpixel((0, 0), 0 if mode == "P" else (0, 255))
    return image


def pixels_of(image: Image.Image) -> list[tuple[int, ...]]:
    rgb = to_rgb(image)
    assert rgb is not None
    return [tuple(pixel) for pixel in np.asarray(rgb)[0].tolist()]


def test_palettes():
    assert pixels_of(palette_image("P")) == [RED, GREEN]
    assert pixels_of(palette_image("PA")) == [RED, GREEN]

    one_transparent_entry = palette_image("P")
    one_transparent_entry.info["transparency"] = 1
    assert pixels_of(one_transparent_entry) == [RED, ALPHA_BACKGROUND_RGB]

    alpha_by_entry = palette_image("P")
    alpha_by_entry.info["transparency"] = bytes([0, 255])
    assert pixels_of(alpha_by_entry) == [ALPHA_BACKGROUND_RGB, GREEN]

    alpha_channel = palette_image("PA")
    alpha_channel.putpixel((0, 0), (0, 0))
    assert pixels_of(alpha_channel) == [ALPHA_BACKGROUND_RGB, GREEN]

    alpha_in_palette = Image.new("P", (2, 1))
    alpha_in_palette.putpalette([*RED, 255, *GREEN, 0], rawmode="RGBA")
    alpha_in_palette.putpixel((1, 0), 1)
    assert pixels_of(alpha_in_palette) == [RED, ALPHA_BACKGROUND_RGB]


@pytest.mark.parametrize(("mode", "key", "other"), [("L", 9, 200), ("RGB", (9, 9, 9), (200, 200, 200))])
def test_a_colour_declared_transparent_shows_the_background(mode, key, other):
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), other)
    image.info["transparency"] = key

    assert pixels_of(image) == [ALPHA_BACKGROUND_RGB, (200, 200, 200)]


def grey_values(mode: str, values: list[float]) -> list[int]:
    """Grey levels of the values of a wide mode."""
    dtype = {"I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert image.mode == mode
    return [pixel[0] for pixel in pixels_of(image)]


def test_wide_integers_keep_the_16_bit_scale_or_are_stretched():
    assert grey_values("I", [0, 257, 25700]) == [0, 1, 100]
    assert grey_values("I", [-100, 0, 110]) == [0, 121, 255]
    assert grey_values("I", [0, 2**29, 2**31 - 1]) == [0, 64, 255]
    assert grey_values("I", [-5, -5]) == [0, 0]


def test_floats_keep_the_unit_scale_or_are_stretched():
    assert grey_values("F", [0.0, 0.2, 0.6]) == [0, 51, 153]
    assert grey_values("F", [100.0, 150.0, 300.0]) == [0, 64, 255]
    assert grey_values("F", [-3.5, -3.5]) == [0, 0]
    assert grey_values("F", [-3e38, -1.5e38, 3e38]) == [0, 64, 255]


def test_nan_and_infinite_floats():
    assert grey_values("F", [np.nan, np.inf, -np.inf, 0.4]) == [0, 255, 0, 102]
    assert grey_values("F", [np.nan, np.inf, -np.inf, 2.0, 4.0]) == [0, 255, 0, 0, 255]
    assert grey_values("F", [np.nan, np.nan]) == [0, 0]


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image_format", "mode", "pixel", "expected"),
    [
        ("PNG", "1", 255, WHITE),
        ("PNG", "L", 77, (77, 77, 77)),
        ("PNG", "LA", (0, 128), (127, 127, 127)),
        ("PNG", "RGBA", (255, 0, 0, 128), PINK),
        ("PNG", "I;16", 32768, (128, 128, 128)),
        ("GIF", "L", 77, (77, 77, 77)),
        ("BMP", "RGB", (10, 200, 30), (10, 200, 30)),
        ("WEBP", "RGBA", (255, 0, 0, 128), PINK),
        ("AVIF", "RGBA", (255, 0, 0, 128), PINK),
        ("TIFF", "I;16", 32768, (128, 128, 128)),
        ("TIFF", "I;16B", 32768, (128, 128, 128)),
        ("TIFF", "F", 0.5, (128, 128, 128)),
        ("TIFF", "CMYK", (0, 255, 255, 0), RED),
        ("TIFF", "LAB", (128, 128, 128), (119, 119, 119)),
        ("TIFF", "YCbCr", (76, 85, 255), RED),
        ("JPEG", "L", 77, (77, 77, 77)),
        ("JPEG", "YCbCr", (76, 85, 255), RED),
        ("JPEG", "CMYK", (0, 255, 255, 0), RED),
        ("JPEG", "CMYK", (0, 0, 0, 255), BLACK),
    ],
)
def test_colours_survive_a_file(image_format, mode, pixel, expected):
    decoded = decode_image(saved(Image.new(mode, (16, 16), pixel), image_format), LIMITS)

    assert isinstance(decoded, DecodedImage), decoded
    assert np.abs(decoded.image_hwc_u8.astype(int) - expected).max() <= 3


def test_adobe_ycck_equals_the_same_image_in_rgb(real_data):
    ycck, rgb = (
        decode_image((real_data / "broken/pillow" / name).read_bytes(), LIMITS)
        for name in ("pil_sample_cmyk.jpg", "pil_sample_rgb.jpg")
    )

    assert isinstance(ycck, DecodedImage)
    assert isinstance(rgb, DecodedImage)
    assert np.abs(ycck.image_hwc_u8.astype(int) - rgb.image_hwc_u8).mean() < 15


@pytest.mark.parametrize(("name", "channel"), [("lab-red.tif", 0), ("lab-green.tif", 1)])
def test_lab_files(real_data, name, channel):
    decoded = decode_image((real_data / "broken/pillow" / name).read_bytes(), LIMITS)

    assert isinstance(decoded, DecodedImage)
    assert decoded.image_hwc_u8.reshape(-1, 3).mean(axis=0).argmax() == channel


def test_a_mode_without_a_converter_is_unsupported(monkeypatch):
    monkeypatch.delitem(CONVERTERS, "CMYK")

    failure = decode_image(saved(Image.new("CMYK", (16, 8)), "JPEG"), LIMITS)

    assert isinstance(failure, ImageFailure)
    assert (failure.code, failure.format) == (ErrorCode.UNSUPPORTED_FORMAT, "jpeg")
    assert (failure.width_px, failure.height_px) == (16, 8)
    assert "CMYK" in failure.message
