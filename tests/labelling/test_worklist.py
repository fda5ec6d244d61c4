"""Worklists: images that are listed but not in the table."""

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from locray import schema
from locray.errors import ErrorCode, StoreAccessError
from locray.labelling.committer import Committer
from locray.labelling.worklist import SAMPLED_IMAGES, Counts, PendingImages, num_units, unit_size_for
from locray.progress import Progress
from locray.table.key import PredictionKey
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted
from tests.helpers.s3_proxy import Answer, s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server

KEY = PredictionKey("net@0123456789ab", "c0ffee")
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>")


def test_the_table_is_read_before_the_listing_begins(tmp_path: Path) -> None:
    """A listing may take hours, and the keys that opened the table may expire in the meantime."""
    uri = str(tmp_path / "table")
    writer = TableWriter.claim(uri, KEY.model_id)
    stamp = {schema.CONFIG_HASH: KEY.config_hash, schema.RUN_ID: "run"}
    commits = Committer(writer, 9, stamp=stamp, run_date=date(2026, 1, 2), commit_rows=9)
    labelled = predicted([0, 1])
    commits.add(labelled)
    commits.flush()

    class Slow:
        """Lists images that are labelled already; meanwhile the table becomes unreadable."""

        def listing(self) -> Iterator[pa.RecordBatch]:
            shutil.rmtree(uri)
            yield from labelled.select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA).to_batches()

    with PendingImages.find(Slow(), writer.table, writer.uri, KEY) as pending:  # type: ignore[arg-type]
        assert (pending.counts().listed, pending.counts().pending) == (2, 0)


def test_a_listing_reports_progress() -> None:
    batch = predicted([0, 1]).select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA).to_batches()[0]

    class InBatches:
        def listing(self) -> Iterator[pa.RecordBatch]:
            yield from [batch, batch, batch]

    told: list[Progress] = []
    with PendingImages.find(InBatches(), None, "table", KEY, report=told.append) as pending:  # type: ignore[arg-type]
        assert pending.counts().listed == 2
    assert [(progress.stage, progress.facts["listed"]) for progress in told] == [("listing", n) for n in (2, 4, 6)]


