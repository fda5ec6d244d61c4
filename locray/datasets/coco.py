"""COCO JSON: one file per split. Format name `coco`.

A split's file is `instances_<split>.json` or `<split>.json`, at the root or in `annotations/`, or
`<split>/_annotations.coco.json` (without a folder: the split `train`). Its images are looked for in the file's own
folder, then at the root and in `<split>/`, `images/` and `images/<split>/`; an `s3://` URI or the absolute path of a
file on this machine is taken as it is.

Category ids may be any numbers. Supercategories and key points are ignored. `bbox` is (left, top, width, height);
without one, the box is that of the `segmentation`; without either, only the class is known. Several `images` entries of
one file are one image.
"""

import json
import math
import posixpath
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from typing import Any

from locray import storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.coco_segmentation import box_of_segmentation
from locray.datasets.fields import (
    abbreviate,
    json_list,
    json_number,
    json_numbers,
    json_object,
    json_side_px,
    to_json_number,
)
from locray.datasets.files import ImageFinder, choose_split, extension_of, list_files, relative_path
from locray.datasets.records import Annotation, Dataset, ImageAnnotations, ParsedFile, SkipReason
from locray.errors import UsageError
from locray.schema import HEIGHT, WIDTH

EXTENSION = ".json"
PREFIX = "instances_"
ROBOFLOW_FILE = "_annotations.coco.json"
EXPECTED = f"{PREFIX}<split>{EXTENSION} or <split>{EXTENSION}, here or in annotations/, or <split>/{ROBOFLOW_FILE}"

ONLY_SPLIT = "train"

