"""Other programs that change the table at each step of a commit: no row is lost or duplicated."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from locray import schema
from locray.errors import FencedError, UsageError
from locray.labelling.committer import Committer
from locray.nightly.maintenance import compact as compact_own
from locray.table import writer as writing
from locray.table.claimed import ClaimedTable
from locray.table.data_files import FILE_SCHEMA, logged_files, row_dataset
from locray.table.writer import TableWriter
from tests.helpers.foreign_writers import HARMLESS, ForeignWriter, add_column, compact
from tests.helpers.rows import predicted
from tests.helpers.tables import DATES, MIB, MODEL_ID, commit, data_files, rows_of

STEPS = {
    "before the file is written": (writing, "write_file", "before"),
    "before the commit": (ClaimedTable, "_send_commit", "before"),
    "after the commit": (ClaimedTable, "_send_commit", "after"),
    "before the new snapshot": (ClaimedTable, "_advance", "before"),
}
OTHER = "other@000000000000"


def add(writer: TableWriter, rows: pa.Table, *, replace: bool = False) -> None:
    stamp = {schema.CONFIG_HASH: "c0ffee", schema.RUN_ID: "run"}
    commits = Committer(writer, 100, stamp=stamp, run_date=DATES[0], commit_rows=100, replace=replace)
    commits.add(rows)
    commits.flush()


def append(writer: TableWriter) -> None:
    add(writer, predicted([8]))


def replace(writer: TableWriter) -> None:
    add(writer, predicted([4, 7]), replace=True)


def merge_files(writer: TableWriter) -> None:
    """As a compaction; another one's success is as good."""
    files = [file for file in logged_files(writer.table, writer.uri) if file.model_id == MODEL_ID]
    rows = pa.concat_tables([_read(file.uri) for file in files])
    writer.rewrite(rows, files)


def _read(path: str) -> pa.Table:
    return pq.ParquetFile(path).read().select(FILE_SCHEMA.names).cast(FILE_SCHEMA)


def make_table(uri: str) -> None:
    commit(uri, predicted([1, 2, 3]), predicted([4, 5], status="failed"))
    commit(uri, predicted([6]), predicted([7], status="failed"))
    commit(uri, predicted([1, 2]), model_id=OTHER)


def statuses(uri: str) -> list[tuple[int, str]]:
    rows = [row for row in rows_of(uri) if row[schema.MODEL_ID] == MODEL_ID]
    return [(int(Path(row[schema.IMAGE_URI]).stem), row[schema.STATUS]) for row in rows]


BEFORE = [(1, "ok"), (2, "ok"), (3, "ok"), (4, "failed"), (5, "failed"), (6, "ok"), (7, "failed")]
WRITES: dict[Callable[[TableWriter], None], list[tuple[int, str]]] = {
    append: [*BEFORE, (8, "ok")],
    replace: [(1, "ok"), (2, "ok"), (3, "ok"), (4, "ok"), (5, "failed"), (6, "ok"), (7, "ok")],
    merge_files: BEFORE,
}


@pytest.mark.parametrize("foreign", HARMLESS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_foreign_commit_neither_loses_nor_doubles_rows(
    write: Callable[[TableWriter], None],
    step: str,
    foreign: ForeignWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = str(tmp_path / "table")
    make_table(uri)
    writer = TableWriter.claim(uri, MODEL_ID)
    with monkeypatch.context() as patch:
        happened = _once_at(patch, step, lambda: foreign(DeltaTable(uri)))
        write(writer)
        assert happened
    assert statuses(uri) == WRITES[write]
    # The next run finds a table that it can write, and a clean folder.
    commit(uri, predicted([9]))
    assert statuses(uri) == [*WRITES[write], (9, "ok")]
    log = "".join(path.read_text() for path in (tmp_path / "table/_delta_log").glob("*.json"))
    assert [file for file in data_files(uri) if Path(file).name not in log] == []


def _once_at(patch: pytest.MonkeyPatch, step: str, action: Callable[[], object]) -> list[str]:
    """Runs the action once, at a step. Returns a list that is not empty afterwards."""
    owner, name, when = STEPS[step]
    real = getattr(owner, name)
    happened: list[str] = []

    def with_action(*arguments: Any, **keywords: Any) -> Any:
        def act() -> None:
            if not happened:
                happened.append(step)
                action()

        if when == "before":
            act()
        result = real(*arguments, **keywords)
        if when == "after":
            act()
        return result

    patch.setattr(owner, name, with_action)
    return happened


def test_a_failed_row_that_comes_after_the_claim_is_replaced(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1], status="failed"))
    writer = TableWriter.claim(uri, MODEL_ID)
    # Not fenced, as a program that knows nothing of claims.
    table = DeltaTable(uri)
    table.delete(f"{schema.STATUS} = 'failed'")
    table.restore(table.version() - 1)
    add(writer, predicted([1]), replace=True)
    assert statuses(uri) == [(1, "ok")]


def test_another_run_of_the_model_is_still_a_conflict(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    make_table(uri)
    writer = TableWriter.claim(uri, MODEL_ID)
    compact(DeltaTable(uri))
    TableWriter.claim(uri, MODEL_ID)
    compact(DeltaTable(uri))
    with pytest.raises(FencedError):
        append(writer)
    assert statuses(uri) == BEFORE


@pytest.mark.parametrize("write", [append, replace, merge_files], ids=lambda write: write.__name__)
def test_a_constraint_that_is_added_meanwhile_is_respected(
    write: Callable[[TableWriter], None], tmp_path: Path
) -> None:
    uri = str(tmp_path / "table")
    make_table(uri)
    writer = TableWriter.claim(uri, MODEL_ID)
    DeltaTable(uri).alter.add_constraint({"positive": f"{schema.SIZE_BYTES} > 0"})
    with pytest.raises(UsageError, match="constraint positive"):
        write(writer)
    assert statuses(uri) == BEFORE


def test_columns_that_users_add_keep_their_values(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    make_table(uri)
    add_column(DeltaTable(uri))
    name = DeltaTable(uri).schema().fields[-1].name
    DeltaTable(uri).update(updates={name: "'checked'"}, predicate=f"{schema.IMAGE_URI} <= 's3://bucket/000005.jpg'")
    writer = TableWriter.claim(uri, MODEL_ID)
    replace(writer)
    compact_own(writer, MIB, lambda _: None)
    append(writer)
    assert statuses(uri) == [*WRITES[replace], (8, "ok")]
    remarks = [row[name] for row in rows_of(uri) if row[schema.MODEL_ID] == MODEL_ID]
    assert remarks == ["checked", "checked", "checked", None, "checked", None, None, None]
    filtered = row_dataset(DeltaTable(uri), uri).to_table(filter=ds.field(name) == "checked")
    assert len(filtered) == 6


def test_a_table_works_after_it_was_copied_renamed_and_restored(tmp_path: Path) -> None:
    uri, copied, renamed = (str(tmp_path / name) for name in ("table", "copied", "renamed"))
    make_table(uri)
    shutil.copytree(uri, copied)
    Path(uri).rename(renamed)
    for place in (copied, renamed):
        append(commit(place, predicted([9])))
        assert statuses(place) == [*BEFORE, (8, "ok"), (9, "ok")]
    DeltaTable(renamed).restore(DeltaTable(copied).version() - 2)
    assert statuses(renamed) == BEFORE
    writer = TableWriter.claim(renamed, MODEL_ID)
    assert writer.clean_up() == 0
    append(writer)
    replace(writer)
    assert statuses(renamed) == [*WRITES[replace], (8, "ok")]
