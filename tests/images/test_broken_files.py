"""Two archives of images made to break decoders, compared with the outcomes of Pillow 13 (`oracle.tsv`) and OpenCV."""

import csv
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from locray.config import InferenceOptions
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.exif import to_upright

LIMITS = DecodeLimits(max_bytes=50_000_000, max_pixels=64_000_000)
SUPPORTED = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}

PILLOW_REFUSES_AT_FIRST = "Pillow refuses the first load() and lets a second one pass; the record was made with two"
DIFFERENCES = {
    "pillow/broken_data_stream.png": PILLOW_REFUSES_AT_FIRST,
    "pillow/truncated_end_chunk.png": PILLOW_REFUSES_AT_FIRST,
}
"""Files whose outcome is not the recorded one, and why."""

READ_WITHOUT_PILLOW = {
    "pillow/hopper_webp.tif": "tifffile reads this compression",
    "pillow/png_decompression_dos.png": "its text is not read",
    "pillow/unknown_compression_method.png": "its colour profile is not read",
}
"""Files that Pillow refuses, and why they are valid."""

XMP_ORIENTATION = {
    "pillow/xmp_tags_orientation.png",
    "pillow/xmp_tags_orientation_exiftool.png",
    "pillow/avif/xmp_tags_orientation.avif",
}
"""Files whose orientation is in XMP only, which is not read."""

READ_OTHERWISE_BY_OPENCV = {
    "pillow/16_bit_binary_pgm.tiff": "its 32-bit integers are in the range of 16 bits",
    "pillow/16bit.s.tif": "OpenCV reads signed samples as unsigned ones",
    "pillow/8bit.s.tif": "OpenCV reads signed samples as unsigned ones",
    "pillow/separate_planar_extra_samples.tiff": "OpenCV reads signed samples as unsigned ones",
    "pillow/apng/*": "OpenCV exchanges red and blue of animated PNGs, and composes their frames",
    "pillow/bmp/g/pal8os2.bmp": "OpenCV reads palettes of OS/2 as grey",
    "pillow/bmp/q/pal8os2sp.bmp": "OpenCV reads palettes of OS/2 as grey",
    "pillow/mmap_error.bmp": "OpenCV reads another palette",
    "pillow/bmp/q/rgb32h52.bmp": "OpenCV takes the unused byte for alpha",
    "pillow/bmp/g/rgb16*": "OpenCV expands 5 bits to 8 without filling the lowest",
    "pillow/dispose_bgnd_rgba.gif": "OpenCV paints the background of GIFs",
    "pillow/hopper.Lab.tif": "OpenCV reads the profile connection space with another white point",
    "pillow/lab*": "OpenCV reads the profile connection space with another white point",
    "pillow/i_trns.png": "OpenCV ignores a transparent grey",
    "pillow/multipage*": "OpenCV gives the colours of a two-colour palette as grey",
    "pillow/tiff_16bit_RGBa.tiff": "OpenCV takes colours for unassociated that are multiplied by their alpha",
    "pillow/tiff_*_planar_16bit_RGB*": "OpenCV does not read planes of 16 bits",
    "pillow/tiff_wrong_bits_per_sample.tiff": "OpenCV takes another alpha",
}
"""Files whose pixels differ from OpenCV's by more than 2 of 255 in the mean, and why."""

Outcome = DecodedImage | ImageFailure


@pytest.fixture(scope="module")
def archive(real_data) -> Path:
    return real_data / "broken"


@pytest.fixture(scope="module")
def oracle(archive) -> dict[str, dict[str, str]]:
    with (archive / "oracle.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 1500
    return {row["path"]: row for row in rows}


def decode_all(archive: Path, paths: list[str], num_threads: int) -> list[Outcome]:
    def decode(path: str) -> Outcome:
        return decode_image((archive / path).read_bytes(), LIMITS)

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(decode, paths))


@pytest.fixture(scope="module")
def outcomes(archive, oracle) -> dict[str, Outcome]:
    return dict(zip(oracle, decode_all(archive, list(oracle), num_threads=1), strict=True))


def test_an_image_is_valid_exactly_if_pillow_decodes_it(oracle, outcomes):
    expected = {
        path
        for path, row in oracle.items()
        if row["pillow_13_outcome"] == "ok" and row["format"] in SUPPORTED and path not in DIFFERENCES
    }

    found = {path for path, outcome in outcomes.items() if isinstance(outcome, DecodedImage)}
    assert found == expected | READ_WITHOUT_PILLOW.keys()
    assert len(expected) > 700


