"""Objects below an `s3://` prefix by a pattern, as `glob.py` has it for files. Used through `open_source`.

`*`, `?` and `[` are letters of keys, too: a prefix that has objects below it as it is written is no pattern. What
lies below the part without magic is listed whole, so a pattern that begins late costs least.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from locray.errors import UsageError
from locray.schema import IMAGE_URI
from locray.sources.glob import ANY_FOLDERS, matches, split_pattern
from locray.sources.object_store import ObjectStoreSource
from locray.sources.source import rebatch
from locray.storage import check_readable_folder, folder_exists, is_remote
from locray.storage.uris import S3_SCHEME, split_s3


@dataclass(frozen=True, slots=True)
class ObjectGlobSource:
    """The objects that match a pattern below a prefix.

    Attributes:
        uri: The pattern as it is written, a normalised URI.
        below: The part of it without magic.
        segments: The rest, split at its slashes.
    """

    uri: str
    below: ObjectStoreSource
    segments: tuple[str, ...]

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """An `s3://` URI with magic in its key."""
        if not is_remote(images):
            return None
        bucket, key = split_s3(images)
        prefix, segments = split_pattern(key)
        return cls(images, ObjectStoreSource(bucket, f"{prefix}/" if prefix else ""), segments) if segments else None

    def check(self, *, may_be_empty: bool = False) -> None:
        """Makes sure that the bucket may be listed and something in it matches.

        Raises:
            StoreAccessError: the bucket is missing or denied, there are no credentials, or no answer.
            UsageError: no object matches.
        """
        check_readable_folder(self._folder())
        if may_be_empty or folder_exists(self.uri) or next(self._matching(), None) is not None:
            return
        found = "" if folder_exists(self._folder()) else f" ({self.below.what_is_there()})"
        raise UsageError(
            f"no object below {self._folder()} matches {'/'.join(self.segments)!r}{found}: check the pattern (in "
            f"quotes, so that the shell leaves it alone; {ANY_FOLDERS} matches any number of folders)"
        )

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
