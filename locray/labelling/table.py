"""The predictions table: a Delta table of Parquet files, and the one writer that a model has. Called by the runs.

Exactly-once rests on two things. A writer first *claims* the next transaction number of its model, then reads what the
table holds; every commit carries the number that follows. Delta refuses a commit whose snapshot is older than another
commit under the same application id, so a writer that was overtaken can add nothing.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from locray import schema, storage
from locray.errors import FencedError, StoreAccessError, UsageError
from locray.labelling.delta_errors import explained, in_one_line
from locray.labelling.statistics import file_statistics
from locray.sources import Source

WRITE_ID = "locray.write_id"
ROWS_A_GROUP = 65_536
_SCRATCH = "_locray"
RECORDS = f"{_SCRATCH}/nights"
"""Where nightly runs keep their records below the table. No model's scratch has this name: ids of models hold an @."""
FILE_SCHEMA = pa.schema([field for field in schema.PREDICTIONS_SCHEMA if field.name not in schema.PARTITION_COLUMNS])


def open_table(uri: str) -> DeltaTable | None:
    """The predictions table at the URI, or None where nothing lies yet.

    Raises:
        UsageError: something else lies there.
        StoreAccessError: the folder or bucket can't be reached, or the table can't be read.
    """
    if storage.is_remote(uri) or storage.exists(uri):
        storage.check_readable_folder(uri)
    try:
        with explained(uri):
            table = DeltaTable(uri, storage_options=storage.delta_storage_options(uri))
    except TableNotFoundError:
        if storage.list_uris(uri):
            raise UsageError(
                f"{uri} holds files that are no predictions table. "
                "Give the table a folder of its own; it is made when it is not there."
            ) from None
        return None
    found = pa.schema(table.schema().to_arrow())
    missing = [name for name in schema.PREDICTIONS_SCHEMA.names if name not in found.names]
    if missing:
        raise UsageError(f"{uri} is a Delta table, but no predictions table: it has no column {', '.join(missing)}.")
    return table


def check_apart(source: Source, uri: str) -> None:
    """Makes sure that no listing of the images takes up files of the table at the (normalised) URI.

    Raises:
        UsageError: it would, and every run would label the files that the one before it has written.
    """
    files = ("_delta_log/00000000000000000000.json", f"{schema.MODEL_ID}=m/{schema.RUN_DATE}=2000-01-01/part-0.parquet")
    if any(source.lists(storage.join(uri, file)) for file in files):
        raise UsageError(
            f"the table {uri} lies among the images: its own files would be listed with them in the next run. "
            "Give --table a place outside of --images"
        )


def holds_rows(table: DeltaTable | None) -> bool:
    """Whether anything was labelled into the table before."""
    return table is not None and bool(table.file_uris())


def create_table(uri: str) -> DeltaTable:
    """An empty predictions table at the URI, or the one that another run has made in the meantime.

    Raises:
        StoreAccessError: nothing may be written there.
    """
    with explained(uri):
        try:
            return DeltaTable.create(
                uri,
                schema=schema.PREDICTIONS_SCHEMA,
                partition_by=schema.PARTITION_COLUMNS,
                name="predictions",
                storage_options=storage.delta_storage_options(uri),
            )
        except DeltaError as error:
            table = open_table(uri)
            if table is None:
                raise StoreAccessError(f"no table can be made at {uri}: {in_one_line(error)}") from error
            return table


