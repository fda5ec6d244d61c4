"""An S3 Inventory, the store's own list of a bucket, by its `manifest.json`.

Its files are CSV (gzipped, keys percent-encoded, columns named in the manifest only) or Parquet. Each is copied to the
local disk, compared with its MD5 in the manifest, and read in batches. Skipped are delete markers, versions that are
not the latest, and, as in the listing of a prefix, zero-byte objects whose key ends in `/`. An inventory without sizes
keeps these.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from locray.errors import StoreError, UsageError
from locray.schema import LISTING_SCHEMA, TIMESTAMP
from locray.sources.source import BATCH_ROWS, Step, StepResult, rebatch, run_steps
from locray.storage import is_remote, local_path, local_uri, open_file, open_parquet, read_bytes, temporary_folder
from locray.storage.uris import S3_SCHEME

MANIFEST_NAME = "manifest.json"

_NUM_FILES = 2
"""Files on the local disk at a time: one is read while another is copied."""

_COPY_BYTES = 8 << 20
_CSV_BLOCK_BYTES = 4 << 20

_KEY, _SIZE, _MODIFIED, _ETAG = "Key", "Size", "LastModifiedDate", "ETag"
_IS_LATEST, _IS_DELETE_MARKER = "IsLatest", "IsDeleteMarker"
_COLUMNS = {
    _KEY: ("key", pa.string()),
    _ETAG: ("e_tag", pa.string()),
    _SIZE: ("size", pa.int64()),
    _MODIFIED: ("last_modified_date", TIMESTAMP),
    _IS_LATEST: ("is_latest", pa.bool_()),
    _IS_DELETE_MARKER: ("is_delete_marker", pa.bool_()),
}
"""The columns in use, by their name in CSV inventories: the name in Parquet, and the type."""

_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class InventorySource:
    """The current objects of an S3 Inventory.

    Attributes:
        uri: The manifest, a normalised URI.
    """

    uri: str

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """A name that ends in manifest.json; a local one must be a file."""
        if not images.endswith(MANIFEST_NAME) or (not is_remote(images) and not os.path.isfile(local_path(images))):
            return None
        return cls(images)

    def check(self, *, may_be_empty: bool = False) -> None:  # noqa: ARG002
        """Checks that the manifest can be used and that its first file exists.

        Raises:
            StoreAccessError: it or the file is missing or denied.
            UsageError: it is no manifest of an inventory, or of one in a format that is not read.
        """
        for file in _Manifest.read(self.uri).files[:1]:
            open_file(file.uri).close()

    def lists(self, uri: str) -> bool:  # noqa: ARG002
        """Always false: an inventory names what existed when it was made."""
        return False

    def listing(self) -> Iterator[pa.RecordBatch]:
        """The current objects, as batches of `LISTING_SCHEMA`.

        Raises:
            UsageError: a file is damaged, or is no part of an inventory.
            StoreError: a file can't be fetched.
        """
        manifest = _Manifest.read(self.uri)
        with temporary_folder() as folder:
            steps: list[Step] = [
                partial(_copy_and_read, manifest, file, Path(folder, str(number)))
                for number, file in enumerate(manifest.files)
            ]
            yield from rebatch(run_steps(steps, _NUM_FILES))


@dataclass(frozen=True, slots=True)
class _File:
    uri: str
    md5: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The content of a manifest.

    Attributes:
        bucket: The bucket that is listed.
        csv_columns: The columns of the files, in their order; None if they are Parquet.
        files: The files of the list.
    """

    bucket: str
    csv_columns: tuple[str, ...] | None
    files: tuple[_File, ...]

    @classmethod
    def read(cls, uri: str) -> Self:
        """Reads a manifest.

        Raises:
            StoreAccessError: it is missing, or access is denied.
            StoreError: the store failed, retries exhausted.
            UsageError: it is no manifest of an inventory, or of one in a format that is not read.
        """
        try:
            content = json.loads(read_bytes(uri))
            bucket, format_, columns = (str(content[name]) for name in ("sourceBucket", "fileFormat", "fileSchema"))
            store = str(content["destinationBucket"]).rpartition(":")[2]  # arn:aws:s3:::BUCKET
            files = tuple(
                _File(_file_uri(uri, store, str(file["key"])), str(file["MD5checksum"]).lower())
                for file in content["files"]
            )
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(
                f"{uri} is no manifest of an S3 Inventory: {reason}. Expected sourceBucket, destinationBucket, "
                "fileFormat, fileSchema and files, each with key and MD5checksum"
            ) from error
        if format_ not in {"CSV", "Parquet"}:
            raise UsageError(
                f"{uri} is of an inventory in {format_}, which is not read: set its output format to Parquet or CSV"
            )
        csv_columns = tuple(name.strip() for name in columns.split(",")) if format_ == "CSV" else None
        if csv_columns is not None and _KEY not in csv_columns:
            raise UsageError(f"{uri} has no column {_KEY!r} in its fileSchema, but {columns!r}")
        return cls(bucket, csv_columns, files)


