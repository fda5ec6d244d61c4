"""COCO JSON: one file a split. Format name `coco`. Read through `locray.datasets`.

A split's file is `instances_<split>.json` or `<split>.json`, at the root or in `annotations/`, or
`<split>/_annotations.coco.json` (without a folder: the split `train`). Its images are looked for in the file's own
folder, then at the root and in `<split>/`, `images/` and `images/<split>/`; an `s3://` URI or the absolute path of a
file on this machine is taken as it is.

Numbers of categories need not begin at 0 nor follow each other; a supercategory, segmentations and key points are
ignored. `bbox` is (left, top, width, height); an annotation without one is an object of which only the class is known.
"""

import json
import posixpath
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from locray import storage
from locray.datasets.building import DatasetBuilder
from locray.datasets.fields import (
    json_list,
    json_number,
    json_numbers,
    json_object,
    json_side_px,
    plain_number,
    shown,
)
from locray.datasets.files import ImageFinder, below, ending_of, list_files, missing_split
from locray.datasets.records import Annotation, Dataset, Described, Parsed, SkipReason
from locray.errors import UsageError
from locray.schema import HEIGHT, WIDTH

ENDING = ".json"
PREFIX = "instances_"
ROBOFLOW_FILE = "_annotations.coco.json"
EXPECTED = f"{PREFIX}<split>{ENDING} or <split>{ENDING}, here or in annotations/, or <split>/{ROBOFLOW_FILE}"

ONLY_SPLIT = "train"

_FOLDERS = ("", "annotations")
_OTHER_TASKS = ("captions_", "panoptic_", "person_keypoints_", "stuff_", "image_info_")


def splits(data_uri: str) -> list[str]:
    """The names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, list_files(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The images that the split's file names and that are there.

    Raises:
        UsageError: no such split, a file that can't be read (naming entry and field), or no image found.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    files = _split_files(data_uri, uris)
    if split not in files:
        raise missing_split(data_uri, split, files, EXPECTED)
    images = ImageFinder(uris)
    file_uri = files[split]
    places = ((), (split,), ("images",), ("images", split))
    folder_uris = [file_uri.rpartition("/")[0], *(storage.join(data_uri, *place) for place in places)]
    builder = DatasetBuilder(data_uri, split, object_noun="annotation")
    parsed = parse_coco(storage.read_bytes(file_uri), file_uri)
    builder.leave_out_all(parsed.skipped)
    for described in parsed.images:
        image_uri = images.locate(folder_uris, described.filename or "")
        if image_uri is None:
            builder.leave_out(SkipReason.NO_IMAGE, f"{described.where}: there is no image {described.filename!r}")
        else:
            builder.add(image_uri, described)
    return builder.build()


def parse_coco(data: bytes, where: str) -> Parsed:
    """The images of a COCO file, in its order, each with its annotations.

    Left out: images and annotations whose id was there before, annotations of a category or an image that the file
    does not declare.

    Args:
        data: The whole file.
        where: What to call the file in messages.

    Raises:
        UsageError: no JSON, no COCO, or an entry that can't be read; names entry and field.
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
    described = [_described(image, place, objects.get(image_id, [])) for image_id, (image, place) in images.items()]
    return Parsed(described, skipped)


def write_coco(images: Iterable[Described]) -> bytes:
    """The file that `parse_coco` reads back into the same images, each with a file name."""
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


def _image_entry(number: int, image: Described) -> dict[str, Any]:
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
        "bbox": [plain_number(value) for value in (xmin, ymin, width, height)],
        "area": plain_number(width * height),
    }


def _labels(categories: Sequence[Any], where: str) -> dict[Hashable, str]:
    """Each category's name by its id."""
    labels: dict[Hashable, str] = {}
    for index, category in enumerate(categories):
        place = f"{where}, categories[{index}]"
        category_id = _id_of(category, place)
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{place}, field name: found {shown(name)}, expected the name of a class.")
        if labels.setdefault(category_id, name.strip()) != name.strip():
            raise UsageError(
                f"{place}, field id: found {category_id} for {name!r}, but it was {labels[category_id]!r} before. "
                "Expected one name for an id."
            )
    return labels


def _objects(
    annotations: Sequence[Any],
    labels: Mapping[Hashable, str],
    image_ids: Iterable[Hashable],
    where: str,
    skipped: list[tuple[SkipReason, str]],
) -> dict[Hashable, list[tuple[int, Annotation]]]:
    """The annotations by the id of their image, each with its own id; adds to `skipped`."""
    objects: dict[Hashable, list[tuple[int, Annotation]]] = {image_id: [] for image_id in image_ids}
    seen: set[Hashable] = set()
    for index, entry in enumerate(annotations):
        # Not every tool gives annotations an id: then its place in the list stands for it.
        named = isinstance(entry, dict) and "id" in entry
        annotation_id = _id_of(entry, f"{where}, annotations[{index}]") if named else f"[{index}]"
        place = f"{where}, annotation {annotation_id}"
        image_id = _id_of(entry, place, "image_id")
        category_id = _id_of(entry, place, "category_id")
        if annotation_id in seen:
            skipped.append((SkipReason.DUPLICATE_ID, place))
        elif image_id not in objects:
            skipped.append((SkipReason.UNKNOWN_IMAGE, f"{place}: image {image_id}"))
        elif category_id not in labels:
            skipped.append((SkipReason.UNKNOWN_CLASS, f"{place}: category {category_id}"))
        else:
            number = annotation_id if isinstance(annotation_id, int) else index
            objects[image_id].append((number, _annotation(entry, labels[category_id], place)))
        seen.add(annotation_id)
    return objects


def _annotation(entry: Mapping[str, Any], label: str, place: str) -> Annotation:
    is_crowd = json_number(entry.get("iscrowd") or 0, f"{place}, field iscrowd") != 0
    if not entry.get("bbox"):
        return Annotation(label, None, is_crowd)
    xmin, ymin, width, height = json_numbers(entry["bbox"], 4, f"{place}, field bbox")
    return Annotation(label, (xmin, ymin, xmin + width, ymin + height), is_crowd)


def _described(image: Mapping[str, Any], place: str, objects: Sequence[tuple[int, Annotation]]) -> Described:
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        raise UsageError(f"{place}, field file_name: found {shown(file_name)}, expected the name of an image.")
    return Described(
        filename=file_name,
        objects=tuple(annotation for _, annotation in objects),
        width_px=json_side_px(image.get(WIDTH), f"{place}, field {WIDTH}"),
        height_px=json_side_px(image.get(HEIGHT), f"{place}, field {HEIGHT}"),
        where=place,
        object_numbers=tuple(number for number, _ in objects),
    )


def _id_of(entry: object, place: str, field: str = "id") -> int | str:
    """An id; whole numbers, or names as some tools give them."""
    value = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    if not isinstance(entry, dict):
        raise UsageError(f"{place}: found {shown(entry)}, expected a JSON object.")
    raise UsageError(f"{place}, field {field}: found {shown(value)}, expected an id.")


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, str]:
    """Each split's file, by the split's name: `instances_<split>.json` before `<split>.json`."""
    files: dict[str, str] = {}
    named = [below(data_uri, uri) for uri in uris if ending_of(uri) == ENDING]
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
