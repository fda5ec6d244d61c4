"""The one writer that a model has: its claim of the predictions table, and its commits. Called by the runs.

Exactly-once rests on two things. A writer first *claims* the next transaction number of its model, then reads what the
table holds; every commit carries the number that follows. Delta refuses a commit whose snapshot is older than another
commit under the same application id, so a writer that was overtaken can add nothing.
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
from locray.table.errors import explained, in_one_line
from locray.table.open import WORK_FOLDER, create_table, open_table

WRITE_ID = "locray.write_id"
_OWN_FILE = re.compile(r"part-([0-9a-f]{32})(?:-\d+)?\.parquet|\.locray-[0-9a-f]+\.tmp")
"""What a writer puts into its partition: data files with the write id of their commit, and those being written."""
_PAUSES_S = (0.2, 1.0, 5.0)
"""Between a commit that the store did not answer and the next attempt. Our stores retry what is safe to send twice."""


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
    _in_doubt: str | None = field(default=None, init=False, repr=False)
    """The write id of a commit that was tried after `number`, and may have landed."""

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
            StoreError: the store failed; perhaps all was added, which the next run sees, or nothing.
        """
        self._resolve_uncertain_commit()
        write_id = uuid.uuid4().hex
        self._commit([self._write(rows, str(run_date), f"part-{write_id}")], write_id)

    def replace(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows in the place of the failed ones of the same image, version and configuration, if there are any.

        A failed row without a version (the image could not be fetched) is taken for the same version.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
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
        """Commits one file, sorted by image URI, in the place of those that held the same rows.

        Args:
            rows: columns of `FILE_SCHEMA`; all rows of the files, and no other.
            files: the ones that go, all of one partition of this model. Readers of changes see none.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
        """
        write_id = uuid.uuid4().hex
        removed = [remove_file(file, changes_data=False) for file in files]
        add = self._write(rows, files[0].run_date, f"part-{write_id}", changes_data=False)
        self._commit([add, *removed], write_id)

    def clean_up(self) -> int:
        """Deletes what crashed runs of this model left: data files never committed, worklists. Returns how many.

        Raises:
            FencedError: another run has claimed the table, and may have written some of it; nothing was deleted.
        """
        here = storage.list_uris(storage.join(self.uri, f"{schema.MODEL_ID}={self.model_id}"))
        scratch = storage.list_uris(self.work_uri)
        self.check_claim()  # after the listings: what a newer run writes comes after its claim
        committed = {entry[WRITE_ID] for entry in self.table.history() if WRITE_ID in entry}
        live = {uri.rsplit("/", 1)[-1] for uri in self.table.file_uris()}
        orphans = []
        for uri in here:
            name = uri.rsplit("/", 1)[-1]
            own = _OWN_FILE.fullmatch(name)
            if own and name not in live and own[1] not in committed:
                orphans.append(uri)
        storage.delete(orphans)
        of_runs = {uri.removeprefix(self.work_uri).strip("/").split("/")[0] for uri in scratch}
        return len(orphans) + sum(storage.delete_folder(storage.join(self.work_uri, run)) for run in sorted(of_runs))

    def check_claim(self) -> None:
        """Makes sure that the model's rows are still this writer's: what it has written may be deleted otherwise.

        Raises:
            FencedError: another run has claimed the table.
        """
        latest = self._latest()
        number = self._number_in(latest)
        is_own = number == self.number + 1 and self._in_doubt is not None and self._holds(latest, self._in_doubt)
        if number != self.number and not is_own:
            raise self._overtaken()

    @contextmanager
    def raise_if_fenced(self) -> Iterator[None]:
        """Looks, where the store fails in the block, whether that is since a run that took over has cleaned up.

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
        """Where runs of this model keep what they need while they last. Readers of Delta and Hive tables ignore it."""
        return storage.join(self.uri, WORK_FOLDER, self.model_id)

    def _write(self, rows: pa.Table, run_date: str, name: str, *, changes_data: bool = True) -> AddAction:
        with self.raise_if_fenced():
            return write_file(self.uri, rows, self.model_id, run_date, name, changes_data=changes_data)

    def _commit(self, actions: Sequence[AddAction | RemoveAction], write_id: str) -> None:
        """Commits the actions under the next transaction number, and makes sure that it is this writer's.

        A refusal may be the answer to a commit that did succeed, its first answer lost: the write id tells. So it does
        where no answer came at all; such a commit is tried again, from the same snapshot, so that the fence holds.
        """
        self._renew_credentials()
        number = self.number + 1
        properties = CommitProperties(
            custom_metadata={WRITE_ID: write_id}, app_transactions=[Transaction(_app_id(self.model_id), number)]
        )
        self._in_doubt = write_id
        for pause_s in (*_PAUSES_S, None):
            try:
                self._land(actions, properties, write_id)
                break
            except StoreError as error:
                if isinstance(error, StoreAccessError) or pause_s is None:
                    raise
            time.sleep(pause_s)
        self._refresh(number)

    def _land(self, actions: Sequence[AddAction | RemoveAction], properties: CommitProperties, write_id: str) -> None:
        try:
            self._try_commit(actions, properties)
        except (CommitFailedError, StoreError) as error:
            latest = self._latest()
            if self._holds(latest, write_id):
                return
            if isinstance(error, StoreError):
                raise
            if self._number_in(latest) != self.number:
                raise self._overtaken() from None
            raise StoreError(f"a commit to the table at {self.uri} was refused: {in_one_line(error)}") from error

    def _resolve_uncertain_commit(self) -> None:
        """Goes on from an uncertain commit, where it has landed. To be called before the next snapshot is read.

        Raises:
            FencedError: another run has claimed the table.
            StoreError: the store failed.
        """
        if self._in_doubt is not None and self._holds(self._latest(), self._in_doubt):
            self._refresh(self.number + 1)

    def _try_commit(self, actions: Sequence[AddAction | RemoveAction], properties: CommitProperties) -> None:
        with explained(self.uri):
            self.table.create_write_transaction(
                list(actions),
                mode="append",
                schema=self.table.schema(),
                partition_by=schema.PARTITION_COLUMNS,
                commit_properties=properties,
            )

    def _refresh(self, number: int) -> None:
        """Takes the snapshot that the next commit is to be made from: with the last one, of that number, in it."""
        with explained(self.uri):
            self.table.update_incremental()
        # It may hold the claim of another run, too: going on from it would defeat the check of Delta.
        if self._number_in(self.table) != number:
            raise self._overtaken()
        self.number, self._in_doubt = number, None

    def _number_in(self, table: DeltaTable) -> int:
        return table.transaction_version(_app_id(self.model_id)) or 0

    def _holds(self, latest: DeltaTable, write_id: str) -> bool:
        """Whether the commit is in the table, after the snapshot that it was tried from, which stays as it is."""
        news = latest.version() - self.table.version()
        return news > 0 and any(entry.get(WRITE_ID) == write_id for entry in latest.history(news))

    def _latest(self) -> DeltaTable:
        with explained(self.uri):
            return DeltaTable(self.uri, storage_options=storage.delta_storage_options(self.uri))

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
