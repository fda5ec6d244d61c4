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
from locray.images.decode import ImageFailure
from locray.images.retries import FETCH_RETRIES, ONCE, PROCESS_BUDGET, RetryBudget, ask, cause_of
from locray.storage.archive_directory import MemberError, MemberTrouble
from locray.storage.archives import read_member
from locray.storage.files import file_etag
from locray.storage.s3 import Retries, bare_etag, client, quoted_etag, store
from locray.storage.s3_errors import S3_ERRORS, Trouble, code_of, trouble_of
from locray.storage.uris import is_in_archive, is_plain_key, is_remote, local_path, split_archive, split_s3

if TYPE_CHECKING:
    from obstore import GetOptions

_SIZE_WHEN_UNKNOWN_BYTES = 1 << 20
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
    """The store failed, retries spent: nothing is known of the image, and the next run takes it up again."""

    cause: DeferralCause
    reason: str


Outcome = Fetched | ImageFailure | Deferred


def fetch_images(
    requests: Sequence[FetchRequest],
    *,
    max_bytes: int,
    concurrency: int = 64,
    max_waiting_bytes: int = 256 << 20,
    retries: Retries = FETCH_RETRIES,
    budget: RetryBudget = PROCESS_BUDGET,
) -> Iterator[tuple[int, Outcome]]:
    """Fetches images, several at a time, and yields each as it arrives: its index in `requests`, and its outcome.

    A consumer that is slow slows the fetching down: what is under way or not yet consumed is never more than
    `concurrency` images, nor more than `max_waiting_bytes` (but one image is always fetched).

    Args:
        requests: The images.
        max_bytes: A larger image is not fetched: `too_many_bytes`.
        concurrency: Requests in flight.
        max_waiting_bytes: By the sizes of the listing; an image of unknown size counts as 1 MiB.
        retries: How often the object store is asked again for an image.
        budget: How often for all images. Shared with all other calls of the process.
    """
    arrived: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    under_way: dict[Future[Outcome], int] = {}
    waiting_bytes = 0
    sizes = [_expected_bytes(request, max_bytes) for request in requests]
    next_index = 0
    threads = ThreadPoolExecutor(min(concurrency, max(1, len(requests))), thread_name_prefix="fetch")
    try:
        while next_index < len(requests) or under_way:
            while next_index < len(requests) and (
                not under_way
                or (len(under_way) < concurrency and waiting_bytes + sizes[next_index] <= max_waiting_bytes)
            ):
                waiting_bytes += sizes[next_index]
                future = threads.submit(_fetch, requests[next_index], max_bytes, _Patience(retries, budget))
                under_way[future] = next_index
                future.add_done_callback(arrived.put)
                next_index += 1
            future = arrived.get()
            index = under_way.pop(future)
            yield index, future.result()
            waiting_bytes -= sizes[index]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _expected_bytes(request: FetchRequest, max_bytes: int) -> int:
    if request.size_bytes is None:
        return _SIZE_WHEN_UNKNOWN_BYTES
    return request.size_bytes if request.size_bytes <= max_bytes else 0


def _fetch(request: FetchRequest, max_bytes: int, patience: "_Patience") -> Outcome:
    if request.size_bytes is not None and request.size_bytes > max_bytes:
        return _too_many_bytes(request.size_bytes, max_bytes)
    if is_in_archive(request.uri):
        return _fetch_member(request, max_bytes, patience)
    if not is_remote(request.uri):
        return _fetch_file(request, max_bytes)
    bucket, key = split_s3(request.uri)
    fetch_object = _fetch_object if is_plain_key(key) else _fetch_oddly_named_object
    return _fetch_from_store(lambda: fetch_object(bucket, key, request.etag, max_bytes), patience)


def _too_many_bytes(size_bytes: int, max_bytes: int) -> ImageFailure:
    return ImageFailure(ErrorCode.TOO_MANY_BYTES, f"{size_bytes} bytes; the limit is {max_bytes}")


@dataclass(frozen=True, slots=True)
class _Patience:
    """With a store that fails."""

    retries: Retries
    budget: RetryBudget


def _fetch_from_store(fetch_object: Callable[[], Outcome], patience: _Patience) -> Outcome:
    try:
        return ask(fetch_object, patience.retries, patience.budget)
    except S3_ERRORS as error:
        code = code_of(error)
        match trouble_of(error):
            case Trouble.NO_OBJECT | Trouble.NO_BUCKET:
                return ImageFailure(ErrorCode.NOT_FOUND, f"the store answered {code}")
            case Trouble.DENIED:
                return ImageFailure(ErrorCode.ACCESS_DENIED, f"the store answered {code}")
            case Trouble.CHANGED:
                return ImageFailure(ErrorCode.CHANGED, "replaced by another version since it was listed")
        cause = cause_of(error) or DeferralCause.STORE
        return Deferred(cause, f"the store answered {code}" if code else "the store did not answer")
    except StoreError as error:
        return Deferred(DeferralCause.STORE, str(error))


