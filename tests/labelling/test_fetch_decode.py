"""The first stage on images made to break decoders: each gets exactly one row."""

import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from locray import schema
from locray.config import InferenceOptions
from locray.errors import StoreAccessError, StoreError
from locray.labelling.fetch_decode import MAX_CRASHES, FetchDecode, decode_rows, defer_decoded
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import InlineWorklist
from locray.sources.folder import walk
from locray.table.key import PredictionKey
from tests.helpers.commands import PROJECT_ROOT
from tests.helpers.failing_store import failing_store
from tests.helpers.poison import install_broken_decoder, poison

KEY = PredictionKey("net@0123456789ab", "c0ffee")


def model_of(input_size_px: int = 32, decode_timeout_s: float = 60) -> ModelSpec:
    """Returns options for an artifact that this stage does not read."""
    options = InferenceOptions(
        max_bytes=50_000_000, max_pixels=10_000_000, concurrent_gets=16, decode_timeout_s=decode_timeout_s
    )
    return ModelSpec(KEY, "", input_size_px, options)


def worklist_of(folder: Path) -> InlineWorklist:
    listing = pa.Table.from_batches(walk(str(folder)), schema.LISTING_SCHEMA)
    return InlineWorklist.of(listing, len(listing))


def decoded(folder: Path) -> pa.Table:
    return decode_rows(worklist_of(folder).read_unit(0), model_of())


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
    units = [FetchDecode(worklist, model_of())(unit) for unit in range(3)]
    assert [rows[schema.ORDINAL].to_pylist() for rows in units] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for rows in units:
        assert rows.schema == schema.decoded_schema(32)
        assert set(rows[schema.STATUS].to_pylist()) == {schema.STATUS_DEFERRED}
        assert set(rows[schema.ERROR_MESSAGE].to_pylist()) == {"the store is out"}


def test_a_worklist_that_is_denied_is_an_error() -> None:
    with pytest.raises(StoreAccessError, match="access is denied"):
        FetchDecode(unreadable(StoreAccessError("access is denied")), model_of())(0)


FIRST_RUN = """
import sys
from pathlib import Path
from locray.labelling.fetch_decode import FetchDecode
from test_fetch_decode import model_of, worklist_of
FetchDecode(worklist_of(Path(sys.argv[1])), model_of(decode_timeout_s=1))(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "died_of"),
    [("crash", signal.SIGSEGV), ("hang", signal.SIGALRM), ("hang with the lock", signal.SIGALRM)],
)
def test_a_poisonous_image_is_the_end_of_the_first_process(tmp_path: Path, fault: str, died_of: signal.Signals) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(poison(fault))
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
    faults = {"a": "nothing", "b": "crash", "c": "hang with the lock", "d": "nothing", "e": "crash", "f": "nothing"}
    for name, fault in faults.items():
        (images / name).write_bytes(poison(fault))
    again = FetchDecode(worklist_of(images), model_of(decode_timeout_s=1))
    rows = again(0, crashes=1)
    names = [os.path.basename(uri) for uri in rows[schema.IMAGE_URI].to_pylist()]
    code_of = {"nothing": None, "crash": "decoder_crash", "hang with the lock": "decoder_timeout"}
    assert sorted(names) == sorted(faults)
    assert rows[schema.ERROR_CODE].to_pylist() == [code_of[faults[name]] for name in names]

    deferred = again(0, crashes=MAX_CRASHES)
    assert deferred[schema.ORDINAL] == rows[schema.ORDINAL]
    assert set(deferred[schema.STATUS].to_pylist()) == {schema.STATUS_DEFERRED}
    assert deferred[schema.ERROR_MESSAGE][0].as_py().startswith("5 processes died over its unit: ")


def test_a_unit_that_is_given_up_keeps_what_is_known_and_defers_the_rest(artifact: str) -> None:
    """Results of the decoder are kept."""
    outcomes = [
        (schema.STATUS_OK, None, None),
        (schema.STATUS_FAILED, "corrupt", "cut off"),
        (schema.STATUS_DEFERRED, "throttled", "503"),
        (schema.STATUS_OK, None, None),
    ]
    unit = [
        {
            schema.ORDINAL: number,
            schema.IMAGE_URI: f"s3://bucket/{number}.jpg",
            schema.WIDTH: 40,
            schema.HEIGHT: 30,
            schema.STATUS: status,
            schema.ERROR_CODE: code,
            schema.ERROR_MESSAGE: message,
            schema.IMAGE: np.zeros(32 * 32 * 3, np.uint8),
        }
        for number, (status, code, message) in enumerate(outcomes)
    ]
    decoded = pa.Table.from_pylist(unit, schema=schema.decoded_schema(32))
    rest = defer_decoded(decoded, MAX_CRASHES)
    assert rest.schema == decoded.schema

    from locray.labelling.predictor import Predictor  # imported here: the subprocesses of this module import no torch

    rows = Predictor(ModelSpec.read(artifact, InferenceOptions(score_threshold=0, batch_size=2)))(rest)
    assert rows.schema == schema.PREDICTED_SCHEMA
    assert rows[schema.ORDINAL].to_pylist() == [0, 1, 2, 3]
    assert rows[schema.STATUS].to_pylist() == ["deferred", "failed", "deferred", "deferred"]
    assert rows[schema.ERROR_CODE].to_pylist() == ["worker", "corrupt", "throttled", "worker"]
    first, *known, last = rows[schema.ERROR_MESSAGE].to_pylist()
    assert known == ["cut off", "503"]
    assert first == last
    assert first.startswith("5 model workers died over its unit: ")
    assert rows[schema.DETECTIONS].null_count == 4


@pytest.mark.parametrize("answered", ['"abc"', 'W/"abc"', None])
def test_a_row_keeps_the_etag_of_the_listing(monkeypatch: pytest.MonkeyPatch, answered: str | None) -> None:
    """Otherwise the next listing would show another version, and every night would label everything again."""
    row = {schema.IMAGE_URI: "s3://bucket/a", schema.ETAG: "abc", schema.SIZE_BYTES: 5}
    listed = pa.Table.from_pylist([row], schema=schema.LISTING_SCHEMA)
    with failing_store([200], monkeypatch, etag=answered):
        rows = decode_rows(InlineWorklist.of(listed, 1).read_unit(0), model_of())
    assert rows[schema.ETAG].to_pylist() == ["abc"]
