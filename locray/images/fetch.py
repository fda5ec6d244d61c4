"""Fetching of images from files, objects and archives, many at a time.

A pool of threads does it: obstore works outside of Python's lock, and threads cost half as much as its asyncio
interface. An error about one image is an `ImageFailure`. An error of the store, its credentials included, says nothing
about the image, which is `Deferred` to the next run.
"""

import errno
import os
import queue
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import obstore

from locray.errors import DeferralCause, ErrorCode, StoreError
from locray.images.byte_budget import ByteBudget, ByteReservation
from locray.images.decode import ImageFailure
from locray.storage.archives import MemberError, MemberErrorKind, read_member
from locray.storage.errors import S3_ERRORS, ErrorKind, error_kind, response_code
from locray.storage.files import file_etag
from locray.storage.retries import (
    FETCH_RETRIES,
    NO_RETRIES,
    PROCESS_BUDGET,
    RetryBudget,
    RetryPolicy,
    call_with_retries,
)
from locray.storage.s3 import bare_etag, client, is_same_version, quoted_etag, store, strong_etag
from locray.storage.uris import is_in_archive, is_plain_key, is_remote, local_path, split_archive, split_s3

if TYPE_CHECKING:
    from obstore import GetOptions

_REPLACED = "replaced by another version since it was listed"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One image to fetch, as it was listed.

    Attributes:
        uri: The image.
        etag: The version to fetch; None: the current one.
        size_bytes: Its size; None: unknown.
    """

    uri: str
    etag: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of one image, and their version."""

    data: bytes
    etag: str | None
    size_bytes: int
    last_modified: datetime | None


@dataclass(frozen=True, slots=True)
class Deferred:
    """The store failed and the retries are exhausted: the next run will retry the image."""

    cause: DeferralCause
    reason: str


Outcome = Fetched | ImageFailure | Deferred


