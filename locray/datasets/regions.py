"""Normalised regions: one JSON file of boxes by class and image. Format name `regions`. Read through `locray.datasets`.

The file is `{"<class>": {"<image>": [left, top, width, height], ...}, ...}`: shares of the image's sides, the image's
name with or without its ending. Several boxes are a list of such lists. It lies at the root as `regions.json` (split
`train`) or `regions_<split>.json`, its images anywhere below. Where two images have the same name, the one in a folder
named as the class is meant.
"""

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from locray import storage
from locray.datasets.building import DatasetBuilder
from locray.datasets.fields import json_numbers, json_object, plain_number, shown
from locray.datasets.files import below, is_image_name, list_files, missing_split
from locray.datasets.records import Annotation, Box, Dataset, Described, SkipReason
from locray.errors import UsageError

STEM, ENDING = "regions", ".json"
ONLY_SPLIT = "train"
EXPECTED = f"{STEM}{ENDING} or {STEM}_<split>{ENDING}"

_BOX_NUMBERS = 4


def splits(data_uri: str) -> list[str]:
    """The names of the splits under `data_uri`, sorted."""
    return sorted(_split_files(data_uri, list_files(data_uri)))


def read(data_uri: str, split: str) -> Dataset:
    """The images that the split's file names and that are there.

    Raises:
        UsageError: no such split, a file that can't be read (naming class and image), or no image found.
        StoreError: the store failed.
    """
    uris = list_files(data_uri)
    files = _split_files(data_uri, uris)
    if split not in files:
        raise missing_split(data_uri, split, files, EXPECTED)
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for uri in filter(is_image_name, uris):
        name = posixpath.basename(uri)
        for key in {name.lower(), posixpath.splitext(name)[0].lower()}:
            by_name[key].append(uri)
    builder = DatasetBuilder(data_uri, split)
    for described in parse_regions(storage.read_bytes(files[split]), files[split]):
        images, absent = _images_of(described, by_name)
        if absent:
            builder.leave_out(SkipReason.NO_IMAGE, f"{described.where}: {absent}")
        for image_uri, objects in images.items():
            builder.add(image_uri, Described(described.filename, tuple(objects), 1, 1, described.where))
    return builder.build()


def parse_regions(data: bytes, where: str) -> list[Described]:
    """The images of the file, each once, in the order of their first box, in a frame of 1 x 1.

    Args:
        data: The whole file.
        where: What to call the file in messages.

    Raises:
        UsageError: no JSON, or an entry that can't be read; names class and image.
    """
    images: dict[str, list[Annotation]] = {}
    for label, entries in json_object(data, where).items():
        if not label.strip() or not isinstance(entries, dict):
            raise UsageError(f"{where}, class {label!r}: found {shown(entries)}, expected images with their boxes.")
        for name, value in entries.items():
            boxes = _boxes(value, f"{where}, class {label!r}, image {name!r}")
            images.setdefault(name, []).extend(Annotation(label.strip(), box) for box in boxes)
    return [Described(name, tuple(objects), 1, 1, f"{where}, image {name!r}") for name, objects in images.items()]


def write_regions(images: Iterable[Described]) -> bytes:
    """The file that `parse_regions` reads back into the same objects, but for their order among classes.

    Args:
        images: Each with a name of its own, in a frame of known size; every object with a box, and no crowds. The
            format has no place for an image without objects.
    """
    document: defaultdict[str, dict[str, list[Any]]] = defaultdict(dict)
    for image in images:
        assert image.filename is not None
        assert image.width_px is not None, "boxes can't be written as shares of a side that is not known"
        assert image.height_px is not None
        for annotation in image.objects:
            assert annotation.box_xyxy_px is not None, "an object needs its box"
            assert not annotation.is_crowd, "there is no field for crowds"
            left, top, right, bottom = annotation.box_xyxy_px
            shares = (left / image.width_px, top / image.height_px)
            sides = ((right - left) / image.width_px, (bottom - top) / image.height_px)
            boxes = document[annotation.label].setdefault(image.filename, [])
            boxes.append([plain_number(value) for value in (*shares, *sides)])
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
    described: Described, by_name: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Annotation]], str | None]:
    """The objects by the image that each lies in, and what could not be found."""
    candidates = by_name.get((described.filename or "").lower(), ())
    images: dict[str, list[Annotation]] = {}
    absent = None if candidates else "there is no image of this name"
    for annotation in described.objects if candidates else ():
        beside = [uri for uri in candidates if posixpath.basename(posixpath.dirname(uri)) == annotation.label]
        if len(candidates) > 1 and len(beside) != 1:
            absent = f"{len(candidates)} images have this name"
        else:
            images.setdefault(beside[0] if beside else candidates[0], []).append(annotation)
    return images, absent


def _split_files(data_uri: str, uris: Sequence[str]) -> dict[str, str]:
    files = {}
    for uri in uris:
        stem, ending = posixpath.splitext(below(data_uri, uri))
        if ending.lower() == ENDING and stem == STEM:
            files[ONLY_SPLIT] = uri
        elif ending.lower() == ENDING and stem.startswith(f"{STEM}_") and "/" not in stem:
            files.setdefault(stem.removeprefix(f"{STEM}_"), uri)
    return files
