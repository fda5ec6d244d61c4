"""Whether images that were fetched once still can be: real files, a real S3 server, real keys."""

from pathlib import Path

import pyarrow as pa
import pytest
from labelling.rows import predicted
from s3_server import S3Bucket, S3Server

from locray import schema
from locray.errors import ErrorCode
from locray.labelling.control import Control


def rows_of(uris: list[str], status: str = schema.STATUS_OK) -> pa.Table:
    """Rows of `schema.PREDICTED_SCHEMA` for these images, of unknown version."""
    rows = predicted(list(range(len(uris))), status=status, etag=None)
    return rows.set_column(
        rows.column_names.index(schema.IMAGE_URI), rows.schema.field(schema.IMAGE_URI), pa.array(uris)
    )


def test_nothing_is_lost_while_one_of_the_images_is_there(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(9)]
    for path in paths:
        path.write_bytes(b"x")
    control = Control(max_bytes=10)
    assert control.lost() is None
    control.note(rows_of([str(path) for path in paths], schema.STATUS_FAILED))
    control.note(rows_of([str(path) for path in paths]))
    for path in paths[1:]:
        path.unlink()
    assert control.lost() is None
    paths[0].unlink()
    assert control.lost() is ErrorCode.NOT_FOUND


def test_a_driver_that_could_never_fetch_them_can_not_tell() -> None:
    control = Control(max_bytes=10)
    control.note(rows_of(["/only/on/the/workers.jpg"]))
    assert control.lost() is None


@pytest.mark.s3
def test_lost_rights_are_noticed(s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_bucket.put("a.jpg", b"x")
    control = Control(max_bytes=10)
    control.note(rows_of([f"{s3_bucket.uri}/a.jpg"]))
    assert control.lost() is None
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    assert control.lost() is ErrorCode.ACCESS_DENIED
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    assert control.lost() is None
