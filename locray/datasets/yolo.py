"""YOLO: one text file per image, boxes relative to its sides. Format name `yolo`.

A line is `<class number> <centre x> <centre y> <width> <height>`, optionally with a confidence, which is ignored; or a
class number and the corners of a polygon as x y pairs, whose bounding box is taken. An image without a label file,
or with an empty one, shows no objects.

Images lie in `images/<split>/` and labels in `labels/<split>/`; or in `<split>/images/` and `<split>/labels/`; or
images and labels side by side in one of those. Without folders for splits, everything is the split `train`. The names
of the classes are in `data.yaml` (any `.yaml` at the root with `names`), `classes.txt` or a `.names` file. The paths
under `train`, `val` and `test` of the YAML file define splits, too, if a folder or a list of images is there.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from locray import storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.fields import abbreviate, decode_text, format_number, parse_number
from locray.datasets.files import ImageFinder, choose_split, extension_of, is_image_name, list_files, relative_path
from locray.datasets.records import Annotation, Box, Dataset, ImageAnnotations, ParsedFile, SkipReason
from locray.errors import UsageError

EXPECTED = (
    "images/<split>/ and labels/<split>/, or <split>/images/ and <split>/labels/, with a data.yaml or classes.txt"
)
ONLY_SPLIT = "train"

_IMAGES, _LABELS = "images", "labels"
_SPLIT_KEYS = ("train", "val", "test")
_BOX_FIELDS = 5
_WITH_CONFIDENCE = 6
_CLASS_FILES = ("classes.txt", ".names")


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    uris = list_files(data_uri)
    return sorted(_split_images(data_uri, uris, _description(data_uri, uris)))


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split with the objects of their label files.

    Raises:
        UsageError: no such split, no class names, an invalid line (the message names file, line and field), or no
            image left.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    description = _description(data_uri, uris)
    image_uris = choose_split(_split_images(data_uri, uris, description), split, data_uri, EXPECTED)
    classes = _classes(data_uri, uris, description)
    present = {uri for uri in uris if extension_of(uri) == ".txt" and not _is_class_file(uri)}
    label_uris = [_label_uri(data_uri, image_uri, present) for image_uri in image_uris]
    existing = [uri for uri in label_uris if uri is not None]
    texts = dict(zip(existing, storage.read_all(existing), strict=True))
    builder = DatasetBuilder(data_uri, split, object_noun="line")
    for image_uri, label_uri in zip(image_uris, label_uris, strict=True):
        if label_uri is None:
            builder.add(image_uri, ImageAnnotations(None, (), 1, 1))
            continue
        parsed = parse_yolo(decode_text(texts[label_uri], label_uri), classes, label_uri)
        builder.skip_all(parsed.skipped)
        builder.add(image_uri, parsed.images[0])
    for uri in _labels_without_image(data_uri, image_uris, present - set(existing)):
        builder.skip(SkipReason.NO_IMAGE, f"{uri}: there is no image of this name")
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
    folders = {split: f"{_IMAGES}/{split}" for split in _SPLIT_KEYS if split in splits}
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
    if count in (_BOX_FIELDS, _WITH_CONFIDENCE):
        x, y, width, height = values[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if count < _BOX_FIELDS or not count % 2:
        raise UsageError(
            f"{where}, line {line}: found {count} fields, expected a class, a centre, width and height (5 fields), "
            "or a class and the corners of a polygon (7, 9, 11, ... fields)."
        )
    return min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])


def _description(data_uri: str, uris: Sequence[str]) -> Mapping[str, Any]:
    """Returns the content of the YAML file at the root; empty if there is none with `names`."""
    for uri in uris:
        if extension_of(uri) not in (".yaml", ".yml") or "/" in relative_path(data_uri, uri):
            continue
        text = decode_text(storage.read_bytes(uri), uri)
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(f"{uri}: not YAML ({' '.join(str(error).split())}).") from None
        if isinstance(content, dict) and "names" in content:
            if "kpt_shape" in content:
                raise UsageError(f"{uri}, field kpt_shape: found a data set of key points, expected one of boxes.")
            return content
    return {}


def _classes(data_uri: str, uris: Sequence[str], description: Mapping[str, Any]) -> list[str]:
    if description:
        return _named_classes(description["names"], data_uri)
    files = sorted(filter(_is_class_file, uris), key=lambda uri: uri.count("/"))
    if files:
        text = decode_text(storage.read_bytes(files[0]), files[0])
        return _named_classes([line.strip() for line in text.rstrip().splitlines()], files[0])
    raise UsageError(
        f"Found no class names in {data_uri}. "
        "Expected a data.yaml with `names`, or a classes.txt with one name per line."
    )


def _is_class_file(uri: str) -> bool:
    return uri.lower().endswith(_CLASS_FILES)


def _named_classes(names: object, where: str) -> list[str]:
    """The class names in order, from a list or a mapping of numbers to names."""
    if isinstance(names, dict):
        numbers = sorted(names) if all(isinstance(key, int) for key in names) else []
        if numbers != list(range(len(names))):
            found = abbreviate(list(names))
            raise UsageError(f"{where}, field names: found the numbers {found}, expected 0, 1, 2, ...")
        names = [names[key] for key in numbers]
    if not isinstance(names, list) or not names or not all(str(name).strip() for name in names):
        raise UsageError(f"{where}, field names: found {abbreviate(names)}, expected the name of each class.")
    return [str(name).strip() for name in names]


def _split_images(data_uri: str, uris: Sequence[str], description: Mapping[str, Any]) -> dict[str, list[str]]:
    """The images of each split, by the paths of the YAML file that exist and by folders."""
    images = [uri for uri in uris if is_image_name(uri)]
    by_folder: dict[str, list[str]] = {}
    for uri in images:
        split = _split_of(relative_path(data_uri, uri))
        if split is not None:
            by_folder.setdefault(split, []).append(uri)
    named = {
        key: found for key in _SPLIT_KEYS if (found := _images_at(data_uri, description.get(key), description, uris))
    }
    if not by_folder and not named:
        only = images if any(extension_of(uri) == ".txt" for uri in uris) else []
        return {ONLY_SPLIT: only} if only else {}
    # A folder that the YAML file gives another name (`val: valid/images`) is no second split.
    used = {uri for found in named.values() for uri in found}
    rest = {split: found for split, found in by_folder.items() if split not in named and not used.issuperset(found)}
    return named | rest


def _split_of(path: str) -> str | None:
    """The split of a path `images/<split>/...` or `<split>/images/...`; None for other paths."""
    parts = path.split("/")[:-1]
    if len(parts) < 2 or _IMAGES not in parts[:2]:  # noqa: PLR2004  # images/ and the split's folder
        return None
    return parts[1] if parts[0] == _IMAGES else parts[0]


def _images_at(data_uri: str, paths: object, description: Mapping[str, Any], uris: Sequence[str]) -> list[str]:
    """The images of a split that the YAML file gives as folders or lists; paths that don't exist here are ignored."""
    found: list[str] = []
    for path in paths if isinstance(paths, list) else [paths]:
        relative = _within(path, description.get("path"))
        if relative is None:
            continue
        uri = data_uri if relative == "." else storage.join(data_uri, relative)
        if extension_of(uri) == ".txt" and uri in uris:
            images = ImageFinder(each for each in uris if is_image_name(each))
            lines = decode_text(storage.read_bytes(uri), uri).splitlines()
            named = (images.find([data_uri, uri.rpartition("/")[0]], line.strip()) for line in lines)
            found += [image_uri for image_uri in named if image_uri is not None]
        else:
            found += [each for each in uris if each.startswith(f"{uri}/") and is_image_name(each)]
    return list(dict.fromkeys(found))


