"""A table written by this format's first version: this version reads, verifies, extends and maintains it.

A change that breaks this test breaks the tables of users: see the upgrade policy before making the table again.
"""

import json
import shutil
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from locray import schema
from locray.config import InferenceOptions, StatusConfig
from locray.labelling.model import ModelSpec
from locray.nightly.deleted import list_deleted
from locray.nightly.maintenance import compact, vacuum
from locray.nightly.records import deleted_uri, last_records, records_uri
from locray.nightly.status import status
from locray.progress import ignore
from locray.table.key import KeySelector, PredictionKey
from locray.table.open import open_existing_table
from locray.table.writer import TableWriter
from locray.verification.findings import Check
from locray.verification.table import check_table
from tests.golden.make_artifact import ARTIFACT
from tests.golden.make_table import BUCKET, DATES, NO_IMAGE, NUM_PICTURES, TABLE, TRUNCATED, listing, picture
from tests.helpers.made_up import without_ray
from tests.helpers.tables import rows_of

KEY = PredictionKey("small_cnn@7e71cba3b72e", "2ac1269fbcc2")
OTHER_MODEL = "small_cnn@3202e080fd20"
EVERYTHING = list(range(NUM_PICTURES))


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A copy of the golden table."""
    shutil.copytree(TABLE, tmp_path / "table")
    return str(tmp_path / "table")


def queried(uri: str, query: str) -> list[Any]:
    """Returns the result of a query over the table's files, as a user of DuckDB would write it."""
    files = open_existing_table(uri).file_uris()
    predictions = f"read_parquet({files}, hive_partitioning = true, hive_types = {{'{schema.RUN_DATE}': DATE}})"
    return duckdb.sql(query.replace("predictions", predictions)).fetchall()


def test_its_key_is_that_of_the_golden_artifact() -> None:
    assert ModelSpec.read(str(ARTIFACT), InferenceOptions()).key == KEY


def test_it_is_read_and_has_no_faults() -> None:
    check = check_table(
        str(TABLE), listing(EVERYTHING).to_batches(), rows_of=KeySelector(KEY.model_id), sample=NUM_PICTURES
    )
    assert (check.num_rows, check.num_files, check.key) == (10, 4, KEY)
    assert check.findings.faults == check.findings.pending == {}
    assert check.findings.notes.keys() == {Check.FILE_REMOVED}
    assert len(check.sample) == NUM_PICTURES - 1
    found = status(StatusConfig(table=str(TABLE)))
    counts = [(run.model_id, run.run_date, run.ok, run.errors) for run in found.runs]
    assert counts == [
        (OTHER_MODEL, str(DATES[0]), 2, {}),
        (KEY.model_id, str(DATES[0]), 4, {"unsupported_format": 1}),
        (KEY.model_id, str(DATES[1]), 3, {}),
    ]
    assert [night[schema.MODEL_ID] for night in found.nights] == [KEY.model_id]


def test_duckdb_reads_it() -> None:
    rows = queried(
        str(TABLE),
        f"SELECT {schema.MODEL_ID}, {schema.RUN_DATE}, {schema.STATUS}, count(*), sum(len({schema.DETECTIONS}))::INT "
        "FROM predictions GROUP BY ALL ORDER BY ALL",
    )
    assert rows == [
        (OTHER_MODEL, DATES[0], "ok", 2, 2),
        (KEY.model_id, DATES[0], "failed", 1, None),
        (KEY.model_id, DATES[0], "ok", 4, 4),
        (KEY.model_id, DATES[1], "ok", 3, 3),
    ]
    ((label, score),) = queried(
        str(TABLE),
        f"SELECT {schema.DETECTIONS}[1].{schema.LABEL}, {schema.DETECTIONS}[1].{schema.SCORE} FROM predictions "
        f"WHERE {schema.IMAGE_URI} = '{BUCKET}/00.png' AND {schema.MODEL_ID} = '{KEY.model_id}'",
    )
    assert label == "red"
    assert 0.25 < score <= 1


def test_only_new_images_are_labelled_onto_it(table: str, tmp_path: Path) -> None:
    before = rows_of(table)
    new = tmp_path / "new.png"
    new.write_bytes(picture(8))
    listed = tmp_path / "images.csv"
    listed.write_text("\n".join(["uri", *listing(EVERYTHING)[schema.IMAGE_URI].to_pylist(), str(new)]) + "\n")
    options = ("--images", str(listed), "--table", table, "--model", str(ARTIFACT), "--json")
    done = without_ray("label", *options)
    assert done.returncode == 0, done
    facts = json.loads(done.stdout.splitlines()[-1])
    counts = {name: facts[name] for name in ("listed", "already_labelled", "planned", "ok", "deferred")}
    assert counts == {"listed": 9, "already_labelled": 8, "planned": 1, "ok": 1, "deferred": 0}
    after = rows_of(table)
    assert [row for row in after if row[schema.IMAGE_URI] != str(new)] == before
    assert len(after) == len(before) + 1
    assert check_table(table).findings.faults == {}


def test_its_transactions_and_write_ids_are_known(table: str) -> None:
    """Otherwise runs of an older version would not be fenced, or files of older table versions would be deleted."""
    writer = TableWriter.claim(table, KEY.model_id)
    assert writer.transaction == 7
    assert writer.clean_up() == 0


def test_its_failed_rows_are_replaced(table: str) -> None:
    ok = pa.Table.from_pylist([row for row in rows_of(table) if row[schema.IMAGE_URI].endswith("00.png")][:1])
    image = listing([NO_IMAGE])
    for name in schema.LISTING_SCHEMA.names:
        ok = ok.set_column(ok.column_names.index(name), name, image[name])
    ok = ok.set_column(ok.column_names.index(schema.CONFIG_HASH), schema.CONFIG_HASH, pa.array([KEY.config_hash]))
    TableWriter.claim(table, KEY.model_id).replace(ok, date(2026, 1, 4))
    statuses = Counter(row[schema.STATUS] for row in rows_of(table) if row[schema.MODEL_ID] == KEY.model_id)
    assert statuses == {"ok": NUM_PICTURES}
    assert (
        check_table(table, listing(EVERYTHING).to_batches(), rows_of=KeySelector(KEY.model_id)).findings.pending == {}
    )


def test_its_files_are_maintained(table: str) -> None:
    before = rows_of(table)
    compaction = compact(TableWriter.claim(table, KEY.model_id), 2**20, ignore)
    assert (compaction.files_before, compaction.files_after) == (3, 2)
    assert vacuum(TableWriter.claim(table, KEY.model_id), 0) == 3
    assert rows_of(table) == before
    assert check_table(table).findings.faults == {}


def test_its_list_of_deleted_images_keeps_its_dates(table: str) -> None:
    records = records_uri(table, KEY)
    deleted = list_deleted(
        table, KEY, listing([*range(1, TRUNCATED), *range(NO_IMAGE, NUM_PICTURES)]).to_batches(), deleted_uri(records),
        date(2026, 1, 4),
    )  # fmt: skip
    assert (deleted.images, deleted.since_last_night) == (2, 1)
    assert pq.read_table(deleted_uri(records)).to_pydict() == {
        schema.IMAGE_URI: [f"{BUCKET}/00.png", f"{BUCKET}/{TRUNCATED:02d}.png"],
        schema.MISSING_SINCE: [DATES[1], date(2026, 1, 4)],
    }
    assert last_records(table)[0][schema.RUN_ID] == "20260103T000000000-00000000"