@dataclass
class TableWriter:
    """The only writer of a model's rows; made by `claim`.

    `number` is the transaction number of its last commit. Every commit appends one Parquet file and is visible whole
    or not at all.
    """

    uri: str
    model_id: str
    number: int
    table: DeltaTable
    options: dict[str, str] | None = field(repr=False)
    """What `table` was opened with. Holds secrets."""

    @classmethod
    def claim(cls, uri: str, model_id: str) -> "TableWriter":
        """Takes over the model's rows: every older writer of the same model is fenced from now on.

        Raises:
            FencedError: another run claimed the table at the same moment.
            StoreAccessError: the table may not be written to.
        """
        options = storage.delta_storage_options(uri)
        table = open_table(uri) or create_table(uri)
        writer = cls(uri, model_id, (table.transaction_version(_app_id(model_id)) or 0), table, options)
        writer._commit([], uuid.uuid4().hex)
        return writer

    @classmethod
    def resume(cls, uri: str, model_id: str, number: int) -> "TableWriter":
        """Goes on where a writer of this process has ended, without a claim that would fence whoever came after it.

        Args:
            uri: the table, normalised.
            model_id: the model whose rows are written.
            number: the transaction number of that writer's last commit.

        Raises:
            FencedError: another run has claimed the table since.
        """
        options = storage.delta_storage_options(uri)
        table = open_table(uri)
        assert table is not None, uri
        writer = cls(uri, model_id, number, table, options)
        if table.transaction_version(_app_id(model_id)) != number:
            raise writer._overtaken()
        return writer

    def append(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows (`PREDICTIONS_SCHEMA` without the partition columns) as one file, sorted by image URI.

        Raises:
            FencedError: another run has claimed the table; nothing was added.
        """
        write_id = uuid.uuid4().hex
        rows = rows.select(FILE_SCHEMA.names).cast(FILE_SCHEMA).sort_by(schema.IMAGE_URI)
        path, size_bytes = self._write_file(rows, run_date, write_id)
        self._commit([self._add_action(path, size_bytes, rows, run_date)], write_id)

    def replace(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows in the place of the failed ones of the same image, version and configuration, if there are any.

        A failed row without a version (the image could not be fetched) is taken for the same version.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
        """
        write_id = uuid.uuid4().hex
        rows = rows.append_column(pa.field(schema.MODEL_ID, pa.string()), pa.array([self.model_id] * len(rows)))
        rows = rows.append_column(pa.field(schema.RUN_DATE, pa.date32()), pa.array([run_date] * len(rows)))
        source = rows.select(schema.PREDICTIONS_SCHEMA.names).cast(schema.PREDICTIONS_SCHEMA)
        same = [f"(old.{name} = new.{name})" for name in (schema.MODEL_ID, schema.CONFIG_HASH, schema.IMAGE_URI)]
        predicate = " AND ".join(
            [
                f"(old.{schema.MODEL_ID} = '{self.model_id}')",
                *same,
                f"(old.{schema.STATUS} = '{schema.STATUS_FAILED}')",
                f"(old.{schema.ETAG} = new.{schema.ETAG} OR old.{schema.ETAG} IS NULL)",
            ]
        )

        def merge(properties: CommitProperties) -> None:
            self.table.merge(
                source, predicate, "new", "old", commit_properties=properties
            ).when_matched_update_all().when_not_matched_insert_all().execute()

        self._fenced(merge, write_id)

    def rewrite(self, rows: pa.Table, run_date: date, replaced: Sequence[RemoveAction]) -> None:
        """Commits one file, sorted by image URI, in the place of those that held the same rows.

        Args:
            rows: columns of `FILE_SCHEMA`; all rows of the replaced files, and no other.
            run_date: the partition of them all.
            replaced: the files that go, with `data_change` false: readers of changes see none.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
        """
        write_id = uuid.uuid4().hex
        rows = rows.select(FILE_SCHEMA.names).cast(FILE_SCHEMA).sort_by(schema.IMAGE_URI)
        path, size_bytes = self._write_file(rows, run_date, write_id)
        add = self._add_action(path, size_bytes, rows, run_date, data_change=False)
        self._commit([add, *replaced], write_id)

    def clean_up(self) -> int:
        """Deletes what crashed runs of this model left: data files never committed, worklists. Returns how many."""
        committed = {entry[WRITE_ID] for entry in self.table.history() if WRITE_ID in entry}
        live = {uri.rsplit("/", 1)[-1] for uri in self.table.file_uris()}
        orphans = []
        for uri in storage.list_uris(storage.join(self.uri, f"{schema.MODEL_ID}={self.model_id}")):
            name = uri.rsplit("/", 1)[-1]
            write_id = name.removeprefix("part-").removesuffix(".parquet")
            if name.startswith("part-") and name not in live and write_id not in committed:
                orphans.append(uri)
        storage.delete(orphans)
        return len(orphans) + storage.delete_folder(self.scratch_uri)

    @property
    def scratch_uri(self) -> str:
        """Where runs of this model keep what they need while they last. Readers of Delta and Hive tables ignore it."""
        return storage.join(self.uri, _SCRATCH, self.model_id)

    def _write_file(self, rows: pa.Table, run_date: date, write_id: str) -> tuple[str, int]:
        path = f"{schema.MODEL_ID}={self.model_id}/{schema.RUN_DATE}={run_date}/part-{write_id}.parquet"
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer, compression="zstd", row_group_size=ROWS_A_GROUP, write_page_checksum=True)
        data = buffer.getvalue().to_pybytes()
        storage.write_bytes(storage.join(self.uri, path), data)
        return path, len(data)

    def _add_action(
        self, path: str, size_bytes: int, rows: pa.Table, run_date: date, *, data_change: bool = True
    ) -> AddAction:
        return AddAction(
            path=path,
            size=size_bytes,
            partition_values={schema.MODEL_ID: self.model_id, schema.RUN_DATE: str(run_date)},
            modification_time=int(datetime.now(UTC).timestamp() * 1000),
            data_change=data_change,
            stats=json.dumps(file_statistics(rows)),
        )

    def _commit(self, actions: Sequence[AddAction | RemoveAction], write_id: str) -> None:
        def append(properties: CommitProperties) -> None:
            self.table.create_write_transaction(
                list(actions),
                mode="append",
                schema=self.table.schema(),
                partition_by=schema.PARTITION_COLUMNS,
                commit_properties=properties,
            )

        self._fenced(append, write_id)

    def _fenced(self, commit: Any, write_id: str) -> None:
        """Runs a commit under the next transaction number, and makes sure that it is this writer's.

        A refusal may be the answer to a commit that did succeed, its first answer lost: the write id tells.
        """
        self._renew_credentials()
        number = self.number + 1
        properties = CommitProperties(
            custom_metadata={WRITE_ID: write_id}, app_transactions=[Transaction(_app_id(self.model_id), number)]
        )
        try:
            with explained(self.uri):
                commit(properties)
        except CommitFailedError:
            self.table.update_incremental()
            if not any(entry.get(WRITE_ID) == write_id for entry in self.table.history(100)):
                raise self._overtaken() from None
        self.table.update_incremental()
        # The snapshot just taken may hold the claim of another run: going on from it would defeat the check of Delta.
        if self.table.transaction_version(_app_id(self.model_id)) != number:
            raise self._overtaken()
        self.number = number

    def _renew_credentials(self) -> None:
        """Opens the table again where the credentials are others by now: those of a role end within hours.

        At the version that was seen last: a newer one may hold the claim of another run, which Delta then lets pass.
        """
        options = storage.delta_storage_options(self.uri)
        if options == self.options:
            return
        with explained(self.uri):
            self.table = DeltaTable(self.uri, version=self.table.version(), storage_options=options)
        self.options = options

    def _overtaken(self) -> FencedError:
        return FencedError(
            f"another run is labelling into {self.uri} with {self.model_id}: it has taken over, this one stops. "
            "What was committed stays; run the command again once the other run has ended."
        )


def _app_id(model_id: str) -> str:
    return f"locray:{model_id}"
