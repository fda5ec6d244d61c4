"""The list of deleted images over several nightly runs, read as a user reads it."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from locray import schema
from locray.errors import StoreAccessError, StoreError
from locray.nightly.deleted import DeletedImages, list_deleted
from locray.table.key import PredictionKey
from locray.table.open import create_table
from tests.helpers.rows import predicted
from tests.helpers.small_disk import small_disk
from tests.helpers.tables import MODEL_ID, OTHER, commit

NIGHTS = [date(2026, 1, day) for day in range(1, 6)]
KEY = PredictionKey(MODEL_ID, "c0ffee")


def uri_of(number: int) -> str:
    return str(predicted([number])[schema.IMAGE_URI][0])


def night(table: Path, number: int, listed: list[int], key: PredictionKey = KEY) -> DeletedImages:
    """Lists the images, each twice."""
    rows = predicted(listed * 2, etag="v9").select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA)
    return list_deleted(str(table), key, rows.to_batches(), str(table / "_locray" / "deleted"), NIGHTS[number])


def listed_in(found: DeletedImages) -> dict[str, date]:
    frame = pd.read_parquet(found.list_uri)
    return dict(zip(frame[schema.IMAGE_URI], frame[schema.MISSING_SINCE], strict=True))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of five images, one in two versions, and rows of another model."""
    uri = tmp_path / "table"
    commit(str(uri), predicted([0, 1, 2]), predicted([3], status=schema.STATUS_FAILED))
    commit(str(uri), predicted([2], etag="v2"), predicted([4]))
    commit(str(uri), predicted([7, 8]), model_id=OTHER)
    return uri


def test_images_go_and_come_back(table: Path) -> None:
    nothing = night(table, 0, [0, 1, 2, 3, 4, 9])
    assert (nothing.images, nothing.since_last_night, nothing.returned, listed_in(nothing)) == (0, 0, 0, {})
    two = night(table, 1, [0, 1, 4])
    assert (two.images, two.since_last_night, two.returned) == (2, 2, 0)
    assert listed_in(two) == {uri_of(2): NIGHTS[1], uri_of(3): NIGHTS[1]}
    one_is_back = night(table, 2, [0, 3, 4])
    assert (one_is_back.images, one_is_back.since_last_night, one_is_back.returned) == (2, 1, 1)
    assert listed_in(one_is_back) == {uri_of(1): NIGHTS[2], uri_of(2): NIGHTS[1]}
    gone_again = night(table, 3, [0, 4])
    assert listed_in(gone_again) == {uri_of(1): NIGHTS[2], uri_of(2): NIGHTS[1], uri_of(3): NIGHTS[3]}
    all_gone = night(table, 4, [])
    assert (all_gone.images, all_gone.since_last_night) == (5, 2)
    assert list(listed_in(all_gone)) == [uri_of(number) for number in range(5)]


def test_rows_of_other_keys_are_ignored(table: Path) -> None:
    assert night(table, 0, [7], PredictionKey(OTHER, "c0ffee")).images == 1
    assert night(table, 0, [], PredictionKey(MODEL_ID, "beef")).images == 0


def test_a_table_without_rows(tmp_path: Path) -> None:
    create_table(str(tmp_path / "table"))
    assert night(tmp_path / "table", 0, [1]).images == 0


def test_the_list_joins_with_the_table_and_is_not_part_of_it(table: Path) -> None:
    found = night(table, 0, [0, 1, 4])
    with duckdb.connect() as connection:
        rows = f"read_parquet('{table}/**/*.parquet')"
        join = f"{rows} AS rows ANTI JOIN read_parquet('{found.list_uri}') USING ({schema.IMAGE_URI})"
        left = connection.execute(f"SELECT {schema.IMAGE_URI} FROM {join} ORDER BY 1").fetchall()
    assert left == [(uri_of(number),) for number in (0, 1, 4, 7, 8)]


def test_another_file_in_place_of_the_list(table: Path) -> None:
    file = table / "_locray" / "deleted"
    file.parent.mkdir()
    for content in (b"mine", b""):
        file.write_bytes(content)
        with pytest.raises(StoreError, match=f"{file} is not a list of deleted images"):
            night(table, 0, [0])
    pa.parquet.write_table(pa.table({"x": [1]}), file)
    with pytest.raises(StoreError, match=f"{file} is not a list of deleted images"):
        night(table, 0, [0])


def test_a_full_temporary_folder_is_reported(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
        disk.resize(8)
        with pytest.raises(StoreError, match=f"don't fit into {disk.folder}"):
            night(table, 0, [0])


def test_a_missing_file_of_the_table_is_reported(table: Path) -> None:
    next(table.glob(f"{schema.MODEL_ID}={MODEL_ID}/*/*.parquet")).unlink()
    with pytest.raises(StoreAccessError, match="Run `locray verify` to find"):
        night(table, 0, [0])


def test_errors_of_the_listing_are_raised_unchanged(table: Path) -> None:
    def listing() -> Iterator[pa.RecordBatch]:
        yield from ()
        raise StoreError("the store is out")

    with pytest.raises(StoreError, match=r"^the store is out$"):
        list_deleted(str(table), KEY, listing(), str(table / "_locray" / "deleted"), NIGHTS[0])
