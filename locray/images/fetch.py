"""From URIs to bytes: fetches many images at once, each with its outcome. Called by the decode stage, in its worker.

A pool of threads, for files and objects alike: obstore does its work outside the interpreter's lock, and threads cost
half of what its asyncio interface costs. A trouble of one image is an outcome (`ImageFailure`); a trouble of the
store, its credentials included, says nothing about the image and defers it to the next run (`Deferred`).
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
from locray.storage.s3 import bare_etag, client, quoted_etag, store
from locray.storage.uris import is_in_archive, is_plain_key, is_remote, local_path, split_archive, split_s3

if TYPE_CHECKING:
    from obstore import GetOptions

_REPLACED = "replaced by another version since it was listed"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One image to fetch, as the listing knows it.

    Attributes:
        uri: Where it is.
        etag: The version to fetch; null: whatever is there.
        size_bytes: Its size; null: not known.
    """

    uri: str
    etag: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of one image, with the version that they are of."""

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
    """Fetches images, several at a time, and yields each as it arrives: its index in `requests`, and its outcome.

    A consumer that is slow slows the fetching down: what is under way or not yet consumed is never more than
    `concurrency` images, nor more than `max_waiting_bytes` (but one image is always fetched).

    Args:
        requests: The images.
        max_bytes: A larger image is not fetched: `too_many_bytes`.
        concurrency: Requests in flight.
        max_waiting_bytes: By the sizes of the listing; of an image whose size it doesn't know, by what the store
            says before it sends a byte of it.
        retries: How often the object store is asked again for an image.
        budget: How often for all images. Shared with all other calls of the process.
    """
    arrived: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    under_way: dict[Future[Outcome], tuple[int, ByteReservation]] = {}
    waiting = ByteBudget(max_waiting_bytes)
    next_index = 0
    threads = ThreadPoolExecutor(min(concurrency, max(1, len(requests))), thread_name_prefix="fetch")
    try:
        while next_index < len(requests) or under_way:
            while next_index < len(requests) and len(under_way) < concurrency:
                limits = _Limits(max_bytes, ByteReservation(waiting), retries, budget)
                future = threads.submit(_fetch, requests[next_index], limits)
                under_way[future] = next_index, limits.reservation
                future.add_done_callback(arrived.put)
                next_index += 1
            future = arrived.get()
            index, reservation = under_way.pop(future)
            yield index, future.result()
            reservation.release()
    finally:
        waiting.close()
        threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What one image may take: bytes, memory beside the others, and retries."""

    max_bytes: int
    reservation: ByteReservation
    retries: RetryPolicy
    budget: RetryBudget

    def refuse(self, size_bytes: int) -> ImageFailure | None:
        """Why an image of this size is not fetched; None, once it is reserved, if it is."""
        if size_bytes > self.max_bytes:
            return ImageFailure(ErrorCode.TOO_MANY_BYTES, f"{size_bytes} bytes; the limit is {self.max_bytes}")
        self.reservation.acquire(size_bytes)
        return None


def _fetch(request: FetchRequest, limits: _Limits) -> Outcome:
    if request.size_bytes is not None and (refusal := limits.refuse(request.size_bytes)):
        return refusal
    if is_in_archive(request.uri):
        return _fetch_member(request, limits)
    if not is_remote(request.uri):
        return _fetch_file(request, limits)
    bucket, key = split_s3(request.uri)
    fetch_object = _fetch_object if is_plain_key(key) else _fetch_oddly_named_object
    return _fetch_from_store(lambda: fetch_object(bucket, key, request.etag, limits), limits)


_CODE_BY_KIND = {
    ErrorKind.NO_OBJECT: ErrorCode.NOT_FOUND,
    ErrorKind.NO_BUCKET: ErrorCode.NOT_FOUND,
    ErrorKind.DENIED: ErrorCode.ACCESS_DENIED,
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
    options: GetOptions = {"if_match": quoted_etag(etag)} if etag else {}
    result = obstore.get(store(bucket, NO_RETRIES), key, options=options)
    meta = result.meta
    if refusal := limits.refuse(meta["size"]):
        return refusal
    data = bytes(result.bytes())
    return Fetched(data, bare_etag(meta["e_tag"]), len(data), meta["last_modified"])


def _fetch_oddly_named_object(bucket: str, key: str, etag: str | None, limits: _Limits) -> Outcome:
    arguments = {"IfMatch": quoted_etag(etag)} if etag else {}
    answer: dict[str, Any] = client(NO_RETRIES).get_object(Bucket=bucket, Key=key, **arguments)
    with closing(answer["Body"]) as body:  # (as a context manager by itself it would give the raw stream)
        if refusal := limits.refuse(answer["ContentLength"]):
            return refusal
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
        # Non-blocking, not to hang on a pipe that nobody writes to.
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
    if refusal := limits.refuse(before.st_size):
        return refusal
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
