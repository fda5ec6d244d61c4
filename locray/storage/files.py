"""Whole files and objects: reading, writing, deleting.

For few or for small ones: configuration, artifacts, annotations, reports, a Parquet file. Images in their millions are
fetched by `locray.images.fetch`.
"""

import io
import os
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq

from locray.storage.archives import has_member, is_archive_name, read_member
from locray.storage.errors import S3_ERRORS, ErrorKind, error_kind, store_error, translate_io_errors
from locray.storage.object_reader import ObjectReader
from locray.storage.s3 import client, store
from locray.storage.uris import is_in_archive, is_plain_key, is_remote, local_path, split_archive, split_s3

_READ_THREADS = 32
_DELETE_THREADS = 16


def file_etag(status: os.stat_result) -> str:
    """The version of a local file: time of its last write in nanoseconds, and size."""
    return f"{status.st_mtime_ns}-{status.st_size}"


def read_bytes(uri: str) -> bytes:
    """The content of a file, an object or a member of a zip archive.

    Raises:
        StoreAccessError: it is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        UsageError: a zip archive or its member is absent, encrypted or damaged.
    """
    if is_in_archive(uri):
        with translate_io_errors(split_archive(uri)[0]):
            return read_member(uri).data
    with translate_io_errors(uri):
        if not is_remote(uri):
            return Path(local_path(uri)).read_bytes()
        bucket, key = split_s3(uri)
        return bytes(client().get_object(Bucket=bucket, Key=key)["Body"].read())


def read_all(uris: Sequence[str]) -> list[bytes]:
    """The contents of many small files, several at a time; raises as `read_bytes` does."""
    if not any(is_remote(split_archive(uri)[0] if is_in_archive(uri) else uri) for uri in uris):
        return [read_bytes(uri) for uri in uris]  # threads would only contend with each other
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        return list(threads.map(_read_lightly, uris))


def _read_lightly(uri: str) -> bytes:
    """As `read_bytes`; an object by obstore, at a tenth of the cost of boto3."""
    if not is_remote(uri) or not is_plain_key(split_s3(uri)[1]):
        return read_bytes(uri)
    bucket, key = split_s3(uri)
    with translate_io_errors(uri):
        return bytes(obstore.get(store(bucket), key).bytes())


def open_file(uri: str) -> pa.NativeFile:
    """A file or object for random access: only the requested ranges are read.

    Raises:
        StoreAccessError: it is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    if is_in_archive(uri):
        return pa.BufferReader(read_bytes(uri))
    with translate_io_errors(uri):
        if not is_remote(uri):
            return pa.OSFile(os.fsencode(local_path(uri)))
        bucket, key = split_s3(uri)
        if not is_plain_key(key):
            return pa.BufferReader(read_bytes(uri))
        meta = obstore.head(store(bucket), key)
    return pa.PythonFile(ObjectReader(uri, meta["size"], meta["e_tag"]), mode="r")


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file. Its footer is read now, row groups and columns on request.

    Raises:
        StoreAccessError: the file is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        pyarrow.ArrowInvalid: it is not a Parquet file.
    """
    return pq.ParquetFile(open_file(uri), pre_buffer=True)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file or object, replacing what is there. Readers see the old content or the new, nothing between.

    A local file is on the disk when this returns. Its folder is made where it is missing.

    Raises:
        StoreAccessError: the folder or bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    with translate_io_errors(uri):
        if is_remote(uri):
            bucket, key = split_s3(uri)
            client().put_object(Bucket=bucket, Key=key, Body=data)
        else:
            _write_local(Path(local_path(uri)), data)


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
    """Whether there is a file, an object, a member or a local folder; of an S3 prefix, whether it is an object.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
        UsageError: a zip archive is damaged.
    """
    if is_in_archive(uri):
        with translate_io_errors(split_archive(uri)[0]):
            return has_member(uri)
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


def is_archive(uri: str) -> bool:
    """Whether `uri` is a zip archive: a file or object, not a folder, with this ending.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    if is_in_archive(uri) or not is_archive_name(uri):
        return False
    return exists(uri) if is_remote(uri) else os.path.isfile(local_path(uri))


def delete(uris: Iterable[str]) -> None:
    """Deletes files and objects; those that are already gone are no error.

    Raises:
        StoreAccessError: the bucket is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    with ThreadPoolExecutor(_DELETE_THREADS) as threads:
        for _ in threads.map(_delete_one, uris):
            pass


def _delete_one(uri: str) -> None:
    with translate_io_errors(uri):
        if is_remote(uri):
            bucket, key = split_s3(uri)
            client().delete_object(Bucket=bucket, Key=key)
        else:
            Path(local_path(uri)).unlink(missing_ok=True)
