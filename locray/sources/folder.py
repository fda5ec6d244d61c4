"""A local folder of images, however deep.

Every regular file is listed, hidden ones too: content decides what is an image, not the name. Links are
followed, to files and to folders, except to a folder that the link lies in. A link to nothing is listed too, and
becomes a row with `not_found`.
"""

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import pyarrow as pa

from locray.errors import StoreAccessError
from locray.sources.source import BATCH_ROWS, Step, StepResult, listing_batch, rebatch, run_steps
from locray.storage import check_readable_folder, is_remote, local_path, local_uri
from locray.storage.files import file_etag

_NUM_THREADS = 8
"""Enough to hide the latency of a network file system. On a local disk, Python's lock is the limit."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """All files below a folder."""

    path: str

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """A local folder that exists."""
        if is_remote(images) or not os.path.isdir(local_path(images)):
            return None
        return cls(local_path(images))

    def check(self, *, may_be_empty: bool = False) -> None:  # noqa: ARG002
        """Checks that the folder may be read.

        Raises:
            StoreAccessError: it may not, or is missing.
        """
        check_readable_folder(local_uri(self.path))

    def lists(self, uri: str) -> bool:
        """Whether the file lies below the folder."""
        return path_below(self.path, uri) is not None

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All files, as batches of `LISTING_SCHEMA`.

        Raises:
            StoreAccessError: a folder below may not be read.
        """
        return walk(self.path)


def path_below(folder: str, uri: str) -> str | None:
    """The path of a file relative to the folder that it lies in, however deep; None if it lies elsewhere."""
    root = folder.rstrip("/") + "/"
    if is_remote(uri) or not local_path(uri).startswith(root):
        return None
    return local_path(uri)[len(root) :]


def walk(
    root: str, wanted: Callable[[str], bool] | None = None, max_depth: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The files below `root` as batches of `LISTING_SCHEMA`.

    Args:
        root: A folder.
        wanted: Whether to list a file, by its path relative to `root`. None: all of them.
        max_depth: How many folders deep; 1 is `root` alone. None: without limit.

    Raises:
        StoreAccessError: a folder may not be read.
    """
    state = _Walk(root, wanted, max_depth)
    try:
        yield from rebatch(run_steps([partial(state.enter, _Folder(root, 1, frozenset()))], _NUM_THREADS))
    finally:
        state.close()


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to list: its path, its depth, and (device, inode) of the folders that it lies in."""

    path: str
    depth: int
    ancestors: frozenset[tuple[int, int]]


@dataclass(slots=True)
class _Walk:
    root: str
    wanted: Callable[[str], bool] | None
    max_depth: int | None
    _open: set["os._ScandirIterator[str]"] = field(default_factory=set)

    def enter(self, folder: _Folder) -> StepResult:
        """Opens a folder, unless it lies in itself."""
        try:
            status = os.stat(folder.path)
            identity = (status.st_dev, status.st_ino)
            if identity in folder.ancestors:
                return StepResult()
            entries = os.scandir(folder.path)
        except OSError as error:
            if folder.depth > 1 and isinstance(error, FileNotFoundError | NotADirectoryError):
                return StepResult()  # removed since its name was read
            raise StoreAccessError(
                f"the folder {local_uri(folder.path)} can't be listed: {error.strerror}. Make it readable, or name "
                "what is to be labelled with a pattern: nothing is skipped silently"
            ) from error
        self._open.add(entries)
        return self._read(_Folder(folder.path, folder.depth, folder.ancestors | {identity}), entries)

    def _read(self, folder: _Folder, entries: "os._ScandirIterator[str]") -> StepResult:
        """Reads the next names of a folder. In a large folder, files are looked up while reading continues."""
        chunk = list(itertools.islice(entries, BATCH_ROWS))
        folders = [entry.path for entry in chunk if _is_folder(entry)]
        files = [entry for entry in chunk if not _is_folder(entry)]
        enter: list[Step] = []
        if self.max_depth is None or folder.depth < self.max_depth:
            enter = [partial(self.enter, _Folder(path, folder.depth + 1, folder.ancestors)) for path in folders]
        if len(chunk) == BATCH_ROWS:
            # The last step runs first: the files that were read are looked up before more are read.
            return StepResult(steps=[partial(self._read, folder, entries), *enter, partial(self._look_up, files)])
        entries.close()
        self._open.discard(entries)
        return StepResult(self._look_up(files).batches, enter)

    def _look_up(self, files: list["os.DirEntry[str]"]) -> StepResult:
        start = len(self.root.rstrip("/")) + 1
        wanted = self.wanted
        rows = [row for entry in files if wanted is None or wanted(entry.path[start:]) for row in _rows_of(entry)]
        return StepResult([listing_batch(*zip(*rows, strict=True))] if rows else [])

    def close(self) -> None:
        """Closes the folders that were not read to their end."""
        for entries in self._open:
            entries.close()


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder without access
        return False


def _rows_of(entry: "os.DirEntry[str]") -> list[tuple[str, str | None, int | None, int | None]]:
    """One row of a listing; none for pipes, sockets and devices."""
    try:
        status = entry.stat()
    except OSError:
        return [(local_uri(entry.path), None, None, None)]  # fetching it will report the error
    if not stat.S_ISREG(status.st_mode):
        return []
    return [(local_uri(entry.path), file_etag(status), status.st_size, status.st_mtime_ns // 1000)]
