"""Connections to S3, kept for the process.

boto3 finds credentials, region and endpoint (environment, profiles, instance roles, ...), so that all tools of a user
agree. obstore does the bulk work: it lists and fetches about ten times as many objects per CPU second.
"""

import os
import re
import threading
from datetime import timedelta
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from locray.errors import StoreAccessError
from locray.storage.errors import store_error
from locray.storage.retries import DEFAULT_RETRIES, RetryPolicy
from locray.storage.uris import S3_SCHEME, is_remote, split_s3

MAX_CONNECTIONS = 64

# botocore renews credentials ten minutes before they expire: a copy that obstore keeps must be younger than that.
_CREDENTIALS_TTL = timedelta(minutes=5)
_AWS_ENDPOINT = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com")
_DEFAULT_REGION = "us-east-1"


_WEAK = "W/"


def bare_etag(header: str | None) -> str | None:
    """An etag as tables hold it, without the quotes of the HTTP header. A weak one begins with `W/`."""
    return header.replace('"', "") if header else None


def quoted_etag(etag: str) -> str:
    """The inverse of `bare_etag` for a strong etag, for the header `If-Match`."""
    return f'"{etag}"'


def strong_etag(etag: str | None) -> str | None:
    """The etag if `If-Match` can be asked with it: a weak one never matches (RFC 9110, 13.1.1)."""
    return None if etag is None or etag.startswith(_WEAK) else etag


def is_same_version(etag: str | None, other: str | None) -> bool:
    """Whether two etags, weak or strong, may be those of one version; unknown ones may."""
    return not etag or not other or etag.removeprefix(_WEAK) == other.removeprefix(_WEAK)


# One connection per state of the environment, which holds credentials and endpoint. Locked, since boto3 makes clients
# in one thread at a time.
_lock = threading.RLock()
_clients: dict[Any, Any] = {}
_stores: dict[Any, S3Store] = {}
_owner_pid: int | None = None


def _connection_key(*parts: Any) -> tuple[Any, ...]:
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return (os.getpid(), environment, *parts)


def _session() -> Any:
    try:
        return boto3.session.Session()
    except botocore.exceptions.BotoCoreError as error:
        raise StoreAccessError(f"the AWS configuration can't be used: {error}") from error


def _credentials(session: Any, uri: str) -> Any:
    """Current credentials: `access_key`, `secret_key`, `token`."""
    try:
        credentials = session.get_credentials()
        if credentials is None:
            raise botocore.exceptions.NoCredentialsError
        return credentials.get_frozen_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise store_error(uri, error) from error


def client(retries: RetryPolicy = DEFAULT_RETRIES) -> Any:
    """The boto3 S3 client of this process, safe to share between threads.

    Raises:
        StoreAccessError: the AWS configuration names a profile that doesn't exist.
    """
    with _lock:
        key = _connection_key(retries)
        if key not in _clients:
            config = Config(
                retries=retries.for_boto3(),
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=MAX_CONNECTIONS,
            )
            _clients[key] = _session().client("s3", config=config)
        return _clients[key]


def store(bucket: str, retries: RetryPolicy = DEFAULT_RETRIES) -> S3Store:
    """The obstore store of a bucket in this process, safe to share between threads.

    Raises:
        StoreAccessError: there are no credentials, or the AWS configuration can't be used.
        RuntimeError: called in a forked child of a process that has used a store. The child lacks the network threads,
            so every request would hang. Start children with `spawn`.
    """
    global _owner_pid  # noqa: PLW0603  # a process has one obstore runtime
    with _lock:
        if _owner_pid not in (None, os.getpid()):
            raise RuntimeError("an object store was used before this process was forked: start it with spawn")
        _owner_pid = os.getpid()
        key = _connection_key(bucket, retries)
        if key not in _stores:
            _stores[key] = _new_store(bucket, retries)
        return _stores[key]


def _new_store(bucket: str, retries: RetryPolicy) -> S3Store:
    session = _session()
    _credentials(session, S3_SCHEME + bucket)
    endpoint, region = _endpoint_and_region(bucket)
    return S3Store(
        bucket,
        config={"region": region, **({"endpoint": endpoint} if endpoint else {})},
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=30),
            "timeout": timedelta(seconds=120),
        },
        retry_config=retries.for_obstore(),
        credential_provider=Boto3CredentialProvider(session, ttl=_CREDENTIALS_TTL),
    )


def _endpoint_and_region(bucket: str) -> tuple[str | None, str]:
    """The endpoint, None for AWS's own of the region; and the region of the bucket."""
    s3 = client()
    endpoint, region = str(s3.meta.endpoint_url), s3.meta.region_name
    if not _AWS_ENDPOINT.fullmatch(endpoint):
        return endpoint, region or _DEFAULT_REGION
    # boto3 finds the region of a bucket by itself; obstore and deltalake need it in their configuration.
    try:
        headers = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except botocore.exceptions.ClientError as error:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    except botocore.exceptions.BotoCoreError as error:
        raise store_error(S3_SCHEME + bucket, error) from error
    return None, headers.get("x-amz-bucket-region") or region or _DEFAULT_REGION


def delta_storage_options(uri: str) -> dict[str, str] | None:
    """Deltalake's `storage_options` for `uri`; None for a local table.

    They hold secrets: never log them. Credentials of a role are valid for some hours only: call this for each commit.

    Raises:
        StoreAccessError: there are no credentials, or the AWS configuration can't be used.
    """
    if not is_remote(uri):
        return None
    bucket, _ = split_s3(uri)
    frozen = _credentials(_session(), uri)
    endpoint, region = _endpoint_and_region(bucket)
    options = {
        "AWS_REGION": region,
        "AWS_ACCESS_KEY_ID": str(frozen.access_key),
        "AWS_SECRET_ACCESS_KEY": str(frozen.secret_key),
        "aws_conditional_put": "etag",
        **DEFAULT_RETRIES.for_deltalake(),
    }
    if frozen.token:
        options["AWS_SESSION_TOKEN"] = str(frozen.token)
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
    return options
