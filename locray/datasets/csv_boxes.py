"""One CSV file a split, one row an object. Format name `csv`. Read through `locray.datasets`; written by the demo.

The first line names the columns, in any order: `filename,class,xmin,ymin,xmax,ymax` and, if known, `width,height`;
others are ignored. A row whose class and box are empty is an image without objects.

A split's file is `<root>/<split>.csv`, `<root>/<split>_labels.csv` or `<root>/images/<split>_labels.csv`. Its images
are looked for in the file's own folder, then below it in `images/`, `<split>/` and `images/<split>/`.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence, Set

from locray import storage
from locray.datasets.records import (
    Annotation,
    Dataset,
    DatasetBuilder,
    Described,
    LeftOut,
    decoded,
    missing_split,
    number,
    side_px,
)
from locray.errors import UsageError
from locray.schema import HEIGHT, WIDTH, XMAX, XMIN, YMAX, YMIN

FILENAME = "filename"
CLASS = "class"
BOX = (XMIN, YMIN, XMAX, YMAX)

LABELS_ENDING = "_labels.csv"
ENDING = ".csv"


def splits(data_uri: str) -> list[str]:
    """The names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, storage.list_uris(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The images that the split's file names and that are there; those that are not are left out and counted.

    Raises:
        UsageError: no such split, a row that can't be read (naming file, line and field), or no image found.
        StoreError: the store failed.
    """
    uris = storage.list_uris(data_uri)
    files = _split_files(data_uri, uris)
    if split not in files:
        raise missing_split(data_uri, split, files, f"<split>{ENDING} or <split>{LABELS_ENDING}, here or in images/")
    present = set(uris)
    folder_uri = files[split].rpartition("/")[0]
    builder = DatasetBuilder(data_uri, split)
    for described in parse_csv(decoded(storage.read_bytes(files[split]), files[split]), files[split]):
        image_uri = _find_image(folder_uri, split, described.filename or "", present)
        if image_uri is None:
            builder.leave_out(LeftOut.NO_IMAGE)
        else:
            builder.add(image_uri, described)
    return builder.build()


def parse_csv(text: str, where: str) -> list[Described]:
    """The images of a CSV text, each once, in the order of their first row.

    Args:
        text: The whole file, header line included.
        where: What to call the file in messages.

    Raises:
        UsageError: a column is missing, or a row can't be read; names line and field.
    """
    images: dict[str, _Image] = {}
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        column_of = _columns(next(rows, []), where)
        for row in rows:
            if row:
                _take_row(images, row, column_of, f"{where}, line {rows.line_num}")
    except csv.Error as error:
        raise UsageError(f"{where}, line {rows.line_num}: not a CSV row ({error}).") from None
    return [Described(name, tuple(image.objects), image.width_px, image.height_px) for name, image in images.items()]


def write_csv(images: Iterable[Described]) -> str:
    """The text that `parse_csv` reads back into the same images.

    Args:
        images: Each with a file name of its own, and with a width where it has a height.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([FILENAME, WIDTH, HEIGHT, CLASS, *BOX])
    for image in images:
        frame = ["" if side is None else side for side in (image.width_px, image.height_px)]
        if not image.objects:
            writer.writerow([image.filename, *frame, "", "", "", "", ""])
        for annotation in image.objects:
            writer.writerow([image.filename, *frame, annotation.label, *map(_plain, annotation.box_xyxy_px or ())])
    return text.getvalue()


class _Image:
    """What the rows read so far say of one image."""

    def __init__(self, width_px: int | None, height_px: int | None) -> None:
        self.width_px = width_px
        self.height_px = height_px
        self.objects: list[Annotation] = []


def _columns(header: list[str], where: str) -> dict[str, int]:
    names = [name.strip() for name in header]
    missing = [name for name in (FILENAME, CLASS, *BOX) if name not in names]
    if missing:
        raise UsageError(
            f"{where}, line 1: found the columns {', '.join(names) or '(none)'}; missing {', '.join(missing)}. "
            f"Expected a header line {','.join((FILENAME, CLASS, *BOX))}[,{WIDTH},{HEIGHT}], in any order."
        )
    return {name: position for position, name in enumerate(names)}


def _take_row(images: dict[str, _Image], row: list[str], column_of: Mapping[str, int], where: str) -> None:
    if len(row) != len(column_of):
        raise UsageError(f"{where}: found {len(row)} fields, expected {len(column_of)} as in the header line.")
    fields = {name: row[position] for name, position in column_of.items()}
    if not fields[FILENAME].strip():
        raise UsageError(f"{where}, field {FILENAME}: found nothing, expected the name of an image.")
    width_px = side_px(fields.get(WIDTH), f"{where}, field {WIDTH}")
    height_px = side_px(fields.get(HEIGHT), f"{where}, field {HEIGHT}")
    image = images.setdefault(fields[FILENAME], _Image(width_px, height_px))
    if (image.width_px, image.height_px) != (width_px, height_px):
        raise UsageError(
            f"{where}, fields {WIDTH} and {HEIGHT}: found {width_px} x {height_px} for {fields[FILENAME]!r}, "
            f"but {image.width_px} x {image.height_px} in an earlier line. Expected one frame for an image."
        )
    label = fields[CLASS].strip()
    if not label and not any(fields[name].strip() for name in BOX):
        return
    if not label:
        raise UsageError(f"{where}, field {CLASS}: found nothing beside a box, expected the name of its class.")
    xmin, ymin, xmax, ymax = (number(fields[name], f"{where}, field {name}") for name in BOX)
    image.objects.append(Annotation(label, (xmin, ymin, xmax, ymax)))


def _plain(value: float) -> str:
    """A number as people write it, and exact: 12 and not 12.0."""
    return str(int(value)) if value == int(value) else repr(value)


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, str]:
    """Each split's file, by the split's name: `<split>.csv` before `<split>_labels.csv`, that before one in images/."""
    files: dict[str, str] = {}
    for folders, ending in (((), ENDING), ((), LABELS_ENDING), (("images",), LABELS_ENDING)):
        folder_uri = storage.join(data_uri, *folders)
        for uri in uris:
            folder, _, name = uri.rpartition("/")
            split = name.removesuffix(ending)
            is_of_other_kind = ending == ENDING and name.endswith(LABELS_ENDING)
            if folder == folder_uri and name.endswith(ending) and split and not is_of_other_kind:
                files.setdefault(split, uri)
    return files


def _find_image(folder_uri: str, split: str, filename: str, present: Set[str]) -> str | None:
    if filename.startswith("/"):  # a path of the machine that the annotations were made on
        return None
    places = ((), ("images",), (split,), ("images", split))
    candidates = (storage.join(folder_uri, *place, filename) for place in places)
    return next((uri for uri in candidates if uri in present), None)
