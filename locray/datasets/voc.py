"""Pascal VOC: one XML file an image. Format name `voc`. Read through `locray.datasets`.

Two layouts are known:

- `Annotations/<id>.xml`, `JPEGImages/<id>.*` and `ImageSets/Main/<split>.txt` with an id a line. The lists of single
  classes (`aeroplane_train.txt`) are not splits.
- The XML files beside their images, in `images/<split>/` or in `<split>/`.

Corners are taken as they are written. (VOC's own first pixel is 1; most tools that write this format begin at 0.)
Objects marked `difficult` or `truncated` are objects like others.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn
from xml.etree import ElementTree

from locray import storage
from locray.datasets.building import DatasetBuilder
from locray.datasets.fields import decoded, number, plain, side_px
from locray.datasets.files import below, list_files, missing_split
from locray.datasets.records import Annotation, Dataset, Described, SkipReason
from locray.errors import UsageError
from locray.schema import FILENAME, HEIGHT, WIDTH, XMAX, XMIN, YMAX, YMIN

XML_ENDING = ".xml"
LIST_ENDING = ".txt"
EXPECTED = "ImageSets/Main/<split>.txt, or XML files beside their images in <split>/ or images/<split>/"

_NOT_IMAGES = frozenset({".txt", ".json", ".csv"})
_MARK = re.compile(r"\s+(-1|0|1)$")


def splits(data_uri: str) -> list[str]:
    """The names of the splits under `data_uri`, sorted."""
    return sorted(_split_lists(data_uri) or _folder_splits(data_uri))


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split with their objects; what has no image or no annotation is left out and counted.

    Raises:
        UsageError: no such split, an annotation that can't be read (naming file, object and field), or no image left.
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
            builder.leave_out(SkipReason.NO_ANNOTATION, f"split {split!r} of {data_uri}: {image_id} has no annotation")
        for _ in range(times - 1):
            builder.leave_out(SkipReason.DUPLICATE_ID, f"split {split!r} of {data_uri}: {image_id} again")
    texts = storage.read_all([found.annotation_uris[image_id] for image_id in annotated])
    for image_id, xml in zip(annotated, texts, strict=True):
        described = parse_voc(xml, found.annotation_uris[image_id])
        image_uri = found.image_of(image_id, described.filename)
        if image_uri is None:
            builder.leave_out(SkipReason.NO_IMAGE, f"{described.where}: there is no such image")
        else:
            builder.add(image_uri, described)
    return builder.build()


def parse_voc(xml: str | bytes, where: str) -> Described:
    """What one annotation file says.

    Args:
        xml: The whole file; bytes are decoded as their XML declaration says.
        where: What to call the file in messages.

    Raises:
        UsageError: not well-formed (naming line and column), a document type declaration (none of our files needs
            one, and entities can grow without bounds), or an object with a field that is missing or no number.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype(where))  # noqa: S314  # no entity gets past _NoDoctype
    try:
        parser.feed(xml)
        root = parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UsageError(f"{where}: not well-formed XML ({error}). Expected a Pascal VOC annotation.") from None
    if root.tag != "annotation":
        raise UsageError(f"{where}: found <{root.tag}>, expected a Pascal VOC <annotation>.")
    return Described(
        filename=(root.findtext(FILENAME) or "").strip() or None,
        objects=tuple(
            _parse_object(element, f"{where}, object {index}")
            for index, element in enumerate(root.findall("object"), start=1)
        ),
        width_px=side_px(root.findtext(f"size/{WIDTH}"), f"{where}, field size/{WIDTH}"),
        height_px=side_px(root.findtext(f"size/{HEIGHT}"), f"{where}, field size/{HEIGHT}"),
        where=where,
    )


