"""Local files by a pattern. Used through `open_source`; the pattern itself also by the objects of a store.

`*`, `?` and `[...]` within a segment, `**` for any number of folders, as in Python's `glob`: hidden names match only a
segment that begins with a dot, and only files match. A path that exists as it is written is no pattern.
"""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import pyarrow as pa

from locray.errors import UsageError
from locray.sources.folder import path_below, walk
from locray.storage import check_readable_folder, is_remote, local_path, local_uri

ANY_FOLDERS = "**"
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class GlobSource:
    """The files that match a pattern below a folder.

    Attributes:
        folder: The part of the pattern without magic.
        segments: The rest, split at its slashes.
    """

    folder: str
    segments: tuple[str, ...]

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """A local path with magic in it that doesn't exist as it is written."""
        if is_remote(images) or os.path.lexists(local_path(images)):
            return None
        folder, segments = split_pattern(local_path(images))
        return cls(folder or "/", segments) if segments else None

    def check(self, *, may_be_empty: bool = False) -> None:
        """Makes sure that the folder is there and something in it matches.

        Raises:
            StoreAccessError: the folder is missing or may not be read.
            UsageError: no file matches.
        """
        check_readable_folder(local_uri(self.folder))
        if not may_be_empty and next(self.listing(), None) is None:
            pattern = "/".join(self.segments)
            raise UsageError(
                f"no file in {local_uri(self.folder)} matches {pattern!r}: check the pattern (in quotes, so that the "
                f"shell leaves it alone; {ANY_FOLDERS} matches any number of folders)"
            )

    def lists(self, uri: str) -> bool:
        """Whether the file matches."""
        path = path_below(self.folder, uri)
        return path is not None and matches(path.split("/"), self.segments)

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All files that match, as batches of `LISTING_SCHEMA`.

        Raises:
            StoreAccessError: a folder that the pattern leads into may not be read.
        """
        max_depth = None if ANY_FOLDERS in self.segments else len(self.segments)
        return walk(self.folder, lambda path: matches(path.split("/"), self.segments), max_depth)


def split_pattern(path: str) -> tuple[str, tuple[str, ...]]:
    """The part of a path before the first segment with magic, and the segments from there; none without magic."""
    segments = path.split("/")
    first = next((index for index, segment in enumerate(segments) if _MAGIC.search(segment)), len(segments))
    return "/".join(segments[:first]), tuple(segments[first:])


def matches(names: Sequence[str], segments: Sequence[str]) -> bool:
    """Whether the segments of a relative path match those of a pattern."""
    if not segments:
        return not names
    if segments[0] != ANY_FOLDERS:
        return bool(names) and _segment_matches(names[0], segments[0]) and matches(names[1:], segments[1:])
    if matches(names, segments[1:]):
        return True
    return bool(names) and not names[0].startswith(".") and matches(names[1:], segments)


def _segment_matches(name: str, segment: str) -> bool:
    return name.startswith(".") <= segment.startswith(".") and _compiled(segment).match(name) is not None


@lru_cache(maxsize=256)
def _compiled(segment: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(segment))
