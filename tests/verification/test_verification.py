"""A correct predictions table, damaged in each way: every check must find its own kind of damage, and no other."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from locray import schema, storage
from locray.errors import UsageError
from locray.labelling.committer import Committer
from locray.progress import Progress
from locray.table.key import KeySelector, PredictionKey
from locray.table.writer import TableWriter
from locray.verification.findings import MEANING, Check, Finding, Findings
from locray.verification.keys import KeyDatabase
from locray.verification.table import TableCheck, check_table
from tests.helpers.rows import predicted
from tests.helpers.s3_server import S3Bucket

MODEL_ID, CONFIG_HASH = "net@0123456789ab", "c0ffee"
RUN_DATE = date(2026, 1, 2)


def commit(
    uri: str, *parts: pa.Table, model_id: str = MODEL_ID, config_hash: str = CONFIG_HASH, replace: bool = False
) -> None:
    """Commits one file of rows, as a labelling run does."""
    stamp = {schema.CONFIG_HASH: config_hash, schema.RUN_ID: "run"}
    writer = TableWriter.claim(uri, model_id)
    commits = Committer(writer, 100, stamp=stamp, run_date=RUN_DATE, commit_rows=1000, replace=replace)
    for part in parts:
        commits.add(part)
    commits.flush()


def uri_of(number: int) -> str:
    return str(predicted([number])[schema.IMAGE_URI][0])


def listing(*rows: tuple[int, str | None]) -> list[pa.RecordBatch]:
    """A listing of images by number and version."""
    parts = [predicted([number], etag=etag).select(schema.LISTING_SCHEMA.names) for number, etag in rows]
    return list(pa.concat_tables(parts).cast(schema.LISTING_SCHEMA).to_batches())


ALL = [(number, "v1") for number in range(6)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six images in two files; the third one failed."""
    uri = tmp_path / "table"
    commit(str(uri), predicted([0, 1]), predicted([2], status=schema.STATUS_FAILED))
    commit(str(uri), predicted([3, 4, 5]))
    return uri


def files_of(table: Path) -> list[Path]:
    """The files of the table, sorted by their first image."""
    return sorted(
        map(Path, DeltaTable(table).file_uris()), key=lambda file: pq.read_table(file)[schema.IMAGE_URI][0].as_py()
    )


