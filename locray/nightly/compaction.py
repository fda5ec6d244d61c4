"""Small files of a model made into larger ones. Called by the nightly run; `status` counts what there is to do.

A commit every minute leaves some hundred files a night, and each costs every later query a request. deltalake's own
`optimize.compact` would write files without checksums, and unsorted: here they are written as those of a run are,
under the run's own fencing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from locray.errors import StoreError
from locray.progress import Progress, Report
from locray.table.data_files import LoggedFile, can_be_removed, logged_files
from locray.table.writer import TableWriter
from locray.verification.files import read_file
from locray.verification.findings import Findings

MAX_ROWS = 2_000_000
"""Of a file made of several: they are sorted in memory, where two million took 1.4 GB (docs/nightly.md)."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did to the files of a model."""

    files_before: int
    files_after: int
    rows_rewritten: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def groups_to_merge(
    files: Iterable[LoggedFile], target_bytes: int, most_rows: int = MAX_ROWS
) -> list[list[LoggedFile]]:
    """Which files should be one: of a model and date, neighbours by image URI, as many as make the target size.

    A file of that size or more is left alone, and so is one that has no neighbour to go with. What was merged once
    is merged again only where it has become small enough, so a compaction of a compacted table does nothing.
    """
    ordered = sorted(files, key=lambda file: (file.model_id, file.run_date, file.first_uri or "", file.uri))
    groups = []
    for _, partition in groupby(ordered, key=lambda file: (file.model_id, file.run_date)):
        groups += [group for group in _packed(partition, target_bytes, most_rows) if len(group) > 1]
    return groups


def _packed(files: Iterable[LoggedFile], target_bytes: int, most_rows: int) -> Iterator[list[LoggedFile]]:
    """The small ones in groups, each as large as may be; of a file whose rows the log doesn't count, none is made."""
    group: list[LoggedFile] = []
    size_bytes = num_rows = 0
    for file in files:
        if file.size_bytes >= target_bytes or not file.num_rows or not can_be_removed(file):
            continue
        if group and (size_bytes + file.size_bytes > target_bytes or num_rows + file.num_rows > most_rows):
            yield group
            group, size_bytes, num_rows = [], 0, 0
        group.append(file)
        size_bytes += file.size_bytes
        num_rows += file.num_rows
    yield group


def compact(writer: TableWriter, target_bytes: int, report: Report) -> Compaction:
    """Merges the small files of the writer's model, a commit for each file that is made.

    The rows stay as they are, and so do the old files until a vacuum. Whatever happens in between, readers see the old
    files or the new one: both are named in one commit. A file that was written and never committed is one that the
    next run cleans up.

    Raises:
        FencedError: another run has claimed the table; what was merged before stays.
        StoreError: the store failed, or a file to be merged is damaged; it was left as it is.
    """
    files = [file for file in logged_files(writer.table, writer.uri) if file.model_id == writer.model_id]
    groups = groups_to_merge(files, target_bytes)
    num_merged, rows = 0, 0
    for group in groups:
        report(Progress("compacting", num_merged, sum(map(len, groups))))
        rows += _merge(writer, group)
        num_merged += len(group)
    return Compaction(len(files), len(files) - num_merged + len(groups), rows)


def _merge(writer: TableWriter, group: list[LoggedFile]) -> int:
    findings = Findings()
    batches = [batch for file in group for batch in read_file(file, findings)]
    if findings.faults:
        told = "; ".join(name for finding in findings.faults.values() for name in finding.first)
        raise StoreError(
            f"files of {writer.uri} are damaged and stay as they are: {told}. `locray verify` tells more of them"
        )
    rows = pa.Table.from_batches(batches)
    writer.rewrite(rows, group)
    return len(rows)
