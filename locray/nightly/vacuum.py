"""Deletes files that the table has not referred to for long. Called by the nightly run.

Of all models, files that commits have removed longer ago than the retention: whoever still reads an older version of
the table has that long. The log forgets which they were after a week (a checkpoint leaves them out), so of the model
that has just labelled, whatever the table doesn't refer to goes, but for what was removed within the retention. Files
of other models that no removal is known of are not for this run to delete, however old: a run may have written one and
sleep before its commit, which nothing would refuse. Of its own model, who wrote before the claim can't commit any more.
"""

from locray import schema, storage
from locray.table.data_files import removed_files
from locray.table.writer import TableWriter

LOG_REMEMBERS_HOURS = 168
_RETENTION_OF_THE_LOG = "delta.deletedFileRetentionDuration"


def vacuum(writer: TableWriter, retention_hours: int) -> int:
    """Deletes old files and says how many there were.

    Raises:
        FencedError: another run of the model has claimed the table; nothing was deleted.
        StoreError: the store failed.
        StoreAccessError: files may not be deleted there.
    """
    table, uri = writer.table, writer.uri
    here = set(storage.list_uris(uri))
    old = here & removed_files(table, uri, retention_hours)
    if retention_hours <= LOG_REMEMBERS_HOURS and _RETENTION_OF_THE_LOG not in table.metadata().configuration:
        partition = storage.join(uri, f"{schema.MODEL_ID}={writer.model_id}") + "/"
        own = {file for file in here if file.startswith(partition) and file.rpartition("/")[2].startswith("part-")}
        recent = removed_files(table, uri, 0) - removed_files(table, uri, retention_hours)
        old |= own - recent - set(table.file_uris())
    if old:
        # After the listing: a run that claimed the table before it may have written one of these files.
        writer.check_claim()
        storage.delete(sorted(old))
    return len(old)
