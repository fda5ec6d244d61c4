"""The files of zip archives, local or on S3, as `zipfile` reads them."""

import os
import threading
import zipfile

from locray.storage.object_reader import ObjectReader
from locray.storage.retries import DEFAULT_RETRIES, RetryPolicy

_LOCAL_HEADER_BYTES = 30
_MAX_EXTRA_BYTES = 128
"""Extra fields of a member's local header that are read along with it. Longer ones take a second request."""


class ArchiveFile(ObjectReader):
    """An archive. `zipfile` reads from the span that the thread has fetched before, elsewhere by further requests.

    `zipfile` makes several small reads per member, all of them under one lock. This one makes them from memory.
    """

    def __init__(self, uri: str, size_bytes: int, etag: str | None) -> None:
        super().__init__(uri, size_bytes, etag)
        self._fetched = threading.local()

    def fetch(self, member: zipfile.ZipInfo, retries: RetryPolicy) -> None:
        """Fetches a member for the reads of this thread. Raises what `S3_ERRORS` lists."""
        name_bytes = len(member.orig_filename.encode())
        size_bytes = _LOCAL_HEADER_BYTES + name_bytes + _MAX_EXTRA_BYTES + member.compress_size
        self._fetched.start = member.header_offset
        self._fetched.data = self.get_range(member.header_offset, member.header_offset + size_bytes, retries)

    def discard(self) -> None:
        """Frees what `fetch` fetched."""
        self._fetched.__dict__.clear()

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, or all to the end."""
        data = getattr(self._fetched, "data", b"")
        offset = self.tell() - getattr(self._fetched, "start", 0)
        if size is None or not 0 <= offset <= offset + size <= len(data):
            return super().read(size)
        self.seek(size, os.SEEK_CUR)
        return bytes(data[offset : offset + size])


class LocalArchiveFile(ArchiveFile):
    """A local archive. Forked processes share no position in it."""

    def __init__(self, uri: str, size_bytes: int, descriptor: int) -> None:
        super().__init__(uri, size_bytes, None)
        self._descriptor = descriptor

    def get_range(self, start: int, end: int, retries: RetryPolicy = DEFAULT_RETRIES) -> bytes:  # noqa: ARG002
        """The bytes from `start` up to `end` or the end of the file."""
        return os.pread(self._descriptor, max(0, end - start), start)

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
