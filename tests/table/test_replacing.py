"""Replacing failed rows: which files are rewritten, and the state after a crash on the way."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from locray import schema
from locray.errors import StoreError
from locray.table.writer import TableWriter
from tests.helpers.commit_path import assert_whole
from tests.helpers.rows import predicted
from tests.table.test_writer import MODEL_ID, RUN_DATE, committer, rows_of

FAILED = schema.STATUS_FAILED


def commit(uri: str, *tables: pa.Table, model_id: str = MODEL_ID, replace: bool = False) -> None:
    """Commits these rows at once, as a run does."""
    commits = committer(TableWriter.claim(uri, model_id), replace=replace)
    for number, rows in enumerate(tables):
        ordinals = pa.array(range(number * 10, number * 10 + len(rows)), pa.int64())
        commits.add(rows.set_column(0, schema.WORKLIST_SCHEMA.field(0), ordinals))
    commits.flush()


def check(uri: str, *numbers: int) -> None:
    images = [{schema.IMAGE_URI: f"s3://bucket/{number:06d}.jpg", schema.ETAG: "v1"} for number in numbers]
    assert_whole(uri, pa.RecordBatch.from_pylist(images, schema=schema.LISTING_SCHEMA))


def files_of(uri: str) -> set[str]:
    return set(DeltaTable(uri).file_uris())


def test_only_files_with_replaced_rows_are_rewritten(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1, 2]))
    untouched = files_of(uri)
    commit(uri, predicted([3], status=FAILED))
    untouched |= files_of(uri)
    commit(uri, predicted([4]), predicted([5], status=FAILED))
    commit(uri, predicted([5]), replace=True)
    assert len(files_of(uri) & untouched) == 2
    assert len(files_of(uri)) == 4
    assert rows_of(uri)[schema.STATUS].to_pylist() == ["ok", "ok", "failed", "ok", "ok"]
    commit(uri, predicted([3]), replace=True)  # the only row of its file, which is removed
    assert len(files_of(uri)) == 4
    check(uri, 1, 2, 3, 4, 5)


def test_failed_rows_of_an_unknown_and_of_the_known_version_become_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1], status=FAILED, etag=None))
    commit(uri, predicted([1], status=FAILED))
    commit(uri, predicted([2], status=FAILED, etag="v0"))
    commit(uri, predicted([1, 2]), replace=True)
    found = rows_of(uri).sort_by([(schema.IMAGE_URI, "ascending"), (schema.ETAG, "ascending")])
    assert found[schema.ETAG].to_pylist() == ["v1", "v0", "v1"]
    assert found[schema.STATUS].to_pylist() == ["ok", "failed", "ok"]


def test_rows_of_other_models_and_configurations_stay(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1], status=FAILED), model_id="other@000000000000")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits._stamp = commits._stamp | {schema.CONFIG_HASH: "another"}
    commits.add(predicted([1], status=FAILED))
    commits.flush()
    commit(uri, predicted([1]), replace=True)
    assert sorted(rows_of(uri)[schema.STATUS].to_pylist()) == ["failed", "failed", "ok"]


def test_concurrent_commits_of_another_model_are_harmless(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1], status=FAILED))
    retry = committer(TableWriter.claim(uri, MODEL_ID), replace=True)
    commit(uri, predicted([1, 2]), model_id="other@000000000000")
    retry.add(predicted([1]))
    retry.flush()
    assert rows_of(uri)[schema.STATUS].to_pylist() == ["ok", "ok", "ok"]


def test_leftovers_of_a_crashed_replacement_are_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1]), predicted([2], status=FAILED))
    partition = tmp_path / "table" / f"{schema.MODEL_ID}={MODEL_ID}" / f"{schema.RUN_DATE}={RUN_DATE}"
    (partition / ".locray-0123456789abcdef.tmp").write_bytes(b"half")

    def crash(*_: object) -> None:
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        retry = committer(TableWriter.claim(uri, MODEL_ID), replace=True)
        patch.setattr(TableWriter, "_send_commit", crash)
        retry.add(predicted([2]))
        with pytest.raises(RuntimeError, match="crash"):
            retry.flush()
    assert len(list(partition.iterdir())) == 4
    assert TableWriter.claim(uri, MODEL_ID).clean_up() == 3
    commit(uri, predicted([2]), replace=True)
    check(uri, 1, 2)


def test_rows_in_a_file_written_by_a_merge_are_replaced(tmp_path: Path) -> None:
    """The file is in a folder with a percent-encoded name, which the log encodes once more."""
    uri = str(tmp_path / "table")
    commit(uri, predicted([1, 2], status=FAILED))
    rows = rows_of(uri)
    DeltaTable(uri).merge(
        rows, f"old.{schema.IMAGE_URI} = new.{schema.IMAGE_URI}", "new", "old"
    ).when_matched_update_all().execute()
    assert [name for name in files_of(uri) if "%40" in name]
    commit(uri, predicted([1]), replace=True)
    commit(uri, predicted([2]), replace=True)
    assert rows_of(uri)[schema.STATUS].to_pylist() == ["ok", "ok"]
    check(uri, 1, 2)


def test_kept_rows_stay_in_their_partition(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1]), predicted([2], status=FAILED))
    later = committer(TableWriter.claim(uri, MODEL_ID), replace=True)
    later._run_date = date(2026, 1, 3)
    later.add(predicted([2]))
    later.flush()
    assert rows_of(uri)[schema.RUN_DATE].to_pylist() == [RUN_DATE, date(2026, 1, 3)]


def test_a_damaged_file_is_not_copied_into_a_valid_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1]), predicted([2], status=FAILED))
    (path,) = map(Path, files_of(uri))
    data = bytearray(path.read_bytes())
    data[len(data) // 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="locray verify"):
        commit(uri, predicted([2]), replace=True)
