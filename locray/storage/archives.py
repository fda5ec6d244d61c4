"""Members of zip archives, local or on S3, by URI. Used by the rest of storage and by the fetching of images.

A member is one read of the file, or one ranged GET of the object; no lock is held meanwhile. (Python's `zipfile` reads
the directory; its reading of members needs several reads under one lock, which a store would answer one by one.)
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import obstore

from locray.storage.archive_directory import (
    EXPECTED,
    Archive,
    Member,
    MemberError,
    MemberErrorKind,
    forget,
    known_archive,
    local_archive,
    newest_archive,
    open_descriptor,
    open_remote,
    unreadable_because,
)
from locray.storage.s3 import DEFAULT_RETRIES, RetryPolicy, store
from locray.storage.uris import ZIP_ENDING, archive_folder, is_remote, split_archive, split_s3

if TYPE_CHECKING:
    from obstore import GetOptions

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
# A member's own header repeats its name and may hold other extra fields than the directory: read a little more.
_SPARE_BYTES = 128


class MemberContent(NamedTuple):
    """The bytes of one member, with the version that they are of; `last_modified` is the archive's."""

    data: bytes
    etag: str
    last_modified: datetime


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
    archive = newest_archive(archive_uri)
    first = next(iter(archive.members.values()), None)
    unreadable = None if first is None else unreadable_because(first)
    if unreadable is not None and all(map(unreadable_because, archive.members.values())):
        raise MemberError(
            unreadable[0], f"{archive_uri}: {unreadable[1]}, and no other member can be read either. {EXPECTED}"
        )
    below = f"{folder.rstrip('/')}/" if folder else ""
    root = f"{archive_folder(archive_uri)}/"
    return [root + name for name in archive.names if name.startswith(below)]


def has_member(uri: str) -> bool:
    """Whether the archive is there and has this member. Raises as `list_members` does, but for an absent archive."""
    archive_uri, name = split_archive(uri)
    try:
        return name in newest_archive(archive_uri).members
    except FileNotFoundError:
        return False


def read_member(
    uri: str,
    *,
    max_bytes: int | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
    admit: Callable[[int], None] = lambda _: None,
) -> MemberContent:
    """The content of a member, its checksum verified. Safe in many threads at once.

    Args:
        uri: The member.
        max_bytes: A larger one is not read.
        retries: How often the store is asked again.
        admit: Is told the member's size before it is read, and may wait.

    Raises:
        MemberError: absent, encrypted, damaged, packed in a way that is not supported, or larger than `max_bytes`.
        OSError: a local archive is absent, or access is denied.
        What `S3_ERRORS` lists, or a `StoreError`: the store's; "precondition failed" for an archive that was replaced.
    """
    archive_uri, name = split_archive(uri)
    if not is_remote(archive_uri):
        return _read_local(archive_uri, name, uri, max_bytes, admit)
    bucket, key = split_s3(archive_uri)
    archive = known_archive(archive_uri) or open_remote(archive_uri, retries)
    etag = archive.version[0]

    def read(offset: int, length: int) -> bytes:
        options: GetOptions = {"range": (offset, offset + length), "if_match": etag}
        try:
            return bytes(obstore.get(store(bucket, retries), key, options=options).bytes())
        except obstore.exceptions.PreconditionError:
            forget(archive_uri, archive)
            raise

    return _read_from(archive, name, uri, max_bytes, admit, read)


def _read_local(
    archive_uri: str, name: str, uri: str, max_bytes: int | None, admit: Callable[[int], None]
) -> MemberContent:
    descriptor = open_descriptor(archive_uri)
    try:
        archive = local_archive(archive_uri, descriptor)
        return _read_from(
            archive, name, uri, max_bytes, admit, lambda offset, length: os.pread(descriptor, length, offset)
        )
    finally:
        os.close(descriptor)


def _read_from(
    archive: Archive,
    name: str,
    uri: str,
    max_bytes: int | None,
    admit: Callable[[int], None],
    read: Callable[[int, int], bytes],
) -> MemberContent:
    member = archive.members.get(name)
    if member is None:
        raise MemberError(MemberErrorKind.ABSENT, f"{uri} does not exist: the archive has no member of this name")
    unreadable = unreadable_because(member)
    if unreadable is not None:
        raise MemberError(unreadable[0], f"{uri}: {unreadable[1]}. {EXPECTED}")
    if max_bytes is not None and member.size_bytes > max_bytes:
        raise MemberError(MemberErrorKind.TOO_LARGE, f"{member.size_bytes} bytes; the limit is {max_bytes}")
    admit(member.size_bytes)
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
    return MemberError(MemberErrorKind.DAMAGED, f"{uri} is damaged: {reason}. Copy the archive again, or make it anew")
