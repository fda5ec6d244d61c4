"""What a predictions table holds, read from the table alone. Called by the command line."""

from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from locray import schema, storage
from locray.config import StatusConfig
from locray.errors import UsageError
from locray.labelling.table import open_table


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The rows of one model on one date."""

    model_id: str
    run_date: str
    ok: int
    failed: int
    detections: int
    errors: dict[str, int]
    last_labelled_at: str


@dataclass(frozen=True, slots=True)
class TableStatus:
    """What a table holds, as `--json` prints it."""

    table: str
    version: int
    files: int
    rows: int
    runs: list[RunStatus]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def status(config: StatusConfig) -> TableStatus:
    """Counts the table's rows by model, date and error.

    Raises:
        UsageError: there is no predictions table.
    """
    uri = storage.normalise(config.table)
    table = open_table(uri)
    if table is None:
        raise UsageError(f"there is no predictions table at {uri}; `locray label --table {uri} ...` makes one")
    files = table.file_uris()
    runs = _runs(table.to_pyarrow_dataset()) if files else []
    return TableStatus(uri, table.version(), len(files), sum(run.ok + run.failed for run in runs), runs)


def _runs(predictions: Any) -> list[RunStatus]:
    connection = duckdb.connect()
    connection.register("predictions", predictions)
    group = f"{schema.MODEL_ID}, {schema.RUN_DATE}::VARCHAR AS {schema.RUN_DATE}"
    rows = connection.execute(
        f"""
        SELECT {group}, {schema.ERROR_CODE}, count(*), sum(len({schema.DETECTIONS}))::BIGINT,
               strftime(max(epoch_ms(epoch_ms({schema.LABELLED_AT}))), '%Y-%m-%dT%H:%M:%SZ')
        FROM predictions GROUP BY ALL ORDER BY ALL
        """
    ).fetchall()
    grouped: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for model_id, run_date, *rest in rows:
        grouped.setdefault((model_id, run_date), []).append(tuple(rest))
    return [_run_status(model_id, run_date, counts) for (model_id, run_date), counts in grouped.items()]


def _run_status(model_id: str, run_date: str, counts: list[tuple[Any, ...]]) -> RunStatus:
    return RunStatus(
        model_id=model_id,
        run_date=run_date,
        ok=sum(count for code, count, _, _ in counts if code is None),
        failed=sum(count for code, count, _, _ in counts if code is not None),
        detections=sum(found or 0 for _, _, found, _ in counts),
        errors={code: count for code, count, _, _ in counts if code is not None},
        last_labelled_at=max(last for *_, last in counts),
    )
