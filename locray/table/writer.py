"""The only writer of a model's rows: adds, replaces and merges them, and cleans up."""

import itertools
import re
import uuid
from collections.abc import Sequence
from datetime import date

import pyarrow as pa
from deltalake.transaction import AddAction

from locray import schema, storage
from locray.table.claimed import WRITE_ID, Actions, ClaimedTable
from locray.table.data_files import FILE_SCHEMA, LoggedFile, files_to_replace, logged_files, remove_file, write_file
from locray.table.open import WORK_FOLDER

_OWN_FILE = re.compile(r"part-([0-9a-f]{32})(?:-\d+)?\.parquet|\.locray-[0-9a-f]+\.tmp")
"""Names that a writer gives in its partition: data files, with the write id of their commit, and unfinished files."""


class _FilesReplacedError(Exception):
    """Files that a commit should remove are no longer in the table."""


class TableWriter(ClaimedTable):
    """The only writer of a model's rows. Use `claim` to make one."""

    def append(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows (`PREDICTIONS_SCHEMA` without the partition columns) as one file, sorted by image URI.

        Raises:
            FencedError: another run has claimed the table; nothing was added.
            StoreError: the store failed. All rows were added or none; the next run reads the table.
        """
        self._resolve_uncertain_commit()
        write_id = uuid.uuid4().hex
        added = self._write(rows.select(FILE_SCHEMA.names), str(run_date), f"part-{write_id}")
        self._commit(lambda: [added], write_id)

    def replace(self, rows: pa.Table, run_date: date) -> None:
        """Commits rows and removes failed ones of the same image, version and configuration.

        A failed row without a version (the image could not be fetched) counts as the same version.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
            StoreError: the store failed. The replacement was made whole, or not at all.
        """
        self._resolve_uncertain_commit()
        write_id = uuid.uuid4().hex
        added = self._write(rows.select(FILE_SCHEMA.names), str(run_date), f"part-{write_id}")
        numbers = itertools.count()
        by_file: dict[str, Actions] = {}

        def actions() -> Actions:
            files = [file for file in logged_files(self.table, self.uri) if file.model_id == self.model_id]
            for uri in by_file.keys() - {file.uri for file in files}:
                self._delete_added(by_file.pop(uri))
            new = [file for file in files if file.uri not in by_file]
            by_file.update((file.uri, ()) for file in new)
            for file, others in files_to_replace(new, rows):
                name = f"part-{write_id}-{next(numbers)}"
                kept = [self._write(others, file.run_date, name)] if len(others) else []
                by_file[file.uri] = [remove_file(file), *kept]
            return [added, *itertools.chain.from_iterable(by_file[file.uri] for file in files)]

        self._commit(actions, write_id)

    def rewrite(self, rows: pa.Table, files: Sequence[LoggedFile]) -> bool:
        """Commits one file, sorted by image URI, in place of several that hold the same rows.

        Args:
            rows: the columns of `FILE_SCHEMA`; exactly the rows of the files.
            files: files of one partition of this model, which are removed. Readers of the table's changes see none.

        Returns:
            False if another program has removed one of the files; nothing was changed.

        Raises:
            FencedError: another run has claimed the table; nothing was changed.
            StoreError: the store failed. The files were replaced, or not at all.
        """
        self._resolve_uncertain_commit()
        write_id = uuid.uuid4().hex
        removed = [remove_file(file, changes_data=False) for file in files]
        added = self._write(rows, files[0].run_date, f"part-{write_id}", changes_data=False)

        def actions() -> Actions:
            live = {file.uri for file in logged_files(self.table, self.uri)}
            if not live.issuperset(file.uri for file in files):
                raise _FilesReplacedError
            return [added, *removed]

        try:
            self._commit(actions, write_id)
        except _FilesReplacedError:
            self._delete_added([added])
            return False
        return True

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

    @property
    def work_uri(self) -> str:
        """Folder for the temporary files of this model's runs."""
        return storage.join(self.uri, WORK_FOLDER, self.model_id)

    def _write(self, rows: pa.Table, run_date: str, name: str, *, changes_data: bool = True) -> AddAction:
        with self.raise_if_fenced():
            return write_file(self.uri, rows, self.model_id, run_date, name, changes_data=changes_data)

    def _delete_added(self, actions: Actions) -> None:
        """Deletes the files that actions would have added."""
        storage.delete([storage.join(self.uri, action.path) for action in actions if isinstance(action, AddAction)])
