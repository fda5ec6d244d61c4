"""Contents of a predictions table."""

from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from locray import schema, storage
from locray.config import StatusConfig
from locray.config.labelling import TARGET_FILE_BYTES
from locray.nightly.maintenance import groups_to_merge
from locray.nightly.records import last_records
from locray.table.data_files import logged_files, row_dataset
from locray.table.open import open_existing_table


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The rows of one model and configuration on one date."""

    model_id: str
    config_hash: str
    run_date: str
    last_run_id: str
    ok: int
    failed: int
    detections: int
    errors: dict[str, int]
    last_labelled_at: str


@dataclass(frozen=True, slots=True)
class TableStatus:
    """Contents of a table, as `--json` prints them."""

    table: str
    version: int
    files: int
    rows: int
    size_bytes: int
    small_files: int
    """Files that a nightly run would merge."""
    runs: list[RunStatus]
    nights: list[dict[str, Any]]
    """Record of the last nightly run of each model and configuration."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def status(config: StatusConfig) -> TableStatus:
    """Counts the table's rows by model, configuration, date and error.

    Raises:
        UsageError: there is no predictions table.
        StoreError: the store does not answer.
    """
    uri = storage.normalise(config.table)
    table = open_existing_table(uri)
    files = logged_files(table, uri)
    runs = _runs(row_dataset(table, uri)) if files else []
    return TableStatus(
        table=uri,
        version=table.version(),
        files=len(files),
        rows=sum(run.ok + run.failed for run in runs),
        size_bytes=sum(file.size_bytes for file in files),
        small_files=sum(map(len, groups_to_merge(files, TARGET_FILE_BYTES))),
        runs=runs,
        nights=last_records(uri),
    )


def _runs(predictions: Any) -> list[RunStatus]:
    connection = duckdb.connect()
    connection.register("predictions", predictions)
    group = f"{schema.MODEL_ID}, {schema.CONFIG_HASH}, {schema.RUN_DATE}::VARCHAR AS {schema.RUN_DATE}"
    rows = connection.execute(
        f"""
        SELECT {group}, {schema.ERROR_CODE}, count(*), sum(len({schema.DETECTIONS}))::BIGINT,
               strftime(max(epoch_ms(epoch_ms({schema.LABELLED_AT}))), '%Y-%m-%dT%H:%M:%SZ'),
               arg_max({schema.RUN_ID}, {schema.LABELLED_AT})
        FROM predictions GROUP BY ALL ORDER BY ALL
        """
    ).fetchall()
    grouped: dict[tuple[str, str, str], list[tuple[Any, ...]]] = {}
    for model_id, config_hash, run_date, *rest in rows:
        grouped.setdefault((model_id, config_hash, run_date), []).append(tuple(rest))
    return [_run_status(names, counts) for names, counts in grouped.items()]


def _run_status(names: tuple[str, str, str], counts: list[tuple[Any, ...]]) -> RunStatus:
    last_labelled_at, last_run_id = max((at, run_id) for *_, at, run_id in counts)
    return RunStatus(
        *names,
        last_run_id=last_run_id,
        ok=sum(count for code, count, *_ in counts if code is None),
        failed=sum(count for code, count, *_ in counts if code is not None),
        detections=sum(found or 0 for _, _, found, *_ in counts),
        errors={code: count for code, count, *_ in counts if code is not None},
        last_labelled_at=last_labelled_at,
    )
