"""Images by a pattern, below a local folder or an `s3://` prefix.

`*`, `?`, `[...]` and `{a,b}` match within a segment and `**` any number of folders, as in Python's `glob`, which has no
`{a,b}`: hidden names match only a segment that begins with a dot, and only files match. These characters may also occur
in names: a path that exists as it is written is no pattern, nor is a prefix with objects below it.
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
from locray.schema import IMAGE_URI
from locray.sources.folder import path_below, walk
from locray.sources.object_store import ObjectStoreSource
from locray.sources.source import rebatch
from locray.storage import check_readable_folder, folder_exists, is_remote, local_path, local_uri
from locray.storage.uris import S3_SCHEME, split_s3

ANY_FOLDERS = "**"
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_WILDCARD = re.compile(rf"[*?[]|{_BRACES.pattern}")
_ADVICE = (
    f"check the pattern (in quotes, so that the shell leaves it alone; {ANY_FOLDERS} matches any number of folders)"
)


@dataclass(frozen=True, slots=True)
class GlobSource:
    """The files that match a pattern below a folder.

    Attributes:
        folder: The path before the first segment with a wildcard.
        segments: The rest, split at its slashes.
    """

    folder: str
    segments: tuple[str, ...]

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """A local path with a wildcard that doesn't exist as it is written."""
        if is_remote(images) or os.path.lexists(local_path(images)):
            return None
        folder, segments = split_pattern(local_path(images))
        return cls(folder or "/", segments) if segments else None

    def check(self, *, may_be_empty: bool = False) -> None:
        """Checks that the folder exists and that a file matches.

        Raises:
            StoreAccessError: the folder is missing or may not be read.
            UsageError: no file matches.
        """
        check_readable_folder(local_uri(self.folder))
        if not may_be_empty and next(self.listing(), None) is None:
            pattern = "/".join(self.segments)
            raise UsageError(f"no file in {local_uri(self.folder)} matches {pattern!r}: {_ADVICE}")

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


@dataclass(frozen=True, slots=True)
class ObjectGlobSource:
    """The objects that match a pattern below a prefix.

    Attributes:
        uri: The pattern as it is written, a normalised URI.
        below: The prefix before the first segment with a wildcard. It is listed whole.
        segments: The rest of the key, split at its slashes.
    """

    uri: str
    below: ObjectStoreSource
    segments: tuple[str, ...]

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """An `s3://` URI with a wildcard in its key."""
        if not is_remote(images):
            return None
        bucket, key = split_s3(images)
        prefix, segments = split_pattern(key)
        return cls(images, ObjectStoreSource(bucket, f"{prefix}/" if prefix else ""), segments) if segments else None

    def check(self, *, may_be_empty: bool = False) -> None:
        """Checks that the bucket may be listed and that an object matches.

        Raises:
            StoreAccessError: the bucket is missing or denied, there are no credentials, or no answer.
            UsageError: no object matches.
        """
        check_readable_folder(self._folder())
        if may_be_empty or folder_exists(self.uri) or next(self._matching(), None) is not None:
            return
        found = "" if folder_exists(self._folder()) else f" ({self.below.explain_absence()})"
        raise UsageError(f"no object below {self._folder()} matches {'/'.join(self.segments)!r}{found}: {_ADVICE}")

    def lists(self, uri: str) -> bool:
        """Whether the object matches, or lies below a prefix that is named like the pattern."""
        return uri.startswith(f"{self.uri}/") or (self.below.lists(uri) and self._matches(uri))

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All objects that match, as batches of `LISTING_SCHEMA`.

        Raises:
            StoreError: the listing failed, retries exhausted.
        """
        if folder_exists(self.uri):
            return ObjectStoreSource(self.below.bucket, f"{split_s3(self.uri)[1]}/").listing()
        return rebatch(self._matching())

    def _folder(self) -> str:
        return f"{S3_SCHEME}{self.below.bucket}/{self.below.prefix}".rstrip("/")

    def _matching(self) -> Iterator[pa.RecordBatch]:
        for batch in self.below.listing():
            matching = batch.filter(pa.array(map(self._matches, batch[IMAGE_URI].to_pylist()), pa.bool_()))
            if len(matching):
                yield matching

    def _matches(self, uri: str) -> bool:
        start = f"{S3_SCHEME}{self.below.bucket}/{self.below.prefix}"
        return matches(uri[len(start) :].split("/"), self.segments)


def split_pattern(path: str) -> tuple[str, tuple[str, ...]]:
    """The path before the first segment with a wildcard, and the segments from there on, if there are any."""
    segments = path.split("/")
    first = next((index for index, segment in enumerate(segments) if _WILDCARD.search(segment)), len(segments))
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
    return re.compile("|".join(map(fnmatch.translate, _alternatives(segment))))


def _alternatives(segment: str) -> list[str]:
    """The patterns without braces that a segment stands for."""
    braces = _BRACES.search(segment)
    if braces is None:
        return [segment]
    before, after = segment[: braces.start()], segment[braces.end() :]
    return [each for choice in braces[1].split(",") for each in _alternatives(before + choice + after)]
