"""The Delta table and its single writer, in a local folder."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from locray import schema, storage
from locray.errors import FencedError, StoreAccessError, StoreError, UsageError
from locray.table.open import create_table, open_table
from locray.table.writer import TableWriter
from tests.helpers.committers import MODEL_ID, RUN_DATE, committer, rows_of
from tests.helpers.rows import predicted
from tests.helpers.s3_server import S3Bucket, S3Server
from tests.helpers.tables import dataset_of


def test_rows_come_back_as_they_were_with_the_documented_schema(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits.add(predicted([3, 1]))
    commits.add(predicted([2], status=schema.STATUS_FAILED))
    commits.flush()
    found = rows_of(uri)
    assert found[schema.IMAGE_URI].to_pylist() == [f"s3://bucket/{n:06d}.jpg" for n in (1, 2, 3)]
    assert found[schema.DETECTIONS].to_pylist()[1] is None
    assert found[schema.DETECTIONS].to_pylist()[0][0][schema.LABEL] == "disc"
    assert set(found[schema.MODEL_ID].to_pylist()) == {MODEL_ID}
    assert set(found[schema.RUN_DATE].to_pylist()) == {RUN_DATE}
    assert found.schema.field(schema.LABELLED_AT).type == schema.TIMESTAMP
    assert sorted(found.column_names) == sorted(schema.PREDICTIONS_SCHEMA.names)
    assert (commits.ok, commits.failed, commits.commits, dict(commits.errors)) == (2, 1, 1, {"corrupt": 1})


def test_a_filter_on_any_column_finds_the_rows(tmp_path: Path) -> None:
    """File statistics let readers skip files; wrong ones make rows invisible."""
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits.add(predicted([1, 2]))
    commits.flush()
    commits.add(predicted([3], status=schema.STATUS_FAILED))
    commits.flush()
    predictions = dataset_of(uri)
    for name in set(schema.PREDICTIONS_SCHEMA.names) - {schema.DETECTIONS}:
        values = predictions.to_table(columns=[name])[name]
        for value in values.unique():
            column = ds.field(name)
            wanted = column == value if value.is_valid else column.is_null()
            expected = sum(other == value for other in values) if value.is_valid else values.null_count
            assert predictions.to_table(filter=wanted).num_rows == expected, (name, value)


def test_an_older_writer_is_fenced_and_adds_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    old = committer(TableWriter.claim(uri, MODEL_ID))
    old.add(predicted([0]))
    old.flush()
    new = committer(TableWriter.claim(uri, MODEL_ID))
    old.add(predicted([1]))
    with pytest.raises(FencedError, match="another run"):
        old.flush()
    new.add(predicted([2]))
    new.flush()
    assert rows_of(uri)[schema.IMAGE_URI].to_pylist() == ["s3://bucket/000000.jpg", "s3://bucket/000002.jpg"]


def test_a_claim_between_a_commit_and_its_refresh_is_detected(tmp_path: Path) -> None:
    """The refreshed snapshot includes the other run's claim, so Delta alone would accept the next commit."""
    uri = str(tmp_path / "table")
    writer = TableWriter.claim(uri, MODEL_ID)
    real_commit = writer.table

    class ClaimedMeanwhile:
        def __getattr__(self, name: str) -> object:
            return getattr(real_commit, name)

        def update_incremental(self) -> None:
            TableWriter.claim(uri, MODEL_ID)
            real_commit.update_incremental()

    writer.table = ClaimedMeanwhile()  # type: ignore[assignment]
    old = committer(writer)
    old.add(predicted([0]))
    with pytest.raises(FencedError):
        old.flush()