_FOLDERS = ("", "annotations")
_OTHER_TASKS = ("captions_", "panoptic_", "person_keypoints_", "stuff_", "image_info_")


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, list_files(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The existing images that the split's file names.

    Raises:
        UsageError: no such split, a file that can't be parsed (the message names entry and field), or no image found.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    file_uri = choose_split(_split_files(data_uri, uris), split, data_uri, EXPECTED)
    images = ImageFinder(uris)
    places = ((), (split,), ("images",), ("images", split))
    folder_uris = [file_uri.rpartition("/")[0], *(storage.join(data_uri, *place) for place in places)]
    builder = DatasetBuilder(data_uri, split, object_noun="annotation")
    parsed = parse_coco(storage.read_bytes(file_uri), file_uri)
    builder.skip_all(parsed.skipped)
    for image in parsed.images:
        builder.add(images.find_or_absolute(folder_uris, image.filename or ""), image)
    return builder.build()


def parse_coco(data: bytes, where: str) -> ParsedFile:
    """The images of a COCO file, in its order, each with its annotations.

    Skips images with the id of an earlier one, and annotations of an undeclared category or image.

    Args:
        data: The whole file.
        where: The file's name in messages.

    Raises:
        UsageError: not JSON, not COCO, an invalid entry, or ids that are text in one place and numbers in another; the
            message names entry and field.
    """
    document = json_object(data, where)
    labels = _labels(json_list(document, "categories", where), where)
    skipped: list[tuple[SkipReason, str]] = []
    images: dict[Hashable, tuple[Mapping[str, Any], str]] = {}
    for index, image in enumerate(json_list(document, "images", where)):
        image_id = _id_of(image, f"{where}, images[{index}]")
        place = f"{where}, image {image_id}"
        if image_id in images:
            skipped.append((SkipReason.DUPLICATE_ID, place))
        else:
            images[image_id] = (image, place)
    objects = _objects(json_list(document, "annotations", where), labels, images.keys(), where, skipped)
    return ParsedFile([_image(image, place, objects[image_id]) for image_id, (image, place) in images.items()], skipped)


def write_coco(images: Iterable[ImageAnnotations]) -> bytes:
    """A COCO file; the inverse of `parse_coco`. Every image needs a file name."""
    images = list(images)
    labels = sorted({annotation.label for image in images for annotation in image.objects})
    category_ids = {label: number for number, label in enumerate(labels, start=1)}
    objects = [(number, each) for number, image in enumerate(images, start=1) for each in image.objects]
    document = {
        "images": [_image_entry(number, image) for number, image in enumerate(images, start=1)],
        "annotations": [
            _annotation_entry(number, image_id, category_ids[annotation.label], annotation)
            for number, (image_id, annotation) in enumerate(objects, start=1)
        ],
        "categories": [{"id": number, "name": label} for label, number in category_ids.items()],
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def _image_entry(number: int, image: ImageAnnotations) -> dict[str, Any]:
    assert image.filename is not None
    sides = {WIDTH: image.width_px, HEIGHT: image.height_px}
    known = {name: side for name, side in sides.items() if side is not None}
    return {"id": number, "file_name": image.filename, **known}


def _annotation_entry(number: int, image_id: int, category_id: int, annotation: Annotation) -> dict[str, Any]:
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": int(annotation.is_crowd)}
    if annotation.box_xyxy_px is None:
        return entry
    xmin, ymin, xmax, ymax = annotation.box_xyxy_px
    width, height = xmax - xmin, ymax - ymin
    return {
        **entry,
        "bbox": [to_json_number(value) for value in (xmin, ymin, width, height)],
        "area": to_json_number(width * height),
    }


def _labels(categories: Sequence[Any], where: str) -> dict[Hashable, str]:
    """Name of each category by id."""
    labels: dict[Hashable, str] = {}
    for index, category in enumerate(categories):
        place = f"{where}, categories[{index}]"
        category_id = _id_of(category, place)
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{place}, field name: found {abbreviate(name)}, expected the name of a class.")
        if labels.setdefault(category_id, name.strip()) != name.strip():
            raise UsageError(
                f"{place}, field id: found {category_id} for {name!r}, but it was {labels[category_id]!r} before. "
                "Expected one name per id."
            )
    return labels


def _objects(
    annotations: Sequence[Any],
    labels: Mapping[Hashable, str],
    image_ids: Iterable[Hashable],
    where: str,
    skipped: list[tuple[SkipReason, str]],
) -> dict[Hashable, list[tuple[int, Annotation]]]:
    """The annotations by image id, each with its own id; adds to `skipped`.

    An id need not be unique: where files of several images are joined, they often come again. Messages name the
    position in the list where there is none.
    """
    objects: dict[Hashable, list[tuple[int, Annotation]]] = {image_id: [] for image_id in image_ids}
    for index, entry in enumerate(annotations):
        image_id = _id_of(entry, where, "image_id", index)
        category_id = _id_of(entry, where, "category_id", index)
        if image_id not in objects:
            place = _place(entry, where, index)
            _check_kind(image_id, objects, f"{place}, field image_id", "images")
            skipped.append((SkipReason.UNKNOWN_IMAGE, f"{place}: image {image_id}"))
        elif category_id not in labels:
            place = _place(entry, where, index)
            _check_kind(category_id, labels, f"{place}, field category_id", "categories")
            skipped.append((SkipReason.UNKNOWN_CLASS, f"{place}: category {category_id}"))
        else:
            number = entry.get("id")
            annotation = _annotation(entry, labels[category_id], where, index)
            objects[image_id].append((number if isinstance(number, int) else index, annotation))
    return objects


def _annotation(entry: Mapping[str, Any], label: str, where: str, index: int) -> Annotation:
    # The names of places are made for messages only: that would take a third of the time of a large file.
    is_crowd = entry.get("iscrowd") or False
    if not isinstance(is_crowd, bool):
        is_crowd = json_number(is_crowd, f"{_place(entry, where, index)}, field iscrowd") != 0
    bbox = entry.get("bbox")
    if not bbox:
        segmentation = entry.get("segmentation")
        box = box_of_segmentation(segmentation, f"{_place(entry, where, index)}, field segmentation")
        return Annotation(label, box, is_crowd)
    try:
        left, top, width, height = map(float, bbox)
        is_valid = isinstance(bbox, list) and math.isfinite(left + top + width + height)
    except (TypeError, ValueError, OverflowError):
        is_valid = False
    if not is_valid:
        left, top, width, height = json_numbers(bbox, 4, f"{_place(entry, where, index)}, field bbox")
    return Annotation(label, (left, top, left + width, top + height), is_crowd)


def _place(entry: object, where: str, index: int) -> str:
    """An annotation in messages: by its id, or by its position in the list."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return f"{where}, annotations[{index}]" if number is None else f"{where}, annotation {number}"


def _check_kind(found: int | str, known: Container[Hashable], place: str, members: str) -> None:
    """Raises UsageError if the id is that of another entry but for its type: the text "1" and the number 1."""
    is_text = isinstance(found, str)
    other = int(found) if isinstance(found, str) and found.strip().isdecimal() else str(found)
    if other not in known:
        return
    text, number = f'the text "{found}"', f"the number {other}"
    if not is_text:
        text, number = f'the text "{other}"', f"the number {found}"
    here, there = (text, number) if is_text else (number, text)
    raise UsageError(f"{place}: found {here}, but {members} has {there}. Expected ids of one type.")


def _image(image: Mapping[str, Any], place: str, objects: Sequence[tuple[int, Annotation]]) -> ImageAnnotations:
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        raise UsageError(f"{place}, field file_name: found {abbreviate(file_name)}, expected the name of an image.")
    return ImageAnnotations(
        filename=file_name,
        objects=tuple(annotation for _, annotation in objects),
        width_px=json_side_px(image.get(WIDTH), f"{place}, field {WIDTH}"),
        height_px=json_side_px(image.get(HEIGHT), f"{place}, field {HEIGHT}"),
        where=place,
        object_numbers=tuple(number for number, _ in objects),
    )


def _id_of(entry: object, place: str, field: str = "id", index: int | None = None) -> int | str:
    """An id: an integer, a whole number as pandas writes it (1.0), or a string as some tools write.

    `index` is the position of an annotation, of which `place` is the file.
    """
    value = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if index is not None:
        place = _place(entry, place, index)
    if not isinstance(entry, dict):
        raise UsageError(f"{place}: found {abbreviate(entry)}, expected a JSON object.")
    raise UsageError(f"{place}, field {field}: found {abbreviate(value)}, expected an id.")


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, str]:
    """The file of each split: `instances_<split>.json` before `<split>.json`."""
    files: dict[str, str] = {}
    named = [relative_path(data_uri, uri) for uri in uris if extension_of(uri) == EXTENSION]
    by_path = {path: storage.join(data_uri, path) for path in named}
    for prefix in (PREFIX, ""):
        for path, uri in by_path.items():
            folder, name = posixpath.split(path)
            stem = posixpath.splitext(name)[0]
            if name.lower() == ROBOFLOW_FILE:
                files.setdefault(posixpath.basename(folder) or ONLY_SPLIT, uri)
            elif folder in _FOLDERS and stem.startswith(prefix) and not stem.startswith(_OTHER_TASKS):
                files.setdefault(stem.removeprefix(PREFIX), uri)
    return files
