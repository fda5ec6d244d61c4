"""Two archives of images made to break decoders, compared with the outcomes of Pillow 13 (`oracle.tsv`)."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from locray.config import InferenceOptions
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image

LIMITS = DecodeLimits(max_bytes=50_000_000, max_pixels=64_000_000)
SUPPORTED = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}

PILLOW_REFUSES_AT_FIRST = "Pillow refuses the first load() and lets a second one pass; the record was made with two"
DIFFERENCES = {
    "pillow/apng/chunk_no_fctl.png": PILLOW_REFUSES_AT_FIRST,
    "pillow/broken_data_stream.png": PILLOW_REFUSES_AT_FIRST,
    "pillow/truncated_end_chunk.png": PILLOW_REFUSES_AT_FIRST,
}
"""Files whose outcome is not the recorded one, and why."""

XMP_ORIENTATION = {
    "pillow/xmp_tags_orientation.png",
    "pillow/xmp_tags_orientation_exiftool.png",
    "pillow/avif/xmp_tags_orientation.avif",
}
"""Files whose orientation is in XMP only, which is not read."""

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

    assert {path for path, outcome in outcomes.items() if isinstance(outcome, DecodedImage)} == expected
    assert len(expected) > 700


def test_valid_images_have_the_recorded_size(oracle, outcomes):
    compared = 0
    for path, outcome in outcomes.items():
        row = oracle[path]
        if not isinstance(outcome, DecodedImage) or path in XMP_ORIENTATION:
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
