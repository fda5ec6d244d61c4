"""Whole files and folders at URIs, local or S3. Used by every layer that reads or writes something other than images.

All of it is for few and for small things: configuration, artifacts, reports, one Parquet file. Images in their
millions go through `locray.sources` and `locray.images.fetch`.
"""

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import obstore
import pyarrow as pa
import pyarrow.parquet as pq

from locray.errors import StoreAccessError, StoreError
from locray.storage.archives import has_member, is_archive_name, list_members, read_member
from locray.storage.object_reader import ObjectReader
from locray.storage.retries import CHECK_RETRIES
from locray.storage.s3 import client, store
from locray.storage.s3_errors import S3_ERRORS, ErrorKind, error_kind, store_error
from locray.storage.uris import (
    S3_SCHEME,
    archive_folder,
    is_in_archive,
    is_plain_key,
    is_remote,
    local_path,
    local_uri,
    split_archive,
    split_s3,
)

Result = TypeVar("Result")


def file_etag(status: os.stat_result) -> str:
    """The version of a local file: when it was last written to, in nanoseconds, and its size."""
    return f"{status.st_mtime_ns}-{status.st_size}"


def read_bytes(uri: str) -> bytes:
    """The content of a file, an object or a member of a zip archive.

    Raises:
        StoreAccessError: it is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        UsageError: a zip archive or its member is absent, encrypted or damaged.
    """
    if is_in_archive(uri):
        return _in_archive(uri, lambda: read_member(uri).data)
    if not is_remote(uri):
        try:
            return Path(local_path(uri)).read_bytes()
        except OSError as error:
            raise local_error(uri, error) from error
    bucket, key = split_s3(uri)
    try:
        return bytes(client().get_object(Bucket=bucket, Key=key)["Body"].read())
    except S3_ERRORS as error:
        raise store_error(uri, error) from error


def _in_archive(uri: str, use: Callable[[], Result]) -> Result:
    """What `use` makes of an archive, its errors told as those of other files are."""
    archive_uri = split_archive(uri)[0]
    try:
        return use()
    except S3_ERRORS as error:
        if isinstance(error, FileNotFoundError) and not is_remote(archive_uri):
            raise local_error(archive_uri, error) from error
        raise store_error(archive_uri, error) from error
    except OSError as error:
        raise local_error(archive_uri, error) from error


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file or object, replacing what is there. Readers see the old content or the new, nothing between.

    A local file is safe on the disk when this returns; its folder is made where it is missing.

    Raises:
        StoreAccessError: the folder or bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    if not is_remote(uri):
        try:
            _write_local(Path(local_path(uri)), data)
        except OSError as error:
            raise local_error(uri, error) from error
        return
    bucket, key = split_s3(uri)
    try:
        client().put_object(Bucket=bucket, Key=key, Body=data)
    except S3_ERRORS as error:
        raise store_error(uri, error) from error


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".locray-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut, too
    finally:
        os.close(folder)


def exists(uri: str) -> bool:
    """Whether a file, object or member is there; an S3 prefix that is no object is not, a local folder is.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        UsageError: a zip archive is damaged.
    """
    if is_in_archive(uri):
        return _in_archive(uri, lambda: has_member(uri))
    if not is_remote(uri):
        return os.path.exists(local_path(uri))
    bucket, key = split_s3(uri)
    try:
        client().head_object(Bucket=bucket, Key=key)
    except S3_ERRORS as error:
        if error_kind(error) is ErrorKind.NO_OBJECT:
            return False
        raise store_error(uri, error) from error
    return True


def folder_exists(uri: str) -> bool:
    """Whether a folder is there: on S3, whether any object lies below it, were it the folder's own marker.

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
    try:
        page = client().list_objects_v2(Bucket=bucket, Prefix=_folder_prefix(key), MaxKeys=1)
    except S3_ERRORS as error:
        raise store_error(uri, error) from error
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
        return _in_archive(uri, lambda: list_members(*split_archive(uri)))
    if not is_remote(prefix_uri):
        return sorted(_walk_local(prefix_uri))
    bucket, key = split_s3(prefix_uri)
    return sorted(f"{S3_SCHEME}{bucket}/{entry['Key']}" for entry in list_objects(bucket, _folder_prefix(key)))


def _folder_prefix(key: str) -> str:
    """What the keys of all objects in a folder begin with; empty for the bucket itself."""
    return f"{key.rstrip('/')}/" if key else ""


def is_archive(uri: str) -> bool:
    """Whether a zip archive lies there: a file or object with this ending, and no folder.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    if is_in_archive(uri) or not is_archive_name(uri):
        return False
    return exists(uri) if is_remote(uri) else os.path.isfile(local_path(uri))


