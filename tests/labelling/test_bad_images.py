"""All kinds of files in a bucket, labelled in one run: two archives of files made to break decoders, and others.

Expectations come from the archives' own record (`oracle.tsv`), or from how a file was made.
"""

import csv
import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from locray import schema
from locray.verification.table import check_table
from tests.helpers.commands import locray
from tests.helpers.orientations import ALL, exif_block, stored
from tests.helpers.processes import peak_memory_bytes, raylet_pid
from tests.helpers.s3_server import S3Server, new_bucket, new_client
from tests.helpers.tables import dataset_of

pytestmark = [pytest.mark.ray, pytest.mark.s3]

MAX_PIXELS = 64_000_000
TIMEOUT_S = 5
MEMORY_LIMIT_BYTES = 2 << 30


TURNED: dict[str, dict[str, Any]] = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}
"""Formats that store an orientation, and how to write them."""

BOMB = (16_800, 16_700)
"""280 megapixels."""

PAGE = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Sign in</body></html>"

SUPPORTED = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".avif")

PILLOW_REFUSES_AT_FIRST = "Pillow refuses the first load() and lets a second one pass; the record was made with two"
NO_SIGN_OF_BMP = "`BM` and a length of header that no BMP has: too weak a sign, with which any text may begin"
DIFFERENCES = {
    "pillow/broken_data_stream.png": ("corrupt", PILLOW_REFUSES_AT_FIRST),
    "pillow/truncated_end_chunk.png": ("truncated", PILLOW_REFUSES_AT_FIRST),
    "pillow/bmp/b/badheadersize.bmp": ("unsupported_format", NO_SIGN_OF_BMP),
    "pillow/bmp/q/pal8os2v2-16.bmp": ("unsupported_format", NO_SIGN_OF_BMP),
    "pillow/hopper_unknown_pixel_mode.tif": ("unsupported_format", "32-bit integers without a known white"),
    "pillow/hopper_webp.tif": (None, "tifffile reads this compression"),
    "pillow/png_decompression_dos.png": (None, "its text is not read"),
    "pillow/unknown_compression_method.png": (None, "its colour profile is not read"),
}
"""Files whose outcome is not the recorded one, and why."""

CUT_OFF = {
    "pillow/oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif",
    "pillow/crash-2020-10-test.tif",
    "pillow/crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif",
    "pillow/seek_too_large.tif",
    "jpeg-seeds/images_id:000469,src:000000,op:havoc,rep:4,+cov.jpg",
    *(
        f"pillow/crash-{name}.tif"
        for name in (
            "0c7e0e8e11ce787078f00b5b0ca409a167f070e0", "0e16d3bfb83be87356d026d66919deaefca44dac",
            "1152ec2d1a1a71395b6f2ce6721c38924d025bf3", "1185209cf7655b5aed8ae5e77784dfdd18ab59e9",
            "338516dbd2f0e83caddb8ce256c22db3bd6dc40f", "4f085cc12ece8cde18758d42608bed6a2a2cfb1c",
            "86214e58da443d2b80820cff9677a38a33dcbbca", "f46f5b2f43c370fe65706c11449f567ecc345e74",
        )
    ),
}  # fmt: skip
"""Files without all pixels or an end marker, for which Pillow reports another error than truncation."""


