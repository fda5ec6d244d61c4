"""Units whose JPEGs are decoded beside the network: the same rows as by the decode stage. Here on a processor."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from locray import schema
from locray.images.decode import DecodeLimits
from locray.labelling.fetch_decode import DecodeSettings, FetchDecode, decode_rows
from locray.labelling.identity import PredictorSettings
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist
from locray.sources.folder import walk

SETTINGS = DecodeSettings(32, DecodeLimits(10**7, 10**7), concurrent_gets=8, timeout_s=60)
KEEPING = replace(SETTINGS, keep_jpegs=True)


def worklist_of(folder: Path) -> InlineWorklist:
    listing = pa.Table.from_batches(walk(str(folder)), schema.LISTING_SCHEMA).sort_by(schema.IMAGE_URI)
    return InlineWorklist.of(listing, len(listing))


def jpeg(seed: int, size: tuple[int, int] = (120, 80), orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cells).resize(size).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    whole = jpeg(2, (300, 500))
    half = whole[: len(whole) // 2]
    (folder / "a-upright.jpg").write_bytes(jpeg(0))
    (folder / "b-turned.jpg").write_bytes(jpeg(1, orientation=6))
    (folder / "c-cut.jpg").write_bytes(half)
    (folder / "d-half-of-its-scan.jpg").write_bytes(half + b"\xff\xd9")
    (folder / "e-empty.jpg").write_bytes(b"")
    (folder / "f-large.jpg").write_bytes(whole)
    Image.new("RGB", (50, 70), "white").save(folder / "g-png.png")
    Image.new("RGB", (50, 70), "white").save(folder / "h-progressive.jpg", progressive=True)
    Image.new("CMYK", (50, 70), "white").save(folder / "i-cmyk.jpg")
    scan = whole.index(b"\xff\xda")
    (folder / "j-with-a-table-that-is-nowhere.jpg").write_bytes(whole[: scan + 6] + b"\x33" + whole[scan + 7 :])
    return folder


def labelled(artifact: str, unit: pa.Table, deaths: int = 0) -> list[dict[str, object]]:
    rows = Predictor(PredictorSettings(artifact, 0.0, 4, "fp32", "cpu", decode=KEEPING), 1)(unit, deaths)
    assert rows.schema == schema.PREDICTED_SCHEMA
    return rows.to_pylist()


def test_upright_jpegs_stay_encoded_and_the_rest_is_decoded(images: Path) -> None:
    unit = decode_rows(worklist_of(images).read_unit(0), KEEPING)
    assert unit.schema == schema.ENCODED_SCHEMA
    names = [os.path.basename(uri)[0] for uri in unit[schema.IMAGE_URI].to_pylist()]
    kept = dict(zip(names, unit[schema.IS_ENCODED].to_pylist(), strict=True))
    assert [name for name, is_kept in kept.items() if is_kept] == ["a", "d", "f", "j"]
    sizes = dict(zip(names, pc.binary_length(unit[schema.IMAGE]).to_pylist(), strict=True))
    assert sizes["f"] == os.path.getsize(images / "f-large.jpg")
    assert sizes["b"] == sizes["g"] == 32 * 32 * 3
    assert sizes["c"] is sizes["e"] is None


@pytest.mark.parametrize("deaths", [0, 1])
def test_rows_are_those_of_the_decode_stage(deaths: int, images: Path, artifact: str) -> None:
    listed = worklist_of(images).read_unit(0)
    wanted = labelled(artifact, decode_rows(listed, SETTINGS))
    found = labelled(artifact, decode_rows(listed, KEEPING), deaths)
    assert [row[schema.STATUS] for row in wanted] == ["ok", "ok", "failed", "ok", "failed", *["ok"] * 4, "failed"]
    for row, other in zip(found, wanted, strict=True):
        boxes, other_boxes = row.pop(schema.DETECTIONS), other.pop(schema.DETECTIONS)
        if other[schema.WIDTH] is None:  # the size that a header declares is known here although nothing was decoded
            row |= {schema.WIDTH: None, schema.HEIGHT: None}
        assert row == other
        if other_boxes is None:
            assert boxes is None
            continue
        (box,), (other_box,) = boxes, other_boxes
        assert box[schema.LABEL] == other_box[schema.LABEL]
        for name in (schema.SCORE, schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX):
            assert box[name] == pytest.approx(other_box[name], abs=0.5)


def test_a_unit_of_nothing_that_can_be_labelled(tmp_path: Path, artifact: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (row,) = labelled(artifact, decode_rows(worklist_of(tmp_path).read_unit(0), KEEPING))
    assert (row[schema.STATUS], row[schema.ERROR_CODE]) == ("failed", "empty_file")


def test_after_a_death_a_child_decodes_all_that_the_decode_stage_sees(images: Path) -> None:
    fetch_decode = FetchDecode(worklist_of(images), KEEPING)
    assert fetch_decode(0).schema == schema.ENCODED_SCHEMA
    assert fetch_decode(0, deaths=1).schema == schema.decoded_schema(32)


def test_broken_images_get_the_same_codes(real_data: Path, artifact: str) -> None:
    listed = worklist_of(real_data / "broken" / "pillow").read_unit(0)
    is_jpeg = pc.match_substring_regex(listed[schema.IMAGE_URI], r"(?i)jpe?g|\.jfif$")
    listed = listed.filter(is_jpeg)
    wanted = decode_rows(listed, SETTINGS)
    found = labelled(artifact, decode_rows(listed, KEEPING))
    assert len(found) > 40
    assert [row[schema.STATUS] for row in found] == wanted[schema.STATUS].to_pylist()
    assert [row[schema.ERROR_CODE] for row in found] == wanted[schema.ERROR_CODE].to_pylist()