def _walk_local(folder_uri: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise local_error(folder_uri, error) from error

    for folder, _, names in os.walk(local_path(folder_uri), onerror=fail):
        for name in names:
            yield local_uri(os.path.join(folder, name))


def list_objects(bucket: str, prefix: str, start_after: str = "") -> Iterator[dict[str, Any]]:
    """boto3's entries (`Key`, `ETag`, `Size`, `LastModified`) of all objects below a raw prefix, but folder markers.

    Exact for every key that S3 allows, and an order of magnitude slower than obstore's listing.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    arguments = {"StartAfter": start_after} if start_after else {}
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **arguments)
    try:
        for page in pages:
            yield from (entry for entry in page.get("Contents", ()) if not is_folder_marker(entry))
    except S3_ERRORS as error:
        raise store_error(f"{S3_SCHEME}{bucket}/{prefix}", error) from error


def is_folder_marker(entry: dict[str, Any]) -> bool:
    """Whether boto3's entry of an object stands for a folder: no bytes, and a slash at its end."""
    return bool(entry["Size"] == 0 and entry["Key"].endswith("/"))


def check_readable_folder(uri: str) -> None:
    """Makes sure, before work starts, that a folder or prefix can be listed. An empty one is fine.

    Raises:
        StoreAccessError: the folder is missing, is a file or may not be read; the bucket is not there or access is
            denied; there are no credentials; the endpoint does not answer.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if os.path.exists(path) and not os.path.isdir(path):
            raise StoreAccessError(f"{uri} is a file: expected a folder")
        try:
            os.scandir(path).close()
        except OSError as error:
            raise local_error(uri, error) from error
        return
    bucket, prefix = split_s3(uri)
    try:
        client(CHECK_RETRIES).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except S3_ERRORS as error:
        raise StoreAccessError(str(store_error(uri, error))) from error


def open_file(uri: str) -> pa.NativeFile:
    """A file or object for random access: only what is asked for is read.

    Raises:
        StoreAccessError: it is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    if is_in_archive(uri):
        return pa.BufferReader(read_bytes(uri))
    if not is_remote(uri):
        try:
            return pa.OSFile(os.fsencode(local_path(uri)))
        except OSError as error:
            raise local_error(uri, error) from error
    bucket, key = split_s3(uri)
    if not is_plain_key(key):
        return pa.BufferReader(read_bytes(uri))
    try:
        meta = obstore.head(store(bucket), key)
    except S3_ERRORS as error:
        raise store_error(uri, error) from error
    return pa.PythonFile(ObjectReader(uri, meta["size"], meta["e_tag"]), mode="r")


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file of which the footer is read now, row groups and columns when they are asked for.

    Raises:
        StoreAccessError: the file is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        pyarrow.ArrowInvalid: it is no Parquet file.
    """
    return pq.ParquetFile(open_file(uri), pre_buffer=True)


def write_parquet(uri: str, fields: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes a Parquet file, compressed and with checksums; the file alone is held in memory. Returns its rows.

    Raises:
        StoreError: the store failed, retries exhausted.
    """
    buffer, num_rows = io.BytesIO(), 0
    with pq.ParquetWriter(buffer, fields, compression="zstd", write_page_checksum=True) as file:
        for batch in batches:
            file.write_batch(batch.cast(fields))
            num_rows += len(batch)
    write_bytes(uri, buffer.getvalue())
    return num_rows


def local_error(uri: str, error: OSError) -> StoreError:
    """The error to raise for what the system said of a local file; says what to do."""
    if isinstance(error, FileNotFoundError):
        return StoreAccessError(f"{uri} does not exist: check the path")
    if isinstance(error, PermissionError):
        return StoreAccessError(f"permission denied at {uri}: check who owns it and its mode")
    if isinstance(error, IsADirectoryError):
        return StoreAccessError(f"{uri} is a folder: expected a file")
    if isinstance(error, NotADirectoryError):
        return StoreAccessError(f"{uri}: a part of this path is a file, not a folder")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreError(f"{uri} can't be written: no space is left on its disk. Free some and run the command again")
    return StoreError(f"{uri} can't be used: {error.strerror or error}")
