"""Pascal VOC: one XML file per image. Format name `voc`.

Two layouts are supported:

- `Annotations/<id>.xml`, `JPEGImages/<id>.*` and `ImageSets/Main/<split>.txt` with one id per line. The lists of single
  classes (`aeroplane_train.txt`) are not splits.
- The XML files beside their images, in `images/<split>/` or in `<split>/`.

Corners are taken as written. (VOC's own first pixel is 1; most tools that write this format begin at 0.) Objects marked
`difficult` or `truncated` are treated like others.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn
from xml.etree import ElementTree

from locray import storage
from locray.datasets.fields import decode_text, format_number, parse_number, parse_side_px
from locray.datasets.files import list_files, missing_split, relative_path
from locray.datasets.records import Annotation, Dataset, DatasetBuilder, ImageAnnotations, SkipReason
from locray.errors import UsageError
from locray.schema import CORNERS, FILENAME, HEIGHT, WIDTH

XML_EXTENSION = ".xml"
LIST_EXTENSION = ".txt"
EXPECTED = "ImageSets/Main/<split>.txt, or XML files beside their images in <split>/ or images/<split>/"

_NOT_IMAGES = frozenset({".txt", ".json", ".csv"})
_CLASS_MARK = re.compile(r"\s+(-1|0|1)$")


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted(_split_lists(data_uri) or _folder_splits(data_uri))


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split that have an annotation.

    Raises:
        UsageError: no such split, an invalid annotation (the message names file, object and field), or no image left.
        StoreError: the store failed.
    """
    found = _listed_split(data_uri, split) or _folder_split(data_uri, split)
    if found is None:
        raise missing_split(data_uri, split, splits(data_uri), EXPECTED)
    builder = DatasetBuilder(data_uri, split)
    annotated = []
    for image_id, times in Counter(found.image_ids).items():
        if image_id in found.annotation_uris:
            annotated.append(image_id)
        else:
            builder.skip(SkipReason.NO_ANNOTATION, f"split {split!r} of {data_uri}: {image_id} has no annotation")
        for _ in range(times - 1):
            builder.skip(SkipReason.DUPLICATE_ID, f"split {split!r} of {data_uri}: {image_id} again")
    texts = storage.read_all([found.annotation_uris[image_id] for image_id in annotated])
    for image_id, xml in zip(annotated, texts, strict=True):
        image = parse_voc(xml, found.annotation_uris[image_id])
        builder.add(found.find_image(image_id, image.filename), image)
    return builder.build()


