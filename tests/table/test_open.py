"""Tables that locray can't read or write, and names that can't be those of a table."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from locray import schema, storage
from locray.errors import UsageError
from locray.nightly.maintenance import vacuum
from locray.table.data_files import row_dataset
from locray.table.open import create_table, open_table
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted
from tests.helpers.s3_server import S3Bucket
from tests.helpers.tables import MODEL_ID, commit, rows_of

UNSAFE = ["a#b", "a?b", "a%20b", "a%b", "a\nb", "a\\b", "a[b]", "a|b", "a^b", "\x7f"]
SAFE = ["a b", "ünïcödé", "a+b&c", "a=b@c", "a;b,c", "a'b\"c", "~a*", "(a){b}<c>", "$a!`"]


def add_protocol(uri: str, reader: int, writer: int, features: tuple[str, ...] | None = None) -> None:
    """Commits a change of the protocol, as a program with newer features would."""
    protocol = {"minReaderVersion": reader, "minWriterVersion": writer}
    if features is not None:
        readers = {"columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint"}
        protocol |= {"readerFeatures": [name for name in features if name in readers], "writerFeatures": [*features]}
    version = DeltaTable(uri).version() + 1
    Path(uri, "_delta_log", f"{version:020}.json").write_text(json.dumps({"protocol": protocol}) + "\n")


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_deltalake_mishandles_is_refused(name: str, tmp_path: Path) -> None:
    for uri in (str(tmp_path / name), f"s3://bucket/{name}"):
        with pytest.raises(UsageError, match="can't be the folder of a table"):
            open_table(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_colon_is_refused_on_s3_alone(tmp_path: Path) -> None:
    commit(str(tmp_path / "a:b"), predicted([1]))
    with pytest.raises(UsageError, match="':'"):
        open_table("s3://bucket/a:b")


@pytest.mark.parametrize("name", SAFE)
def test_other_names_are_those_of_the_folder(name: str, tmp_path: Path) -> None:
    _check_table(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.s3
def test_other_names_are_those_of_the_prefix(s3_bucket: S3Bucket) -> None:
    for name in SAFE:
        _check_table(f"{s3_bucket.uri}/{name}")
    found = {uri.removeprefix(f"{s3_bucket.uri}/").split("/")[0] for uri in storage.list_uris(s3_bucket.uri)}
    assert found == set(SAFE)


def _check_table(uri: str) -> None:
    """A run, a second one that replaces, and maintenance, which deletes no file that the table needs."""
    commit(uri, predicted([1, 2]), predicted([3], status="failed"))
    writer = commit(uri, predicted([3]), replace=True)
    table = open_table(uri)
    assert table is not None
    assert len(table.history()) == 5
    writer.clean_up()
    vacuum(TableWriter.claim(uri, MODEL_ID), 168)
    assert [row[schema.STATUS] for row in rows_of(uri)] == ["ok"] * 3
    assert row_dataset(table, uri).count_rows() == 3


@pytest.mark.parametrize(
    "feature",
    [
        "columnMapping",
        "deletionVectors",
        "rowTracking",
        "clustering",
        "v2Checkpoint",
        "identityColumns",
        "fromTomorrow",
    ],
)
def test_a_feature_that_can_not_be_written_is_refused_before_the_claim(feature: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1]))
    add_protocol(uri, 3, 7, ("appendOnly", feature))
    version = DeltaTable(uri).version()
    for use in (open_table, lambda uri: TableWriter.claim(uri, MODEL_ID)):
        with pytest.raises(UsageError, match=f"{feature}.*DROP FEATURE"):
            use(uri)
    assert DeltaTable(uri).version() == version


@pytest.mark.parametrize("feature", ["appendOnly", "changeDataFeed", "checkConstraints", "invariants", "timestampNtz"])
def test_features_that_commits_respect_are_accepted(feature: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1]))
    add_protocol(uri, 3, 7, (feature,))
    commit(uri, predicted([2]))
    assert len(rows_of(uri)) == 2


@pytest.mark.parametrize(("reader", "writer"), [(1, 3), (1, 4), (2, 5)])
def test_versions_before_named_features_are_accepted_if_none_is_used(reader: int, writer: int, tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, predicted([1]))
    add_protocol(uri, reader, writer)
    commit(uri, predicted([2]))
    assert len(rows_of(uri)) == 2


def test_a_table_with_other_partitions_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    DeltaTable.create(uri, schema.PREDICTIONS_SCHEMA, partition_by=[schema.RUN_DATE])
    with pytest.raises(UsageError, match=f"partitioned by {schema.RUN_DATE}; expected {schema.MODEL_ID}"):
        open_table(uri)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    DeltaTable.create(uri, pa.schema([("x", pa.int64())]))
    with pytest.raises(UsageError, match="has no column image_uri"):
        open_table(uri)


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    assert row_dataset(create_table(uri), uri).count_rows() == 0


@pytest.mark.slow
def test_no_process_is_aborted_after_it_has_read_a_table(tmp_path: Path) -> None:
    """With deltalake's own Python files it is more than every other one."""
    for number in range(20):
        commit(str(tmp_path / "table"), predicted([number]))
    code = "import locray; assert len(locray.read_predictions('table').to_table()) == 20"
    for _ in range(20):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
