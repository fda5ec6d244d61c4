"""The proxy of the fault tests is transparent by default, and injects the given faults."""

import pytest

from locray import storage
from locray.errors import StoreError
from tests.helpers.s3_proxy import BUSY, CLOSED, Answer, Forward, Request, s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server

pytestmark = pytest.mark.s3


def test_the_proxy_is_transparent(s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_proxy(s3_server.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        uri = f"{s3_bucket.uri}/a folder/ü%40.bin"
        storage.write_bytes(uri, bytes(range(256)) * 1000)
        assert storage.read_bytes(uri) == bytes(range(256)) * 1000
        assert storage.list_uris(s3_bucket.uri) == [uri]
        storage.delete([uri])
    assert not s3_bucket.keys()
    assert {"PUT", "GET", "DELETE"} <= {request.method for request in proxy.requests}
    assert any(request.path == f"/{s3_bucket.name}/a folder/ü%40.bin" for request in proxy.requests)


@pytest.mark.parametrize("answer", [BUSY, CLOSED])
def test_a_refused_write_is_retried(
    answer: Answer, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(_: Request, forward: Forward) -> Answer:
        return answer if len(proxy.requests) <= 2 else forward()

    with s3_proxy(s3_server.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        proxy.fault = twice
        storage.write_bytes(f"{s3_bucket.uri}/x", b"x")
    assert s3_bucket.keys() == ["x"]
    assert len(proxy.requests) == 3


def test_a_write_with_a_lost_response_has_happened(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: Request, forward: Forward) -> Answer:
        forward()
        return CLOSED

    with s3_proxy(s3_server.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        proxy.fault = lose
        with pytest.raises(StoreError):
            storage.write_bytes(f"{s3_bucket.uri}/x", b"x")
    assert s3_bucket.keys() == ["x"]
