"""How S3 is reached: credentials, region and endpoint as boto3 finds them, connections kept for the process.

Used by the rest of storage, by the object store source and by the fetching of images. boto3 decides who we are and
where the store is (environment, profiles, instance roles, ...), so that every tool in a user's hands agrees; obstore
does the bulk work: it lists and fetches about ten times as many objects a CPU second.
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
from locray.storage.retries import DEFAULT_RETRIES, RetryPolicy
from locray.storage.s3_errors import store_error
from locray.storage.uris import S3_SCHEME, is_remote, split_s3

MAX_CONNECTIONS = 64

# Botocore renews what expires ten minutes ahead; a copy that is handed on must be younger than that when it is used.
_CREDENTIALS_TTL = timedelta(minutes=5)
_AWS_ENDPOINT = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com")
_DEFAULT_REGION = "us-east-1"


def bare_etag(header: str | None) -> str | None:
    """An etag as tables hold it, without the quotes that it wears in HTTP."""
    return header.strip('"') if header else None


def quoted_etag(etag: str) -> str:
    """The inverse of `bare_etag`, as a condition (`If-Match`) needs it."""
    return f'"{etag}"'


# One connection for each state of the environment, which is what decides who and where we are. Locked, since boto3
# makes clients in one thread at a time.
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
    """What to sign with now: `access_key`, `secret_key`, `token`."""
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
        RuntimeError: called in a forked child of a process that has used a store: its network threads are not there,
            and every request would hang. Start children with `spawn`.
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
    """The endpoint where it isn't AWS's own for the region, and the region that the bucket lies in."""
    s3 = client()
    endpoint, region = str(s3.meta.endpoint_url), s3.meta.region_name
    if not _AWS_ENDPOINT.fullmatch(endpoint):
        return endpoint, region or _DEFAULT_REGION
    # boto3 follows a bucket into its region by itself; obstore and deltalake must be told.
    try:
        headers = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except botocore.exceptions.ClientError as error:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    except botocore.exceptions.BotoCoreError as error:
        raise store_error(S3_SCHEME + bucket, error) from error
    return None, headers.get("x-amz-bucket-region") or region or _DEFAULT_REGION


def delta_storage_options(uri: str) -> dict[str, str] | None:
    """What deltalake needs to reach `uri` (`storage_options`); None for a local table.

    Holds secrets: never log it. Credentials of a role are valid for some hours only: ask again for every commit.

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