def test_valid_images_have_the_recorded_size(oracle, outcomes):
    compared = 0
    for path, outcome in outcomes.items():
        row = oracle[path]
        if not isinstance(outcome, DecodedImage) or path in XMP_ORIENTATION or not row["size"]:
            continue
        width, height = map(int, row["size"].split("x"))
        turned = row["exif_orientation"] in {"5", "6", "7", "8"} and row["format"] != "TIFF"
        assert (outcome.width_px, outcome.height_px) == ((height, width) if turned else (width, height)), path
        assert outcome.image_hwc_u8.shape == (outcome.height_px, outcome.width_px, 3), path
        compared += 1
    assert compared > 700


def test_failures_have_a_message_and_a_code(oracle, outcomes):
    failures = {path: outcome for path, outcome in outcomes.items() if isinstance(outcome, ImageFailure)}

    assert all(failure.message for failure in failures.values())
    codes = {path: failure.code for path, failure in failures.items()}
    for path, row in oracle.items():
        if row["format"] and row["format"] not in SUPPORTED:
            assert codes[path] == "unsupported_format", path
    assert {str(code) for code in codes.values()} == {
        "unsupported_format",
        "truncated",
        "corrupt",
        "too_many_pixels",
    }
    assert codes["pillow/decompression_bomb.gif"] == "too_many_pixels"
    assert codes["pillow/bmp/b/reallybig.bmp"] == "too_many_pixels"
    assert codes["pillow/truncated_image.png"] == "truncated"


def test_the_limit_decides_about_a_decompression_bomb(archive, oracle, outcomes):
    path = "pillow/l2rgb_read.bmp"
    by_default = DecodeLimits(LIMITS.max_bytes, InferenceOptions().max_pixels)
    with_defaults = decode_image((archive / path).read_bytes(), by_default)

    assert oracle[path]["pillow_13_outcome"] == "PIL.Image.DecompressionBombWarning"
    assert LIMITS.max_pixels < 151_587_072 < by_default.max_pixels
    assert outcomes[path].code == "too_many_pixels"
    assert isinstance(with_defaults, ImageFailure)
    assert with_defaults.code == "truncated"


@pytest.mark.slow
def test_many_threads_give_the_same_outcomes_as_one(archive, oracle, outcomes):
    for path, outcome in zip(oracle, decode_all(archive, list(oracle), num_threads=8), strict=True):
        alone = outcomes[path]
        assert type(outcome) is type(alone), path
        if isinstance(outcome, DecodedImage):
            assert isinstance(alone, DecodedImage)
            assert np.array_equal(outcome.image_hwc_u8, alone.image_hwc_u8), path
        else:
            assert outcome.code == alone.code, path


def test_pixels_are_about_those_of_opencv(archive, outcomes):
    compared, different = 0, set()
    for path, outcome in outcomes.items():
        if not isinstance(outcome, DecodedImage):
            continue
        stored = by_opencv(archive / path)
        if stored is None:
            continue
        # OpenCV turns images of some formats upright.
        views = [stored, to_upright(stored, outcome.orientation)]
        pixels = outcome.image_hwc_u8.astype(float)
        distances = [np.abs(view - pixels).mean() for view in views if view.shape == pixels.shape]
        compared += 1
        if min(distances) > 2:
            different.add(path)
    listed = {path for path in outcomes for pattern in READ_OTHERWISE_BY_OPENCV if fnmatch(path, pattern)}
    assert different <= listed
    assert compared > 700


def by_opencv(file: Path) -> NDArray[np.uint8] | None:
    """The stored image in RGB, transparent pixels over white; None if OpenCV doesn't read it."""
    cv2.utils.logging.setLogLevel(0)
    try:
        found = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if found is None:
        return None
    full = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(found.dtype, 1)
    unit = (found if found.ndim == 3 else found[..., None]) / full
    has_alpha = unit.shape[2] in (2, 4)
    alpha = unit[..., -1:] if has_alpha else 1
    colours = unit[..., : -1 if has_alpha else None][..., ::-1]
    over_white = np.broadcast_to(colours * alpha + 1 - alpha, (*unit.shape[:2], 3))
    return np.ascontiguousarray(np.rint(np.clip(over_white, 0, 1) * 255).astype(np.uint8))
