"""The directories of zip archives: what members there are, and where. Read once a process; used by `archives`."""

import os
import stat
import struct
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import IO, Any, NamedTuple

import obstore

from locray.errors import UsageError
from locray.storage.object_reader import ObjectReader
from locray.storage.s3 import DEFAULT_RETRIES, RetryPolicy, store
from locray.storage.uris import is_plain_key, is_remote, local_path, split_s3

_MAX_OPEN_ARCHIVES = 8
_ENCRYPTED = 0x1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_METHOD_NAMES = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}


class MemberErrorKind(StrEnum):
    """Why a member can't be had, as far as it makes a difference to us."""

    ABSENT = "absent"
    ENCRYPTED = "encrypted"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    TOO_LARGE = "too_large"


class MemberError(UsageError):
    """A member of an archive, or the whole archive, can't be read."""

    def __init__(self, trouble: MemberErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = trouble


class Member(NamedTuple):
    """What the directory says of one member."""

    header_at: int
    stored_bytes: int
    size_bytes: int
    crc: int
    method: int
    is_encrypted: bool

    @property
    def etag(self) -> str:
        """Its version: by its content, so that an archive that is packed again keeps it."""
        return f"{self.crc:08x}-{self.size_bytes}"


@dataclass(frozen=True)
class Archive:
    """The directory of one version of an archive."""

    version: tuple[Any, ...]
    last_modified: datetime
    members: Mapping[str, Member]
    """By name; no folders."""
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", sorted(self.members))


_lock = threading.Lock()
_archives: dict[str, Archive] = {}


EXPECTED = "Expected an archive without a password, stored or deflated, as zip tools make it by default"


def unreadable_because(member: Member) -> tuple[MemberErrorKind, str] | None:
    """Why a member can't be read, as far as the directory tells; None for most."""
    if member.is_encrypted:
        return MemberErrorKind.ENCRYPTED, "it is encrypted"
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHOD_NAMES.get(member.method, f"method {member.method}")
        return MemberErrorKind.UNSUPPORTED, f"it is compressed by {method}"
    return None


def newest_archive(archive_uri: str) -> Archive:
    """The archive as it lies there now.

    Raises:
        MemberError: no zip archive, or a damaged one.
        OSError: a local file is absent, or access is denied.
        What `S3_ERRORS` lists, or a `StoreError`: the store's.
    """
    if is_remote(archive_uri):
        return open_remote(archive_uri, DEFAULT_RETRIES)
    descriptor = open_descriptor(archive_uri)
    try:
        return local_archive(archive_uri, descriptor)
    finally:
        os.close(descriptor)


def open_descriptor(archive_uri: str) -> int:
    """A local archive, opened for reading; to be closed by the caller."""
    # Non-blocking, not to hang on a pipe that nobody writes to.
    return os.open(local_path(archive_uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def local_archive(archive_uri: str, descriptor: int) -> Archive:
    """The directory of an open local archive; read anew only if the file was replaced or written to."""
    status = os.fstat(descriptor)
    version = (status.st_mtime_ns, status.st_size, status.st_ino)
    known = known_archive(archive_uri)
    if known is not None and known.version == version:
        return known
    if not stat.S_ISREG(status.st_mode):
        raise MemberError(MemberErrorKind.UNSUPPORTED, f"{archive_uri} is no file. Expected a zip archive")
    last_modified = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    with _lock:
        known = _archives.get(archive_uri)
        if known is not None and known.version == version:
            return known  # another thread has read it in the meantime
        with open(descriptor, "rb", closefd=False) as file:
            return _keep(archive_uri, Archive(version, last_modified, _read_directory(archive_uri, file)))


def open_remote(archive_uri: str, retries: RetryPolicy) -> Archive:
    """The directory of the object as it is now; asks for its version, and reads it if that is another one."""
    bucket, key = split_s3(archive_uri)
    if not is_plain_key(key):
        raise MemberError(
            MemberErrorKind.UNSUPPORTED,
            f"{archive_uri!r}: the name has an empty, . or .. part or a control character. Rename the archive",
        )
    meta = obstore.head(store(bucket, retries), key)
    with _lock:
        known = _archives.get(archive_uri)
        if known is not None and known.version == (meta["e_tag"],):
            return known
        # A few reads only: `zipfile` takes the whole directory at once.
        reader: Any = ObjectReader(archive_uri, meta["size"], meta["e_tag"])
        members = _read_directory(archive_uri, reader)
        return _keep(archive_uri, Archive((meta["e_tag"],), meta["last_modified"], members))


def _read_directory(archive_uri: str, file: IO[bytes]) -> dict[str, Member]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {
                entry.filename: Member(
                    entry.header_offset,
                    entry.compress_size,
                    entry.file_size,
                    entry.CRC,
                    entry.compress_type,
                    bool(entry.flag_bits & _ENCRYPTED),
                )
                for entry in archive.infolist()
                if not entry.is_dir()
            }
    except NotImplementedError as error:
        raise MemberError(MemberErrorKind.UNSUPPORTED, f"{archive_uri}: {error}. {EXPECTED}") from None
    except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, ValueError) as error:
        raise MemberError(
            MemberErrorKind.DAMAGED,
            f"{archive_uri} is no zip archive, or a damaged one ({error}). Copy it again, or make it anew",
        ) from None


def known_archive(archive_uri: str) -> Archive | None:
    """The directory that was read last, whether or not the archive was replaced since."""
    return _archives.get(archive_uri)


def _keep(archive_uri: str, archive: Archive) -> Archive:
    _archives.pop(archive_uri, None)
    while len(_archives) >= _MAX_OPEN_ARCHIVES:
        del _archives[next(iter(_archives))]
    _archives[archive_uri] = archive
    return archive


def forget(archive_uri: str, archive: Archive) -> None:
    """Makes the next reader read the directory anew."""
    with _lock:
        if _archives.get(archive_uri) is archive:
            del _archives[archive_uri]