def rewrite(file: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Changes the rows of a file without a commit."""
    rows = pq.ParquetFile(file).read()
    values = rows.to_pylist()
    change(values)
    fields = pa.schema([field.with_nullable(True) for field in rows.schema])
    pq.write_table(pa.Table.from_pylist(values, schema=fields), file)


def faults(table: Path | str, *args: Any, **options: Any) -> dict[Check, Finding]:
    return check_table(str(table), *args, **options).findings.faults


def counts(found: dict[Check, Finding]) -> dict[Check, int]:
    return {check: finding.count for check, finding in found.items()}


def test_a_correct_table_has_no_findings_and_is_unchanged(table: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in table.rglob("*")}
    check = check_table(str(table), listing(*ALL), sample=2)
    assert (check.findings.faults, check.findings.pending, check.findings.notes) == ({}, {}, {})
    assert (check.num_files, check.num_rows, check.num_listed, len(check.sample)) == (2, 6, 6, 2)
    assert check.key == PredictionKey(MODEL_ID, CONFIG_HASH)
    assert {path: path.stat().st_mtime_ns for path in table.rglob("*")} == before


def test_replaced_rows_and_a_checkpoint_are_correct(table: Path) -> None:
    """A merge writes files in another library's layout, in a folder with a percent-encoded name."""
    commit(str(table), predicted([2, 6]), replace=True)
    commit(str(table), predicted([7], status=schema.STATUS_FAILED))
    commit(str(table), predicted([7]), replace=True)
    DeltaTable(table).create_checkpoint()
    found = check_table(str(table), listing(*ALL, (6, "v1"), (7, "v1")), sample=8)
    assert (found.findings.faults, found.findings.pending) == ({}, {})
    assert (found.num_rows, len(found.sample)) == (8, 8)
    assert counts(found.findings.notes) == {Check.FILE_REMOVED: 2}


def test_a_table_without_rows(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    TableWriter.claim(uri, MODEL_ID)
    check = check_table(uri, listing((0, "v1")), rows_of=KeySelector(MODEL_ID), sample=3)
    assert counts(check.findings.pending) == {Check.IMAGE_WITHOUT_ROW: 1}
    assert (check.findings.faults, check.num_rows, len(check.sample)) == ({}, 0, 0)


def test_a_missing_file(table: Path) -> None:
    gone = files_of(table)[1]
    gone.unlink()
    check = check_table(str(table), listing(*ALL))
    assert check.findings.faults == {Check.FILE_MISSING: Finding(1, (str(gone),))}
    assert counts(check.findings.pending) == {Check.IMAGE_WITHOUT_ROW: 3}
    assert check.num_rows == 3


def test_a_truncated_file(table: Path) -> None:
    file = files_of(table)[0]
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    found = faults(table)
    assert counts(found) == {Check.FILE_SIZE: 1, Check.FILE_UNREADABLE: 1}
    assert f"{len(data) - 100:,} bytes, the log says {len(data):,}" in found[Check.FILE_SIZE].first[0]


@pytest.mark.parametrize("column", range(len(schema.PREDICTIONS_SCHEMA) - 3))
def test_a_flipped_byte(table: Path, column: int) -> None:
    """The size is right, and flipped bytes may still decode to a value; the page's checksum detects them."""
    file = files_of(table)[0]
    chunk = pq.read_metadata(file).row_group(0).column(column)
    data = bytearray(file.read_bytes())
    start = min(offset for offset in (chunk.data_page_offset, chunk.dictionary_page_offset) if offset)
    data[start + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(data)
    assert counts(faults(table)) == {Check.FILE_UNREADABLE: 1}


def test_a_file_with_other_rows_than_the_log_says(table: Path) -> None:
    file = files_of(table)[1]
    rewrite(file, lambda rows: rows.pop())
    found = faults(table)
    assert counts(found)[Check.FILE_ROWS] == 1
    assert "2 rows, the log says 3" in found[Check.FILE_ROWS].first[0]


def test_a_file_with_images_outside_its_bounds_in_the_log(table: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[0][schema.IMAGE_URI], rows[-1][schema.IMAGE_URI] = "a.jpg", "z.jpg"

    rewrite(files_of(table)[0], change)
    assert faults(table)[Check.FILE_BOUNDS] == Finding(2, ("a.jpg", "z.jpg"))


def test_an_unreadable_file(unprivileged_folder: Path) -> None:
    uri = unprivileged_folder / "table"
    commit(str(uri), predicted([0]))
    files_of(uri)[0].chmod(0)
    found = faults(uri)
    assert counts(found) == {Check.FILE_UNREADABLE: 1}
    assert "permission denied" in found[Check.FILE_UNREADABLE].first[0]


def test_a_row_that_was_appended_twice(table: Path) -> None:
    commit(str(table), predicted([1, 4]))
    found = faults(table)
    assert found.keys() == {Check.DUPLICATE}
    # Sorted by position; only the file that sorts first counts, as file names are random.
    assert (found[Check.DUPLICATE].count, set(found[Check.DUPLICATE].first)) == (2, {uri_of(1), uri_of(4)})


def test_other_versions_models_and_configurations_are_no_duplicates(table: Path) -> None:
    commit(str(table), predicted([1], etag="v2"))
    commit(str(table), predicted([1]), config_hash="beef")
    commit(str(table), predicted([1]), model_id="other@000000000000")
    assert faults(table) == {}


def test_unreferenced_files_are_named_and_are_not_faults(table: Path) -> None:
    orphan = files_of(table)[0].parent / f"part-{'0' * 32}.parquet"
    scratch = table / "_locray" / MODEL_ID / "worklist-000000"
    for file in (orphan, scratch, table / "notes.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    check = check_table(str(table))
    assert check.findings.faults == {}
    names = tuple(sorted(map(str, (orphan, scratch, table / "notes.txt"))))
    assert check.findings.notes == {Check.FILE_UNREFERENCED: Finding(3, names)}


OK, FAILED = 0, 2
"""Rows of the first file."""


@pytest.mark.parametrize(
    ("check", "row", "change"),
    [
        (Check.NULL, OK, {schema.RUN_ID: None}),
        (Check.NULL, OK, {schema.IMAGE_URI: None}),
        (Check.STATUS, FAILED, {schema.STATUS: schema.STATUS_DEFERRED}),
        (Check.ERROR, OK, {schema.ERROR_CODE: "corrupt"}),
        (Check.ERROR, OK, {schema.ERROR_MESSAGE: "broken"}),
        (Check.ERROR, FAILED, {schema.ERROR_CODE: None}),
        (Check.ERROR, FAILED, {schema.ERROR_CODE: "bad_luck"}),
        (Check.FRAME, OK, {schema.FORMAT: None}),
        (Check.FRAME, OK, {schema.WIDTH: None, schema.DETECTIONS: []}),
        (Check.FRAME, OK, {schema.HEIGHT: 0, schema.DETECTIONS: []}),
        (Check.DETECTIONS, OK, {schema.DETECTIONS: None}),
        (Check.DETECTIONS, FAILED, {schema.DETECTIONS: []}),
    ],
)
def test_an_inconsistent_row(table: Path, check: Check, row: int, change: dict[str, Any]) -> None:
    rewrite(files_of(table)[0], lambda rows: rows[row].update(change))
    found = faults(table)
    assert counts(found) == {Check.FILE_SIZE: 1, check: 1}
    assert found[check].first == (str(change.get(schema.IMAGE_URI, uri_of(row))),)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (Check.BOX, {schema.XMIN: -0.1}),
        (Check.BOX, {schema.YMIN: -0.1}),
        (Check.BOX, {schema.XMAX: 10.1}),
        (Check.BOX, {schema.YMAX: 10.1}),
        (Check.BOX, {schema.XMIN: 3.0}),
        (Check.BOX, {schema.YMIN: 4.5}),
        (Check.BOX, {schema.XMAX: float("nan")}),
        (Check.BOX, {schema.YMAX: None}),
        (Check.SCORE, {schema.SCORE: 1.01}),
        (Check.SCORE, {schema.SCORE: -0.01}),
        (Check.SCORE, {schema.SCORE: float("nan")}),
        (Check.SCORE, {schema.SCORE: 0.4}),
        (Check.LABEL, {schema.LABEL: None}),
        (Check.LABEL, {schema.LABEL_ID: -1}),
    ],
)
def test_an_invalid_detection(table: Path, check: Check, change: dict[str, Any]) -> None:
    """Changes the first of two detections in the second row; a score of 0.4 puts it below the other."""

    def damage(rows: list[dict[str, Any]]) -> None:
        rows[1][schema.DETECTIONS] = [rows[1][schema.DETECTIONS][0] | change, *rows[1][schema.DETECTIONS]]

    rewrite(files_of(table)[0], damage)
    found = faults(table)
    assert counts(found) == {Check.FILE_SIZE: 1, check: 1}
    assert found[check].first == (uri_of(1),)


def test_boxes_and_scores_at_their_limits_are_valid(table: Path) -> None:
    edges = {schema.XMIN: 0.0, schema.YMIN: 0.0, schema.XMAX: 10.0, schema.YMAX: 10.0}

    def change(rows: list[dict[str, Any]]) -> None:
        found = rows[0][schema.DETECTIONS][0] | edges
        rows[0][schema.DETECTIONS] = [found | {schema.SCORE: score} for score in (1.0, 0.5, 0.5, 0.0)]
        rows[1][schema.DETECTIONS] = []

    rewrite(files_of(table)[0], change)
    assert counts(faults(table)) == {Check.FILE_SIZE: 1}


def test_only_the_first_few_examples_are_kept(table: Path) -> None:
    commit(str(table), predicted(list(range(10, 20))))
    rewrite(files_of(table)[2], lambda rows: [row.update({schema.FORMAT: None}) for row in rows])
    finding = faults(table)[Check.FRAME]
    assert (finding.count, finding.first) == (10, tuple(map(uri_of, range(10, 15))))


def test_missing_and_wrong_columns(table: Path) -> None:
    first, second = files_of(table)
    pq.write_table(pq.ParquetFile(first).read().drop_columns([schema.STATUS]), first)
    rows = pq.ParquetFile(second).read()
    pq.write_table(rows.set_column(4, schema.WIDTH, rows[schema.WIDTH].cast(pa.int64())), second)
    finding = faults(table)[Check.SCHEMA]
    assert finding.count == 2
    told = "\n".join(finding.first)
    assert f"{first}: no column {schema.STATUS}" in told
    assert f"{second}: {schema.WIDTH} is int64, expected int32" in told


def test_wrong_types(tmp_path: Path) -> None:
    wrong = schema.PREDICTIONS_SCHEMA.set(4, pa.field(schema.WIDTH, pa.int64()))
    DeltaTable.create(tmp_path / "types", wrong, partition_by=schema.PARTITION_COLUMNS)
    assert counts(faults(tmp_path / "types")) == {Check.SCHEMA: 1}


def test_a_listing_is_compared_with_the_rows(table: Path) -> None:
    """One image is new, one has changed, one has no version in the listing, and one is listed twice."""
    listed = listing((0, "v1"), (0, "v1"), (1, "v2"), (2, None), (3, "v1"), (3, None), (9, "v1"), (8, None))
    check = check_table(str(table), listed)
    assert check.findings.faults == {}
    assert check.num_listed == 6
    assert check.findings.pending == {
        Check.IMAGE_WITHOUT_ROW: Finding(2, (uri_of(8), uri_of(9))),
        Check.IMAGE_CHANGED: Finding(1, (uri_of(1),)),
    }
    assert check.findings.notes == {Check.IMAGE_GONE: Finding(2, (uri_of(4), uri_of(5)))}


def test_a_listing_reports_progress(table: Path) -> None:
    (batch,) = pa.Table.from_batches(listing(*ALL)).combine_chunks().to_batches()
    told: list[Progress] = []
    assert check_table(str(table), iter([batch, batch, batch]), report=told.append).num_listed == 6
    listed = [progress.facts.get("listed") for progress in told if progress.stage == "listing"]
    assert listed == [None, 6, 12, 18]


def test_one_of_several_models_must_be_selected(table: Path) -> None:
    other = "other@000000000000"
    commit(str(table), predicted([0]), model_id=other)
    commit(str(table), predicted([0]), model_id=other, config_hash="beef")
    assert faults(table) == {}
    with pytest.raises(UsageError, match=rf"several.*{MODEL_ID}/{CONFIG_HASH} \(6 rows\).*--model"):
        check_table(str(table), listing(*ALL))
    with pytest.raises(UsageError, match="several"):
        check_table(str(table), listing(*ALL), rows_of=KeySelector(other))
    for selector, lacking in ((KeySelector(MODEL_ID), {}), (KeySelector(other, "beef"), {Check.IMAGE_WITHOUT_ROW: 5})):
        pending = check_table(str(table), listing(*ALL), rows_of=selector).findings.pending
        assert {check: found.count for check, found in pending.items()} == lacking
    for selector in (KeySelector("third@000000000000"), KeySelector(MODEL_ID, "beef")):
        with pytest.raises(UsageError, match=f"no rows of {selector}"):
            check_table(str(table), listing(*ALL), rows_of=selector)


def test_lost_rows_are_not_taken_for_another_model(table: Path) -> None:
    commit(str(table), predicted([0]), model_id="other@000000000000")
    for file in files_of(table):
        if MODEL_ID in str(file):
            file.unlink()
    check = check_table(str(table), listing(*ALL), rows_of=KeySelector(MODEL_ID, CONFIG_HASH))
    assert counts(check.findings.faults) == {Check.FILE_MISSING: 2}
    assert counts(check.findings.pending) == {Check.IMAGE_WITHOUT_ROW: 6}


def drawn(check: TableCheck) -> list[str]:
    return sorted(check.sample[schema.IMAGE_URI].to_pylist())


def test_a_sample_is_of_listed_ok_rows_and_reproducible(table: Path) -> None:
    everything = drawn(check_table(str(table), sample=9))
    assert everything == [uri_of(number) for number in (0, 1, 3, 4, 5)]
    samples = [drawn(check_table(str(table), sample=2, seed=seed)) for seed in (*range(6), *range(6))]
    assert samples[:6] == samples[6:]
    assert len({tuple(sample) for sample in samples}) > 1
    listed = listing((0, "v2"), (1, "v1"), (2, "v1"), (3, None))
    assert drawn(check_table(str(table), listed, sample=9)) == [uri_of(1), uri_of(3)]


VERSIONS = st.lists(
    st.tuples(st.sampled_from(["a", "a:", "1:a", "b"]), st.sampled_from([None, "", ":", "v1", "v2"])), max_size=8
)


@settings(max_examples=15)
@given(held=VERSIONS, listed=VERSIONS)
def test_keys_agree_with_sets(held: Any, listed: Any) -> None:
    def columns(rows: Any) -> list[pa.Array]:
        return [pa.array([row[i] for row in rows], pa.string()) for i in (0, 1)]

    size, modified = pa.nulls(len(listed), pa.int64()), pa.nulls(len(listed), schema.TIMESTAMP)
    batch = pa.RecordBatch.from_arrays([*columns(listed), size, modified], schema=schema.LISTING_SCHEMA)
    rows = pa.RecordBatch.from_arrays(
        [*columns(held), *(pa.array([value] * len(held), pa.string()) for value in ("c", schema.STATUS_OK))],
        names=[schema.IMAGE_URI, schema.ETAG, schema.CONFIG_HASH, schema.STATUS],
    )
    known: dict[str, str | None] = {}
    for uri, etag in listed:
        known[uri] = max((one for one in (etag, known.get(uri)) if one is not None), default=None)
    images = {uri for uri, _ in held}
    findings = Findings()
    with KeyDatabase.open() as keys:
        key = PredictionKey("m", "c")
        keys.add(rows, "m", (7, 5))
        assert keys.add_listing([batch]) == len(known)
        keys.find_missing_rows(key, findings)
        gone, duplicates, some = keys.not_listed(key), keys.duplicates(), keys.sample(key, 99, 1, listed=True)
    lacking = {
        Check.IMAGE_WITHOUT_ROW: sum(uri not in images for uri in known),
        Check.IMAGE_CHANGED: sum(
            uri in images and etag is not None and (uri, etag) not in held for uri, etag in known.items()
        ),
    }
    found = {check: finding.count for check, finding in findings.pending.items()}
    assert found == {check: count for check, count in lacking.items() if count}
    assert gone[0] == len(images - known.keys())
    assert all(held[row - 5][0] not in known for _, row in gone[1])
    twice = {one for one in held if held.count(one) > 1}
    assert duplicates[0] == len(twice)
    assert all(file == 7 and held[row - 5] in twice for file, row in duplicates[1])
    current = [uri in known and known[uri] in (None, etag) for uri, etag in held]
    assert len(some) == sum(current)


def test_every_check_has_a_meaning() -> None:
    assert set(MEANING) == set(Check)


@pytest.mark.s3
def test_a_table_on_a_bucket(s3_bucket: S3Bucket) -> None:
    uri = f"{s3_bucket.uri}/table"
    commit(uri, predicted([0, 1]))
    commit(uri, predicted([2]))
    commit(uri, predicted([3], status=schema.STATUS_FAILED))
    commit(uri, predicted([3]), replace=True)
    check = check_table(uri, listing(*ALL[:4]), sample=9)
    assert (check.findings.faults, check.findings.pending) == ({}, {})
    assert counts(check.findings.notes) == {Check.FILE_REMOVED: 1}
    assert (check.num_rows, len(check.sample)) == (4, 4)
    options = storage.delta_storage_options(uri)
    first, second, *_ = DeltaTable(uri, storage_options=options).file_uris()
    storage.delete([first])
    storage.write_bytes(second, storage.read_bytes(second)[:-9])
    found = faults(uri)
    assert counts(found) == {Check.FILE_MISSING: 1, Check.FILE_SIZE: 1, Check.FILE_UNREADABLE: 1}
    assert found[Check.FILE_MISSING].first == (first,)
