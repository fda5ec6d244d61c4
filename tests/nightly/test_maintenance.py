"""Compaction and vacuum: the table's rows stay the same, whatever happens in between."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake.transaction import RemoveAction

from locray import schema
from locray.errors import FencedError, StoreError
from locray.nightly.maintenance import Compaction, compact, groups_to_merge, vacuum
from locray.progress import ignore
from locray.table.data_files import LoggedFile, logged_files, remove_file
from locray.table.writer import TableWriter
from locray.verification.findings import Check
from locray.verification.table import check_table
from tests.helpers.rows import predicted
from tests.helpers.s3_server import S3Bucket
from tests.helpers.tables import (
    DATES,
    MIB,
    MODEL_ID,
    OTHER,
    commit,
    data_files,
    dataset_of,
    files_of,
    flip_a_byte,
    opened,
    rows_of,
)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table with four files of one model, three of the first night and one of the second, and two of another."""
    uri = str(tmp_path / "table")
    for model_id in (MODEL_ID, OTHER):
        commit(uri, predicted([5, 1]), model_id=model_id)
        commit(uri, predicted([4]), predicted([2], status=schema.STATUS_FAILED), model_id=model_id)
    commit(uri, predicted([3, 0]))
    commit(uri, predicted([0], etag="v2"), run_date=DATES[1])
    return uri


def test_small_files_become_one_like_any_other(table: str) -> None:
    rows, others = rows_of(table), files_of(table, OTHER)
    done = compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    assert done == Compaction(files_before=4, files_after=2, rows_rewritten=6)
    assert rows_of(table) == rows
    assert files_of(table, OTHER) == others
    (merged,) = [file for file in files_of(table) if str(DATES[0]) in file]
    held = pq.ParquetFile(merged)
    uris = held.read()[schema.IMAGE_URI].to_pylist()
    assert (len(uris), uris) == (6, sorted(uris))
    assert {held.metadata.row_group(0).column(index).compression for index in range(13)} == {"ZSTD"}
    check = check_table(table)
    assert (check.findings.faults, check.num_rows) == ({}, len(rows))
    assert check.findings.notes[Check.FILE_REMOVED].count == 3


def test_a_filter_on_any_column_finds_the_rows_of_a_compacted_file(table: str) -> None:
    compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    predictions = dataset_of(table)
    for name in set(schema.PREDICTIONS_SCHEMA.names) - {schema.DETECTIONS}:
        values = predictions.to_table(columns=[name])[name]
        for value in values.unique():
            wanted = ds.field(name) == value if value.is_valid else ds.field(name).is_null()
            expected = sum(other == value for other in values) if value.is_valid else values.null_count
            assert predictions.to_table(filter=wanted).num_rows == expected, (name, value)


def test_a_flipped_byte_of_a_compacted_file_is_detected(table: str) -> None:
    compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    flip_a_byte(files_of(table)[0])
    assert check_table(table).findings.faults.keys() == {Check.FILE_UNREADABLE}


def test_a_compacted_table_is_left_alone(table: str) -> None:
    writer = TableWriter.claim(table, MODEL_ID)
    compact(writer, MIB, ignore)
    before, version = data_files(table), opened(table).version()
    assert compact(writer, MIB, ignore) == Compaction(2, 2, 0)
    assert (data_files(table), opened(table).version()) == (before, version)


