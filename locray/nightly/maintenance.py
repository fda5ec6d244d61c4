"""Maintenance of a table's files: small ones are merged, and those that it no longer refers to are deleted.

A commit per minute leaves hundreds of files per night, and each costs every later query a request. deltalake's own
`optimize.compact` would write files unsorted and without checksums. Here they are written as by a labelling run, under
its fencing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from locray import schema, storage
from locray.errors import StoreError
from locray.progress import Progress, Report
from locray.table.data_files import LoggedFile, can_be_removed, has_added_columns, logged_files, removed_files
from locray.table.writer import TableWriter
from locray.verification.files import read_file
from locray.verification.findings import Findings

MAX_ROWS = 2_000_000
"""Per merged file. Its rows are sorted in memory: two million took 1.4 GB (docs/nightly.md)."""
LOG_RETENTION_HOURS = 168
"""After this time a checkpoint of the log drops the names of removed files: Delta's default."""
_LOG_RETENTION_SETTING = "delta.deletedFileRetentionDuration"


@dataclass(frozen=True, slots=True)
class Compaction:
    """Effect of a compaction on the files of a model."""

    files_before: int
    files_after: int
    rows_rewritten: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compact(writer: TableWriter, target_bytes: int, report: Report) -> Compaction:
    """Merges the small files of the writer's model, with one commit per new file.

    The rows stay the same, and the old files stay until a vacuum. One commit both removes the old files and adds the
    new one, so readers always see either. The next run deletes a new file whose commit failed. Files with columns that
    users have added are left alone.

    Raises:
        FencedError: another run has claimed the table; earlier merges stay.
        StoreError: the store failed, or a file to merge is damaged; the files stay as they are.
    """
    files = [file for file in logged_files(writer.table, writer.uri) if file.model_id == writer.model_id]
    if len(writer.table.schema().fields) > len(schema.PREDICTIONS_SCHEMA):
        files = [file for file in files if not has_added_columns(file)]
    groups = groups_to_merge(files, target_bytes)
    num_done, num_rows = 0, 0
    for group in groups:
        report(Progress("compacting", num_done, sum(map(len, groups))))
        num_rows += _merge(writer, group)
        num_done += len(group)
    num_after = sum(file.model_id == writer.model_id for file in logged_files(writer.table, writer.uri))
    return Compaction(len(files), num_after, num_rows)


def groups_to_merge(files: Iterable[LoggedFile], target_bytes: int, max_rows: int = MAX_ROWS) -> list[list[LoggedFile]]:
    """Groups of files to merge: neighbours by image URI in one partition, up to the target size.

    Files of at least that size are left alone. A merged file is merged again only if it is still small, so compacting
    a compacted table does nothing.
    """
    ordered = sorted(files, key=lambda file: (file.model_id, file.run_date, file.first_uri or "", file.uri))
    groups = []
    for _, partition in groupby(ordered, key=lambda file: (file.model_id, file.run_date)):
        groups += [group for group in _pack(partition, target_bytes, max_rows) if len(group) > 1]
    return groups


def _pack(files: Iterable[LoggedFile], target_bytes: int, max_rows: int) -> Iterator[list[LoggedFile]]:
    """Packs the small files into groups. Skips files without a row count in the log."""
    group: list[LoggedFile] = []
    size_bytes = num_rows = 0
    for file in files:
        if file.size_bytes >= target_bytes or not file.num_rows or not can_be_removed(file):
            continue
        if group and (size_bytes + file.size_bytes > target_bytes or num_rows + file.num_rows > max_rows):
            yield group
            group, size_bytes, num_rows = [], 0, 0
        group.append(file)
        size_bytes += file.size_bytes
        num_rows += file.num_rows
    yield group


def _merge(writer: TableWriter, group: list[LoggedFile]) -> int:
    """Merges files. Returns the number of their rows; 0 if another program has replaced one of them meanwhile."""
    findings = Findings()
    batches = [batch for file in group for batch in read_file(file, findings)]
    if findings.faults:
        examples = "; ".join(example for finding in findings.faults.values() for example in finding.first)
        raise StoreError(f"{writer.uri} has damaged files, which are not merged: {examples}. Run `locray verify`")
    rows = pa.Table.from_batches(batches)
    return len(rows) if writer.rewrite(rows, group) else 0


def vacuum(writer: TableWriter, retention_hours: int) -> int:
    """Deletes files that the table has not referred to for the retention time. Returns their number.

    Readers of older versions of the table have that long. Of all models, it deletes files that commits removed earlier
    than that. The log forgets such files after a week, so of the writer's own model it deletes every data file that the
    table does not refer to, except those removed within the retention time: an older writer of this model is fenced.
    A file of another model that no commit has removed stays, however old: its run may still be about to commit it.

    Raises:
        FencedError: another run of the model has claimed the table; nothing was deleted.
        StoreError: the store failed.
        StoreAccessError: deletion is denied.
    """
    table, uri = writer.table, writer.uri
    present = set(storage.list_uris(uri))
    expired = removed_files(table, uri, retention_hours)
    old = present & expired
    if retention_hours <= LOG_RETENTION_HOURS and _LOG_RETENTION_SETTING not in table.metadata().configuration:
        partition = storage.join(uri, f"{schema.MODEL_ID}={writer.model_id}") + "/"
        own = {file for file in present if file.startswith(partition) and file.rpartition("/")[2].startswith("part-")}
        recent = removed_files(table, uri, 0) - expired
        old |= own - recent - {file.uri for file in logged_files(table, uri)}
    if old:
        # After the listing: a run that claimed the table before it may have written one of these files.
        writer.check_claim()
        storage.delete(sorted(old))
    return len(old)