def code_by_the_record(row: Mapping[str, str], data: bytes) -> str | None:
    """Returns the expected error code by the outcome recorded with Pillow 13; None for a valid image."""
    path, outcome, message = row["path"], row["pillow_13_outcome"], row["message"].lower()
    is_seed = path.startswith("jpeg-seeds/")
    if path in DIFFERENCES:
        return DIFFERENCES[path][0]
    if row["format"]:
        ours = row["format"] in SUPPORTED
    else:
        ours = data.startswith(b"\xff\xd8\xff") if is_seed else path.endswith(ENDINGS)
    if not ours:
        return "unsupported_format"
    if outcome == "ok":
        return None
    if "decompressionbomb" in outcome.lower():
        return "too_many_pixels"
    if "truncated" in message or path in CUT_OFF or (is_seed and b"\xff\xd9" not in data):
        return "truncated"
    return "corrupt"


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
    """Returns the bytes with numbers written over them."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def png_bomb() -> bytes:
    """Returns a PNG of some ten thousand bytes that really holds all the pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width, height = BOMB
    pixels = zlib.compress(bytes((1 + width // 8) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb(*, progressive: bool) -> bytes:
    """Returns a JPEG whose header declares all the pixels; a decoder makes up the missing ones."""
    data = saved(photo(), "JPEG", progressive=progressive)
    return patched(data, data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5, ">HH", *BOMB[::-1])


def gif_bomb() -> bytes:
    data = patched(saved(photo(), "GIF"), 6, "<HH", *BOMB)
    return patched(data, data.index(b",\0\0\0\0") + 5, "<HH", *BOMB)


def scan_bomb(side: int, num_scans: int) -> bytes:
    """Returns a progressive grey JPEG within the pixel limit, with very many scans: ten bytes and one pass each."""
    tables = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\x01\x11\0"
    huffman = b"".join(
        b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15) + b"\0" for kind in (0x00, 0x10)
    )
    first = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\0" + b"\0\0\0"
    refining = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\0" + b"\x01\x3f\0"
    return b"\xff\xd8" + tables + frame + huffman + first + refining * num_scans + b"\xff\xd9"


@dataclass(frozen=True)
class Made:
    """A file made by this test: its bytes and expected error code; None for a valid image."""

    data: bytes
    code: str | None
    format: str | None = None


def made_files() -> dict[str, Made]:
    jpeg, png = saved(photo(), "JPEG"), saved(photo(), "PNG")
    bombs = {
        "png": png_bomb(),
        "gif": gif_bomb(),
        "bmp": patched(saved(photo(), "BMP"), 18, "<ii", *BOMB),
        "baseline.jpg": jpeg_bomb(progressive=False),
        "progressive.jpg": jpeg_bomb(progressive=True),
    }
    endings = {
        "png-in.jpg": Made(png, None, "png"),
        "jpeg-in.png": Made(jpeg, None, "jpeg"),
        "webp-in.gif": Made(saved(photo(), "WEBP"), None, "webp"),
        "gif-in.JPEG": Made(saved(photo(), "GIF"), None, "gif"),
        "tiff-in.txt": Made(saved(photo(), "TIFF"), None, "tiff"),
        "bmp-without": Made(saved(photo(), "BMP"), None, "bmp"),
        "avif-in.html": Made(saved(photo(), "AVIF"), None, "avif"),
    }
    odd_keys = [
        "/".join(["k" * 203] * 5)[: 1024 - len("in/keys/")],
        "per%20cent%.jpg", "%00.jpg", "%2e%2e/%2Fetc/passwd", "new\nline.jpg", "bell\x07.jpg", "unit\x1f.jpg",
        "del\x7f.jpg", "a..b/...jpg", "two  spaces .jpg", "ünï/日本.jpg", "q?x=1&y=+2#z.jpg",
        "~*<>|:'\".jpg",
    ]  # fmt: skip
    return {
        **{f"bombs/{name}": Made(data, "too_many_pixels") for name, data in bombs.items()},
        "bombs/scans.jpg": Made(scan_bomb(8000, 20_000), "decoder_timeout"),
        **{f"endings/{name}": made for name, made in endings.items()},
        **{f"keys/{key}": Made(jpeg, None, "jpeg") for key in odd_keys},
        "none/page.jpg": Made(PAGE, "unsupported_format"),
        "none/empty.jpg": Made(b"", "empty_file"),
        "none/zeros.jpg": Made(bytes(1000), "unsupported_format"),
        "none/cut.jpg": Made(jpeg[: len(jpeg) // 2], "truncated"),
        "none/one-byte.png": Made(b"\x89", "unsupported_format"),
        "none/signature-alone.png": Made(png[:8], "truncated"),
    }


@dataclass(frozen=True)
class Labelled:
    """Result of one run over everything."""

    rows: Mapping[str, dict[str, Any]]
    """Rows by key relative to the prefix."""
    summary: dict[str, Any]
    stderr: str
    peaks_bytes: Mapping[str, int]


@pytest.fixture(scope="module")
def files(real_data: Path) -> dict[str, bytes]:
    """Returns all files by key."""
    archives = {
        f"{archive}/{path.relative_to(real_data / archive)}": path.read_bytes()
        for archive in ("broken", "exif")
        for path in (real_data / archive).rglob("*")
        if path.is_file()
    }
    turned = {
        f"turned/{image_format}-{number}": saved(stored(number), image_format, exif=exif_block(number), **options)
        for image_format, options in TURNED.items()
        for number in ALL
    }
    return archives | turned | {key: made.data for key, made in made_files().items()}


@pytest.fixture(scope="module")
def labelled(files: dict[str, bytes], s3_server: S3Server, ray_cluster: Any, artifact: str) -> Labelled:  # noqa: ARG001
    with closing(new_client()) as client, peak_memory_bytes(raylet_pid(ray_cluster.head_node)) as peaks:
        bucket = new_bucket(client)
        keys = [f"in/{key}" for key in files]
        with ThreadPoolExecutor(10) as threads:
            etags = list(threads.map(bucket.put, keys, files.values()))
        for marker in ("in/", "in/folder/", "in/broken/"):
            bucket.put(marker, b"")
        table = f"{bucket.uri}/out"
        done = locray(
            "label", "--images", f"{bucket.uri}/in", "--model", artifact, "--table", table, "--max-failure-rate", "1",
            "--max-pixels", str(MAX_PIXELS), "--decode-timeout-s", str(TIMEOUT_S), "--json",
        )  # fmt: skip
        assert done.returncode == 0, done
        versions = [
            {schema.IMAGE_URI: f"{bucket.uri}/{key}", schema.ETAG: etag} for key, etag in zip(keys, etags, strict=True)
        ]
        check = check_table(table, pa.Table.from_pylist(versions, schema=schema.LISTING_SCHEMA).to_batches())
        assert (check.findings.faults, check.findings.pending, check.findings.notes) == ({}, {}, {})
        rows = dataset_of(table).to_table()
        by_key = {row[schema.IMAGE_URI].removeprefix(f"{bucket.uri}/in/"): row for row in rows.to_pylist()}
        assert len(rows) == len(by_key) == len(files)
    return Labelled(by_key, json.loads(done.stdout.splitlines()[-1]), done.stderr, dict(peaks))


@pytest.fixture(scope="module")
def oracle(real_data: Path) -> list[dict[str, str]]:
    with (real_data / "broken" / "oracle.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 1500
    return rows


def test_the_archive_of_broken_images_is_called_what_its_record_says(
    labelled: Labelled, oracle: list[dict[str, str]], files: dict[str, bytes]
) -> None:
    expected = {row["path"]: code_by_the_record(row, files[f"broken/{row['path']}"]) for row in oracle}
    assert expected.keys() >= DIFFERENCES.keys() | CUT_OFF
    found = {path: labelled.rows[f"broken/{path}"][schema.ERROR_CODE] for path in expected}
    wrong = {path: (expected[path], found[path]) for path in expected if expected[path] != found[path]}
    assert wrong == {}
    assert sum(code is None for code in found.values()) > 700


def test_camera_files_are_sound_where_pillow_decodes_them(labelled: Labelled, files: dict[str, bytes]) -> None:
    camera_files = [key for key in files if key.startswith("exif/")]
    assert len(camera_files) > 70
    for key in camera_files:
        row = labelled.rows[key]
        if key.endswith((".jpg", ".jpeg")):
            with Image.open(io.BytesIO(files[key])) as image:
                size = ImageOps.exif_transpose(image).size
            assert (row[schema.STATUS], row[schema.WIDTH], row[schema.HEIGHT]) == ("ok", *size), row
        else:
            assert row[schema.ERROR_CODE] == "unsupported_format", row


def test_every_other_file_is_called_what_it_is(labelled: Labelled) -> None:
    made = made_files()
    found = {key: labelled.rows[key] for key in made}
    assert {key: row[schema.ERROR_CODE] for key, row in found.items()} == {key: one.code for key, one in made.items()}
    for key, row in found.items():
        assert made[key].format in (None, row[schema.FORMAT]), row
        if made[key].code == "too_many_pixels":
            assert (row[schema.WIDTH], row[schema.HEIGHT]) == BOMB
        if made[key].code is None:
            assert (row[schema.WIDTH], row[schema.HEIGHT], len(row[schema.DETECTIONS])) == (64, 48, 1)


@pytest.mark.parametrize("image_format", TURNED)
def test_all_eight_orientations_have_the_same_boxes(labelled: Labelled, image_format: str) -> None:
    rows = [labelled.rows[f"turned/{image_format}-{number}"] for number in ALL]
    assert {(row[schema.WIDTH], row[schema.HEIGHT]) for row in rows} == {(64, 32)}
    found = [[*map(box.get, schema.CORNERS), box[schema.SCORE]] for row in rows for box in row[schema.DETECTIONS]]
    assert len(found) == len(rows)
    # For a JPEG, rounding changes some pixels by one level.
    np.testing.assert_allclose(found, [found[0]] * len(found), rtol=0, atol=0.5 if image_format == "JPEG" else 1e-4)


def test_the_run_says_so(labelled: Labelled, files: dict[str, bytes]) -> None:
    codes = Counter(row[schema.ERROR_CODE] for row in labelled.rows.values())
    ok = codes.pop(None)
    assert (labelled.summary["listed"], labelled.summary["ok"], labelled.summary["deferred"]) == (len(files), ok, 0)
    assert labelled.summary["errors"] == codes
    assert "Traceback" not in labelled.stderr


def test_memory_stays_bounded(labelled: Labelled) -> None:
    workers = {title: peak for title, peak in labelled.peaks_bytes.items() if "ray::" in title or "isolated" in title}
    assert any("isolated" in title for title in workers)
    assert {title: peak for title, peak in workers.items() if peak > MEMORY_LIMIT_BYTES} == {}, workers
