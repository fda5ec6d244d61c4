"""The difference between a listing and a table."""

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
from labelling.rows import predicted

from locray import schema
from locray.labelling.committer import Committer
from locray.labelling.table import TableWriter
from locray.labelling.worklist import Difference
from locray.progress import Progress

MODEL_ID, CONFIG_HASH = "net@0123456789ab", "c0ffee"


def test_the_table_is_read_before_the_listing_begins(tmp_path: Path) -> None:
    """A listing may take hours; by its end, the keys that the table was opened with may be void."""
    uri = str(tmp_path / "table")
    writer = TableWriter.claim(uri, MODEL_ID)
    stamp = {schema.CONFIG_HASH: CONFIG_HASH, schema.RUN_ID: "run"}
    commits = Committer(writer, 9, stamp=stamp, run_date=date(2026, 1, 2), commit_rows=9, commit_interval_s=3600)
    labelled = predicted([0, 1])
    commits.add(labelled)
    commits.flush()

    class Slow:
        """Lists what is labelled already; the table can't be read any more while it does."""

        def listing(self) -> Iterator[pa.RecordBatch]:
            shutil.rmtree(uri)
            yield from labelled.select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA).to_batches()

    with Difference.open(Slow(), writer.table, MODEL_ID, CONFIG_HASH) as difference:  # type: ignore[arg-type]
        assert (difference.counts().listed, difference.counts().to_do) == (2, 0)


def test_a_listing_tells_how_far_it_is() -> None:
    batch = predicted([0, 1]).select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA).to_batches()[0]

    class InBatches:
        def listing(self) -> Iterator[pa.RecordBatch]:
            yield from [batch, batch, batch]

    told: list[Progress] = []
    with Difference.open(InBatches(), None, MODEL_ID, CONFIG_HASH, report=told.append) as difference:  # type: ignore[arg-type]
        assert difference.counts().listed == 2
    assert [(progress.stage, progress.facts["listed"]) for progress in told] == [("listing", n) for n in (2, 4, 6)]