def fetch_images(
    requests: Sequence[FetchRequest],
    *,
    max_bytes: int,
    concurrency: int = 64,
    max_waiting_bytes: int = 256 << 20,
    retries: RetryPolicy = FETCH_RETRIES,
    budget: RetryBudget = PROCESS_BUDGET,
) -> Iterator[tuple[int, Outcome]]:
    """Fetches images, several at a time, and yields each as it arrives: its index in `requests` and its outcome.

    A slow consumer slows the fetching down: at most `concurrency` images and `max_waiting_bytes` are under way or not
    yet consumed. One image is always fetched, whatever its size.

    Args:
        requests: The images.
        max_bytes: A larger image is not fetched: `too_many_bytes`.
        concurrency: Requests in flight.
        max_waiting_bytes: By the sizes in the requests. If one is unknown, the store's response begins with it.
        retries: Retries of an object store for one image.
        budget: Retries for all images, shared by all calls in the process.
    """
    arrived: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    running: dict[Future[Outcome], tuple[int, ByteReservation]] = {}
    waiting_bytes = ByteBudget(max_waiting_bytes)
    next_index = 0
    threads = ThreadPoolExecutor(min(concurrency, max(1, len(requests))), thread_name_prefix="fetch")
    try:
        while next_index < len(requests) or running:
            while next_index < len(requests) and len(running) < concurrency:
                limits = _Limits(max_bytes, ByteReservation(waiting_bytes), retries, budget)
                future = threads.submit(_fetch, requests[next_index], limits)
                running[future] = next_index, limits.reservation
                future.add_done_callback(arrived.put)
                next_index += 1
            future = arrived.get()
            index, reservation = running.pop(future)
            yield index, future.result()
            reservation.release()
    finally:
        waiting_bytes.close()
        threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Limits of one image: its size, the memory that it reserves, and the retries."""

    max_bytes: int
    reservation: ByteReservation
    retries: RetryPolicy
    budget: RetryBudget

    def reserve(self, size_bytes: int) -> ImageFailure | None:
        """Reserves memory for an image of this size, or returns the failure if it is too large."""
        if size_bytes > self.max_bytes:
            return ImageFailure(ErrorCode.TOO_MANY_BYTES, f"{size_bytes} bytes; the limit is {self.max_bytes}")
        self.reservation.acquire(size_bytes)
        return None


def _fetch(request: FetchRequest, limits: _Limits) -> Outcome:
    if request.size_bytes is not None and (failure := limits.reserve(request.size_bytes)):
        return failure
    if is_in_archive(request.uri):
        return _fetch_member(request, limits)
    if not is_remote(request.uri):
        return _fetch_file(request, limits)
    bucket, key = split_s3(request.uri)
    fetch_object = _fetch_object if is_plain_key(key) else _fetch_object_by_boto3
    return _fetch_from_store(lambda: fetch_object(bucket, key, request.etag, limits), limits)


_CODE_BY_KIND = {
    ErrorKind.NO_OBJECT: ErrorCode.NOT_FOUND,
    ErrorKind.NO_BUCKET: ErrorCode.NOT_FOUND,
    ErrorKind.DENIED: ErrorCode.ACCESS_DENIED,
    ErrorKind.ARCHIVED: ErrorCode.ARCHIVED,
    ErrorKind.CHANGED: ErrorCode.CHANGED,
}
_CAUSE_BY_KIND = {
    ErrorKind.CREDENTIALS: DeferralCause.CREDENTIALS,
    ErrorKind.UNREACHABLE: DeferralCause.DISCONNECTED,
    ErrorKind.TIMED_OUT: DeferralCause.TIMED_OUT,
    ErrorKind.THROTTLED: DeferralCause.THROTTLED,
    ErrorKind.SERVER_ERROR: DeferralCause.SERVER_ERROR,
    ErrorKind.OTHER: DeferralCause.STORE,
}


def _fetch_from_store(fetch_object: Callable[[], Outcome], limits: _Limits) -> Outcome:
    try:
        return call_with_retries(fetch_object, limits.retries, limits.budget)
    except S3_ERRORS as error:
        kind, code = error_kind(error), response_code(error)
        reason = f"the store answered {code}" if code else "the store did not answer"
        if kind in _CAUSE_BY_KIND:
            return Deferred(_CAUSE_BY_KIND[kind], reason)
        return ImageFailure(_CODE_BY_KIND[kind], _REPLACED if kind is ErrorKind.CHANGED else reason)
    except StoreError as error:
        return Deferred(DeferralCause.STORE, str(error))


def _fetch_object(bucket: str, key: str, etag: str | None, limits: _Limits) -> Outcome:
    strong = strong_etag(etag)
    options: GetOptions = {"if_match": quoted_etag(strong)} if strong else {}
    result = obstore.get(store(bucket, NO_RETRIES), key, options=options)
    meta = result.meta
    if not is_same_version(etag, bare_etag(meta["e_tag"])):
        return ImageFailure(ErrorCode.CHANGED, _REPLACED)
    if failure := limits.reserve(meta["size"]):
        return failure
    data = bytes(result.bytes())
    return Fetched(data, bare_etag(meta["e_tag"]), len(data), meta["last_modified"])


def _fetch_object_by_boto3(bucket: str, key: str, etag: str | None, limits: _Limits) -> Outcome:
    strong = strong_etag(etag)
    arguments = {"IfMatch": quoted_etag(strong)} if strong else {}
    answer: dict[str, Any] = client(NO_RETRIES).get_object(Bucket=bucket, Key=key, **arguments)
    with closing(answer["Body"]) as body:  # as a context manager itself it would give the raw stream
        if not is_same_version(etag, bare_etag(answer.get("ETag"))):
            return ImageFailure(ErrorCode.CHANGED, _REPLACED)
        if failure := limits.reserve(answer["ContentLength"]):
            return failure
        data = body.read()
    return Fetched(data, bare_etag(answer.get("ETag")), len(data), answer.get("LastModified"))


_CODE_BY_MEMBER_ERROR = {
    MemberErrorKind.ABSENT: ErrorCode.NOT_FOUND,
    MemberErrorKind.ENCRYPTED: ErrorCode.ACCESS_DENIED,
    MemberErrorKind.UNSUPPORTED: ErrorCode.UNSUPPORTED_FORMAT,
    MemberErrorKind.DAMAGED: ErrorCode.CORRUPT,
    MemberErrorKind.TOO_LARGE: ErrorCode.TOO_MANY_BYTES,
}


def _fetch_member(request: FetchRequest, limits: _Limits) -> Outcome:
    if is_remote(split_archive(request.uri)[0]):
        return _fetch_from_store(lambda: _read_member(request, limits), limits)
    try:
        return _read_member(request, limits)
    except OSError as error:
        return _file_failure(error)


def _read_member(request: FetchRequest, limits: _Limits) -> Outcome:
    try:
        data, etag, last_modified = read_member(
            request.uri, max_bytes=limits.max_bytes, retries=NO_RETRIES, admit=limits.reservation.acquire
        )
    except MemberError as error:
        return ImageFailure(_CODE_BY_MEMBER_ERROR[error.kind], str(error))
    if request.etag not in (None, etag):
        return ImageFailure(ErrorCode.CHANGED, _REPLACED)
    return Fetched(data, etag, len(data), last_modified)


_CODE_BY_ERRNO = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NOT_FOUND,
    errno.ENAMETOOLONG: ErrorCode.NOT_FOUND,
    errno.ELOOP: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.ACCESS_DENIED,
    errno.EPERM: ErrorCode.ACCESS_DENIED,
}


def _fetch_file(request: FetchRequest, limits: _Limits) -> Outcome:
    try:
        # Non-blocking, so that a pipe without a writer does not hang.
        descriptor = os.open(local_path(request.uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _file_failure(error)
    except ValueError:  # a NUL in a table's URI
        return ImageFailure(ErrorCode.NOT_FOUND, "no file can have this name")
    try:
        return _read_file(descriptor, request.etag, limits)
    except OSError as error:
        return _file_failure(error)
    finally:
        os.close(descriptor)


def _read_file(descriptor: int, etag: str | None, limits: _Limits) -> Outcome:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, "not a file but a folder or a device")
    if failure := limits.reserve(before.st_size):
        return failure
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(before.st_size)
    etag_read = file_etag(before)
    if etag not in (None, etag_read) or file_etag(os.fstat(descriptor)) != etag_read or len(data) != before.st_size:
        return ImageFailure(ErrorCode.CHANGED, "written to since it was listed")
    return Fetched(data, etag_read, len(data), _EPOCH + timedelta(microseconds=before.st_mtime_ns // 1000))


def _file_failure(error: OSError) -> ImageFailure | Deferred:
    reason = error.strerror or str(error)
    code = _CODE_BY_ERRNO.get(error.errno or 0)
    return Deferred(DeferralCause.STORE, reason) if code is None else ImageFailure(code, reason)
