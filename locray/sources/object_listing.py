"""Lists all objects below a prefix in parallel, whatever their keys look like. Used by the object store source.

The folders of the upper levels are found first, exactly, by boto3; what lies below each is then listed by obstore,
straight into Arrow. Where threads have nothing to do, a listing that goes on is cut at keys ahead of it, and the parts
are listed side by side: so one huge folder, or one of many, doesn't hold up the rest.

obstore can't name every key that S3 allows (see `is_plain_key`): from the page on where it meets such a key, boto3
goes on. Zero-byte objects whose key ends in `/` stand for folders and are left out.
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
from locray.sources.object_ranges import KeyRange, cuts
from locray.sources.source import listing_batch, rebatch
from locray.sources.steps import Found, Step, run_steps
from locray.storage.files import is_folder_marker, list_objects
from locray.storage.s3 import bare_etag, client, store
from locray.storage.s3_errors import S3_ERRORS, ErrorKind, error_kind, store_error
from locray.storage.uris import S3_SCHEME, is_plain_key

_NUM_THREADS = 16

_MANY_PREFIXES = 16
_MAX_LEVELS = 4
"""Folders are opened until a level has many of them, and no deeper than this."""

_MAX_PAGES = 4
"""A folder with more direct children than this many pages of a thousand is listed as a whole."""

_CHUNK_ROWS = 1_000
"""A page: what a range reads beyond its end is little."""

_ROWS_BETWEEN_LOOKS = 2_000
"""Objects to list before the next look at where the rest may be cut: a look takes some requests, too."""


@dataclass(slots=True)
class ObjectListing:
    """One listing of a bucket, under way.

    Attributes:
        bucket: The bucket.
    """

    bucket: str
    _ranges: set[KeyRange] = field(default_factory=set)
    """Ranges that are listed or about to be, as they were when they began."""

    _looked_at: dict[KeyRange, list[str]] = field(default_factory=dict)
    """Where a range that is listed may be cut, until it takes notice."""

    _ends: list[str] = field(default_factory=list)
    """The keys at which ranges were cut. Each is the last of the range before it and `after` of the next."""

    def below(self, prefix: str) -> Iterator[pa.RecordBatch]:
        """All objects below a prefix (empty, or with a slash at its end), as batches of `LISTING_SCHEMA`.

        None is lost, however the store orders its keys, and none comes twice where the order is S3's own.

        Raises:
            StoreError: the listing failed, retries exhausted.
        """
        return rebatch(run_steps([partial(self._open, prefix, 1)], _NUM_THREADS))

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
        whole = KeyRange(self.bucket, prefix)
        self._ranges.add(whole)
        plain = is_plain_key(prefix.removesuffix("/")) or (not prefix and not self._has_keys_with_leading_slash())
        return self._start(_Stream(whole, whole, plain))

    def _has_keys_with_leading_slash(self) -> bool:
        # obstore would silently take the slash off.
        return next(list_objects(self.bucket, "/"), None) is not None

    def _start(self, stream: "_Stream") -> Found:
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

    def _read_arrow(self, stream: "_Stream", chunks: Iterator[Any]) -> Found:
        try:
            chunk = next(chunks, None)
        except S3_ERRORS:
            # Mostly a key that obstore can't name. If it is the store itself, boto3 meets the same and tells it well.
            return self._start(replace(stream, plain=False))
        if chunk is None:
            return self._finish(stream)
        columns = pa.record_batch(chunk)
        keys = columns["path"]
        # For a folder's own marker, `a/`, obstore says `a`; it may also say so of a marker further down.
        end = self._end_among(stream, pc.if_else(pc.equal(columns["size"], 0), None, keys))
        if end is not None:
            columns = columns.slice(0, end + 1)
        below = columns.filter(pc.not_equal(columns["path"], stream.rest.prefix.removesuffix("/")))
        empty = below.filter(pc.equal(below["size"], 0))
        full = below.filter(pc.not_equal(below["size"], 0)) if len(empty) else below
        if end is not None:
            found = self._finish(stream)
        else:
            stream, parts = self._cut(stream.past(keys[-1].as_py(), full["path"]), len(keys))
            found = Found(steps=[partial(self._read_arrow, stream, chunks), *parts])
        if len(empty):
            found.steps.append(partial(self._keep_objects, empty))
        return Found([self._arrow_batch(full)], found.steps)

    def _read_entries(self, stream: "_Stream", entries: Iterator[dict[str, Any]]) -> Found:
        chunk = list(itertools.islice(entries, _CHUNK_ROWS))
        if not chunk:
            return self._finish(stream)
        keys = pa.array([entry["Key"] for entry in chunk], pa.string())
        end = self._end_among(stream, keys)
        if end is not None:
            self._finish(stream)
            return Found([self._batch(chunk[: end + 1])])
        stream, parts = self._cut(stream.past(chunk[-1]["Key"], keys), len(chunk))
        return Found([self._batch(chunk)], [partial(self._read_entries, stream, entries), *parts])

    def _end_among(self, stream: "_Stream", keys: pa.Array) -> int | None:
        """Where among the keys, null for folder markers, another range takes over.

        Only the very key ends a range, not one that is larger: where a store has an order of its own, the range still
        goes on. If the key was deleted meanwhile, it goes on to the next one's end: rows twice, but none lost.
        """
        ends = [end for end in self._ends if end > stream.whole.after]
        if not ends:
            return None
        found = pc.index(pc.is_in(keys, pa.array(ends, keys.type)), True).as_py()
        return None if found < 0 else int(found)

    def _cut(self, stream: "_Stream", num_read: int) -> tuple["_Stream", list[Step]]:
        """Shortens a listing that goes on where that was found to help; a step for each part that is cut off."""
        if num_read < _CHUNK_ROWS or not stream.ascending:
            return stream, []
        rest = stream.rest
        if stream.whole in self._looked_at:
            ends = [end for end in self._looked_at.pop(stream.whole) if end > rest.after]
            self._ends += ends
            pairs = itertools.pairwise([*ends, rest.until])
            parts = [replace(rest, after=start, until=end) for start, end in pairs]
            self._ranges.update(parts)
            steps: list[Step] = [partial(self._start, _Stream(part, part, stream.plain)) for part in parts]
            rest = replace(rest, until=[*ends, rest.until][0])
            return replace(stream, rest=rest, num_since_look=0, looking=False), steps
        if stream.looking or stream.num_since_look < _ROWS_BETWEEN_LOOKS or len(self._ranges) >= _NUM_THREADS:
            return stream, []
        return replace(stream, looking=True), [partial(self._look, stream)]

    def _look(self, stream: "_Stream") -> Found:
        """Finds out where a listing may be cut, while it goes on."""
        ends = cuts(stream.rest, _NUM_THREADS - 1, wanted=lambda: stream.whole in self._ranges)
        if stream.whole in self._ranges:
            self._looked_at[stream.whole] = ends
        return Found()

    def _finish(self, stream: "_Stream") -> Found:
        self._ranges.discard(stream.whole)
        self._looked_at.pop(stream.whole, None)
        return Found()

    def _keep_objects(self, columns: pa.RecordBatch) -> Found:
        """Of zero-byte rows, those that are objects and not folder markers whose slash obstore has taken off."""
        rows = zip(columns["path"].to_pylist(), columns["last_modified"].to_pylist(), strict=True)
        return Found([self._arrow_batch(columns.filter(pa.array([self._is_empty_object(*row) for row in rows])))])

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
        rest: What is left of it.
        plain: Whether obstore lists it, and not boto3.
        ascending: Whether its keys came in S3's order so far. Where they don't, a larger key may lie behind.
        num_since_look: Objects read since the last look at where it may be cut.
        looking: Whether such a look is under way. Until it is over, `rest.until` must not change.
    """

    whole: KeyRange
    rest: KeyRange
    plain: bool
    ascending: bool = True
    num_since_look: int = 0
    looking: bool = False

    def past(self, last: str, keys: pa.Array) -> "_Stream":
        """The stream after the key `last`; `keys` were read since, what may be a folder's marker left out."""
        ascending = self.ascending
        if len(keys):
            ascending &= self.rest.after < keys[0].as_py() and pc.all(pc.less(keys[:-1], keys[1:])).as_py() is not False
            # Of the marker `a/` obstore says `a`, which is smaller than `a-b` before it.
            last = max(last, keys[-1].as_py()) if ascending else last
        num_since_look = self.num_since_look + len(keys)
        return replace(self, rest=replace(self.rest, after=last), ascending=ascending, num_since_look=num_since_look)
