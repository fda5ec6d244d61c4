"""Parquet: a table with one row per image. Format name `parquet`.

The columns are those of `schema.ANNOTATED_SCHEMA`: the image, its size, and the list of its objects. The image is
`image_uri`, or `filename`: an absolute path or URI, or a path relative to the table's folder. Only relative ones are
checked for existence. Numbers may have any numeric type; nullable columns and fields may be missing; others are
ignored.

A split is `<split>.parquet`, or all files of `<split>/`, or shards named `<split>-00000-of-00007.parquet`, here or in a
folder (`data/`) that holds those of several splits. Several rows of an image are one image.
"""

import math
import posixpath
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from locray import schema, storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.files import SPLIT_NAMES, ImageFinder, choose_split, extension_of, list_files, relative_path
from locray.datasets.records import Annotation, Box, Dataset, ImageAnnotations, ParsedFile, SkipReason
from locray.errors import UsageError

EXTENSION = ".parquet"
EXPECTED = f"<split>{EXTENSION}, or files in <split>/"

_SHARD = re.compile(r"-\d+-of-\d+$")
_ABSOLUTE = re.compile(r"/|[a-z0-9]+://|zip:")


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, list_files(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split's files.

    Raises:
        UsageError: no such split, an invalid file (the message names column or row), or no image left.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    file_uris = choose_split(_split_files(data_uri, uris), split, data_uri, EXPECTED)
    images = ImageFinder(uris)
    builder = DatasetBuilder(data_uri, split)
    for file_uri in file_uris:
        parsed = parse_table(read_table(file_uri), file_uri)
        builder.skip_all(parsed.skipped)
        folder_uris = [file_uri.rpartition("/")[0], data_uri]
        for image in parsed.images:
            name = image.filename or ""
            builder.add(name if _ABSOLUTE.match(name) else images.find(folder_uris, name), image)
    return builder.build()


def read_table(uri: str) -> pa.Table:
    """The relevant columns of a Parquet file.

    Raises:
        UsageError: not a Parquet file.
        StoreError: the store failed.
    """
    wanted = (*schema.ANNOTATED_SCHEMA.names, schema.FILENAME)
    try:
        with storage.open_parquet(uri) as file:
            names: list[str] = file.schema_arrow.names
            return file.read(columns=[name for name in names if name in wanted])
    except pa.ArrowException as error:
        raise UsageError(f"{uri}: no Parquet file that can be read ({error}).") from None


def parse_table(table: pa.Table, where: str) -> ParsedFile:
    """The images of a table, one per row; skips rows whose objects are null as not annotated.

    Raises:
        UsageError: a missing column or one of another type, or an invalid row; the message names column and row.
    """
    names = _image_names(table, where)
    widths, heights = (_sides(table, name, where) for name in (schema.WIDTH, schema.HEIGHT))
    objects = _objects(table, where)
    images, skipped = [], []
    for row, (name, width, height, of_one) in enumerate(zip(names, widths, heights, objects, strict=True)):
        place = f"{where}, row {row}"
        if not name:
            raise UsageError(f"{place}: found no image, expected its URI or path.")
        if of_one is None:
            skipped.append((SkipReason.NO_ANNOTATION, f"{place}: {schema.OBJECTS} is null"))
        else:
            images.append(ImageAnnotations(name, tuple(of_one), width or None, height or None, place))
    return ParsedFile(images, skipped)


def to_table(images: Iterable[ImageAnnotations]) -> pa.Table:
    """A table of `schema.ANNOTATED_SCHEMA`; the inverse of `parse_table`."""
    rows = [
        {
            schema.IMAGE_URI: image.filename,
            schema.WIDTH: image.width_px,
            schema.HEIGHT: image.height_px,
            schema.OBJECTS: [
                {
                    schema.LABEL: annotation.label,
                    **dict(zip(schema.CORNERS, annotation.box_xyxy_px or (None,) * 4, strict=True)),
                    schema.IS_CROWD: annotation.is_crowd,
                }
                for annotation in image.objects
            ],
        }
        for image in images
    ]
    return pa.Table.from_pylist(rows, schema=schema.ANNOTATED_SCHEMA)


def write_parquet(images: Iterable[ImageAnnotations]) -> bytes:
    """`to_table` as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(images), sink, compression="zstd")
    return bytes(sink.getvalue())


def _image_names(table: pa.Table, where: str) -> list[str | None]:
    column = next((name for name in (schema.IMAGE_URI, schema.FILENAME) if name in table.column_names), None)
    if column is None:
        raise _missing(table, schema.IMAGE_URI, where)
    names: list[str | None] = _cast(table[column], pa.string(), f"{where}, column {column}").to_pylist()
    return names


def _sides(table: pa.Table, column: str, where: str) -> list[int | None]:
    if column not in table.column_names:
        return [None] * table.num_rows
    values: list[int | None] = _cast(table[column], pa.int64(), f"{where}, column {column}").to_pylist()
    return values


def _objects(table: pa.Table, where: str) -> list[list[Annotation] | None]:
    """The objects of each row. By columns: one dictionary per object would cost several times as much."""
    if schema.OBJECTS not in table.column_names:
        raise _missing(table, schema.OBJECTS, where)
    place = f"{where}, column {schema.OBJECTS}"
    lists = table[schema.OBJECTS].combine_chunks()
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        raise UsageError(f"{place}: found {kind}, expected a list of structs of {', '.join(schema.ANNOTATION.names)}.")
    values = lists.flatten()  # of a slice, and without what null lists hide
    fields = {field.name for field in kind.value_type}
    absent = [name for name in (schema.LABEL, *schema.CORNERS) if name not in fields]
    if schema.LABEL in absent or len(absent) not in (0, len(schema.CORNERS)):
        raise UsageError(f"{place}: found the fields {', '.join(sorted(fields))}; missing {', '.join(absent)}.")
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_pylist()
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    objects = zip(rows, *_columns(values, fields, place), strict=True)
    flat = [_annotation(f"{place}, row {row}", *one) for row, *one in objects]
    ends = [0, *accumulate(lengths)]
    valid = lists.is_valid().to_pylist()
    return [flat[start:end] if there else None for (start, end), there in zip(pairwise(ends), valid, strict=True)]


def _columns(values: pa.StructArray, fields: set[str], place: str) -> list[list[Any]]:
    """Label, corners and crowd flag of all objects."""
    columns = [_cast(_field(values, schema.LABEL), pa.string(), f"{place}.{schema.LABEL}").to_pylist()]
    for name in schema.CORNERS:
        known = name in fields
        cast = _cast(_field(values, name), pa.float64(), f"{place}.{name}") if known else None
        columns.append(cast.to_pylist() if cast is not None else [None] * len(values))
    if schema.IS_CROWD in fields:
        crowds = _cast(_field(values, schema.IS_CROWD), pa.bool_(), f"{place}.{schema.IS_CROWD}")
        return [*columns, pc.fill_null(crowds, False).to_pylist()]
    return [*columns, [False] * len(values)]


def _field(values: pa.StructArray, name: str) -> pa.Array:
    # Not `values.field`, which ignores that the struct itself may be null.
    return pc.struct_field(values, name)


def _annotation(
    place: str,
    label: str | None,
    xmin: float | None,
    ymin: float | None,
    xmax: float | None,
    ymax: float | None,
    is_crowd: bool,
) -> Annotation:
    if label is None or not label.strip():
        raise UsageError(f"{place}: found an object without {schema.LABEL}, expected the name of its class.")
    if xmin is None or ymin is None or xmax is None or ymax is None:
        if any(value is not None for value in (xmin, ymin, xmax, ymax)):
            raise UsageError(f"{place}: found a {label!r} with some of its corners, expected four or none.")
        return Annotation(label, None, is_crowd)
    box: Box = (xmin, ymin, xmax, ymax)
    if not math.isfinite(sum(map(abs, box))) and not all(map(math.isfinite, box)):
        raise UsageError(f"{place}: found a {label!r} with the box {box}, expected finite numbers.")
    return Annotation(label, box, is_crowd)


def _cast(column: Any, kind: pa.DataType, place: str) -> Any:
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise UsageError(f"{place}: found {column.type}, expected {kind} ({error}).") from None


def _missing(table: pa.Table, column: str, where: str) -> UsageError:
    found = ", ".join(table.column_names) or "(none)"
    return UsageError(f"{where}: found the columns {found}; missing {column}.")


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for uri in uris:
        folder, name = posixpath.split(relative_path(data_uri, uri))
        if extension_of(uri) != EXTENSION or "/" in folder:
            continue
        files.setdefault(_split_of(folder, posixpath.splitext(name)[0]), []).append(uri)
    return files


def _split_of(folder: str, stem: str) -> str:
    named = _SHARD.sub("", stem)
    is_named = named != stem or named.lower() in SPLIT_NAMES
    return named if not folder or (is_named and folder.lower() not in SPLIT_NAMES) else folder
