"""Tables for tests of maintenance: written as by labelling runs, and read without locray."""

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from locray import schema, storage
from locray.labelling.committer import Committer
from locray.table.writer import TableWriter

MODEL_ID, OTHER = "net@0123456789ab", "other@000000000000"
DATES = date(2026, 1, 2), date(2026, 1, 3)
MIB = 2**20


def commit(
    uri: str,
    *parts: pa.Table,
    model_id: str = MODEL_ID,
    config_hash: str = "c0ffee",
    run_date: date = DATES[0],
    replace: bool = False,
) -> TableWriter:
    """Commits one file of rows, as a labelling run does."""
    writer = TableWriter.claim(uri, model_id)
    stamp = {schema.CONFIG_HASH: config_hash, schema.RUN_ID: "run"}
    commits = Committer(writer, 100, stamp=stamp, run_date=run_date, commit_rows=1000, replace=replace)
    for part in parts:
        commits.add(part)
    commits.flush()
    return writer


def opened(uri: str) -> DeltaTable:
    return DeltaTable(uri, storage_options=storage.delta_storage_options(uri))


def dataset_of(uri: str) -> Any:
    """The rows as a dataset of pyarrow, read through native file systems."""
    return opened(uri).to_pyarrow_dataset(filesystem=storage.arrow_filesystem(uri))


def rows_of(uri: str) -> list[dict[str, Any]]:
    """All rows of the table, sorted by key."""
    keys = [(name, "ascending") for name in schema.KEY_COLUMNS]
    return list(dataset_of(uri).to_table().sort_by(keys).to_pylist())


def files_of(uri: str, model_id: str = MODEL_ID) -> list[str]:
    return sorted(file for file in opened(uri).file_uris() if model_id in file)


def data_files(uri: str) -> set[str]:
    """Returns the files in the table's folder, without the log."""
    return {file for file in storage.list_uris(uri) if "/_delta_log/" not in file}


def flip_a_byte(file: str) -> None:
    """Flips a byte in a page of a column that is not part of the key or the listing."""
    chunk = pq.read_metadata(file).row_group(0).column(schema.PREDICTIONS_SCHEMA.get_field_index(schema.FORMAT))
    data = bytearray(Path(file).read_bytes())
    start = min(offset for offset in (chunk.data_page_offset, chunk.dictionary_page_offset) if offset)
    data[start + chunk.total_compressed_size - 1] ^= 1
    Path(file).write_bytes(data)