def parse_voc(xml: str | bytes, where: str) -> ImageAnnotations:
    """The image of one annotation file.

    Args:
        xml: The whole file; bytes are decoded as their XML declaration says.
        where: The file's name in messages.

    Raises:
        UsageError: not well-formed (the message names line and column), a document type declaration (entities can
            expand without bounds), or an object with a missing or invalid field.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype(where))  # noqa: S314  # no entity gets past _NoDoctype
    try:
        parser.feed(xml)
        root = parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UsageError(f"{where}: not well-formed XML ({error}). Expected a Pascal VOC annotation.") from None
    if root.tag != "annotation":
        raise UsageError(f"{where}: found <{root.tag}>, expected a Pascal VOC <annotation>.")
    return ImageAnnotations(
        filename=(root.findtext(FILENAME) or "").strip() or None,
        objects=tuple(
            _parse_object(element, f"{where}, object {index}")
            for index, element in enumerate(root.findall("object"), start=1)
        ),
        width_px=parse_side_px(root.findtext(f"size/{WIDTH}"), f"{where}, field size/{WIDTH}"),
        height_px=parse_side_px(root.findtext(f"size/{HEIGHT}"), f"{where}, field size/{HEIGHT}"),
        where=where,
    )


def write_voc(image: ImageAnnotations) -> bytes:
    """An annotation file; the inverse of `parse_voc`.

    Args:
        image: With objects that all have a box and are no crowds. Name and labels without control characters, which
            XML can't hold, and without white space at their ends.
    """
    root = ElementTree.Element("annotation")
    if image.filename is not None:
        ElementTree.SubElement(root, FILENAME).text = image.filename
    size = ElementTree.SubElement(root, "size")
    for name, side in ((WIDTH, image.width_px), (HEIGHT, image.height_px)):
        ElementTree.SubElement(size, name).text = str(side or 0)
    for annotation in image.objects:
        assert annotation.box_xyxy_px is not None, "an object needs its box"
        assert not annotation.is_crowd, "there is no element for crowds"
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = annotation.label
        box = ElementTree.SubElement(element, "bndbox")
        for name, value in zip(CORNERS, annotation.box_xyxy_px, strict=True):
            ElementTree.SubElement(box, name).text = format_number(value)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document type declarations, and so every entity declaration."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def doctype(self, *_: object) -> NoReturn:
        raise UsageError(f"{self._where}: found a document type declaration (<!DOCTYPE>). Expected none: remove it.")


def _parse_object(element: ElementTree.Element, where: str) -> Annotation:
    label = (element.findtext("name") or "").strip()
    if not label:
        raise UsageError(f"{where}, field name: found nothing, expected the name of its class.")
    xmin, ymin, xmax, ymax = (
        parse_number(element.findtext(f"bndbox/{name}"), f"{where}, field bndbox/{name}") for name in CORNERS
    )
    return Annotation(label, (xmin, ymin, xmax, ymax))


@dataclass(frozen=True)
class _Split:
    """The files of a split by image id: the path below the folder, without extension."""

    image_ids: Sequence[str]
    annotation_uris: Mapping[str, str]
    image_uris: Mapping[str, Sequence[str]]

    def find_image(self, image_id: str, filename: str | None) -> str | None:
        """The image with this id, or the one that the annotation names; of several, the named one."""
        name = re.split(r"[/\\]", filename or "")[-1]
        candidates = self.image_uris.get(image_id) or self.image_uris.get(posixpath.splitext(name)[0], ())
        named = (uri for uri in candidates if uri.rpartition("/")[2] == name)
        return next(named, candidates[0] if candidates else None)


def _files_by_id(folder_uri: str, *, deep: bool) -> tuple[dict[str, str], dict[str, list[str]]]:
    """XML files and images of a folder, by id."""
    annotations: dict[str, str] = {}
    images: defaultdict[str, list[str]] = defaultdict(list)
    for uri in list_files(folder_uri):
        image_id, ending = posixpath.splitext(relative_path(folder_uri, uri))
        if "/" in image_id and not deep:
            continue
        if ending.lower() == XML_EXTENSION:
            annotations[image_id] = uri
        elif ending.lower() not in _NOT_IMAGES:
            images[image_id].append(uri)
    return annotations, images


def _listed_split(data_uri: str, split: str) -> _Split | None:
    """The split that `ImageSets/Main/<split>.txt` lists."""
    lines = _split_lists(data_uri).get(split)
    if lines is None:
        return None
    annotations, _ = _files_by_id(storage.join(data_uri, "Annotations"), deep=True)
    _, images = _files_by_id(storage.join(data_uri, "JPEGImages"), deep=True)
    # An id may itself end in " 1".
    image_ids = [line if line in annotations else _CLASS_MARK.sub("", line) for line in lines]
    return _Split(image_ids, annotations, images)


def _folder_split(data_uri: str, split: str) -> _Split | None:
    """The split in a folder of images and XML files."""
    if split not in _folder_splits(data_uri):
        return None
    for folder_uri in (storage.join(data_uri, "images", split), storage.join(data_uri, split)):
        annotations, images = _files_by_id(folder_uri, deep=False)
        if annotations and images:
            return _Split(list(annotations | images), annotations, images)
    return None


def _split_lists(data_uri: str) -> dict[str, list[str]]:
    """The lines of every list in ImageSets/Main that is no list of a single class, by split.

    The list of a class marks every image with -1, 0 or 1, and is named `<class>_<split>` after a list that exists.
    """
    folder_uri = storage.join(data_uri, "ImageSets", "Main")
    uris = [uri for uri in list_files(folder_uri) if uri.lower().endswith(LIST_EXTENSION)]
    names = [relative_path(folder_uri, uri)[: -len(LIST_EXTENSION)] for uri in uris]
    lines = [
        [line.strip() for line in decode_text(data, uri).splitlines()]
        for uri, data in zip(uris, storage.read_all(uris), strict=True)
    ]
    lists = {name: [line for line in of_one if line] for name, of_one in zip(names, lines, strict=True)}
    return {
        name: of_one
        for name, of_one in lists.items()
        if not (any(name.endswith(f"_{other}") for other in lists) and all(map(_CLASS_MARK.search, of_one)))
    }


def _folder_splits(data_uri: str) -> set[str]:
    """Names of the folders `<split>/` and `images/<split>/` that hold both XML files and others."""
    holds: defaultdict[str, set[bool]] = defaultdict(set)
    for uri in list_files(data_uri):
        folder, _, name = relative_path(data_uri, uri).removeprefix("images/").rpartition("/")
        if folder and "/" not in folder:
            holds[folder].add(name.lower().endswith(XML_EXTENSION))
    return {folder for folder, kinds in holds.items() if kinds == {True, False}}
