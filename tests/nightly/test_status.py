"""The status of a table, read without its images."""

from pathlib import Path

import pytest
from deltalake import DeltaTable

from locray import schema
from locray.config import StatusConfig
from locray.errors import StoreError
from locray.nightly.maintenance import compact
from locray.nightly.records import records_uri, write_record
from locray.nightly.status import TableStatus, status
from locray.progress import ignore
from locray.table.key import PredictionKey
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted
from tests.helpers.tables import DATES, MIB, MODEL_ID, OTHER, commit


@pytest.fixture
def table(tmp_path: Path) -> str:
    uri = str(tmp_path / "table")
    commit(uri, predicted([0, 1]), predicted([2], status=schema.STATUS_FAILED))
    commit(uri, predicted([3]))
    commit(uri, predicted([0]), config_hash="beef", run_date=DATES[1])
    commit(uri, predicted([0]), model_id=OTHER)
    return uri


def status_of(uri: str) -> TableStatus:
    return status(StatusConfig(table=uri))


def test_rows_are_counted_by_model_configuration_and_date(table: str) -> None:
    found = status_of(table)
    counts = [(run.model_id, run.config_hash, run.run_date, run.ok, run.failed, run.errors) for run in found.runs]
    assert counts == [
        (MODEL_ID, "beef", "2026-01-03", 1, 0, {}),
        (MODEL_ID, "c0ffee", "2026-01-02", 3, 1, {"corrupt": 1}),
        (OTHER, "c0ffee", "2026-01-02", 1, 0, {}),
    ]
    assert {run.last_run_id for run in found.runs} == {"run"}
    assert (found.rows, sum(run.detections for run in found.runs)) == (6, 5)
    assert found.size_bytes == sum(Path(file).stat().st_size for file in DeltaTable(table).file_uris())


def test_small_files_are_those_that_compaction_would_merge(table: str) -> None:
    assert (status_of(table).files, status_of(table).small_files) == (4, 2)
    compact(TableWriter.claim(table, MODEL_ID), MIB, ignore)
    assert (status_of(table).files, status_of(table).small_files) == (3, 0)


def test_the_last_run_of_each_model(table: str) -> None:
    assert status_of(table).nights == []
    for model_id, run_id in ((MODEL_ID, "2"), (MODEL_ID, "1"), (OTHER, "0")):
        write_record(records_uri(table, PredictionKey(model_id, "c0ffee")), run_id, {schema.RUN_ID: run_id})
    assert status_of(table).nights == [{schema.RUN_ID: "2"}, {schema.RUN_ID: "0"}]
    record = Path(records_uri(table, PredictionKey(OTHER, "c0ffee"))) / "1.json"
    for content in ("half of", "[]"):
        record.write_text(content)
        with pytest.raises(StoreError, match=f"{record} is not the record"):
            status_of(table)