def _within(path: object, root: object) -> str | None:
    """A path of the YAML file relative to the data's root, without the root that it names and without `..`."""
    if not isinstance(path, str) or not path.strip():
        return None
    if isinstance(root, str) and root.startswith("/") and path.startswith(f"{root.rstrip('/')}/"):
        path = path[len(root.rstrip("/")) + 1 :]
    parts = [part for part in posixpath.normpath(path.strip().replace("\\", "/")).split("/") if part != ".."]
    return None if not parts or parts[0] == "" else "/".join(parts)


def _label_uri(data_uri: str, image_uri: str, present: set[str]) -> str | None:
    """The image's label file: in `labels/` instead of `images/`, or beside the image."""
    stem = posixpath.splitext(relative_path(data_uri, image_uri))[0]
    before, found, after = f"/{stem}".rpartition(f"/{_IMAGES}/")
    elsewhere = [f"{before}/{_LABELS}/{after}".lstrip("/")] if found else []
    candidates = (
        f"{storage.join(data_uri, path)}{ending}" for path in (*elsewhere, stem) for ending in (".txt", ".TXT")
    )
    return next((uri for uri in candidates if uri in present), None)


def _labels_without_image(data_uri: str, image_uris: Iterable[str], unused: Iterable[str]) -> list[str]:
    """Label files without an image, in the folders of the labels of the split's images."""
    folders = set()
    for uri in image_uris:
        folder = f"/{posixpath.dirname(relative_path(data_uri, uri))}/"
        before, found, after = folder.rpartition(f"/{_IMAGES}/")
        if found:
            folders.add(f"{before}/{_LABELS}/{after}".strip("/"))
    return sorted(uri for uri in unused if posixpath.dirname(relative_path(data_uri, uri)) in folders)
