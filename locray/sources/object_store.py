"""All objects below an `s3://` prefix. Used through `open_source`.

The folders of the upper levels are found first, exactly, by boto3; what lies below each is then listed by obstore in
parallel, straight into Arrow. obstore can't name every key that S3 allows (see `is_plain_key`): from the page on where
it meets such a key, boto3 goes on. Zero-byte objects whose key ends in `/` stand for folders and are left out.
"""

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Self

import obstore
import pyarrow as pa
import pyarrow.compute as pc

from locray.errors import UsageError
from locray.schema import LISTING_SCHEMA, TIMESTAMP
from locray.sources.source import BATCH_ROWS, evened, listing_batch
from locray.sources.steps import Found, Step, run_steps
from locray.storage import check_readable_folder, exists, folder_exists, is_remote
from locray.storage.files import is_folder_marker, list_objects
from locray.storage.s3 import bare_etag, client, store
from locray.storage.s3_errors import S3_ERRORS, Trouble, store_error, trouble_of
from locray.storage.uris import S3_SCHEME, is_plain_key, split_s3

_NUM_THREADS = 16

_MANY_PREFIXES = 16
_MAX_LEVELS = 4
"""Folders are opened until a level has many of them, and no deeper than this."""

_MAX_PAGES = 4
"""A folder with more direct children than this many pages of a thousand is listed as a whole."""


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
    def recognise(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """Any `s3://` URI."""
        if not is_remote(images):
            return None
        bucket, key = split_s3(images)
        return cls(bucket, f"{key}/" if key else "")

    def check(self, *, may_be_empty: bool = False) -> None:
        """Makes sure that the bucket may be listed and that the prefix leads to objects and isn't one itself.

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
            raise UsageError(f"no object lies below {self._uri(self.prefix)}: {self.what_is_there()}. Check the name")

    def what_is_there(self) -> str:
        """Why nothing is below the prefix, with the nearest name among the first thousand where it should be."""
        folder, _, name = self.prefix.removesuffix("/").rpartition("/")
        while folder and not folder_exists(self._uri(folder)):
            folder, _, name = folder.rpartition("/")
        above = f"{folder}/" if folder else ""
        try:
            page = client().list_objects_v2(Bucket=self.bucket, Prefix=above, Delimiter="/")
        except S3_ERRORS as error:
            raise store_error(self._uri(above), error) from error
        keys = [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        keys += [entry["Key"] for entry in page.get("Contents", ())]
        if not keys:
            return f"{self._uri(folder)} is empty"
        near = difflib.get_close_matches(name, [key[len(above) :].removesuffix("/") for key in keys], 1)
        return f"{self._uri(folder)} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")

    def lists(self, uri: str) -> bool:
        """Whether the object lies below the prefix."""
        return uri.startswith(f"{S3_SCHEME}{self.bucket}/{self.prefix}")

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All objects, as batches of `LISTING_SCHEMA`.

        Raises:
            StoreError: the listing failed, retries are spent.
        """
        return evened(run_steps([partial(self._open, self.prefix, 1)], _NUM_THREADS))

    def _uri(self, key: str) -> str:
        return f"{S3_SCHEME}{self.bucket}/{key}" if key else f"{S3_SCHEME}{self.bucket}"

    def _open(self, prefix: str, level: int) -> Found:
        """Lists one level: its objects, and a step for each folder in it. Where it is too large: one step for all."""
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
        entries: list[dict[str, Any]] = []
        folders: list[str] = []
        try:
            for page_number, page in enumerate(pages, start=1):
                entries += page.get("Contents", ())
                folders += (folder["Prefix"] for folder in page.get("CommonPrefixes", ()))
                if page_number == _MAX_PAGES and page["IsTruncated"]:
                    return self._list(prefix)
        except S3_ERRORS as error:
            raise store_error(self._uri(prefix), error) from error
        objects = [entry for entry in entries if not is_folder_marker(entry)]
        deeper = level < _MAX_LEVELS and len(folders) < _MANY_PREFIXES
        steps: list[Step] = [
            partial(self._open, folder, level + 1) if deeper else partial(self._list, folder) for folder in folders
        ]
        return Found([self._batch(objects)], steps)

    def _list(self, prefix: str) -> Found:
        """Begins to list everything below a prefix."""
        if is_plain_key(prefix.removesuffix("/")) or (not prefix and not self._has_keys_with_leading_slash()):
            chunks = obstore.list(
                store(self.bucket), prefix.removesuffix("/") or None, chunk_size=BATCH_ROWS, return_arrow=True
            )
            return self._read_arrow(prefix, iter(chunks), last_key="")
        return self._read_entries(list_objects(self.bucket, prefix))

    def _has_keys_with_leading_slash(self) -> bool:
        # obstore would silently take the slash off.
        return next(list_objects(self.bucket, "/"), None) is not None

    def _read_arrow(self, prefix: str, chunks: Iterator[Any], last_key: str) -> Found:
        try:
            chunk = next(chunks, None)
        except S3_ERRORS:
            # Mostly a key that obstore can't name. If it is the store itself, boto3 meets the same and tells it well.
            return self._read_entries(list_objects(self.bucket, prefix, start_after=last_key))
        if chunk is None:
            return Found()
        columns = pa.record_batch(chunk)
        keys = columns["path"]
        # For a folder's own marker, `a/`, obstore says `a`; it may also say so of a marker further down.
        below = columns.filter(pc.not_equal(keys, prefix.removesuffix("/")))
        steps: list[Step] = [partial(self._read_arrow, prefix, chunks, keys[-1].as_py())]
        empty = below.filter(pc.equal(below["size"], 0))
        if len(empty):
            steps.append(partial(self._keep_objects, empty))
            below = below.filter(pc.not_equal(below["size"], 0))
        return Found([self._arrow_batch(below)], steps)

    def _keep_objects(self, columns: pa.RecordBatch) -> Found:
        """Of zero-byte rows, those that are objects and not folder markers whose slash obstore has taken off."""
        rows = zip(columns["path"].to_pylist(), columns["last_modified"].to_pylist(), strict=True)
        return Found([self._arrow_batch(columns.filter(pa.array([self._is_empty_object(*row) for row in rows])))])

    def _is_empty_object(self, key: str, last_modified: datetime) -> bool:
        try:
            meta = obstore.head(store(self.bucket), key)
        except S3_ERRORS as error:
            return trouble_of(error) is not Trouble.NO_OBJECT
        return meta["size"] == 0 and meta["last_modified"].replace(microsecond=0) == last_modified.replace(
            microsecond=0
        )

    def _arrow_batch(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        uris = pc.binary_join_element_wise(f"{S3_SCHEME}{self.bucket}", columns["path"], "/")
        etags = pc.utf8_trim(columns["e_tag"], '"')
        arrays = [uris, etags, columns["size"].cast(pa.int64()), columns["last_modified"].cast(TIMESTAMP)]
        return pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)

    def _read_entries(self, entries: Iterator[dict[str, Any]]) -> Found:
        chunk = list(itertools.islice(entries, BATCH_ROWS))
        return Found([self._batch(chunk)], [partial(self._read_entries, entries)]) if chunk else Found()

    def _batch(self, entries: list[dict[str, Any]]) -> pa.RecordBatch:
        return listing_batch(
            [self._uri(entry["Key"]) for entry in entries],
            [bare_etag(entry.get("ETag")) for entry in entries],
            [entry["Size"] for entry in entries],
            [round(entry["LastModified"].timestamp() * 1_000_000) for entry in entries],
        )
