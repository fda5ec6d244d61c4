"""Errors of real clients, by kind, against a server that fails on purpose."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import obstore
import pytest
from botocore.config import Config
from deltalake import DeltaTable
from obstore.store import S3Store

from locray.errors import StoreAccessError
from locray.storage.errors import S3_ERRORS, ErrorKind, error_kind, response_code, store_error
from locray.storage.retries import NO_RETRIES
from locray.storage.s3 import client, delta_storage_options, store
from tests.helpers.failing_store import failing_store

if TYPE_CHECKING:
    from obstore.store import ClientConfig


def read_by_boto3() -> None:
    client(NO_RETRIES).get_object(Bucket="bucket", Key="key")["Body"].read()


def read_by_obstore() -> None:
    obstore.get(store("bucket", NO_RETRIES), "key").bytes()


def read_by_deltalake() -> None:
    options = delta_storage_options("s3://bucket/table")
    assert options is not None
    DeltaTable("s3://bucket/table", storage_options=options | {"max_retries": "0"})


@pytest.mark.parametrize("read", [read_by_boto3, read_by_obstore, read_by_deltalake])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "ExpiredToken", ErrorKind.CREDENTIALS),
        (400, "RequestTimeout", ErrorKind.TIMED_OUT),
        (400, "InvalidRequest", ErrorKind.DENIED),
        (400, "KMS.DisabledException", ErrorKind.DENIED),
        (400, "KMS.ThrottlingException", ErrorKind.THROTTLED),
        (400, "Other", ErrorKind.DENIED),
        (401, "Other", ErrorKind.CREDENTIALS),
        (403, "AccessDenied", ErrorKind.DENIED),
        (403, "SignatureDoesNotMatch", ErrorKind.CREDENTIALS),
        (403, "InvalidObjectState", ErrorKind.ARCHIVED),
        (405, "MethodNotAllowed", ErrorKind.DENIED),
        (410, "Other", ErrorKind.NO_OBJECT),
        (404, "NoSuchBucket", ErrorKind.NO_BUCKET),
        (412, "PreconditionFailed", ErrorKind.CHANGED),
        (418, "Other", ErrorKind.OTHER),
        (429, "Other", ErrorKind.THROTTLED),
        (451, "Other", ErrorKind.DENIED),
        (500, "InternalError", ErrorKind.SERVER_ERROR),
        (503, "SlowDown", ErrorKind.THROTTLED),
        (599, "Other", ErrorKind.SERVER_ERROR),
    ],
)
def test_responses_have_the_same_kind_for_every_client(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[], None], status: int, code: str, kind: ErrorKind
) -> None:
    with (
        failing_store([status], monkeypatch, code),
        pytest.raises((*S3_ERRORS, OSError)) as caught,  # type: ignore[arg-type]
    ):
        read()
    assert (error_kind(caught.value), response_code(caught.value)) == (kind, code)


@pytest.mark.parametrize("read", [read_by_boto3, read_by_obstore])
def test_an_absent_object_is_no_absent_bucket(monkeypatch: pytest.MonkeyPatch, read: Callable[[], None]) -> None:
    with failing_store([404], monkeypatch, "NoSuchKey"), pytest.raises(S3_ERRORS) as caught:
        read()
    assert error_kind(caught.value) is ErrorKind.NO_OBJECT


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_timeout_is_told_from_a_broken_connection() -> None:
    keys: Any = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    with silent_endpoint() as url:
        options: ClientConfig = {"allow_http": True, "read_timeout": timedelta(seconds=0.2)}
        silent = S3Store(
            "bucket", endpoint=url, region="r", client_options=options, retry_config={"max_retries": 0}, **keys
        )
        with pytest.raises(S3_ERRORS) as by_obstore:
            obstore.get(silent, "key")
        limits = Config(read_timeout=0.2, retries=NO_RETRIES.for_boto3())
        with pytest.raises(S3_ERRORS) as by_boto3:
            boto3.client("s3", endpoint_url=url, region_name="r", config=limits, **keys).get_object(Bucket="b", Key="k")
    assert error_kind(by_obstore.value) is error_kind(by_boto3.value) is ErrorKind.TIMED_OUT


def test_a_message_tells_what_to_do_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing_store([403], monkeypatch, "SignatureDoesNotMatch"), pytest.raises(S3_ERRORS) as caught:
        read_by_obstore()
    error = store_error("s3://bucket/key", caught.value)
    assert isinstance(error, StoreAccessError)
    assert "no valid AWS credentials to reach s3://bucket/key (the store answered SignatureDoesNotMatch)" in str(error)
    assert "127.0.0.1" not in str(error)