def _fetch_object(bucket: str, key: str, etag: str | None, max_bytes: int) -> Outcome:
    options: GetOptions = {"if_match": quoted_etag(etag)} if etag else {}
    result = obstore.get(store(bucket, ONCE), key, options=options)
    meta = result.meta
    if meta["size"] > max_bytes:
        return _too_many_bytes(meta["size"], max_bytes)
    data = bytes(result.bytes())
    return Fetched(data, bare_etag(meta["e_tag"]), len(data), meta["last_modified"])


def _fetch_oddly_named_object(bucket: str, key: str, etag: str | None, max_bytes: int) -> Outcome:
    arguments = {"IfMatch": quoted_etag(etag)} if etag else {}
    answer: dict[str, Any] = client(ONCE).get_object(Bucket=bucket, Key=key, **arguments)
    with closing(answer["Body"]) as body:  # (as a context manager by itself it would give the raw stream)
        if answer["ContentLength"] > max_bytes:
            return _too_many_bytes(answer["ContentLength"], max_bytes)
        data = body.read()
    return Fetched(data, bare_etag(answer.get("ETag")), len(data), answer.get("LastModified"))


_CODE_OF_MEMBER_TROUBLE = {
    MemberTrouble.ABSENT: ErrorCode.NOT_FOUND,
    MemberTrouble.ENCRYPTED: ErrorCode.ACCESS_DENIED,
    MemberTrouble.UNSUPPORTED: ErrorCode.UNSUPPORTED_FORMAT,
    MemberTrouble.DAMAGED: ErrorCode.CORRUPT,
    MemberTrouble.TOO_LARGE: ErrorCode.TOO_MANY_BYTES,
}


def _fetch_member(request: FetchRequest, max_bytes: int, patience: _Patience) -> Outcome:
    if is_remote(split_archive(request.uri)[0]):
        return _fetch_from_store(lambda: _read_member(request, max_bytes), patience)
    try:
        return _read_member(request, max_bytes)
    except OSError as error:
        return _file_trouble(error)


def _read_member(request: FetchRequest, max_bytes: int) -> Outcome:
    try:
        data, etag, last_modified = read_member(request.uri, max_bytes=max_bytes, retries=ONCE)
    except MemberError as error:
        return ImageFailure(_CODE_OF_MEMBER_TROUBLE[error.trouble], str(error))
    if request.etag not in (None, etag):
        return ImageFailure(ErrorCode.CHANGED, "replaced by another version since it was listed")
    return Fetched(data, etag, len(data), last_modified)


_CODE_OF_ERRNO = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NOT_FOUND,
    errno.ENAMETOOLONG: ErrorCode.NOT_FOUND,
    errno.ELOOP: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.ACCESS_DENIED,
    errno.EPERM: ErrorCode.ACCESS_DENIED,
}


def _fetch_file(request: FetchRequest, max_bytes: int) -> Outcome:
    try:
        # Non-blocking, not to hang on a pipe that nobody writes to.
        descriptor = os.open(local_path(request.uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _file_trouble(error)
    except ValueError:  # a NUL in a table's URI
        return ImageFailure(ErrorCode.NOT_FOUND, "no file can have this name")
    try:
        return _read_file(descriptor, request.etag, max_bytes)
    except OSError as error:
        return _file_trouble(error)
    finally:
        os.close(descriptor)


def _read_file(descriptor: int, etag: str | None, max_bytes: int) -> Outcome:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        return ImageFailure(ErrorCode.UNSUPPORTED_FORMAT, "not a file but a folder or a device")
    if before.st_size > max_bytes:
        return _too_many_bytes(before.st_size, max_bytes)
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(before.st_size)
    etag_read = file_etag(before)
    if etag not in (None, etag_read) or file_etag(os.fstat(descriptor)) != etag_read or len(data) != before.st_size:
        return ImageFailure(ErrorCode.CHANGED, "written to since it was listed")
    return Fetched(data, etag_read, len(data), _EPOCH + timedelta(microseconds=before.st_mtime_ns // 1000))


def _file_trouble(error: OSError) -> ImageFailure | Deferred:
    reason = error.strerror or str(error)
    code = _CODE_OF_ERRNO.get(error.errno or 0)
    return Deferred(DeferralCause.STORE, reason) if code is None else ImageFailure(code, reason)
