"""An S3 object as a seekable file."""

import io
import os
from typing import TYPE_CHECKING

import obstore

from locray.storage.errors import translate_io_errors
from locray.storage.retries import DEFAULT_RETRIES, RetryPolicy
from locray.storage.s3 import store
from locray.storage.uris import split_s3

if TYPE_CHECKING:
    from obstore import GetOptions


class ObjectReader(io.RawIOBase):
    """One version of an S3 object as a seekable file; each read is one ranged GET.

    (obstore's own reader lacks methods that pyarrow calls, and would not notice that the object was replaced.)
    """

    def __init__(self, uri: str, size_bytes: int, etag: str | None) -> None:
        self._uri = uri
        self._size_bytes = size_bytes
        self._etag = etag
        self._position = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The position of the next read, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position, without a request.

        Raises:
            ValueError: to before the start.
        """
        position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, or all to the end.

        Raises:
            StoreAccessError: the object is gone, or access is denied.
            StoreError: the store failed, or the object was replaced since it was opened.
        """
        end = self._size_bytes if size is None or size < 0 else self._position + size
        with translate_io_errors(self._uri):
            data = self.get_range(self._position, end)
        self._position += len(data)
        return data

    def get_range(self, start: int, end: int, retries: RetryPolicy = DEFAULT_RETRIES) -> bytes:
        """The bytes from `start` up to `end` or the end of the object. Raises what `S3_ERRORS` lists."""
        end = min(end, self._size_bytes)
        if end <= start:
            return b""
        bucket, key = split_s3(self._uri)
        options: GetOptions = {"range": (start, end), "if_match": self._etag}
        return bytes(obstore.get(store(bucket, retries), key, options=options).bytes())
