"""All objects below an `s3://` prefix."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from locray.errors import UsageError, did_you_mean
from locray.sources.object_listing import ObjectListing
from locray.storage import check_readable_folder, exists, folder_exists, is_remote
from locray.storage.errors import translate_io_errors
from locray.storage.s3 import client
from locray.storage.uris import S3_SCHEME, split_s3


@dataclass(frozen=True, slots=True)
class ObjectStoreSource:
    """All objects below a prefix.

    Attributes:
        bucket: The bucket.
        prefix: Empty for the whole bucket; else it ends in a slash.
    """

    bucket: str
    prefix: str

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """Any `s3://` URI."""
        if not is_remote(images):
            return None
        bucket, key = split_s3(images)
        return cls(bucket, f"{key}/" if key else "")

    def check(self, *, may_be_empty: bool = False) -> None:
        """Checks that the bucket may be listed, and that the prefix has objects below it and isn't one itself.

        Raises:
            StoreAccessError: the bucket is missing or denied, there are no credentials, or no answer.
            UsageError: the URI names one object, or none.
        """
        uri = self._uri(self.prefix.removesuffix("/"))
        check_readable_folder(uri)
        if folder_exists(uri):
            return
        if self.prefix and exists(uri):
            raise UsageError(f"{uri} is one object: expected a prefix, or a table of URIs named *.csv or *.parquet")
        if not may_be_empty:
            raise UsageError(f"no object lies below {self._uri(self.prefix)}: {self.explain_absence()}. Check the name")

    def explain_absence(self) -> str:
        """Why nothing is below the prefix, with the most similar of the first thousand names where it should be."""
        folder, _, name = self.prefix.removesuffix("/").rpartition("/")
        while folder and not folder_exists(self._uri(folder)):
            folder, _, name = folder.rpartition("/")
        above = f"{folder}/" if folder else ""
        with translate_io_errors(self._uri(above)):
            page = client().list_objects_v2(Bucket=self.bucket, Prefix=above, Delimiter="/")
        keys = [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        keys += [entry["Key"] for entry in page.get("Contents", ())]
        if not keys:
            return f"{self._uri(folder)} is empty"
        names = [key[len(above) :].removesuffix("/") for key in keys]
        return f"{self._uri(folder)} has no {name!r}{did_you_mean(name, names)}"

    def lists(self, uri: str) -> bool:
        """Whether the object lies below the prefix."""
        return uri.startswith(f"{S3_SCHEME}{self.bucket}/{self.prefix}")

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All objects, as batches of `LISTING_SCHEMA`.

        Raises:
            StoreError: the listing failed, retries exhausted.
        """
        return ObjectListing(self.bucket).below(self.prefix)

    def _uri(self, key: str) -> str:
        return f"{S3_SCHEME}{self.bucket}/{key}" if key else f"{S3_SCHEME}{self.bucket}"
