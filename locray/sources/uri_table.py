"""A CSV or Parquet table of image URIs, local or in a store.

The fields of a CSV file are separated by commas, or, by its first line, semicolons or tabs. A folder whose name ends in
`.parquet`, as Spark writes it, is read as one table.

One column holds the URIs; `etag`, `size_bytes` and `last_modified` are optional. A relative path is relative to the
table's folder. Local files are looked up for their version. Objects are not: what the table doesn't hold stays null.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from locray.errors import UsageError, did_you_mean
from locray.schema import ETAG, IMAGE_URI, LAST_MODIFIED, LISTING_SCHEMA, SIZE_BYTES
from locray.sources.source import BATCH_ROWS, listing_batch, rebatch
from locray.storage import (
    exists,
    folder_exists,
    is_remote,
    join,
    list_uris,
    local_path,
    normalise,
    open_file,
    open_parquet,
)
from locray.storage.files import file_etag
from locray.storage.uris import split_s3

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
URI_COLUMNS = (IMAGE_URI, "uri", "path")
"""Names of the column of the URIs if `--uri-column` names none, by preference."""

_OPTIONAL_COLUMNS = (ETAG, SIZE_BYTES, LAST_MODIFIED)
_CSV_BLOCK_BYTES = 4 << 20
_STAT_THREADS = 8
_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class UriTableSource:
    """The images that a table names.

    Attributes:
        uri: The table, a normalised URI.
        uri_column: The column of the image URIs; None: one of `URI_COLUMNS`, or the only one.
    """

    uri: str
    uri_column: str | None

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:
        """A name that ends as that of a table, in any case; local ones must be a file or a folder of Parquet files."""
        if not images.lower().endswith(TABLE_SUFFIXES):
            return None
        if is_remote(images) or os.path.isfile(local_path(images)) or _parts(images):
            return cls(images, uri_column)
        return None

    def check(self, *, may_be_empty: bool = False) -> None:  # noqa: ARG002
        """Checks that the table exists and has a column of URIs.

        Raises:
            StoreAccessError: it is missing or denied.
            UsageError: it is no such table, or has no such column.
        """
        self._find_uri_column(self._column_names())

    def lists(self, uri: str) -> bool:  # noqa: ARG002
        """Always false: a table names its images itself."""
        return False

    def listing(self) -> Iterator[pa.RecordBatch]:
        """The table's images, as batches of `LISTING_SCHEMA`.

        Raises:
            UsageError: a row names no image.
            StoreError: the table can't be read.
        """
        return rebatch(self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        names = self._column_names()
        uri_column = self._find_uri_column(names)
        types = {field.name: field.type for field in LISTING_SCHEMA}
        columns = {uri_column: types[IMAGE_URI]}
        columns |= {name: types[name] for name in _OPTIONAL_COLUMNS if name in names and name != uri_column}
        first_row = 1
        with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="listing") as threads:
            for batch in self._read(columns):
                arrays = [
                    batch[name] if name in columns else pa.nulls(len(batch), types[name]) for name in _OPTIONAL_COLUMNS
                ]
                arrays[0] = pc.utf8_trim(arrays[0], '"')
                uris = pa.array(self._image_uris(batch[uri_column].to_pylist(), uri_column, first_row), pa.string())
                listed = pa.RecordBatch.from_arrays([uris, *arrays], schema=LISTING_SCHEMA)
                yield _look_up(listed, threads)
                first_row += len(batch)

    def _is_csv(self) -> bool:
        return self.uri.lower().endswith((".csv", ".tsv"))

    def _files(self) -> list[str]:
        """The Parquet files of the table."""
        is_file = os.path.isfile(local_path(self.uri)) if not is_remote(self.uri) else exists(self.uri)
        return [self.uri] if is_file else _parts(self.uri) or [self.uri]

    def _column_names(self) -> list[str]:
        try:
            if self._is_csv():
                with self._open_csv({}) as reader:
                    return list(reader.schema.names)
            return list(open_parquet(self._files()[0]).schema_arrow.names)
        except pa.ArrowInvalid as error:
            raise self._unreadable(error) from error

    def _find_uri_column(self, names: list[str]) -> str:
        if self.uri_column is not None:
            if self.uri_column in names:
                return self.uri_column
            hint = did_you_mean(self.uri_column, names)
            raise UsageError(f"{self.uri} has no column {self.uri_column!r}, but {_quoted(names)}{hint}")
        for name in URI_COLUMNS:
            if name in names:
                return name
        if len(names) == 1 and "/" in names[0]:
            raise UsageError(
                f"the first line of {self.uri}, {names[0]!r}, looks like an image: expected a column's name there, "
                f"such as {IMAGE_URI}"
            )
        if len(names) == 1:
            return names[0]
        raise UsageError(
            f"{self.uri} has the columns {_quoted(names)}: expected one of {_quoted(URI_COLUMNS)}, or --uri-column"
        )

    def _read(self, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        """Batches of these columns with these types."""
        schema = pa.schema(list(columns.items()))
        try:
            if self._is_csv():
                with self._open_csv(columns) as reader:
                    yield from (batch.select(schema.names) for batch in reader)
            else:
                for file in self._files():
                    for batch in open_parquet(file).iter_batches(BATCH_ROWS, columns=list(columns)):
                        arrays = [batch[name].cast(type_) for name, type_ in columns.items()]
                        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._unreadable(error) from error

    def _open_csv(self, columns: dict[str, pa.DataType]) -> pyarrow.csv.CSVStreamingReader:
        return pyarrow.csv.open_csv(
            open_file(self.uri),
            read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self._separator(), newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=columns, include_columns=list(columns), null_values=[""], strings_can_be_null=True
            ),
        )

    def _separator(self) -> str:
        """The first of `_SEPARATORS` in the first line."""
        with open_file(self.uri) as file:
            first_line = file.read(_CSV_BLOCK_BYTES).split(b"\n", 1)[0]
        return next((each for each in _SEPARATORS if each.encode() in first_line), _SEPARATORS[0])

    def _unreadable(self, error: Exception) -> UsageError:
        kind = "CSV" if self._is_csv() else "Parquet"
        return UsageError(f"{self.uri} can't be read as a {kind} table of image URIs: {error}")

    def _image_uri(self, value: str | None) -> str:
        """The URI of the image that a cell names.

        Raises:
            UsageError: it names none.
        """
        if not value:
            raise UsageError("empty, expected the URI of an image")
        if is_remote(value):
            if not split_s3(value)[1]:
                raise UsageError(f"{value!r} names a bucket, expected an image")
            return value
        if value.startswith("/") or "://" in value:
            return normalise(value)
        below_table = join(self.uri.rpartition("/")[0] or "/", value)
        return below_table if is_remote(below_table) else normalise(below_table)

    def _image_uris(self, values: list[str | None], uri_column: str, first_row: int) -> Iterator[str]:
        for row, value in enumerate(values, start=first_row):
            try:
                yield self._image_uri(value)
            except UsageError as error:
                place = f"row {row} of {self.uri} (the first one below the header is row 1), column {uri_column!r}"
                raise UsageError(f"{place}: {error}") from error


def _parts(uri: str) -> list[str]:
    """The Parquet files below a folder, without those on a path with `_` or a dot in front, which Spark ignores."""
    if not folder_exists(uri):
        return []
    root = uri.rstrip("/") + "/"
    paths = (part[len(root) :] for part in list_uris(uri) if part.lower().endswith(".parquet"))
    return sorted(root + path for path in paths if not any(name.startswith(("_", ".")) for name in path.split("/")))


def _look_up(listed: pa.RecordBatch, threads: ThreadPoolExecutor) -> pa.RecordBatch:
    """The batch with version, size and time of its local files."""
    uris, *columns = (column.to_pylist() for column in listed.columns)
    local = [index for index, uri in enumerate(uris) if not is_remote(uri)]
    if not local:
        return listed
    etags, sizes_bytes, modified = columns
    modified_us = [None if time is None else round(time.timestamp() * 1_000_000) for time in modified]
    versions = threads.map(_version_of_file, (uris[index] for index in local))
    for index, version in zip(local, versions, strict=True):
        etags[index], sizes_bytes[index], modified_us[index] = version
    return listing_batch(uris, etags, sizes_bytes, modified_us)


def _version_of_file(uri: str) -> tuple[str, int, int] | tuple[None, None, None]:
    try:
        status = os.stat(local_path(uri))
    except OSError:
        return None, None, None  # fetching it will report the error
    if not stat.S_ISREG(status.st_mode):
        return None, None, None
    return file_etag(status), status.st_size, status.st_mtime_ns // 1000


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
