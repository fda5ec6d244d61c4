"""Members of zip archives, local or on S3, by URI. Used by the rest of storage and by the fetching of images.

The directory of an archive is read once a process. A member is then one read of the file, or one ranged GET of the
object; no lock is held meanwhile. (Python's `zipfile` reads the directory; its reading of members needs several reads
under one lock, which a store would answer one after the other.)
"""

import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import obstore

from locray.errors import UsageError
from locray.storage.object_reader import ObjectReader
from locray.storage.s3 import DEFAULT_RETRIES, Retries, store
from locray.storage.uris import ZIP_ENDING, archive_folder, is_plain_key, is_remote, local_path, split_archive, split_s3

if TYPE_CHECKING:
    from obstore import GetOptions

_MOST_ARCHIVES = 8
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
# A member's own header repeats its name and may hold other extra fields than the directory: read a little more.
_SPARE_BYTES = 128
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_METHOD_NAMES = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}


class MemberTrouble(StrEnum):
    """Why a member can't be had, as far as it makes a difference to us."""

    ABSENT = "absent"
    ENCRYPTED = "encrypted"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    TOO_LARGE = "too_large"


class MemberError(UsageError):
    """A member of an archive, or the whole archive, can't be read."""

    def __init__(self, trouble: MemberTrouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


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


class MemberContent(NamedTuple):
    """The bytes of one member, with the version that they are of; `last_modified` is the archive's."""

    data: bytes
    etag: str
    last_modified: datetime


@dataclass(frozen=True)
class _Archive:
    version: tuple[Any, ...]
    last_modified: datetime
    members: Mapping[str, Member]
    """By name; no folders."""
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", sorted(self.members))


_lock = threading.Lock()
_archives: dict[str, _Archive] = {}


def is_archive_name(uri: str) -> bool:
    """Whether a file or object is a zip archive by the ending of its name."""
    return uri.lower().endswith(ZIP_ENDING)


def list_members(archive_uri: str, folder: str = "") -> list[str]:
    """The URIs of all members below a folder of the archive, sorted.

    Raises:
        MemberError: no zip archive, a damaged one, or one of which no member can be read.
        OSError: a local file is absent, or access is denied.
        What `S3_ERRORS` lists, or a `StoreError`: the store's.
    """
    archive = _newest(archive_uri)
    first = next(iter(archive.members.values()), None)
    unreadable = None if first is None else _unreadable(first)
    if unreadable is not None and all(map(_unreadable, archive.members.values())):
        raise MemberError(
            unreadable[0], f"{archive_uri}: {unreadable[1]}, and no other member can be read either. {_EXPECTED}"
        )
    below = f"{folder.rstrip('/')}/" if folder else ""
    root = f"{archive_folder(archive_uri)}/"
    return [root + name for name in archive.names if name.startswith(below)]


def has_member(uri: str) -> bool:
    """Whether the archive is there and has this member. Raises as `list_members` does, but for an absent archive."""
    archive_uri, name = split_archive(uri)
    try:
        return name in _newest(archive_uri).members
    except FileNotFoundError:
        return False


def read_member(uri: str, *, max_bytes: int | None = None, retries: Retries = DEFAULT_RETRIES) -> MemberContent:
    """The content of a member, its checksum verified. Safe in many threads at once.

    Raises:
        MemberError: absent, encrypted, damaged, packed in a way that is not supported, or larger than `max_bytes`.
        OSError: a local archive is absent, or access is denied.
        What `S3_ERRORS` lists, or a `StoreError`: the store's; "precondition failed" for an archive that was replaced.
    """
    archive_uri, name = split_archive(uri)
    if not is_remote(archive_uri):
        return _read_local(archive_uri, name, uri, max_bytes)
    bucket, key = split_s3(archive_uri)
    archive = _known(archive_uri) or _open_remote(archive_uri, retries)
    etag = archive.version[0]

    def read(offset: int, length: int) -> bytes:
        options: GetOptions = {"range": (offset, offset + length), "if_match": etag}
        try:
            return bytes(obstore.get(store(bucket, retries), key, options=options).bytes())
        except obstore.exceptions.PreconditionError:
            _forget(archive_uri, archive)
            raise

    return _read_from(archive, name, uri, max_bytes, read)


def _read_local(archive_uri: str, name: str, uri: str, max_bytes: int | None) -> MemberContent:
    descriptor = _open_descriptor(archive_uri)
    try:
        archive = _local_archive(archive_uri, descriptor)
        return _read_from(archive, name, uri, max_bytes, lambda offset, length: os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)


def _read_from(
    archive: _Archive, name: str, uri: str, max_bytes: int | None, read: Callable[[int, int], bytes]
) -> MemberContent:
    member = archive.members.get(name)
    if member is None:
        raise MemberError(MemberTrouble.ABSENT, f"{uri} does not exist: the archive has no member of this name")
    unreadable = _unreadable(member)
    if unreadable is not None:
        raise MemberError(unreadable[0], f"{uri}: {unreadable[1]}. {_EXPECTED}")
    if max_bytes is not None and member.size_bytes > max_bytes:
        raise MemberError(MemberTrouble.TOO_LARGE, f"{member.size_bytes} bytes; the limit is {max_bytes}")
    head = _LOCAL_HEADER.size
    data = read(member.header_at, head + len(name.encode()) + _SPARE_BYTES + member.stored_bytes)
    if not data.startswith(_LOCAL_SIGNATURE) or len(data) < head:
        raise _damaged(uri, "its header is not where the directory says")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(data)
    start = head + name_bytes + extra_bytes
    if len(data) < start + member.stored_bytes:
        data = read(member.header_at, start + member.stored_bytes)
    content = _unpack(data[start : start + member.stored_bytes], member, uri)
    return MemberContent(content, member.etag, archive.last_modified)


def _unpack(stored: bytes, member: Member, uri: str) -> bytes:
    content = stored
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            # One byte more than declared is enough to see that the declaration is wrong.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, member.size_bytes + 1)
        except zlib.error as error:
            raise _damaged(uri, str(error)) from None
    if len(content) != member.size_bytes:
        raise _damaged(uri, f"{member.size_bytes} bytes expected")
    if zlib.crc32(content) != member.crc:
        raise _damaged(uri, "its checksum is not that of the directory")
    return content


def _damaged(uri: str, reason: str) -> MemberError:
    return MemberError(MemberTrouble.DAMAGED, f"{uri} is damaged: {reason}. Copy the archive again, or make it anew")


_EXPECTED = "Expected an archive without a password, stored or deflated, as zip tools make it by default"


def _unreadable(member: Member) -> tuple[MemberTrouble, str] | None:
    if member.is_encrypted:
        return MemberTrouble.ENCRYPTED, "it is encrypted"
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHOD_NAMES.get(member.method, f"method {member.method}")
        return MemberTrouble.UNSUPPORTED, f"it is compressed by {method}"
    return None


def _newest(archive_uri: str) -> _Archive:
    """The archive as it lies there now."""
    if is_remote(archive_uri):
        return _open_remote(archive_uri, DEFAULT_RETRIES)
    descriptor = _open_descriptor(archive_uri)
    try:
        return _local_archive(archive_uri, descriptor)
    finally:
        os.close(descriptor)


def _open_descriptor(archive_uri: str) -> int:
    # Non-blocking, not to hang on a pipe that nobody writes to.
    return os.open(local_path(archive_uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _local_archive(archive_uri: str, descriptor: int) -> _Archive:
    status = os.fstat(descriptor)
    version = (status.st_mtime_ns, status.st_size, status.st_ino)
    known = _known(archive_uri)
    if known is not None and known.version == version:
        return known
    if not stat.S_ISREG(status.st_mode):
        raise MemberError(MemberTrouble.UNSUPPORTED, f"{archive_uri} is no file. Expected a zip archive")
    last_modified = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    with _lock:
        known = _archives.get(archive_uri)
        if known is not None and known.version == version:
            return known  # another thread has read it in the meantime
        with open(descriptor, "rb", closefd=False) as file:
            return _keep(archive_uri, _Archive(version, last_modified, _read_directory(archive_uri, file)))


def _open_remote(archive_uri: str, retries: Retries) -> _Archive:
    bucket, key = split_s3(archive_uri)
    if not is_plain_key(key):
        raise MemberError(
            MemberTrouble.UNSUPPORTED,
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
        return _keep(archive_uri, _Archive((meta["e_tag"],), meta["last_modified"], members))


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
        raise MemberError(MemberTrouble.UNSUPPORTED, f"{archive_uri}: {error}. {_EXPECTED}") from None
    except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, ValueError) as error:
        raise MemberError(
            MemberTrouble.DAMAGED,
            f"{archive_uri} is no zip archive, or a damaged one ({error}). Copy it again, or make it anew",
        ) from None


def _known(archive_uri: str) -> _Archive | None:
    return _archives.get(archive_uri)


def _keep(archive_uri: str, archive: _Archive) -> _Archive:
    _archives.pop(archive_uri, None)
    while len(_archives) >= _MOST_ARCHIVES:
        del _archives[next(iter(_archives))]
    _archives[archive_uri] = archive
    return archive


def _forget(archive_uri: str, archive: _Archive) -> None:
    with _lock:
        if _archives.get(archive_uri) is archive:
            del _archives[archive_uri]
