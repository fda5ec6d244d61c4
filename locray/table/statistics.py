"""What a Delta log says of a file's columns, for readers to skip files by. Used by table/data_files.py."""

from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema


def file_statistics(rows: pa.Table) -> dict[str, Any]:
    """Delta's per-file statistics, of every plain column.

    All or none: where a column's bounds are missing beside others', deltalake's pyarrow dataset takes them for null and
    skips the file under any filter on that column.
    """
    plain = [name for name in rows.column_names if name != schema.DETECTIONS]
    bounds = {name: pc.min_max(rows[name]).as_py() for name in plain if rows[name].null_count < len(rows)}
    return {
        "numRecords": len(rows),
        "minValues": {name: _plain(value["min"]) for name, value in bounds.items()},
        "maxValues": {name: _plain(value["max"]) for name, value in bounds.items()},
        "nullCount": {name: rows[name].null_count for name in plain},
    }


def _plain(value: Any) -> Any:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value
