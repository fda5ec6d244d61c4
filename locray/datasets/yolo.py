"""YOLO: one text file per image, boxes relative to its sides. Format name `yolo`.

A line is `<class number> <centre x> <centre y> <width> <height>`, optionally with a confidence, which is ignored; or a
class number and the corners of a polygon as x y pairs, whose bounding box is taken. An image without a label file,
or with an empty one, shows no objects.

Images lie in `images/<split>/` and labels in `labels/<split>/`; or in `<split>/images/` and `<split>/labels/`; or
images and labels side by side in a folder with the usual name of a split or CVAT's `obj_<split>_data/`. The paths under
`train`, `val` and `test` of a `data.yaml` (any `.yaml` at the root with `names`) or of Darknet's `obj.data` define
splits, too: folders, or lists of images; so does a list `train.txt`, `val.txt` or `test.txt` that nothing names. Paths
of another machine are matched by their longest tail. Without any of these, everything is the split `train`.

The names of the classes are in `data.yaml`, `classes.txt` or a `.names` file.
"""

from collections.abc import Iterable, Sequence

import yaml

from locray import storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.fields import decode_text, format_number, parse_number
from locray.datasets.files import choose_split, list_files
from locray.datasets.records import Annotation, Box, Dataset, ImageAnnotations, ParsedFile, SkipReason
from locray.datasets.yolo_description import read_classes, read_description
from locray.datasets.yolo_labels import LabelFiles
from locray.datasets.yolo_layout import IMAGES, find_splits
from locray.datasets.yolo_polygons import BOX_FIELDS, MAX_OVERHANG, WITH_CONFIDENCE, check_polygons
from locray.errors import UsageError

EXPECTED = (
    "images/<split>/ and labels/<split>/, or <split>/images/ and <split>/labels/, with a data.yaml or classes.txt"
)
_SPLIT_KEYS = ("train", "val", "test")


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted; also of those that the data names and that have no image here."""
    uris = list_files(data_uri)
    return sorted(find_splits(data_uri, uris, read_description(data_uri, uris)))


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split with the objects of their label files.

    Raises:
        UsageError: no such split, a split that names no image that is here, no class names, an invalid line (the
            message names file, line and field), or no image left.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    description = read_description(data_uri, uris)
    chosen = choose_split(find_splits(data_uri, uris, description), split, data_uri, EXPECTED)
    if not chosen.image_uris:
        raise UsageError(
            f"Split {split!r} of {data_uri} names {len(chosen.missing)} paths and no image that is here. The first: "
            f"{chosen.missing[0]}. Expected folders or lists of images below {data_uri}: correct the paths."
        )
    classes = read_classes(data_uri, uris, description)
    labels = LabelFiles(data_uri, uris)
    label_uris = [labels.of_image(image_uri) for image_uri in chosen.image_uris]
    existing = list(dict.fromkeys(uri for uri in label_uris if uri is not None))
    texts = {uri: decode_text(data, uri) for uri, data in zip(existing, storage.read_all(existing), strict=True)}
    check_polygons(texts)
    builder = DatasetBuilder(data_uri, split, object_noun="line")
    for image_uri, label_uri in zip(chosen.image_uris, label_uris, strict=True):
        if label_uri is None:
            builder.add(image_uri, ImageAnnotations(None, (), 1, 1))
            continue
        parsed = parse_yolo(texts[label_uri], classes, label_uri)
        builder.skip_all(parsed.skipped)
        builder.add(image_uri, parsed.images[0])
    for uri in labels.without_image(split, chosen.image_uris):
        builder.skip(SkipReason.NO_IMAGE, f"{uri}: there is no image of this name")
    for place in chosen.missing:
        builder.skip(SkipReason.NO_IMAGE, place)
    return builder.build()


def parse_yolo(text: str, classes: Sequence[str], where: str) -> ParsedFile:
    """One image, in a frame of 1 x 1; skips lines with a class number out of range.

    Args:
        text: The whole label file.
        classes: The name of each class number.
        where: The file's name in messages.

    Raises:
        UsageError: an invalid line; the message names line and field.
    """
    objects, lines = [], []
    skipped: list[tuple[SkipReason, str]] = []
    for line, fields in enumerate(map(str.split, text.splitlines()), start=1):
        if not fields:
            continue
        class_number = _class_number(fields[0], where, line)
        box = _box(fields[1:], where, line)
        if 0 <= class_number < len(classes):
            objects.append(Annotation(classes[class_number], box))
            lines.append(line)
        else:
            place = f"{where}, line {line}: class {class_number}, known are 0 to {len(classes) - 1}"
            skipped.append((SkipReason.UNKNOWN_CLASS, place))
    return ParsedFile([ImageAnnotations(None, tuple(objects), 1, 1, where, lines)], skipped)


def write_yolo(image: ImageAnnotations, classes: Sequence[str]) -> str:
    """A label file; the inverse of `parse_yolo` but for rounding of the last digit.

    Args:
        image: With a known size, and objects that all have a box and are no crowds.
        classes: The labels in the order of their numbers.
    """
    width, height = image.width_px, image.height_px
    assert width is not None, "relative boxes need the image's size"
    assert height is not None
    lines = []
    for annotation in image.objects:
        assert annotation.box_xyxy_px is not None, "an object needs its box"
        assert not annotation.is_crowd, "there is no field for crowds"
        xmin, ymin, xmax, ymax = annotation.box_xyxy_px
        shares = ((xmin + xmax) / 2 / width, (ymin + ymax) / 2 / height, (xmax - xmin) / width, (ymax - ymin) / height)
        lines.append(" ".join([str(classes.index(annotation.label)), *map(format_number, shares)]))
    return "".join(f"{line}\n" for line in lines)


def write_data_yaml(classes: Sequence[str], splits: Iterable[str] = ()) -> str:
    """A `data.yaml` that names the classes, and the folders of those splits that YOLO knows."""
    folders = {split: f"{IMAGES}/{split}" for split in _SPLIT_KEYS if split in splits}
    return yaml.safe_dump(folders | {"names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True)


def _class_number(field: str, where: str, line: int) -> int:
    value = parse_number(field, f"{where}, line {line}, field 1 (class)")
    if value != int(value):
        raise UsageError(f"{where}, line {line}, field 1 (class): found {field!r}, expected a whole number.")
    return int(value)


def _box(fields: Sequence[str], where: str, line: int) -> Box:
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if not values or not all(abs(value) < float("inf") for value in values):
        values = [parse_number(field, f"{where}, line {line}, field {at}") for at, field in enumerate(fields, start=2)]
    count = 1 + len(values)
    if count in (BOX_FIELDS, WITH_CONFIDENCE):
        x, y, width, height = values[:4]
        if count == WITH_CONFIDENCE and not 0 <= values[4] <= 1:
            raise UsageError(
                f"{where}, line {line}, field 6: found {fields[4]}, expected a confidence between 0 and 1 after the "
                "box. Rotated boxes (an angle) and tracks (a number) can't be read."
            )
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if count < BOX_FIELDS or not count % 2:
        raise UsageError(
            f"{where}, line {line}: found {count} fields, expected a class, a centre, width and height (5 fields), "
            "or a class and the corners of a polygon (7, 9, 11, ... fields)."
        )
    outside = next((at for at, value in enumerate(values) if not -MAX_OVERHANG <= value <= 1 + MAX_OVERHANG), None)
    if outside is not None:
        raise UsageError(
            f"{where}, line {line}, field {outside + 2}: found {fields[outside]} in a line of {count} fields, expected "
            "the corners of a polygon, between 0 and 1. Key points, tracks and pixels can't be read."
        )
    return min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])