class Listing:
    """A source of these rows."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows.select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA)

    def listing(self) -> Iterator[pa.RecordBatch]:
        yield from self._rows.to_batches()


def a_table(uri: str, *parts: pa.Table) -> TableWriter:
    """Returns a table with these rows."""
    writer = TableWriter.claim(uri, KEY.model_id)
    for rows in parts:
        commits = Committer(
            writer,
            100,
            stamp={schema.CONFIG_HASH: KEY.config_hash, schema.RUN_ID: "run"},
            run_date=date(2026, 1, 2),
            commit_rows=9,
        )
        commits.add(rows)
        commits.close()
    return writer


def to_do(listed: pa.Table, writer: TableWriter, *retry: ErrorCode) -> tuple[list[int], Counts]:
    """Returns the numbers of the images to label, and the counts."""
    source: Any = Listing(listed)
    with PendingImages.find(source, writer.table, writer.uri, KEY, retry=retry) as pending:
        uris = [uri for batch in pending.batches(None, 10) for uri in batch[schema.IMAGE_URI].to_pylist()]
        return [int(uri[-10:-4]) for uri in uris], pending.counts()


def test_failed_images_are_taken_up_again_by_their_codes(tmp_path: Path) -> None:
    ok, corrupt = predicted([0]), predicted([1, 2], status=schema.STATUS_FAILED)
    slow = predicted([3], status=schema.STATUS_FAILED, code="decoder_timeout")
    writer = a_table(str(tmp_path), pa.concat_tables([ok, corrupt, slow]))
    newer = predicted([1], etag="v2")
    listed = pa.concat_tables([ok, newer, predicted([2, 3, 4])])
    assert to_do(listed, writer) == ([1, 4], Counts(listed=5, already_labelled=3, changed=1, retried=0))
    assert to_do(listed, writer, ErrorCode.DECODER_TIMEOUT) == ([1, 3, 4], Counts(5, 2, changed=1, retried=1))
    for codes in ([ErrorCode.CORRUPT, ErrorCode.DECODER_TIMEOUT], list(ErrorCode)):
        found, counts = to_do(listed, writer, *codes)
        assert (found, counts) == ([1, 2, 3, 4], Counts(5, 1, changed=1, retried=2))
        assert counts.new == 1
    assert to_do(listed, writer, ErrorCode.EMPTY_FILE)[0] == [1, 4]


def test_failed_images_of_unknown_version_are_taken_up_again(tmp_path: Path) -> None:
    gone = predicted([0], status=schema.STATUS_FAILED, code="not_found", etag=None)
    writer = a_table(str(tmp_path), pa.concat_tables([gone, predicted([1])]))
    listed = predicted([0, 1], etag=None)
    assert to_do(listed, writer) == ([], Counts(2, 2, 0, 0))
    assert to_do(listed, writer, ErrorCode.NOT_FOUND) == ([0], Counts(2, 1, 0, retried=1))
    assert to_do(predicted([0]), writer, ErrorCode.NOT_FOUND) == ([0], Counts(1, 0, 0, retried=1))


def test_a_worklist_begins_with_images_from_everywhere(tmp_path: Path) -> None:
    rows = pa.table({schema.IMAGE_URI: [f"/{n:06d}.jpg" for n in range(5000)]})
    unknown = [pa.nulls(len(rows), field.type) for field in list(schema.LISTING_SCHEMA)[1:]]
    source: Any = Listing(pa.table([rows[0], *unknown], schema=schema.LISTING_SCHEMA))
    with PendingImages.find(source, None, "table", KEY) as pending:
        for limit, num_images in ((None, 5000), (1000, 1000)):
            worklist = pending.write(str(tmp_path / str(limit)), unit_size=SAMPLED_IMAGES, limit=limit)
            units = [worklist.read_unit(unit) for unit in range(num_units(worklist))]
            drawn = units[0][schema.IMAGE_URI].to_pylist()
            assert drawn == sorted(drawn)
            assert drawn[0] < f"/{num_images // 5:06d}" < f"/{num_images * 4 // 5:06d}" < drawn[-1]
            others = pa.concat_tables(units[1:])[schema.IMAGE_URI].to_pylist()
            assert others == sorted(others)
            assert sorted(drawn + others) == rows[0].to_pylist()[:num_images]
            assert pa.concat_tables(units)[schema.ORDINAL].to_pylist() == list(range(num_images))


@pytest.mark.parametrize("fault", ["cut off", "missing", "overwritten"])
def test_a_damaged_file_of_the_table_is_told(tmp_path: Path, fault: str) -> None:
    writer = a_table(str(tmp_path), predicted([0, 1]))
    (file,) = tmp_path.rglob("*.parquet")
    data = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if fault == "cut off" else data[:4] + bytes(200) + data[204:])
    with pytest.raises(StoreAccessError, match=r"can't read rows of the table .* Run `locray verify` to find"):
        to_do(predicted([0]), writer)


@pytest.mark.s3
def test_a_store_that_does_not_give_the_table_s_files_is_told(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_table(f"{s3_bucket.uri}/table", predicted([0, 1]))
    with s3_proxy(s3_server.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        writer = TableWriter.claim(f"{s3_bucket.uri}/table", KEY.model_id)
        proxy.fault = lambda request, forward: DENIED if ".parquet" in request.path else forward()
        with pytest.raises(StoreAccessError, match=r"access to .*/table is denied"):
            to_do(predicted([0]), writer)


@pytest.mark.parametrize(
    ("num_images", "size"), [(1, 32), (365, 32), (2047, 32), (2048, 64), (8191, 128), (8192, 256), (10**9, 256)]
)
def test_short_runs_have_small_units(num_images: int, size: int) -> None:
    assert unit_size_for(num_images, None) == size
    assert unit_size_for(num_images, 7) == 7
