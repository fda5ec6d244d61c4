"""Normalised regions: one JSON file of boxes by class and image. Format name `regions`.

The file is `{"<class>": {"<image>": [left, top, width, height], ...}, ...}`: boxes relative to the image's sides, the
image's name with or without its extension. Several boxes are a list of such lists. The file lies at the root as
`regions.json` (split `train`) or `regions_<split>.json`, its images anywhere below. Of two images with the same name,
the one in a folder named after the class is taken.
"""

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from locray import storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.fields import abbreviate, json_numbers, json_object, to_json_number
from locray.datasets.files import choose_split, is_image_name, list_files, nfc, relative_path
from locray.datasets.records import Annotation, Box, Dataset, ImageAnnotations, SkipReason
from locray.errors import UsageError

STEM, EXTENSION = "regions", ".json"
ONLY_SPLIT = "train"
EXPECTED = f"{STEM}{EXTENSION} or {STEM}_<split>{EXTENSION}"

_BOX_NUMBERS = 4


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, list_files(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The existing images that the split's file names.

    Raises:
        UsageError: no such split, an invalid file (the message names class and image), or no image found.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    file_uri = choose_split(_split_files(data_uri, uris), split, data_uri, EXPECTED)
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for uri in filter(is_image_name, uris):
        name = posixpath.basename(uri)
        for key in {name.lower(), posixpath.splitext(name)[0].lower()}:
            by_name[nfc(key)].append(uri)
    builder = DatasetBuilder(data_uri, split)
    for image in parse_regions(storage.read_bytes(file_uri), file_uri):
        images, missing = _images_of(image, by_name)
        if missing:
            builder.skip(SkipReason.NO_IMAGE, f"{image.where}: {missing}")
        for image_uri, objects in images.items():
            builder.add(image_uri, replace(image, objects=tuple(objects)))
    return builder.build()


def parse_regions(data: bytes, where: str) -> list[ImageAnnotations]:
    """The images of the file, each once, in the order of their first box, in a frame of 1 x 1.

    Args:
        data: The whole file.
        where: The file's name in messages.

    Raises:
        UsageError: not JSON, or an invalid entry; the message names class and image.
    """
    images: dict[str, list[Annotation]] = {}
    for label, entries in json_object(data, where).items():
        if not label.strip() or not isinstance(entries, dict):
            raise UsageError(
                f"{where}, class {label!r}: found {abbreviate(entries)}, expected images with their boxes."
            )
        for name, value in entries.items():
            boxes = _boxes(value, f"{where}, class {label!r}, image {name!r}")
            images.setdefault(name, []).extend(Annotation(label.strip(), box) for box in boxes)
    return [
        ImageAnnotations(name, tuple(objects), 1, 1, f"{where}, image {name!r}") for name, objects in images.items()
    ]


def write_regions(images: Iterable[ImageAnnotations]) -> bytes:
    """A regions file; the inverse of `parse_regions` but for the order of objects of different classes.

    Args:
        images: With distinct names, known sizes, and objects that all have a box and are no crowds. An image without
            objects can't be written in this format.
    """
    document: defaultdict[str, dict[str, list[Any]]] = defaultdict(dict)
    for image in images:
        assert image.filename is not None
        assert image.width_px is not None, "relative boxes need the image's size"
        assert image.height_px is not None
        for annotation in image.objects:
            assert annotation.box_xyxy_px is not None, "an object needs its box"
            assert not annotation.is_crowd, "there is no field for crowds"
            left, top, right, bottom = annotation.box_xyxy_px
            shares = (left / image.width_px, top / image.height_px)
            sides = ((right - left) / image.width_px, (bottom - top) / image.height_px)
            boxes = document[annotation.label].setdefault(image.filename, [])
            boxes.append([to_json_number(value) for value in (*shares, *sides)])
    plain = {
        label: {name: boxes[0] if len(boxes) == 1 else boxes for name, boxes in entries.items()}
        for label, entries in document.items()
    }
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()


def _boxes(value: object, place: str) -> list[Box]:
    several = isinstance(value, list) and all(isinstance(one, list) for one in value)
    found = []
    for one in value if several and isinstance(value, list) else [value]:
        left, top, width, height = json_numbers(one, _BOX_NUMBERS, place)
        found.append((left, top, left + width, top + height))
    return found


def _images_of(
    image: ImageAnnotations, by_name: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Annotation]], str | None]:
    """The objects by image URI, and why some of them have none."""
    candidates = by_name.get(nfc((image.filename or "").lower()), ())
    images: dict[str, list[Annotation]] = {}
    missing = None if candidates else "there is no image of this name"
    for annotation in image.objects if candidates else ():
        folder_names = {uri: nfc(posixpath.basename(posixpath.dirname(uri))) for uri in candidates}
        beside = [uri for uri in candidates if folder_names[uri] == nfc(annotation.label)]
        if len(candidates) > 1 and len(beside) != 1:
            missing = f"{len(candidates)} images have this name"
        else:
            images.setdefault(beside[0] if beside else candidates[0], []).append(annotation)
    return images, missing


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, str]:
    files = {}
    for uri in uris:
        stem, ending = posixpath.splitext(relative_path(data_uri, uri))
        if ending.lower() == EXTENSION and stem == STEM:
            files[ONLY_SPLIT] = uri
        elif ending.lower() == EXTENSION and stem.startswith(f"{STEM}_") and "/" not in stem:
            files.setdefault(stem.removeprefix(f"{STEM}_"), uri)
    return files