def _file_uri(manifest_uri: str, bucket: str, key: str) -> str:
    """A file of the list: in the bucket that the manifest names, or a copy beside a local manifest."""
    if not is_remote(manifest_uri):
        folder, name = Path(local_path(manifest_uri)).parent, key.rpartition("/")[2]
        for copy in (folder / name, folder / "data" / name, folder.parent / "data" / name):
            if copy.is_file():
                return local_uri(str(copy))
    return f"{S3_SCHEME}{bucket}/{key}"


def _copy_and_read(manifest: _Manifest, file: _File, copy: Path) -> StepResult:
    """Copies a file and checks that it is complete, before any of its rows is used."""
    digest = hashlib.md5(usedforsecurity=False)
    with open_file(file.uri) as source:
        try:
            with copy.open("wb") as target:
                while data := source.read(_COPY_BYTES):
                    digest.update(data)
                    target.write(data)
        except OSError as error:
            raise StoreError(f"{file.uri} can't be copied to {copy}: {error}. TMPDIR names another disk") from error
    if digest.hexdigest() != file.md5:
        raise UsageError(
            f"{file.uri} is damaged: its MD5 is {digest.hexdigest()}, the manifest says {file.md5}. Copy it again, or "
            "take another day's inventory"
        )
    return _read_on(file, _rows(manifest, copy))


def _read_on(file: _File, batches: Iterator[pa.RecordBatch]) -> StepResult:
    try:
        batch = next(batches, None)
    except _UNREADABLE as error:
        raise UsageError(f"{file.uri} can't be read as a part of an S3 Inventory: {error}") from error
    return StepResult() if batch is None else StepResult([batch], [partial(_read_on, file, batches)])


def _rows(manifest: _Manifest, copy: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a local copy, as batches of `LISTING_SCHEMA`; the copy is removed at their end."""
    uri = local_uri(str(copy))
    batches = _parquet(uri) if manifest.csv_columns is None else _csv(uri, manifest.csv_columns)
    for columns in batches:
        yield _listed(manifest.bucket, columns)
    copy.unlink()


def _csv(uri: str, names: tuple[str, ...]) -> Iterator[dict[str, pa.Array]]:
    types = {name: type_ for name, (_, type_) in _COLUMNS.items() if name in names}
    with pa.CompressedInputStream(open_file(uri), "gzip") as file:
        if not file.read(1):  # an empty list, which is an error for pyarrow
            return
    with (
        pa.CompressedInputStream(open_file(uri), "gzip") as file,
        pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, column_names=names),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=True
            ),
        ) as reader,
    ):
        for batch in reader:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield columns | {_KEY: _decoded(columns[_KEY])}


def _decoded(keys: pa.Array) -> pa.Array:
    """Keys without their encoding, which is that of HTML forms: a space is `+`.

    Raises:
        UnicodeDecodeError: a key isn't UTF-8.
    """
    if not pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        return keys
    texts = (None if key is None else unquote_plus(key, errors="strict") for key in keys.to_pylist())
    return pa.array(texts, pa.string())


def _parquet(uri: str) -> Iterator[dict[str, pa.Array]]:
    with open_parquet(uri) as file:
        there = {name: column for name, column in _COLUMNS.items() if column[0] in file.schema_arrow.names}
        if _KEY not in there:
            raise pa.ArrowInvalid(f"it has no column {_COLUMNS[_KEY][0]!r}, but {', '.join(file.schema_arrow.names)}")
        names = [name for name, _ in there.values()]
        # Row group by row group, so that no more than one of them is buffered.
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
                yield {name: batch[in_file].cast(type_) for name, (in_file, type_) in there.items()}


def _listed(bucket: str, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    keys = columns[_KEY]
    if keys.null_count:
        raise pa.ArrowInvalid("a row has no key")
    wanted: Any = pa.scalar(True)
    if _IS_LATEST in columns:
        wanted = pc.and_(wanted, pc.fill_null(columns[_IS_LATEST], True))
    if _IS_DELETE_MARKER in columns:
        wanted = pc.and_(wanted, pc.invert(pc.fill_null(columns[_IS_DELETE_MARKER], False)))
    if _SIZE in columns:
        is_folder_marker = pc.and_(pc.equal(columns[_SIZE], 0), pc.ends_with(keys, "/"))
        wanted = pc.and_(wanted, pc.invert(pc.fill_null(is_folder_marker, False)))
    uris = pc.binary_join_element_wise(f"{S3_SCHEME}{bucket}", keys, "/")
    others = [columns.get(name, pa.nulls(len(keys), _COLUMNS[name][1])) for name in (_ETAG, _SIZE, _MODIFIED)]
    rows = pa.RecordBatch.from_arrays([uris, pc.utf8_trim(others[0], '"'), *others[1:]], schema=LISTING_SCHEMA)
    return rows.filter(wanted) if isinstance(wanted, pa.Array) else rows
