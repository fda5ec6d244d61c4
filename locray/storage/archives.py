"""Members of zip archives, local or on S3, by URI.

`zipfile` reads them. Opened archives are cached, so that a directory is read once per process and version. A member of
an archive on S3 is one ranged GET, which several threads may wait for at the same time.
"""

import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import obstore

from locray.errors import UsageError
from locray.storage.archive_files import ArchiveFile, LocalArchiveFile
from locray.storage.retries import DEFAULT_RETRIES, RetryPolicy
from locray.storage.s3 import store
from locray.storage.uris import (
    ZIP_ENDING,
    archive_folder,
    is_plain_key,
    is_remote,
    local_path,
    split_archive,
    split_s3,
)

_MAX_OPEN_ARCHIVES = 8
_ENCRYPTED_FLAG = 0x1
_COMPRESSION_NAMES = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}
_EXPECTED = "Expected an archive without a password, stored or deflated, which is the default of zip tools"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MemberErrorKind(StrEnum):
    """Why a member can't be read."""

    ABSENT = "absent"
    ENCRYPTED = "encrypted"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    TOO_LARGE = "too_large"


class MemberError(UsageError):
    """A member of an archive, or the whole archive, can't be read."""

    def __init__(self, kind: MemberErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class MemberContent(NamedTuple):
    """The bytes of one member and their version; `last_modified` is the archive's."""

    data: bytes
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class _Archive:
    """One version of an archive, open."""

    file: ArchiveFile
    zip_file: zipfile.ZipFile
    version: tuple[Any, ...]
    last_modified: datetime
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, name: str) -> zipfile.ZipInfo | None:
        """The member of this name, if there is one."""
        try:
            member = self.zip_file.getinfo(name)
        except KeyError:
            return None
        return None if member.is_dir() else member

    def read(self, member: zipfile.ZipInfo, retries: RetryPolicy) -> bytes:
        """The content of a member, its checksum verified. Safe in many threads."""
        self.file.fetch(member, retries)
        try:
            with self.lock:  # `zipfile` counts its open members, without a lock of its own
                content = self.zip_file.open(member)
            try:
                return content.read(member.file_size)  # no more than is declared, whatever the data expand to
            finally:
                with self.lock:
                    content.close()
        finally:
            self.file.discard()


_lock = threading.Lock()
_archives: dict[tuple[int, str], _Archive] = {}
"""Keyed by process, since a forked one may inherit a held lock, and by URI."""


def is_archive_name(uri: str) -> bool:
    """Whether the name of a file or object ends as that of a zip archive."""
    return uri.lower().endswith(ZIP_ENDING)


def list_members(archive_uri: str, folder: str = "") -> list[str]:
    """The URIs of all members below a folder of the archive, sorted.

    Raises:
        MemberError: it is not a zip archive, is damaged, or no member can be read.
        OSError: a local file is absent, or access is denied.
        What `S3_ERRORS` lists, or a `StoreError`: the store's.
    """
    members = [member for member in _open(archive_uri).zip_file.infolist() if not member.is_dir()]
    obstacles = [] if members and _obstacle(members[0]) is None else list(map(_obstacle, members))
    if obstacles and obstacles[0] and all(obstacles):
        kind, reason = obstacles[0]
        raise MemberError(kind, f"{archive_uri}: {reason}, and no other member can be read either. {_EXPECTED}")
    below = f"{folder.rstrip('/')}/" if folder else ""
    root = f"{archive_folder(archive_uri)}/"
    return [root + name for name in sorted({member.filename for member in members}) if name.startswith(below)]


def has_member(uri: str) -> bool:
    """Whether the archive exists and has this member. Raises as `list_members` does, except for an absent archive."""
    archive_uri, name = split_archive(uri)
    try:
        return _open(archive_uri).find(name) is not None
    except FileNotFoundError:
        return False