def write_voc(image: Described) -> bytes:
    """The file that `parse_voc` reads back into the same image; every object with a box, and no crowds.

    The name and the labels hold no control characters, which XML can't, and no white space at their ends.
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
        for name, value in zip((XMIN, YMIN, XMAX, YMAX), annotation.box_xyxy_px, strict=True):
            ElementTree.SubElement(box, name).text = plain(value)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data


class _NoDoctype(ElementTree.TreeBuilder):
    """A tree builder that stops at a document type declaration, before an entity can be declared."""

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
        number(element.findtext(f"bndbox/{name}"), f"{where}, field bndbox/{name}") for name in (XMIN, YMIN, XMAX, YMAX)
    )
    return Annotation(label, (xmin, ymin, xmax, ymax))


@dataclass(frozen=True)
class _Split:
    """The files of a split by the image's id: its path below the folder, without the ending."""

    image_ids: Sequence[str]
    annotation_uris: Mapping[str, str]
    image_uris: Mapping[str, Sequence[str]]

    def image_of(self, image_id: str, filename: str | None) -> str | None:
        """The image with this id, the one that the annotation names if there are more; else the one it names."""
        name = re.split(r"[/\\]", filename or "")[-1]
        candidates = self.image_uris.get(image_id) or self.image_uris.get(posixpath.splitext(name)[0], ())
        named = (uri for uri in candidates if uri.rpartition("/")[2] == name)
        return next(named, candidates[0] if candidates else None)


def _files_by_id(folder_uri: str, *, deep: bool) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The XML files and the images of a folder, each by id."""
    annotations: dict[str, str] = {}
    images: defaultdict[str, list[str]] = defaultdict(list)
    for uri in list_files(folder_uri):
        image_id, ending = posixpath.splitext(below(folder_uri, uri))
        if "/" in image_id and not deep:
            continue
        if ending.lower() == XML_ENDING:
            annotations[image_id] = uri
        elif ending.lower() not in _NOT_IMAGES:
            images[image_id].append(uri)
    return annotations, images


def _listed_split(data_uri: str, split: str) -> _Split | None:
    """A split that `ImageSets/Main/<split>.txt` lists."""
    lines = _split_lists(data_uri).get(split)
    if lines is None:
        return None
    annotations, _ = _files_by_id(storage.join(data_uri, "Annotations"), deep=True)
    _, images = _files_by_id(storage.join(data_uri, "JPEGImages"), deep=True)
    # A name may end in " 1" without that being a mark.
    image_ids = [line if line in annotations else _MARK.sub("", line) for line in lines]
    return _Split(image_ids, annotations, images)


def _folder_split(data_uri: str, split: str) -> _Split | None:
    """A split that is a folder of images and XML files."""
    if split not in _folder_splits(data_uri):
        return None
    for folder_uri in (storage.join(data_uri, "images", split), storage.join(data_uri, split)):
        annotations, images = _files_by_id(folder_uri, deep=False)
        if annotations and images:
            return _Split(list(annotations | images), annotations, images)
    return None


def _split_lists(data_uri: str) -> dict[str, list[str]]:
    """The lines of every list in ImageSets/Main that is not about a single class, by the name of the split.

    A class's list marks every image with -1, 0 or 1, and is named for a split that is there as well.
    """
    folder_uri = storage.join(data_uri, "ImageSets", "Main")
    uris = [uri for uri in list_files(folder_uri) if uri.lower().endswith(LIST_ENDING)]
    names = [below(folder_uri, uri)[: -len(LIST_ENDING)] for uri in uris]
    lines = [
        [line.strip() for line in decoded(data, uri).splitlines()]
        for uri, data in zip(uris, storage.read_all(uris), strict=True)
    ]
    lists = {name: [line for line in of_one if line] for name, of_one in zip(names, lines, strict=True)}
    return {
        name: of_one
        for name, of_one in lists.items()
        if not (any(name.endswith(f"_{other}") for other in lists) and all(map(_MARK.search, of_one)))
    }


def _folder_splits(data_uri: str) -> set[str]:
    """The folders `<split>/` and `images/<split>/` that hold XML files and others side by side."""
    holds: defaultdict[str, set[bool]] = defaultdict(set)
    for uri in list_files(data_uri):
        folder, _, name = below(data_uri, uri).removeprefix("images/").rpartition("/")
        if folder and "/" not in folder:
            holds[folder].add(name.lower().endswith(XML_ENDING))
    return {folder for folder, kinds in holds.items() if kinds == {True, False}}
