"""A single local image, named by its path."""

import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from locray.sources.source import listing_batch
from locray.storage import is_remote, local_path, local_uri
from locray.storage.files import file_etag


@dataclass(frozen=True, slots=True)
class SingleFileSource:
    """One file."""

    path: str

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """A local file with the name of an image: a list of another kind is not one."""
        if is_remote(images) or not os.path.isfile(local_path(images)):
            return None
        kind = mimetypes.guess_type(local_path(images))[0] or ""
        return cls(local_path(images)) if kind.startswith("image/") else None

    def check(self, *, may_be_empty: bool = False) -> None:
        """Nothing is to be checked: fetching the file reports its errors."""

    def lists(self, uri: str) -> bool:
        """Whether it is this file."""
        return not is_remote(uri) and local_path(uri) == self.path

    def listing(self) -> Iterator[pa.RecordBatch]:
        """The file, as a batch of `LISTING_SCHEMA`; none if it has been deleted."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return
        modified_us = status.st_mtime_ns // 1000
        yield listing_batch([local_uri(self.path)], [file_etag(status)], [status.st_size], [modified_us])
