"""Which rows the committer writes, and which images it defers."""

from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.errors import ErrorCode, FencedError
from locray.table.writer import TableWriter
from tests.helpers.committers import MODEL_ID, committer, rows_of
from tests.helpers.rows import predicted

STORE, MODEL = "access_denied", "non_finite"


def test_a_row_that_comes_twice_is_committed_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID), commit_rows=3)
    for ordinals in ([0, 1, 2], [2, 3, 3], [0, 4, 5]):
        commits.add(predicted(ordinals))
    commits.flush()
    assert rows_of(uri).num_rows == 6
    assert commits.ok == 6


def test_deferred_images_are_counted_and_have_no_row(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits.add(predicted([0]))
    commits.add(predicted([1, 2], status=schema.STATUS_DEFERRED, code="throttled"))
    commits.flush()
    assert rows_of(uri).num_rows == 1
    assert (commits.deferred, commits.deferred_causes) == (2, {"throttled": 2})
    uris = [f"s3://bucket/{n:06d}.jpg" for n in (1, 2)]
    assert commits.deferred_examples == dict.fromkeys(uris, "something is wrong")


def test_images_without_a_uri_are_not_examples(tmp_path: Path) -> None:
    """Only the ordinals are known if the worklist of a unit could not be read."""
    commits = committer(TableWriter.claim(str(tmp_path / "table"), MODEL_ID))
    unread = predicted(list(range(20)), status=schema.STATUS_DEFERRED, code="store")
    place = unread.schema.get_field_index(schema.IMAGE_URI)
    names = pa.array([""] * 20, unread.schema.field(place).type)
    commits.add(unread.set_column(place, unread.schema.field(place), names))
    commits.add(predicted([20], status=schema.STATUS_DEFERRED, code="throttled"))
    assert commits.deferred == 21
    assert commits.deferred_examples == {"s3://bucket/000020.jpg": "something is wrong"}


def test_failures_are_quarantined_until_an_image_succeeds(tmp_path: Path) -> None:
    """If written too early, they would never be retried."""
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits.add(predicted([0], status=schema.STATUS_FAILED, code=STORE))
    commits.flush()
    commits.add(predicted([1], status=schema.STATUS_FAILED, code=MODEL))
    commits.flush()
    assert rows_of(uri)[schema.ERROR_CODE].to_pylist() == [STORE]  # the second one could be fetched
    commits.add(predicted([2], status=schema.STATUS_FAILED, code="corrupt"))
    commits.flush()
    assert rows_of(uri)[schema.ERROR_CODE].to_pylist() == [STORE, "corrupt"]
    commits.add(predicted([3]))
    commits.flush()
    assert rows_of(uri)[schema.ERROR_CODE].to_pylist() == [STORE, MODEL, "corrupt", None]
    assert (commits.ok, commits.failed, commits.deferred, commits.commits) == (1, 3, 0, 3)


def test_failures_that_stay_quarantined_are_deferred(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits.add(predicted(list(range(12)), status=schema.STATUS_FAILED, code=STORE))
    commits.close()
    assert rows_of(uri).num_rows == 0
    assert (commits.ok, commits.failed, commits.deferred, commits.commits) == (0, 0, 12, 0)
    assert (commits.errors, commits.deferred_causes) == ({}, {STORE: 12})
    assert list(commits.deferred_examples.values()) == ["something is wrong"] * 10


def test_failures_are_quarantined_while_the_store_check_fails(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    said: list[ErrorCode | None] = [ErrorCode.ACCESS_DENIED, None, ErrorCode.ACCESS_DENIED]
    asked: list[ErrorCode | None] = []

    def check_store() -> ErrorCode | None:
        asked.append(said[len(asked)])
        return asked[-1]

    commits = committer(TableWriter.claim(uri, MODEL_ID), check_store=check_store)
    commits.add(predicted([0]))
    commits.flush()
    assert not asked
    commits.add(predicted([1], status=schema.STATUS_FAILED, code=STORE))
    commits.flush()
    assert commits.store_failure is ErrorCode.ACCESS_DENIED
    assert rows_of(uri).num_rows == 1
    commits.flush()
    assert commits.store_failure is None
    assert rows_of(uri).num_rows == 2
    commits.add(predicted([2, 3], status=schema.STATUS_FAILED, code=STORE))
    commits.close()
    assert (commits.ok, commits.failed, commits.deferred, len(asked)) == (1, 1, 2, 3)
    assert rows_of(uri).num_rows == 2


def test_what_could_not_be_committed_is_deferred(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commits = committer(TableWriter.claim(uri, MODEL_ID))
    commits.add(predicted([0]))
    commits.flush()
    TableWriter.claim(uri, MODEL_ID)
    commits.add(predicted([1, 2]))
    commits.add(predicted([3], status=schema.STATUS_FAILED))
    with pytest.raises(FencedError):
        commits.close()
    assert (commits.ok, commits.failed, commits.deferred, commits.errors) == (1, 0, 3, {})
    assert commits.deferred_causes == {"not_committed": 3}
    assert rows_of(uri).num_rows == 1
