"""Rows for tests of the committer and the table."""

import pyarrow as pa

from locray import schema


def predicted(
    ordinals: list[int], *, status: str = schema.STATUS_OK, etag: str | None = "v1", code: str = "corrupt"
) -> pa.Table:
    """Returns rows of `schema.PREDICTED_SCHEMA`, with one box each if the status is ok, else with this code."""
    ok = status == schema.STATUS_OK
    box = {
        schema.LABEL_ID: 0,
        schema.LABEL: "disc",
        schema.SCORE: 0.5,
        schema.XMIN: 1.0,
        schema.YMIN: 2.0,
        schema.XMAX: 3.0,
        schema.YMAX: 4.0,
    }
    rows = [
        {
            schema.ORDINAL: ordinal,
            schema.IMAGE_URI: f"s3://bucket/{ordinal:06d}.jpg",
            schema.ETAG: etag,
            schema.SIZE_BYTES: 10,
            schema.LAST_MODIFIED: None,
            schema.WIDTH: 10 if ok else None,
            schema.HEIGHT: 10 if ok else None,
            schema.FORMAT: "jpeg" if ok else None,
            schema.STATUS: status,
            schema.ERROR_CODE: None if ok else code,
            schema.ERROR_MESSAGE: None if ok else "something is wrong",
            schema.DETECTIONS: [box] if ok else None,
        }
        for ordinal in ordinals
    ]
    return pa.Table.from_pylist(rows, schema=schema.PREDICTED_SCHEMA)
