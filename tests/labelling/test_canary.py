"""Whether images that were fetched once still can be: real files, a real S3 server, real keys."""

from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.errors import ErrorCode
from locray.labelling.canary import CONTROL_IMAGES, CanaryImages
from locray.labelling.worklist import InlineWorklist
from tests.helpers.s3_server import S3Bucket, S3Server


def control_of(*uris: str) -> CanaryImages:
    """Of a worklist of these images, of unknown version."""
    rows = pa.Table.from_pylist([{schema.IMAGE_URI: uri} for uri in uris], schema.LISTING_SCHEMA)
    return CanaryImages.of(InlineWorklist.of(rows, 256), max_bytes=10)


def test_nothing_is_lost_while_one_of_the_images_is_there(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(9)]
    for path in paths:
        path.write_bytes(b"x")
    control = control_of(*map(str, paths))
    assert len(control.images) == CONTROL_IMAGES
    assert control.lost() is None
    for path in paths[1:]:
        path.unlink()
    assert control.lost() is None
    paths[0].unlink()
    assert control.lost() is ErrorCode.NOT_FOUND


def test_a_driver_that_could_not_fetch_them_can_not_tell() -> None:
    control = control_of("/only/on/the/workers.jpg")
    assert (control.images, control.lost()) == ([], None)


@pytest.mark.s3
def test_lost_rights_are_noticed(s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_bucket.put("a.jpg", b"x")
    control = control_of(f"{s3_bucket.uri}/a.jpg")
    assert control.lost() is None
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    assert control.lost() is ErrorCode.ACCESS_DENIED
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    assert control.lost() is None
