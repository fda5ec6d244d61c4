"""A parallel listing of all objects below a prefix, with any keys.

The folders of the upper levels are found first, by boto3. What lies below each of them is then listed by obstore,
straight into Arrow. While threads are idle, a listing under way is split at keys ahead of it, and its parts are listed
in parallel: so a single huge folder doesn't hold up the rest.

obstore can't name every key that S3 allows (see `is_plain_key`). From the page with such a key on, boto3 lists the
rest. Zero-byte objects whose key ends in `/` stand for folders and are skipped.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.compute as pc

from locray.schema import LISTING_SCHEMA, TIMESTAMP
from locray.sources.key_ranges import KeyRange, find_split_keys
from locray.sources.source import Step, StepResult, listing_batch, rebatch, run_steps
from locray.storage.errors import S3_ERRORS, ErrorKind, error_kind, translate_io_errors
from locray.storage.folders import is_folder_marker, list_objects
from locray.storage.s3 import bare_etag, client, store
from locray.storage.uris import S3_SCHEME, is_plain_key

_NUM_THREADS = 16

_MANY_PREFIXES = 16
_MAX_LEVELS = 4
"""Folders are opened until a level has many of them, and no deeper than this."""

_MAX_PAGES = 4
"""Pages of a thousand. A folder with more direct children is listed as a whole."""

_CHUNK_ROWS = 1_000
"""One page, so that a range reads little beyond its end."""

_ROWS_BETWEEN_PROBES = 2_000
"""Objects listed before split keys are looked for again, which takes some requests."""


@dataclass(slots=True)
class ObjectListing:
    """One listing of a bucket, under way. Its methods but `below` are steps and run in several threads.

    Attributes:
        bucket: The bucket.
    """

    bucket: str
    _ranges: set[KeyRange] = field(default_factory=set)
    """Ranges that are being listed or waiting, as they were when they began."""

    _split_keys: dict[KeyRange, list[str]] = field(default_factory=dict)
    """Where a range may be split, until its listing splits there."""

    _ends: list[str] = field(default_factory=list)
    """The keys at which ranges were split. Each is the last key of one range and `after` of the next."""

    def below(self, prefix: str) -> Iterator[pa.RecordBatch]:
        """All objects below a prefix (empty, or with a slash at its end), as batches of `LISTING_SCHEMA`.

        Complete in any order of the store's keys, and without duplicates if that order is S3's.

        Raises:
            StoreError: the listing failed, retries exhausted.
        """
        return rebatch(run_steps([partial(self._open, prefix, 1)], _NUM_THREADS))

    def _open(self, prefix: str, level: int) -> StepResult:
        """Lists one level: its objects, and a step per folder in it. A level that is too large is listed as a whole."""
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
        entries: list[dict[str, Any]] = []
        folders: list[str] = []
        with translate_io_errors(self._uri(prefix)):
            for page_number, page in enumerate(pages, start=1):
                entries += page.get("Contents", ())
                folders += (folder["Prefix"] for folder in page.get("CommonPrefixes", ()))
                if page_number == _MAX_PAGES and page["IsTruncated"]:
                    return self._list(prefix)
        objects = [entry for entry in entries if not is_folder_marker(entry)]
        deeper = level < _MAX_LEVELS and len(folders) < _MANY_PREFIXES
        steps: list[Step] = [
            partial(self._open, folder, level + 1) if deeper else partial(self._list, folder) for folder in folders
        ]
        return StepResult([self._batch(objects)], steps)

    def _list(self, prefix: str) -> StepResult:
        """Starts to list everything below a prefix."""
        whole = KeyRange(self.bucket, prefix)
        self._ranges.add(whole)
        plain = is_plain_key(prefix.removesuffix("/")) or (not prefix and not self._has_keys_with_leading_slash())
        return self._start(_Stream(whole, whole, plain))

    def _has_keys_with_leading_slash(self) -> bool:
        # obstore would remove the slash silently.
        return next(list_objects(self.bucket, "/"), None) is not None

    def _start(self, stream: "_Stream") -> StepResult:
        rest = stream.rest
        if not stream.plain:
            return self._read_entries(stream, list_objects(self.bucket, rest.prefix, start_after=rest.after))
        chunks = obstore.list(
            store(self.bucket),
            rest.prefix.removesuffix("/") or None,
            offset=rest.after or None,
            chunk_size=_CHUNK_ROWS,
            return_arrow=True,
        )
        return self._read_arrow(stream, iter(chunks))

    def _read_arrow(self, stream: "_Stream", chunks: Iterator[Any]) -> StepResult:
        try:
            chunk = next(chunks, None)
        except S3_ERRORS:
            # Usually a key that obstore can't name. If the store failed, boto3 gets the same error and reports it.
            return self._start(replace(stream, plain=False))
        if chunk is None:
            return self._finish(stream)
        columns = pa.record_batch(chunk)
        keys = columns["path"]
        # obstore lists a folder's own marker, `a/`, as `a`, and may do so with markers further down.
        end = self._end_among(stream, pc.if_else(pc.equal(columns["size"], 0), None, keys))
        if end is not None:
            columns = columns.slice(0, end + 1)
        below = columns.filter(pc.not_equal(columns["path"], stream.rest.prefix.removesuffix("/")))
        empty = below.filter(pc.equal(below["size"], 0))
        full = below.filter(pc.not_equal(below["size"], 0)) if len(empty) else below
        if end is not None:
            found = self._finish(stream)
        else:
            stream, parts = self._split(stream.past(keys[-1].as_py(), full["path"]), len(keys))
            found = StepResult(steps=[partial(self._read_arrow, stream, chunks), *parts])
        if len(empty):
            found.steps.append(partial(self._keep_objects, empty))
        return StepResult([self._arrow_batch(full)], found.steps)

    def _read_entries(self, stream: "_Stream", entries: Iterator[dict[str, Any]]) -> StepResult:
        chunk = list(itertools.islice(entries, _CHUNK_ROWS))
        if not chunk:
            return self._finish(stream)
        keys = pa.array([entry["Key"] for entry in chunk], pa.string())
        end = self._end_among(stream, keys)
        if end is not None:
            self._finish(stream)
            return StepResult([self._batch(chunk[: end + 1])])
        stream, parts = self._split(stream.past(chunk[-1]["Key"], keys), len(chunk))
        return StepResult([self._batch(chunk)], [partial(self._read_entries, stream, entries), *parts])

    def _end_among(self, stream: "_Stream", keys: pa.Array) -> int | None:
        """The index of the key, null for folder markers, at which another range takes over.

        Only that very key ends a range, not a larger one: a store may have an order of its own. If the key was deleted
        meanwhile, the range continues to the end of the next one: some rows come twice, but none is lost.
        """
        ends = [end for end in self._ends if end > stream.whole.after]
        if not ends:
            return None
        found = pc.index(pc.is_in(keys, pa.array(ends, keys.type)), True).as_py()
        return None if found < 0 else int(found)

    def _split(self, stream: "_Stream", num_read: int) -> tuple["_Stream", list[Step]]:
        """Splits a listing if split keys were found for it, or has them looked for. Returns it and the new steps."""
        if num_read < _CHUNK_ROWS or not stream.ascending:
            return stream, []
        rest = stream.rest
        if stream.whole in self._split_keys:
            ends = [end for end in self._split_keys.pop(stream.whole) if end > rest.after]
            self._ends += ends
            pairs = itertools.pairwise([*ends, rest.until])
            parts = [replace(rest, after=start, until=end) for start, end in pairs]
            self._ranges.update(parts)
            steps: list[Step] = [partial(self._start, _Stream(part, part, stream.plain)) for part in parts]
            rest = replace(rest, until=[*ends, rest.until][0])
            return replace(stream, rest=rest, num_since_probe=0, is_probing=False), steps
        if stream.is_probing or stream.num_since_probe < _ROWS_BETWEEN_PROBES or len(self._ranges) >= _NUM_THREADS:
            return stream, []
        return replace(stream, is_probing=True), [partial(self._probe, stream)]

    def _probe(self, stream: "_Stream") -> StepResult:
        """Looks for keys at which a listing may be split while it continues."""
        ends = find_split_keys(stream.rest, _NUM_THREADS - 1, is_needed=lambda: stream.whole in self._ranges)
        if stream.whole in self._ranges:
            self._split_keys[stream.whole] = ends
        return StepResult()

    def _finish(self, stream: "_Stream") -> StepResult:
        self._ranges.discard(stream.whole)
        self._split_keys.pop(stream.whole, None)
        return StepResult()

    def _keep_objects(self, columns: pa.RecordBatch) -> StepResult:
        """The zero-byte rows that are objects, and not folder markers without their slash."""
        rows = zip(columns["path"].to_pylist(), columns["last_modified"].to_pylist(), strict=True)
        return StepResult([self._arrow_batch(columns.filter(pa.array([self._is_empty_object(*row) for row in rows])))])

    def _is_empty_object(self, key: str, last_modified: datetime) -> bool:
        try:
            meta = obstore.head(store(self.bucket), key)
        except S3_ERRORS as error:
            return error_kind(error) is not ErrorKind.NO_OBJECT
        return meta["size"] == 0 and meta["last_modified"].replace(microsecond=0) == last_modified.replace(
            microsecond=0
        )

    def _uri(self, key: str) -> str:
        return f"{S3_SCHEME}{self.bucket}/{key}"

    def _arrow_batch(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        uris = pc.binary_join_element_wise(f"{S3_SCHEME}{self.bucket}", columns["path"], "/")
        etags = pc.utf8_trim(columns["e_tag"], '"')
        arrays = [uris, etags, columns["size"].cast(pa.int64()), columns["last_modified"].cast(TIMESTAMP)]
        return pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)

    def _batch(self, entries: Sequence[dict[str, Any]]) -> pa.RecordBatch:
        return listing_batch(
            [self._uri(entry["Key"]) for entry in entries],
            [bare_etag(entry.get("ETag")) for entry in entries],
            [entry["Size"] for entry in entries],
            [round(entry["LastModified"].timestamp() * 1_000_000) for entry in entries],
        )


@dataclass(frozen=True, slots=True)
class _Stream:
    """A range that is being listed.

    Attributes:
        whole: The range as it began.
        rest: The part that is not listed yet.
        plain: Whether obstore lists it, rather than boto3.
        ascending: Whether its keys came in S3's order so far. If not, a larger key may have been listed already.
        num_since_probe: Objects read since split keys were last looked for.
        is_probing: Whether they are being looked for. Until that ends, `rest.until` must not change.
    """

    whole: KeyRange
    rest: KeyRange
    plain: bool
    ascending: bool = True
    num_since_probe: int = 0
    is_probing: bool = False

    def past(self, last: str, keys: pa.Array) -> "_Stream":
        """The stream after the key `last`. `keys` were read since, without those that may be folder markers."""
        ascending = self.ascending
        if len(keys):
            ascending &= self.rest.after < keys[0].as_py() and pc.all(pc.less(keys[:-1], keys[1:])).as_py() is not False
            # obstore lists the marker `a/` as `a`, which is smaller than `a-b` before it.
            last = max(last, keys[-1].as_py()) if ascending else last
        num_since_probe = self.num_since_probe + len(keys)
        return replace(self, rest=replace(self.rest, after=last), ascending=ascending, num_since_probe=num_since_probe)
