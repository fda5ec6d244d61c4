"""Deletes files that the table has not referred to for long. Called by the nightly run.

Only files that a commit has removed, longer ago than the retention: whoever still reads an older version of the table
has that long. Files that no commit has ever named are not for a vacuum to delete, however old: a run of another model
may have written one and sleep before its commit, which nothing would refuse. Of its own model a run deletes them when
it begins (`TableWriter.clean_up`), after its claim: who wrote them before can't commit them any more.
"""

from locray import storage
from locray.labelling.delta_errors import explained
from locray.labelling.table import open_table


def vacuum(uri: str, retention_hours: int) -> int:
    """Deletes the files that commits have removed from the table, of all models, and says how many there were.

    Raises:
        StoreError: the store failed.
        StoreAccessError: files may not be deleted there.
    """
    table = open_table(uri)
    assert table is not None, uri
    with explained(uri):
        # The log remembers them long after they are gone, so a vacuum of deltalake's own would report them each night.
        paths = table.vacuum(retention_hours, dry_run=True, enforce_retention_duration=False)
    removed = {storage.join(uri, path) for path in paths} & set(storage.list_uris(uri))
    storage.delete(sorted(removed))
    return len(removed)
