"""Folders, local or S3 prefixes: listing, checking, deleting.

For folders of some thousand files. Images in their millions are listed by `locray.sources`.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from locray.errors import StoreAccessError, StoreError
from locray.storage.archives import list_members
from locray.storage.errors import local_error, translate_io_errors
from locray.storage.files import delete, is_archive
from locray.storage.retries import CHECK_RETRIES
from locray.storage.s3 import client
from locray.storage.uris import (
    S3_SCHEME,
    archive_folder,
    is_in_archive,
    is_remote,
    local_path,
    local_uri,
    split_archive,
    split_s3,
)


def folder_exists(uri: str) -> bool:
    """Whether a folder is there: on S3, whether any object lies below it, even if only the folder's own marker.

    Raises:
        StoreAccessError: the bucket or archive is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        UsageError: a zip archive is damaged.
    """
    if is_in_archive(uri):
        return bool(list_uris(uri))
    if not is_remote(uri):
        return os.path.isdir(local_path(uri))
    bucket, key = split_s3(uri)
    with translate_io_errors(uri):
        page = client().list_objects_v2(Bucket=bucket, Prefix=_folder_prefix(key), MaxKeys=1)
    return bool(page.get("Contents"))


def list_uris(prefix_uri: str) -> list[str]:
    """The URIs of all files below a folder or in a zip archive, however deep, sorted.

    Empty where the folder does not exist.

    Raises:
        StoreAccessError: the bucket or archive is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        UsageError: a zip archive is damaged, or encrypted as a whole.
    """
    if is_in_archive(prefix_uri) or is_archive(prefix_uri):
        uri = prefix_uri if is_in_archive(prefix_uri) else archive_folder(prefix_uri)
        archive_uri, folder = split_archive(uri)
        with translate_io_errors(archive_uri):
            return list_members(archive_uri, folder)
    if not is_remote(prefix_uri):
        return sorted(_walk_local(prefix_uri))
    bucket, key = split_s3(prefix_uri)
    return sorted(f"{S3_SCHEME}{bucket}/{entry['Key']}" for entry in list_objects(bucket, _folder_prefix(key)))


def _folder_prefix(key: str) -> str:
    """Prefix of the keys of all objects in a folder; empty for the bucket itself."""
    return f"{key.rstrip('/')}/" if key else ""


def _walk_local(folder_uri: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise local_error(folder_uri, error) from error

    for folder, _, names in os.walk(local_path(folder_uri), onerror=fail):
        for name in names:
            yield local_uri(os.path.join(folder, name))


def list_objects(bucket: str, prefix: str, start_after: str = "") -> Iterator[dict[str, Any]]:
    """boto3's entries (`Key`, `ETag`, `Size`, `LastModified`) of all objects below a raw prefix but folder markers.

    Exact for every key that S3 allows, and an order of magnitude slower than obstore's listing.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    arguments = {"StartAfter": start_after} if start_after else {}
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **arguments)
    with translate_io_errors(f"{S3_SCHEME}{bucket}/{prefix}"):
        for page in pages:
            yield from (entry for entry in page.get("Contents", ()) if not is_folder_marker(entry))


def is_folder_marker(entry: dict[str, Any]) -> bool:
    """Whether boto3's entry of an object stands for a folder: no bytes, and a slash at its end."""
    return bool(entry["Size"] == 0 and entry["Key"].endswith("/"))


def check_readable_folder(uri: str) -> None:
    """Checks, before work starts, that a folder or prefix can be listed. It may be empty.

    Raises:
        StoreAccessError: the folder is missing, is a file or may not be read; the bucket is not there or access is
            denied; there are no credentials; the endpoint does not answer.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if os.path.exists(path) and not os.path.isdir(path):
            raise StoreAccessError(f"{uri} is a file: expected a folder")
        with translate_io_errors(uri):
            os.scandir(path).close()
        return
    bucket, prefix = split_s3(uri)
    try:
        with translate_io_errors(uri):
            client(CHECK_RETRIES).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except StoreError as error:
        raise StoreAccessError(str(error)) from error


def delete_folder(uri: str) -> int:
    """Deletes all files below a folder, then the folders, and returns the number of files.

    Files that other processes add meanwhile stay.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    uris = list_uris(uri)
    delete(uris)
    if not is_remote(uri):
        for folder, _, _ in os.walk(local_path(uri), topdown=False):
            with contextlib.suppress(OSError):  # not empty: another process uses it
                os.rmdir(folder)
    return len(uris)
