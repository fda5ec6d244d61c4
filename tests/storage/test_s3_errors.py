"""Errors of real clients, by kind, against a server that fails on purpose."""

from collections.abc import Callable

import obstore
import pytest
from deltalake import DeltaTable

from locray.errors import StoreAccessError
from locray.storage.retries import NO_RETRIES
from locray.storage.s3 import client, delta_storage_options, store
from locray.storage.s3_errors import S3_ERRORS, ErrorKind, error_kind, response_code, store_error
from tests.helpers.failing_store import failing_store


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
        (401, "Other", ErrorKind.CREDENTIALS),
        (403, "AccessDenied", ErrorKind.DENIED),
        (403, "SignatureDoesNotMatch", ErrorKind.CREDENTIALS),
        (404, "NoSuchBucket", ErrorKind.NO_BUCKET),
        (412, "PreconditionFailed", ErrorKind.CHANGED),
        (418, "Other", ErrorKind.OTHER),
        (429, "Other", ErrorKind.THROTTLED),
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


def test_a_message_tells_what_to_do_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing_store([403], monkeypatch, "SignatureDoesNotMatch"), pytest.raises(S3_ERRORS) as caught:
        read_by_obstore()
    error = store_error("s3://bucket/key", caught.value)
    assert isinstance(error, StoreAccessError)
    assert "no valid AWS credentials to reach s3://bucket/key (the store answered SignatureDoesNotMatch)" in str(error)
    assert "127.0.0.1" not in str(error)
