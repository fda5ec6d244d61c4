"""CSV: one file per split, one row per object. Format name `csv`.

The header line names the columns, in any order: `filename,class,xmin,ymin,xmax,ymax` and, if known, `width,height`;
others are ignored. A row with an empty class and box is an image without objects. A row with an empty box is an object
of which only the class is known.

A split's file is `<root>/<split>.csv`, `<root>/<split>_labels.csv` or `<root>/images/<split>_labels.csv`. Its images
are looked for in the file's own folder, then below it in `images/`, `<split>/` and `images/<split>/`; an `s3://` URI or
the absolute path of a file on this machine is taken as it is.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from locray import storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.fields import decode_text, format_number, parse_number, parse_side_px
from locray.datasets.files import ImageFinder, choose_split, list_files
from locray.datasets.records import Annotation, Box, Dataset, ImageAnnotations
from locray.errors import UsageError
from locray.schema import CORNERS, FILENAME, HEIGHT, WIDTH

CLASS = "class"

LABELS_EXTENSION = "_labels.csv"
EXTENSION = ".csv"
EXPECTED = f"<split>{EXTENSION} or <split>{LABELS_EXTENSION}, here or in images/"


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, list_files(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The existing images that the split's file names.

    Raises:
        UsageError: no such split, an invalid row (the message names file, line and field), or no image found.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    file_uri = choose_split(_split_files(data_uri, uris), split, data_uri, EXPECTED)
    images = ImageFinder(uris)
    folder_uri = file_uri.rpartition("/")[0]
    folder_uris = [storage.join(folder_uri, *place) for place in ((), ("images",), (split,), ("images", split))]
    builder = DatasetBuilder(data_uri, split, object_noun="line")
    for image in parse_csv(decode_text(storage.read_bytes(file_uri), file_uri), file_uri):
        builder.add(images.find_or_absolute(folder_uris, image.filename or ""), image)
    return builder.build()


def parse_csv(text: str, where: str) -> list[ImageAnnotations]:
    """The images of a CSV file, each once, in the order of their first row.

    Args:
        text: The whole file with its header line.
        where: The file's name in messages.

    Raises:
        UsageError: a missing column, or an invalid row; the message names line and field.
    """
    images: dict[str, _Image] = {}
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        column_of = _columns(next(rows, []), where)
        for row in rows:
            if row:
                _take_row(images, row, column_of, where, rows.line_num)
    except csv.Error as error:
        raise UsageError(f"{where}, line {rows.line_num}: not a CSV row ({error}).") from None
    return [
        ImageAnnotations(name, tuple(image.objects), image.width_px, image.height_px, image.where, image.lines)
        for name, image in images.items()
    ]


def write_csv(images: Iterable[ImageAnnotations]) -> str:
    """A CSV file; the inverse of `parse_csv`.

    Args:
        images: With distinct file names, and without crowds.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([FILENAME, WIDTH, HEIGHT, CLASS, *CORNERS])
    for image in images:
        frame = ["" if side is None else side for side in (image.width_px, image.height_px)]
        if not image.objects:
            writer.writerow([image.filename, *frame, "", "", "", "", ""])
        for annotation in image.objects:
            assert not annotation.is_crowd, "there is no column for crowds"
            box = ["", "", "", ""] if annotation.box_xyxy_px is None else map(format_number, annotation.box_xyxy_px)
            writer.writerow([image.filename, *frame, annotation.label, *box])
    return text.getvalue()


class _Image:
    """Content of the rows read so far for one image."""

    def __init__(self, width_px: int | None, height_px: int | None, where: str) -> None:
        self.width_px = width_px
        self.height_px = height_px
        self.where = where
        self.objects: list[Annotation] = []
        self.lines: list[int] = []


def _columns(header: list[str], where: str) -> dict[str, int]:
    names = [name.strip() for name in header]
    missing = [name for name in (FILENAME, CLASS, *CORNERS) if name not in names]
    if missing:
        raise UsageError(
            f"{where}, line 1: found the columns {', '.join(names) or '(none)'}; missing {', '.join(missing)}. "
            f"Expected a header line {','.join((FILENAME, CLASS, *CORNERS))}[,{WIDTH},{HEIGHT}], in any order."
        )
    return {name: position for position, name in enumerate(names)}


def _take_row(
    images: dict[str, _Image], row: list[str], column_of: Mapping[str, int], file_name: str, line: int
) -> None:
    where = f"{file_name}, line {line}"
    if len(row) != len(column_of):
        raise UsageError(f"{where}: found {len(row)} fields, expected {len(column_of)} as in the header line.")
    fields = {name: row[position] for name, position in column_of.items()}
    if not fields[FILENAME].strip():
        raise UsageError(f"{where}, field {FILENAME}: found nothing, expected the name of an image.")
    width_px = parse_side_px(fields.get(WIDTH), f"{where}, field {WIDTH}")
    height_px = parse_side_px(fields.get(HEIGHT), f"{where}, field {HEIGHT}")
    image = images.get(fields[FILENAME])
    if image is None:
        image = images[fields[FILENAME]] = _Image(width_px, height_px, f"{file_name}, image {fields[FILENAME]!r}")
    if (image.width_px, image.height_px) != (width_px, height_px):
        raise UsageError(
            f"{where}, fields {WIDTH} and {HEIGHT}: found {width_px} x {height_px} for {fields[FILENAME]!r}, "
            f"but {image.width_px} x {image.height_px} in an earlier line. Expected one size per image."
        )
    label = fields[CLASS].strip()
    has_box = any(fields[name].strip() for name in CORNERS)
    if not label and has_box:
        raise UsageError(f"{where}, field {CLASS}: found nothing beside a box, expected the name of its class.")
    if label:
        image.lines.append(line)
        image.objects.append(Annotation(label, _box(fields, where) if has_box else None))


def _box(fields: Mapping[str, str], where: str) -> Box:
    xmin, ymin, xmax, ymax = (parse_number(fields[name], f"{where}, field {name}") for name in CORNERS)
    return xmin, ymin, xmax, ymax


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, str]:
    """The file of each split: `<split>.csv`, else `<split>_labels.csv`, else the latter in images/."""
    files: dict[str, str] = {}
    for folders, ending in (((), EXTENSION), ((), LABELS_EXTENSION), (("images",), LABELS_EXTENSION)):
        folder_uri = storage.join(data_uri, *folders)
        for uri in uris:
            folder, _, name = uri.rpartition("/")
            split = name[: -len(ending)]
            is_of_other_kind = ending == EXTENSION and name.lower().endswith(LABELS_EXTENSION)
            if folder == folder_uri and name.lower().endswith(ending) and split and not is_of_other_kind:
                files.setdefault(split, uri)
    return files
