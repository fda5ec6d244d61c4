"""The claim of a model's rows in the table, and commits under it.

Exactly-once rests on two rules. A writer first *claims* the next transaction number of its model, and only then reads
what the table holds. And every commit is the direct successor of the snapshot that it was made from: if any other
commit came first, of whatever program, it is refused, and made again from the new snapshot, unless that one holds a
newer claim. So a writer can add nothing after a newer writer's claim, and removes no file that is no longer there.

(Delta's own check of conflicts, which would let a commit pass several others, ignores what compactions removed.)
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from locray import schema, storage
from locray.errors import FencedError, StoreAccessError, StoreError, UsageError
from locray.table.errors import one_line, translate_errors
from locray.table.open import check_definition, create_table, open_table

WRITE_ID = "locray.write_id"
_RETRY_DELAYS_S = (0.2, 1.0, 5.0)
"""Delays before each retry of a commit without a response. The clients retry only what is safe to send twice."""
_MAX_CONFLICTS = 100
"""Commits of others, one after the other, that may come before a commit."""
_MAX_CONFLICT_DELAY_S = 0.2
_APPEND_ONLY = "delta.appendOnly"

Actions = Sequence[AddAction | RemoveAction]


@dataclass
class ClaimedTable:
    """The table, with a claim of a model's rows. Use `claim` to make one.

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
    def claim(cls, uri: str, model_id: str, *, replaces: bool = False) -> Self:
        """Takes over the model's rows in the table at the normalised URI: fences every older writer of the model.

        Args:
            uri: the table, normalised.
            model_id: the model whose rows are written.
            replaces: whether rows will be replaced.

        Raises:
            UsageError: locray can't write the table; with `replaces`, it is append-only.
            FencedError: another run claimed the table at the same moment.
            StoreAccessError: the table can't be written.
        """
        options = storage.delta_storage_options(uri)
        table = open_table(uri) or create_table(uri)
        if replaces and table.metadata().configuration.get(_APPEND_ONLY) == "true":
            raise UsageError(f"rows of {uri} can't be replaced: the table is append-only. Set {_APPEND_ONLY} to false")
        writer = cls(uri, model_id, (table.transaction_version(_app_id(model_id)) or 0), table, options)
        writer._commit(list, uuid.uuid4().hex)
        return writer

    @classmethod
    def resume(cls, uri: str, model_id: str, transaction: int) -> Self:
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

    def _commit(self, actions: Callable[[], Actions], write_id: str) -> None:
        """Commits under the next transaction number.

        Without a response, retries from the same snapshot: if the lost request was or is applied, the retry is refused.
        If another commit came first, starts over from the new snapshot.

        Args:
            actions: Makes the actions of the commit from the snapshot.
            write_id: Identifies the commit in the log.
        """
        transaction = self.transaction + 1
        properties = CommitProperties(
            custom_metadata={WRITE_ID: write_id},
            app_transactions=[Transaction(_app_id(self.model_id), transaction)],
            max_commit_retries=0,
        )
        for _ in range(_MAX_CONFLICTS):
            if self._commit_to_snapshot(actions(), properties, write_id):
                self._advance(transaction)
                return
            time.sleep(random.uniform(0, _MAX_CONFLICT_DELAY_S))  # noqa: S311 - only spreads the writers
            self._advance(self.transaction)
            check_definition(self.table, self.uri)
        raise StoreError(
            f"other programs committed to the table at {self.uri} {_MAX_CONFLICTS} times while this run tried to. Run "
            "it when they are done"
        )

    def _commit_to_snapshot(self, actions: Actions, properties: CommitProperties, write_id: str) -> bool:
        """Commits right after the snapshot, with retries. Returns False if another commit came first."""
        self._renew_credentials()
        self._uncertain_write_id = write_id
        for delay_s in (*_RETRY_DELAYS_S, None):
            try:
                return self._commit_once(actions, properties, write_id)
            except StoreError as error:
                if isinstance(error, StoreAccessError) or delay_s is None:
                    raise
            time.sleep(delay_s)
        raise AssertionError

    def _commit_once(self, actions: Actions, properties: CommitProperties, write_id: str) -> bool:
        """Sends a commit. After a failure, the write id shows whether it succeeded and only the response was lost.

        A refusal can be such a case too: that of a repeated request, whose first response was lost.

        Returns:
            False if another commit came first.
        """
        try:
            self._send_commit(actions, properties)
        except (CommitFailedError, StoreError) as error:
            latest = self._read_latest()
            if self._has_commit(latest, write_id):
                return True
            if isinstance(error, StoreError):
                raise
            if self._transaction_in(latest) != self.transaction:
                raise self._fenced() from None
            if latest.version() > self.table.version():
                return False
            raise StoreError(f"a commit to the table at {self.uri} was refused: {one_line(error)}") from error
        return True

    def _send_commit(self, actions: Actions, properties: CommitProperties) -> None:
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
        """Moves the snapshot to the latest version, in which the model's last commit has this transaction number."""
        with translate_errors(self.uri):
            self.table.update_incremental()
        # The new snapshot may contain another run's claim, and this writer's next commit would follow it.
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

        Opens the version of the current snapshot: a newer one may contain another run's claim.
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
