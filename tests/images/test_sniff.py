import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locray.images.sniff import FORMATS, sniff_format


def saved(image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_recognised_by_content(name):
    assert sniff_format(saved(name.upper())) == name


def test_mpo_counts_as_jpeg():
    other = Image.new("RGB", (16, 8), "blue")

    assert sniff_format(saved("MPO", save_all=True, append_images=[other])) == "jpeg"


def test_big_tiff_counts_as_tiff():
    assert sniff_format(saved("TIFF", big_tiff=True)) == "tiff"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"<!DOCTYPE html><html><head><title>404 Not Found",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9",
        b"8BPS\0\x01\0\0\0\0\0\0\0\x03\0\0\0\x10\0\0\0\x10\0\x08\0\x03",
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x18ftypmp42\0\0\0\0isommp42",
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0",
        b"BMW has announced that it will publish its images as JPEG.",
        b"GIF89 is not quite a signature",
        b"\0\0\x02\0\0\0\0\0\0\0\0\0\x10\0\x10\0\x18\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04",
    ],
)
def test_everything_else_is_none(data):
    assert sniff_format(data) is None


def test_avif_among_the_compatible_brands():
    assert sniff_format(b"\0\0\0\x1cftypmif1\0\0\0\0miafavifmif1") == "avif"


@pytest.mark.parametrize("name", ["jpeg", "webp", "tiff", "avif"])
def test_a_complete_file_does_not_end_early_but_its_start_does(name):
    data = saved(name.upper())

    assert not FORMATS[name].ends_early(data)
    assert FORMATS[name].ends_early(data[:20])


@given(st.sampled_from([b"", b"RIFF", b"BM", b"\0\0\0\x20ftyp", b"II*\0", b"\xff\xd8\xff", b"GIF89a"]), st.binary())
def test_any_bytes_are_accepted(prefix, rest):
    name = sniff_format(prefix + rest)

    assert name is None or name in FORMATS
    for image_format in FORMATS.values():
        assert image_format.ends_early(prefix + rest) in (True, False)