def test_readers_of_changes_see_none(table: str) -> None:
    compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    last = max((Path(table) / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in last.read_text().splitlines()]
    changes = [action[kind] for action in actions for kind in ("add", "remove") if kind in action]
    assert [one["dataChange"] for one in changes] == [False] * 4


def logged(name: str, size: int, *, day: int = 0, rows: int | None = 10, model_id: str = MODEL_ID) -> LoggedFile:
    return LoggedFile(
        uri=name,
        path=name,
        size_bytes=size,
        num_rows=rows,
        model_id=model_id,
        run_date=str(DATES[day]),
        first_uri=name,
        last_uri=name,
        first_status=None,
    )


@pytest.mark.parametrize(
    ("files", "groups"),
    [
        ([], []),
        ([logged("a", 10)], []),
        ([logged("b", 10), logged("a", 10)], [["a", "b"]]),
        ([logged("a", 10), logged("b", 10, day=1)], []),
        ([logged("a", 10), logged("b", 10, model_id=OTHER)], []),
        ([logged("a", 60), logged("b", 40), logged("c", 1)], [["a", "b"]]),
        ([logged("a", 60), logged("b", 50), logged("c", 50), logged("d", 1)], [["b", "c"]]),
        ([logged("a", 10), logged("b", 100), logged("c", 10)], [["a", "c"]]),
        ([logged("a", 10, rows=600), logged("b", 10, rows=400), logged("c", 10, rows=1)], [["a", "b"]]),
        ([logged("a", 10), logged("b", 10, rows=None), logged("c", 10, rows=0)], []),
        ([logged("a%2540", 10), logged("b%20", 10), logged("c", 10)], [["a%2540", "c"]]),
    ],
)
def test_files_are_grouped_by_partition_and_size(files: list[LoggedFile], groups: list[list[str]]) -> None:
    found = groups_to_merge(files, target_bytes=100, max_rows=1000)
    assert [[file.uri for file in group] for group in found] == groups


def test_a_fenced_compaction_changes_nothing(table: str) -> None:
    rows, files = rows_of(table), files_of(table)
    old = TableWriter.claim(table, MODEL_ID)
    new = TableWriter.claim(table, MODEL_ID)
    with pytest.raises(FencedError):
        compact(old, MIB, ignore)
    assert (rows_of(table), files_of(table)) == (rows, files)
    assert new.clean_up() == 1
    assert compact(new, MIB, ignore).files_after == 2
    assert rows_of(table) == rows


def test_a_resumed_writer_is_fenced_by_a_newer_run(table: str) -> None:
    number = TableWriter.claim(table, MODEL_ID).transaction
    resumed = TableWriter.resume(table, MODEL_ID, number)
    number = TableWriter.claim(table, MODEL_ID).transaction
    for attempt in (lambda: compact(resumed, MIB, ignore), lambda: TableWriter.resume(table, MODEL_ID, number - 1)):
        with pytest.raises(FencedError):
            attempt()
    assert compact(TableWriter.resume(table, MODEL_ID, number), MIB, ignore).files_after == 2


def test_concurrent_commits_of_another_model_are_harmless(table: str) -> None:
    writer = TableWriter.claim(table, MODEL_ID)
    commit(table, predicted([7]), model_id=OTHER)
    rows = rows_of(table)
    compact(writer, MIB, ignore)
    assert rows_of(table) == rows


def test_files_written_by_deltalake_are_compacted(table: str) -> None:
    """Their folders have percent-encoded names, which the log encodes once more."""
    opened(table).optimize.compact()
    assert any("%40" in file for file in files_of(table, ""))
    rows = rows_of(table)
    commit(table, predicted([2, 6]), replace=True)
    replaced = rows_of(table)
    assert len(replaced) == len(rows) + 1
    assert compact(TableWriter.claim(table, MODEL_ID), MIB, ignore).files_after == 2
    assert rows_of(table) == replaced
    assert vacuum(TableWriter.claim(table, MODEL_ID), 0) >= 6
    assert rows_of(table) == replaced
    assert check_table(table).findings.notes == {}


def test_files_that_a_commit_can_not_name_stay(table: str) -> None:
    files = logged_files(opened(table), table)
    strange = replace(files[0], path=files[0].path.replace("@", "%20"))
    before = data_files(table)
    with pytest.raises(StoreError, match="not written by locray"):
        TableWriter.claim(table, MODEL_ID).rewrite(pq.ParquetFile(files[0].uri).read(), [strange])
    assert data_files(table) == before


def test_a_damaged_file_is_not_copied_into_a_valid_one(table: str) -> None:
    flip_a_byte(files_of(table)[0])
    before = files_of(table)
    with pytest.raises(StoreError, match=before[0]):
        compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    assert files_of(table) == before


def test_a_vacuum_deletes_what_was_removed_long_ago(table: str) -> None:
    writer = TableWriter.claim(table, MODEL_ID)
    compact(writer, MIB, ignore)
    before, version = data_files(table), opened(table).version()
    assert vacuum(writer, 1) == 0
    assert data_files(table) == before
    assert vacuum(writer, 0) == 3
    assert data_files(table) == set(opened(table).file_uris())
    assert check_table(table).findings.faults == {}
    assert vacuum(writer, 0) == 0
    assert opened(table).version() == version


def test_a_vacuum_never_deletes_what_another_run_may_still_commit(table: str) -> None:
    """The age of the file does not matter: the run may have been suspended."""
    name = f"{schema.RUN_DATE}={DATES[0]}/part-{'0' * 32}.parquet"
    written, orphan = (Path(table) / f"{schema.MODEL_ID}={model_id}" / name for model_id in (OTHER, MODEL_ID))
    for file in (written, orphan):
        file.write_bytes(b"not yet committed")
        os.utime(file, (0, 0))
    writer = TableWriter.claim(table, MODEL_ID)
    compact(writer, MIB, ignore)
    newer = TableWriter.claim(table, MODEL_ID)
    with pytest.raises(FencedError):
        vacuum(writer, 0)
    assert orphan.exists()
    assert vacuum(newer, 0) == 4
    assert (written.exists(), orphan.exists()) == (True, False)


@pytest.mark.parametrize(("hours", "deleted"), [(169, 0), (168, 1)])
def test_a_vacuum_deletes_what_the_log_has_forgotten(table: str, hours: int, deleted: int) -> None:
    """A checkpoint drops files removed more than a week ago, and with them the time of removal."""
    nine_days_ago_ms = int((time.time() - 9 * 86_400) * 1000)
    writer = TableWriter.claim(table, MODEL_ID)
    *_, one, other = [file for file in logged_files(writer.table, table) if file.model_id == MODEL_ID]
    recently = remove_file(other)
    long_ago = RemoveAction(one.path, True, nine_days_ago_ms, one.size_bytes, recently.partition_values)
    writer._commit(lambda: [long_ago, recently], "0" * 32)
    opened(table).create_checkpoint()
    assert opened(table).vacuum(168, dry_run=True) == []
    assert vacuum(TableWriter.claim(table, MODEL_ID), hours) == deleted
    assert Path(one.uri).exists() == (not deleted)
    assert Path(other.uri).exists()


def test_a_vacuum_after_a_checkpoint_deletes_removed_files(table: str) -> None:
    compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    opened(table).create_checkpoint()
    assert vacuum(TableWriter.claim(table, OTHER), 0) == 3


@pytest.mark.s3
def test_a_table_on_a_bucket(s3_bucket: S3Bucket) -> None:
    uri = f"{s3_bucket.uri}/table"
    for ordinals in ([0, 1], [2], [3]):
        commit(uri, predicted(ordinals))
    commit(uri, predicted([4], status=schema.STATUS_FAILED))
    commit(uri, predicted([4]), replace=True)
    rows = rows_of(uri)
    assert compact(TableWriter.claim(uri, MODEL_ID), MIB, ignore).files_after == 1
    assert rows_of(uri) == rows
    assert vacuum(TableWriter.claim(uri, MODEL_ID), 0) == 5
    assert rows_of(uri) == rows
    check = check_table(uri)
    assert (check.findings.faults, check.findings.notes, check.num_files) == ({}, {}, 1)