def read_member(
    uri: str,
    *,
    max_bytes: int | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
    admit: Callable[[int], None] = lambda _: None,
) -> MemberContent:
    """The content of a member, its checksum verified. Safe in many threads.

    Args:
        uri: The member.
        max_bytes: A larger one is not read.
        retries: Retries of the store.
        admit: Called with the member's size in bytes before it is read; may wait.

    Raises:
        MemberError: absent, encrypted, damaged, compressed by an unsupported method, or larger than `max_bytes`.
        OSError: a local archive is absent, or access is denied.
        What `S3_ERRORS` lists, or a `StoreError`: the store's; "precondition failed" for an archive that was replaced.
    """
    archive_uri, name = split_archive(uri)
    archive = _archives.get((os.getpid(), archive_uri)) if is_remote(archive_uri) else None
    archive = archive or _open(archive_uri, retries)
    member = archive.find(name)
    if member is None:
        raise MemberError(MemberErrorKind.ABSENT, f"{uri} does not exist: the archive has no member of this name")
    obstacle = _obstacle(member)
    if obstacle is not None:
        raise MemberError(obstacle[0], f"{uri}: {obstacle[1]}. {_EXPECTED}")
    if max_bytes is not None and member.file_size > max_bytes:
        raise MemberError(MemberErrorKind.TOO_LARGE, f"{member.file_size} bytes; the limit is {max_bytes}")
    admit(member.file_size)
    try:
        data = archive.read(member, retries)
    except obstore.exceptions.PreconditionError:
        with _lock:
            if _archives.get((os.getpid(), archive_uri)) is archive:
                del _archives[os.getpid(), archive_uri]
        raise
    except NotImplementedError as error:
        raise MemberError(MemberErrorKind.UNSUPPORTED, f"{uri}: {error}. {_EXPECTED}") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, UnicodeDecodeError) as error:
        raise _damaged(uri, str(error)) from None
    if len(data) != member.file_size:
        raise _damaged(uri, f"{member.file_size} bytes expected, {len(data)} found")
    # By its content, so that an archive that is packed again keeps the versions of its members.
    return MemberContent(data, f"{member.CRC:08x}-{member.file_size}", archive.last_modified)


def _obstacle(member: zipfile.ZipInfo) -> tuple[MemberErrorKind, str] | None:
    """Why a member can't be read according to the directory; None if it can."""
    if member.flag_bits & _ENCRYPTED_FLAG:
        return MemberErrorKind.ENCRYPTED, "it is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _COMPRESSION_NAMES.get(member.compress_type, f"method {member.compress_type}")
        return MemberErrorKind.UNSUPPORTED, f"it is compressed by {method}"
    return None


def _damaged(uri: str, reason: str) -> MemberError:
    message = f"{uri} is damaged: {reason}. Copy or create the archive again"
    return MemberError(MemberErrorKind.DAMAGED, message)


def _open(archive_uri: str, retries: RetryPolicy = DEFAULT_RETRIES) -> _Archive:
    """The current version of an archive. Its directory is read only if no earlier call has read that version."""
    return _open_remote(archive_uri, retries) if is_remote(archive_uri) else _open_local(archive_uri)


def _open_local(archive_uri: str) -> _Archive:
    path = local_path(archive_uri)
    status = os.stat(path)
    version = (status.st_mtime_ns, status.st_size, status.st_ino)
    if not stat.S_ISREG(status.st_mode):
        raise MemberError(MemberErrorKind.UNSUPPORTED, f"{archive_uri} is not a file. Expected a zip archive")
    modified = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)

    def read_directory() -> _Archive:
        file: Any = LocalArchiveFile(archive_uri, status.st_size, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return _Archive(file, zipfile.ZipFile(file), version, modified)

    return _cached(archive_uri, version, read_directory)


def _open_remote(archive_uri: str, retries: RetryPolicy) -> _Archive:
    bucket, key = split_s3(archive_uri)
    if not is_plain_key(key):
        raise MemberError(
            MemberErrorKind.UNSUPPORTED,
            f"{archive_uri!r}: the name has an empty, . or .. part or a control character. Rename the archive",
        )
    meta = obstore.head(store(bucket, retries), key)

    def read_directory() -> _Archive:
        file: Any = ArchiveFile(archive_uri, meta["size"], meta["e_tag"])
        return _Archive(file, zipfile.ZipFile(file), (meta["e_tag"],), meta["last_modified"])

    return _cached(archive_uri, (meta["e_tag"],), read_directory)


def _cached(archive_uri: str, version: tuple[Any, ...], read_directory: Callable[[], _Archive]) -> _Archive:
    key = (os.getpid(), archive_uri)
    known = _archives.get(key)
    if known is not None and known.version == version:
        return known
    with _lock:
        known = _archives.pop(key, None)
        try:
            if known is None or known.version != version:
                known = read_directory()
        except NotImplementedError as error:
            raise MemberError(MemberErrorKind.UNSUPPORTED, f"{archive_uri}: {error}. {_EXPECTED}") from None
        except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, ValueError) as error:
            raise MemberError(
                MemberErrorKind.DAMAGED,
                f"{archive_uri} is not a zip archive, or a damaged one ({error}). Copy it or create it again",
            ) from None
        while len(_archives) >= _MAX_OPEN_ARCHIVES:
            del _archives[next(iter(_archives))]
        _archives[key] = known
        return known
