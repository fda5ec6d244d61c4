"""The first stage on images that were made to break decoders: one row each, whatever they are."""

import struct
from pathlib import Path

import pyarrow as pa

from locray import schema
from locray.images.decode import DecodeLimits
from locray.labelling.fetch_decode import DecodeSettings, decode_rows
from locray.labelling.worklist import InlineWorklist
from locray.sources.folder import walk

SETTINGS = DecodeSettings(32, DecodeLimits(max_bytes=50_000_000, max_pixels=10_000_000), concurrent_gets=16)


def decoded(folder: Path) -> pa.Table:
    listing = pa.Table.from_batches(walk(str(folder)), schema.LISTING_SCHEMA)
    return decode_rows(InlineWorklist.of(listing, len(listing)).read_unit(0), SETTINGS)


def test_every_broken_image_becomes_a_row(real_data: Path) -> None:
    rows = decoded(real_data / "broken" / "pillow")
    assert len(rows) > 900
    assert set(rows[schema.STATUS].to_pylist()) == {schema.STATUS_OK, schema.STATUS_FAILED}


def test_a_size_that_no_column_holds_is_unknown(tmp_path: Path) -> None:
    header = struct.pack("<2sIII", b"BM", 200, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, -127, 64, 1, 24, 0, 0, 0, 0, 0, 0
    )
    (tmp_path / "wide.bmp").write_bytes(header + bytes(146))
    (row,) = decoded(tmp_path).drop_columns([schema.IMAGE]).to_pylist()
    assert (row[schema.ERROR_CODE], row[schema.WIDTH], row[schema.FORMAT]) == ("too_many_pixels", None, "bmp")
    assert "4294967169 x 64" in row[schema.ERROR_MESSAGE]
