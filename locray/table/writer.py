"""The only writer of a model's rows: its claim of the table, and its commits.

Exactly-once rests on two rules. A writer first *claims* the next transaction number of its model, and only then reads
what the table holds; every later commit carries the number that follows. Delta refuses a commit whose snapshot is
older than another commit under the same application id. So a writer can add nothing after a newer writer's claim.
"""

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from locray import schema, storage
from locray.errors import FencedError, StoreAccessError, StoreError
from locray.table.data_files import LoggedFile, files_to_replace, logged_files, remove_file, write_file
from locray.table.errors import one_line, translate_errors
from locray.table.open import WORK_FOLDER, create_table, open_table

WRITE_ID = "locray.write_id"
_OWN_FILE = re.compile(r"part-([0-9a-f]{32})(?:-\d+)?\.parquet|\.locray-[0-9a-f]+\.tmp")
"""Names that a writer gives in its partition: data files, with the write id of their commit, and unfinished files."""
_RETRY_DELAYS_S = (0.2, 1.0, 5.0)
"""Delays before each retry of a commit without a response. The clients retry only what is safe to send twice."""


@dataclass
class TableWriter:
    """The only writer of a model's rows. Use `claim` to make one.

    Every commit is visible whole or not at all.
    """

    uri: str
    model_id: str
    transaction: int
    """Transaction number of the last commit."""
    table: DeltaTable
    """The snapshot that the next commit is made from."""
    options: dict[str, str] | None = field(repr=False)
    """Storage options that `table` was opened with. They hold secrets."""
    _uncertain_write_id: str | None = field(default=None, init=False, repr=False)
    """Write id of a commit after `transaction` that was sent, and may have succeeded."""

    @classmethod
    def claim(cls, uri: str, model_id: str) -> "TableWriter":
        """Takes over the model's rows in the table at the normalised URI: fences every older writer of the model.

        Raises:
            FencedError: another run claimed the table at the same moment.
            StoreAccessError: the table can't be written.
        """
        options = storage.delta_storage_options(uri)
        table = open_table(uri) or create_table(uri)
        writer = cls(uri, model_id, (table.transaction_version(_app_id(model_id)) or 0), table, options)
        writer._commit([], uuid.uuid4().hex)
        return writer

    @classmethod
    def resume(cls, uri: str, model_id: str, transaction: int) -> "TableWriter":
        """Continues an earlier writer of this process without a new claim, which would fence a run that started since.

        Args:
            uri: the table, normalised.
            model_id: the model whose rows are written.
            transaction: number of the earlier writer's last commit.

        Raises:
            FencedError: another run has claimed the table since.
        """
        options = storage.delta_storage_options(uri)
        table = open_table(uri)
        assert table is not None, uri
        writer = cls(uri, model_id, transaction, table, options)
        if writer._transaction_in(table) != transaction:
            raise writer._fenced()
        return writer

    def append(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows (`PREDICTIONS_SCHEMA` without the partition columns) as one file, sorted by image URI.

        Raises:
            FencedError: another run has claimed the table; nothing was added.
            StoreError: the store failed. All rows were added or none; the next run reads the table.
        """
        self._resolve_uncertain_commit()
        write_id = uuid.uuid4().hex
        self._commit([self._write(rows, str(run_date), f"part-{write_id}")], write_id)

    def replace(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows and removes failed ones of the same image, version and configuration.

        A failed row without a version (the image could not be fetched) counts as the same version.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
            StoreError: the store failed. The replacement was made whole, or not at all.
        """
        self._resolve_uncertain_commit()
        write_id = uuid.uuid4().hex
        files = [file for file in logged_files(self.table, self.uri) if file.model_id == self.model_id]
        actions: list[AddAction | RemoveAction] = [self._write(rows, str(run_date), f"part-{write_id}")]
        for number, (file, others) in enumerate(files_to_replace(files, rows)):
            actions.append(remove_file(file))
            if len(others):
                actions.append(self._write(others, file.run_date, f"part-{write_id}-{number}"))
        self._commit(actions, write_id)

    def rewrite(self, rows: pa.Table, files: Sequence[LoggedFile]) -> None:
        """Commits one file, sorted by image URI, in place of several that hold the same rows.

        Args:
            rows: the columns of `FILE_SCHEMA`; exactly the rows of the files.
            files: files of one partition of this model, which are removed. Readers of the table's changes see none.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
            StoreError: the store failed. The files were replaced, or not at all.
        """
        write_id = uuid.uuid4().hex
        removed = [remove_file(file, changes_data=False) for file in files]
        add = self._write(rows, files[0].run_date, f"part-{write_id}", changes_data=False)
        self._commit([add, *removed], write_id)

    def clean_up(self) -> int:
        """Deletes what crashed runs of this model left: uncommitted data files and worklists. Returns their number.

        Raises:
            FencedError: another run has claimed the table, and may have written some of the files; none was deleted.
        """
        partition = storage.list_uris(storage.join(self.uri, f"{schema.MODEL_ID}={self.model_id}"))
        work_files = storage.list_uris(self.work_uri)
        self.check_claim()  # after the listings: a newer run writes only after its claim
        committed = {entry[WRITE_ID] for entry in self.table.history() if WRITE_ID in entry}
        live = {uri.rsplit("/", 1)[-1] for uri in self.table.file_uris()}
        orphans = []
        for uri in partition:
            name = uri.rsplit("/", 1)[-1]
            own = _OWN_FILE.fullmatch(name)
            if own and name not in live and own[1] not in committed:
                orphans.append(uri)
        storage.delete(orphans)
        runs = {uri.removeprefix(self.work_uri).strip("/").split("/")[0] for uri in work_files}
        return len(orphans) + sum(storage.delete_folder(storage.join(self.work_uri, run)) for run in sorted(runs))

    def check_claim(self) -> None:
        """Makes sure that no other run has claimed the model's rows; its clean-up may delete this writer's files.

        Raises:
            FencedError: another run has claimed the table.
        """
        latest = self._read_latest()
        transaction = self._transaction_in(latest)
        is_own = (
            transaction == self.transaction + 1
            and self._uncertain_write_id is not None
            and self._has_commit(latest, self._uncertain_write_id)
        )
        if transaction != self.transaction and not is_own:
            raise self._fenced()

    @contextmanager
    def raise_if_fenced(self) -> Iterator[None]:
        """Turns a store error in the block into `FencedError` if a newer run has deleted this run's files.

        Raises:
            FencedError: another run has claimed the table.
        """
        try:
            yield
        except StoreError:
            self.check_claim()
            raise

    @property
    def work_uri(self) -> str:
        """Folder for the temporary files of this model's runs."""
        return storage.join(self.uri, WORK_FOLDER, self.model_id)

    def _write(self, rows: pa.Table, run_date: str, name: str, *, changes_data: bool = True) -> AddAction:
        with self.raise_if_fenced():
            return write_file(self.uri, rows, self.model_id, run_date, name, changes_data=changes_data)

    def _commit(self, actions: Sequence[AddAction | RemoveAction], write_id: str) -> None:
        """Commits under the next transaction number. Without a response, retries from the same snapshot.

        The unchanged snapshot keeps the fence: the retry is refused if another run has claimed the table meanwhile.
        """
        self._renew_credentials()
        transaction = self.transaction + 1
        properties = CommitProperties(
            custom_metadata={WRITE_ID: write_id}, app_transactions=[Transaction(_app_id(self.model_id), transaction)]
        )
        self._uncertain_write_id = write_id
        for delay_s in (*_RETRY_DELAYS_S, None):
            try:
                self._commit_once(actions, properties, write_id)
                break
            except StoreError as error:
                if isinstance(error, StoreAccessError) or delay_s is None:
                    raise
            time.sleep(delay_s)
        self._advance(transaction)

    def _commit_once(
        self, actions: Sequence[AddAction | RemoveAction], properties: CommitProperties, write_id: str
    ) -> None:
        """Sends a commit. After a failure, the write id shows whether it succeeded and only the response was lost.

        A refusal can be such a case too: that of a repeated request, whose first response was lost.
        """
        try:
            self._send_commit(actions, properties)
        except (CommitFailedError, StoreError) as error:
            latest = self._read_latest()
            if self._has_commit(latest, write_id):
                return
            if isinstance(error, StoreError):
                raise
            if self._transaction_in(latest) != self.transaction:
                raise self._fenced() from None
            raise StoreError(f"a commit to the table at {self.uri} was refused: {one_line(error)}") from error

    def _send_commit(self, actions: Sequence[AddAction | RemoveAction], properties: CommitProperties) -> None:
        with translate_errors(self.uri):
            self.table.create_write_transaction(
                list(actions),
                mode="append",
                schema=self.table.schema(),
                partition_by=schema.PARTITION_COLUMNS,
                commit_properties=properties,
            )

    def _resolve_uncertain_commit(self) -> None:
        """Advances past an uncertain commit if it has succeeded. Must precede any reading of the snapshot.

        Raises:
            FencedError: another run has claimed the table.
            StoreError: the store failed.
        """
        if self._uncertain_write_id is not None and self._has_commit(self._read_latest(), self._uncertain_write_id):
            self._advance(self.transaction + 1)

    def _advance(self, transaction: int) -> None:
        """Moves the snapshot to the last commit, which has this transaction number."""
        with translate_errors(self.uri):
            self.table.update_incremental()
        # The new snapshot may contain another run's claim; Delta would then let this writer's next commit pass.
        if self._transaction_in(self.table) != transaction:
            raise self._fenced()
        self.transaction, self._uncertain_write_id = transaction, None

    def _transaction_in(self, table: DeltaTable) -> int:
        return table.transaction_version(_app_id(self.model_id)) or 0

    def _has_commit(self, latest: DeltaTable, write_id: str) -> bool:
        """Whether the commit is in the log after this writer's snapshot."""
        num_new = latest.version() - self.table.version()
        return num_new > 0 and any(entry.get(WRITE_ID) == write_id for entry in latest.history(num_new))

    def _read_latest(self) -> DeltaTable:
        with translate_errors(self.uri):
            return DeltaTable(self.uri, storage_options=storage.delta_storage_options(self.uri))

    def _renew_credentials(self) -> None:
        """Reopens the table if the credentials have changed: those of a role expire within hours.

        Opens the version of the current snapshot: a newer one may contain another run's claim, and Delta would then let
        this writer's next commit pass.
        """
        options = storage.delta_storage_options(self.uri)
        if options == self.options:
            return
        with translate_errors(self.uri):
            self.table = DeltaTable(self.uri, version=self.table.version(), storage_options=options)
        self.options = options

    def _fenced(self) -> FencedError:
        return FencedError(
            f"another run is labelling into {self.uri} with {self.model_id} and has taken over, so this run stops. "
            "Its commits stay; run the command again once the other run has ended"
        )


def _app_id(model_id: str) -> str:
    return f"locray:{model_id}"
