"""Committers with the settings of tests."""

from datetime import date
from typing import Any

import pyarrow as pa

from locray import schema
from locray.labelling.committer import Committer
from locray.table.writer import TableWriter
from tests.helpers.tables import dataset_of

MODEL_ID = "net@0123456789ab"
RUN_DATE = date(2026, 1, 2)


def committer(writer: TableWriter, *, num_images: int = 100, commit_rows: int = 1000, **options: Any) -> Committer:
    """A committer of a run over `num_images` images."""
    return Committer(
        writer,
        num_images,
        stamp={schema.CONFIG_HASH: "c0ffee", schema.RUN_ID: "run"},
        run_date=RUN_DATE,
        commit_rows=commit_rows,
        **options,
    )


def rows_of(uri: str) -> pa.Table:
    """The rows of a table, by URI."""
    return dataset_of(uri).to_table().sort_by(schema.IMAGE_URI)
