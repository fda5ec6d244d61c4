"""Pascal VOC: one XML file per image. Format name `voc`.

Two layouts are supported:

- `Annotations/<id>.xml`, `JPEGImages/<id>.*` and `ImageSets/Main/<split>.txt` with one id per line. The lists of single
  classes (`aeroplane_train.txt`) are not splits.
- The XML files beside their images, in `images/<split>/` or in `<split>/`, at any depth.

An annotation belongs to the image with its own name, or to the one that its `filename` names.

Corners are taken as written. (VOC's own first pixel is 1; most tools that write this format begin at 0.) Objects marked
`difficult` or `truncated` are treated like others.
"""

from typing import NoReturn
from xml.etree import ElementTree

from locray import storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.fields import format_number, parse_number, parse_side_px
from locray.datasets.files import missing_split
from locray.datasets.records import Annotation, Dataset, ImageAnnotations, SkipReason
from locray.datasets.voc_layout import VocSplit, find_split, split_names
from locray.errors import UsageError
from locray.schema import CORNERS, FILENAME, HEIGHT, WIDTH

EXPECTED = "ImageSets/Main/<split>.txt, or XML files beside their images in <split>/ or images/<split>/"


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return split_names(data_uri)


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split that have an annotation.

    Raises:
        UsageError: no such split, an invalid annotation (the message names file, object and field), or no image left.
        StoreError: the store failed.
    """
    found = find_split(data_uri, split)
    if found is None:
        raise missing_split(data_uri, split, splits(data_uri), EXPECTED)
    builder = DatasetBuilder(data_uri, split)
    used_uris = set()
    for uri, xml in zip(found.annotation_uris, storage.read_all(found.annotation_uris), strict=True):
        image = parse_voc(xml, uri)
        image_uri = found.images.find(found.id_of(uri), image.filename)
        used_uris.add(image_uri)
        builder.add(image_uri, image)
    renamed = _annotations_by_image(found) if found.ids_without_annotation else {}
    for image_id in found.ids_without_annotation:
        image_uri = found.images.find(image_id, None)
        if image_uri is not None and image_uri in renamed:
            builder.add(image_uri, renamed[image_uri])
        elif image_uri is None or image_uri not in used_uris:
            builder.skip(SkipReason.NO_ANNOTATION, f"split {split!r} of {data_uri}: {image_id} has no annotation")
    for image_id in found.repeated_ids:
        builder.skip(SkipReason.DUPLICATE_ID, f"split {split!r} of {data_uri}: {image_id} again")
    return builder.build()


def _annotations_by_image(found: VocSplit) -> dict[str, ImageAnnotations]:
    """Images whose annotation file has another name than they, by the name that it gives; for lists of images."""
    by_image: dict[str, ImageAnnotations] = {}
    for uri, xml in zip(found.unlisted_annotation_uris, storage.read_all(found.unlisted_annotation_uris), strict=True):
        try:
            image = parse_voc(xml, uri)
        except UsageError:  # no file of this split, perhaps
            continue
        image_uri = found.images.find_named(found.id_of(uri), image.filename)
        if image_uri is not None:
            by_image.setdefault(image_uri, image)
    return by_image


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
