"""The first stage on images that were made to break decoders: one row each, whatever they are."""

import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.errors import StoreAccessError, StoreError
from locray.images.decode import DecodeLimits
from locray.labelling.crashes import MAX_CRASHES
from locray.labelling.fetch_decode import DecodeSettings, FetchDecode, decode_rows
from locray.labelling.worklist import InlineWorklist
from locray.sources.folder import walk
from tests.helpers.commands import PROJECT_ROOT
from tests.helpers.poison import install_broken_decoder, poison

SETTINGS = DecodeSettings(
    32, DecodeLimits(max_bytes=50_000_000, max_pixels=10_000_000), concurrent_gets=16, timeout_s=60
)


def worklist_of(folder: Path) -> InlineWorklist:
    listing = pa.Table.from_batches(walk(str(folder)), schema.LISTING_SCHEMA)
    return InlineWorklist.of(listing, len(listing))


def decoded(folder: Path) -> pa.Table:
    return decode_rows(worklist_of(folder).read_unit(0), SETTINGS)


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


@dataclass(frozen=True)
class Unreadable(InlineWorklist):
    """A worklist in a store that fails."""

    error: StoreError

    def read_unit(self, unit: int) -> pa.Table:  # noqa: ARG002
        raise self.error


def unreadable(error: StoreError) -> Unreadable:
    return Unreadable(schema.LISTING_SCHEMA.empty_table(), num_images=10, unit_size=4, error=error)


def test_a_unit_that_can_not_be_read_is_deferred_whole() -> None:
    worklist = unreadable(StoreError("the store is out"))
    units = [FetchDecode(worklist, SETTINGS)(unit) for unit in range(3)]
    assert [rows[schema.ORDINAL].to_pylist() for rows in units] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for rows in units:
        assert rows.schema == schema.decoded_schema(32)
        assert set(rows[schema.STATUS].to_pylist()) == {schema.STATUS_DEFERRED}
        assert set(rows[schema.ERROR_MESSAGE].to_pylist()) == {"the store is out"}


def test_a_worklist_that_is_denied_is_an_error() -> None:
    with pytest.raises(StoreAccessError, match="access is denied"):
        FetchDecode(unreadable(StoreAccessError("access is denied")), SETTINGS)(0)


@pytest.mark.slow
def test_processes_with_little_to_do_resize_without_torch(real_data: Path) -> None:
    at_224 = replace(SETTINGS, input_size_px=224)
    assert at_224.for_run(3000, 2) == replace(at_224, resizer="pillow")
    assert at_224.for_run(3001, 2) == at_224
    assert replace(at_224, input_size_px=448).for_run(751, 2).resizer == "torch"
    code = """
import sys
from pathlib import Path
from test_fetch_decode import SETTINGS, decode_rows, worklist_of
rows = decode_rows(worklist_of(Path(sys.argv[1])).read_unit(0), SETTINGS.for_run(1, 1))
print("ok" in rows["status"].to_pylist(), "torch" in sys.modules)
"""
    folders = [PROJECT_ROOT, PROJECT_ROOT / "tests", Path(__file__).parent]
    done = subprocess.run(
        [sys.executable, "-c", code, str(real_data / "exif" / "orientation")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "True False\n", done


FIRST_RUN = """
import sys
from pathlib import Path
from locray.images.decode import DecodeLimits
from locray.labelling.fetch_decode import DecodeSettings, FetchDecode
from test_fetch_decode import worklist_of
FetchDecode(worklist_of(Path(sys.argv[1])), DecodeSettings(32, DecodeLimits(10**6, 10**6), 1, timeout_s=1))(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "died_of"),
    [("crash", signal.SIGSEGV), ("hang", signal.SIGALRM), ("hang with the lock", signal.SIGALRM)],
)
def test_a_poisonous_image_is_the_end_of_the_first_process(tmp_path: Path, deed: str, died_of: signal.Signals) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(poison(deed))
    folders = [
        install_broken_decoder(tmp_path / "decoder"),
        PROJECT_ROOT,
        PROJECT_ROOT / "tests",
        Path(__file__).parent,
    ]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUN, str(tmp_path / "images")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -died_of, done


@pytest.mark.slow
def test_after_a_death_each_poisonous_image_gets_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install_broken_decoder(tmp_path / "decoder"))
    images = tmp_path / "images"
    images.mkdir()
    deeds = {"a": "nothing", "b": "crash", "c": "hang with the lock", "d": "nothing", "e": "crash", "f": "nothing"}
    for name, deed in deeds.items():
        (images / name).write_bytes(poison(deed))
    settings = DecodeSettings(32, SETTINGS.limits, concurrent_gets=1, timeout_s=1)
    again = FetchDecode(worklist_of(images), settings)
    rows = again(0, crashes=1)
    names = [os.path.basename(uri) for uri in rows[schema.IMAGE_URI].to_pylist()]
    code_of = {"nothing": None, "crash": "decoder_crash", "hang with the lock": "decoder_timeout"}
    assert sorted(names) == sorted(deeds)
    assert rows[schema.ERROR_CODE].to_pylist() == [code_of[deeds[name]] for name in names]

    defer_unit = again(0, crashes=MAX_CRASHES)
    assert defer_unit[schema.ORDINAL] == rows[schema.ORDINAL]
    assert set(defer_unit[schema.STATUS].to_pylist()) == {schema.STATUS_DEFERRED}
    assert defer_unit[schema.ERROR_MESSAGE][0].as_py().startswith("5 processes died over it")