def test_writers_of_different_models_do_not_disturb_each_other(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    writers = [committer(TableWriter.claim(uri, model_id)) for model_id in ("a@000000000000", "b@000000000000")]
    for round_ in range(3):
        for writer in writers:
            writer.add(predicted([round_]))
            writer.flush()
    assert rows_of(uri).num_rows == 6


def test_a_commit_whose_response_was_lost_has_succeeded(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    writer = TableWriter.claim(uri, MODEL_ID)
    real = writer.table

    class AnswerLost:
        """The store applied the commit, the answer was lost, and the client's own retry conflicts with it."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def create_write_transaction(self, *args: object, **kwargs: object) -> None:
            stale = DeltaTable(uri)
            real.create_write_transaction(*args, **kwargs)
            stale.create_write_transaction(*args, **kwargs)

    writer.table = AnswerLost()  # type: ignore[assignment]
    commits = committer(writer)
    commits.add(predicted([0, 1]))
    commits.flush()
    assert rows_of(uri).num_rows == 2


class Flaky:
    """A table whose store applies a commit and then fails some requests."""

    def __init__(self, table: DeltaTable) -> None:
        self.table, self.is_out = table, False

    def __getattr__(self, name: str) -> object:
        return getattr(self.table, name)

    def create_write_transaction(self, *args: object, **kwargs: object) -> None:
        self.table.create_write_transaction(*args, **kwargs)  # type: ignore[arg-type]
        self.is_out = True

    def update_incremental(self) -> None:
        if self.is_out:
            self.is_out = False
            raise OSError("no answer")
        self.table.update_incremental()


@pytest.mark.parametrize("replace", [False, True])
def test_a_writer_recognises_its_own_uncertain_commit(tmp_path: Path, replace: bool) -> None:
    """There is no other run, so it is not fenced and continues."""
    uri = str(tmp_path / "table")
    first = committer(TableWriter.claim(uri, MODEL_ID))
    first.add(predicted([0, 1, 2], status=schema.STATUS_FAILED))
    first.flush()
    writer = TableWriter.claim(uri, MODEL_ID)
    flaky = Flaky(writer.table)
    writer.table = flaky  # type: ignore[assignment]
    commits = committer(writer, replace=replace)
    commits.add(predicted([0 if replace else 3]))
    with pytest.raises(StoreError):
        commits.flush()
    writer.check_claim()
    writer.table = flaky.table
    commits.add(predicted([1 if replace else 4]))
    commits.close()
    assert rows_of(uri).num_rows == (3 if replace else 5)
    TableWriter.claim(uri, MODEL_ID)
    with pytest.raises(FencedError):
        writer.check_claim()


def test_a_claim_after_an_uncertain_commit_fences_the_writer(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    writer = TableWriter.claim(uri, MODEL_ID)
    real = writer.table
    writer.table = Flaky(real)  # type: ignore[assignment]
    commits = committer(writer)
    commits.add(predicted([0]))
    with pytest.raises(StoreError):
        commits.flush()
    writer.table = real
    TableWriter.claim(uri, MODEL_ID)
    with pytest.raises(FencedError):
        writer.check_claim()
    commits.add(predicted([1]))
    with pytest.raises(FencedError):
        commits.flush()
    assert rows_of(uri).num_rows == 1


def test_an_unknown_outcome_of_a_commit_is_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "table")
    writer = TableWriter.claim(uri, MODEL_ID)
    asked: list[None] = []
    real_commit, real_latest = TableWriter._send_commit, TableWriter._read_latest

    def answer_lost(writer: TableWriter, *arguments: Any) -> None:
        real_commit(writer, *arguments)
        raise StoreError("no answer")

    def latest(writer: TableWriter) -> DeltaTable:
        asked.append(None)
        if len(asked) == 1:
            raise StoreError("no answer either")
        return real_latest(writer)

    monkeypatch.setattr(TableWriter, "_send_commit", answer_lost)
    monkeypatch.setattr(TableWriter, "_read_latest", latest)
    commits = committer(writer)
    commits.add(predicted([0]))
    commits.flush()
    assert (len(asked), commits.ok, rows_of(uri).num_rows) == (2, 1, 1)


def test_a_refusal_without_another_run_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, somebody else made the table append-only, while failed rows are replaced."""
    monkeypatch.setattr("locray.table.claimed._RETRY_DELAYS_S", ())
    uri = str(tmp_path / "table")
    first = committer(TableWriter.claim(uri, MODEL_ID))
    first.add(predicted([0], status="failed"))
    first.flush()
    commits = committer(TableWriter.claim(uri, MODEL_ID, replaces=True), replace=True)
    DeltaTable(uri).alter.set_table_properties({"delta.appendOnly": "true"})
    commits.add(predicted([0]))
    with pytest.raises(StoreError, match=r"was refused: .*append-only"):
        commits.flush()
    assert rows_of(uri)[schema.STATUS].to_pylist() == ["failed"]
    with pytest.raises(UsageError, match="append-only"):
        TableWriter.claim(uri, MODEL_ID, replaces=True)


def test_clean_up_deletes_what_a_crash_left_and_nothing_else(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    other = committer(TableWriter.claim(uri, "other@000000000000"))
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    for writer in (other, commits):
        writer.add(predicted([0]))
        writer.flush()
    partition = tmp_path / "table" / f"{schema.MODEL_ID}={MODEL_ID}" / f"{schema.RUN_DATE}={RUN_DATE}"
    orphan = partition / f"part-{'0' * 32}.parquet"
    orphan.write_bytes(b"never committed")
    someone_elses = tmp_path / "table" / f"{schema.MODEL_ID}=other@000000000000" / f"part-{'0' * 32}.parquet"
    someone_elses.write_bytes(b"being written")
    scratch = tmp_path / "table" / "_locray" / MODEL_ID / "run" / "worklist-000000"
    scratch.parent.mkdir(parents=True)
    scratch.write_bytes(b"of a crashed run")
    assert TableWriter.claim(uri, MODEL_ID).clean_up() == 2
    assert not orphan.exists()
    assert not scratch.parent.exists()
    assert someone_elses.exists()
    assert rows_of(uri).num_rows == 2


def test_a_fenced_writer_cleans_nothing_up(tmp_path: Path) -> None:
    """It was paused after its claim, and resumes between a file of the newer run and its commit."""
    uri = str(tmp_path / "table")
    paused = TableWriter.claim(uri, MODEL_ID)
    TableWriter.claim(uri, MODEL_ID)
    partition = tmp_path / "table" / f"{schema.MODEL_ID}={MODEL_ID}" / f"{schema.RUN_DATE}={RUN_DATE}"
    partition.mkdir(parents=True)
    written = partition / f"part-{'0' * 32}.parquet"
    written.write_bytes(b"about to be committed")
    with pytest.raises(FencedError):
        paused.clean_up()
    assert written.exists()


def test_replaced_rows_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    first = committer(TableWriter.claim(uri, MODEL_ID))
    first.add(predicted([0]))
    first.add(predicted([1, 2], status=schema.STATUS_FAILED))
    first.flush()
    again = committer(TableWriter.claim(uri, MODEL_ID), replace=True)
    again.add(predicted([1]))
    again.add(predicted([3]))
    again.flush()
    found = rows_of(uri)
    assert found[schema.STATUS].to_pylist() == ["ok", "ok", "failed", "ok"]
    TableWriter.claim(uri, MODEL_ID).clean_up()
    assert rows_of(uri).num_rows == 4


def test_a_fenced_writer_replaces_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    first = committer(TableWriter.claim(uri, MODEL_ID))
    first.add(predicted([1], status=schema.STATUS_FAILED))
    first.flush()
    old = committer(TableWriter.claim(uri, MODEL_ID), replace=True)
    TableWriter.claim(uri, MODEL_ID)
    old.add(predicted([1]))
    with pytest.raises(FencedError):
        old.flush()
    assert rows_of(uri)[schema.STATUS].to_pylist() == ["failed"]


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no predictions table"):
        open_table(str(tmp_path))


def test_another_delta_table_is_refused(tmp_path: Path) -> None:
    DeltaTable.create(str(tmp_path / "sales"), schema=pa.schema([("price", pa.float64())]))
    with pytest.raises(UsageError, match="no column image_uri"):
        open_table(str(tmp_path / "sales"))


def test_no_table_yet(tmp_path: Path) -> None:
    assert open_table(str(tmp_path / "absent")) is None


def test_a_file_where_the_table_should_be(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"mine")
    with pytest.raises(StoreAccessError, match="is a file"):
        open_table(str(tmp_path / "table"))


def test_a_damaged_log_is_reported_in_one_line(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    TableWriter.claim(uri, MODEL_ID)
    next((tmp_path / "table" / "_delta_log").glob("*1.json")).write_text("not json")
    with pytest.raises(StoreAccessError, match="_delta_log") as told:
        open_table(uri)
    assert "\n" not in str(told.value)


def test_a_folder_without_write_permission(unprivileged_folder: Path) -> None:
    (unprivileged_folder / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreAccessError, match="closed"):
        TableWriter.claim(str(unprivileged_folder / "closed" / "table"), MODEL_ID)


@pytest.mark.s3
def test_a_bucket_that_is_missing_denied_or_read_only(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreAccessError, match="no bucket s3://not-there"):
        open_table("s3://not-there/table")
    TableWriter.claim(f"{s3_bucket.uri}/table", MODEL_ID)
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    assert open_table(f"{s3_bucket.uri}/table") is not None
    for table in ("table", "new"):
        with pytest.raises(StoreAccessError, match="PutObject"):
            TableWriter.claim(f"{s3_bucket.uri}/{table}", MODEL_ID)
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreAccessError, match="denied"):
        open_table(f"{s3_bucket.uri}/table")


def use_keys(monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value)


@pytest.mark.s3
def test_credentials_that_change_during_a_run_are_used(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is opened with keys that can't write to it, like expired ones."""
    uri = f"{s3_bucket.uri}/table"
    number = TableWriter.claim(uri, MODEL_ID).transaction
    use_keys(monkeypatch, s3_server.reader)
    table = open_table(uri)
    assert table is not None
    writer = TableWriter(uri, MODEL_ID, number, table, storage.delta_storage_options(uri))
    assert "secret" not in repr(writer)
    use_keys(monkeypatch, s3_server.owner)
    for replace in (False, True):
        commits = committer(writer, replace=replace)
        commits.add(predicted([int(replace)]))
        commits.flush()
    assert rows_of(uri).num_rows == 2


@pytest.mark.s3
@pytest.mark.parametrize("replace", [False, True])
def test_new_credentials_do_not_hide_another_claim(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    uri = f"{s3_bucket.uri}/table"
    old = TableWriter.claim(uri, MODEL_ID)
    TableWriter.claim(uri, MODEL_ID)
    use_keys(monkeypatch, s3_server.successor)
    commits = committer(old, replace=replace)
    commits.add(predicted([0]))
    with pytest.raises(FencedError):
        commits.flush()
    assert rows_of(uri).num_rows == 0


def test_a_table_that_another_run_creates_concurrently_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run creates it between the check for a table and the check for other content."""
    uri = str(tmp_path / "table")
    list_uris = storage.list_uris

    def after_another_run(folder: str) -> list[str]:
        create_table(uri)
        return list_uris(folder)

    monkeypatch.setattr(storage, "list_uris", after_another_run)
    table = open_table(uri)
    assert table is not None
    assert table.version() == 0
