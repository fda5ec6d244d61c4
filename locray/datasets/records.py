"""Records of an annotated data set, and the checks that every format shares.

A format's pure parser yields `ImageAnnotations`: unchecked content of a file. `DatasetBuilder` checks them, counts what
has to be skipped, and makes a `Dataset`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from locray.errors import UsageError

Box = tuple[float, float, float, float]

_MAX_EXAMPLES = 3
_ROUNDING = 1e-5
"""Share of a side. A centre and a size of six digits often reach this far over the edge: no box that was clipped."""


class SkipReason(StrEnum):
    """Why an annotation, or an image with all its annotations, is not part of the data set."""

    EMPTY_BOX = "empty_box"
    """The corners lie on one line: the box has no area."""
    INVERTED_BOX = "inverted_box"
    """xmin > xmax or ymin > ymax."""
    OUTSIDE_BOX = "outside_box"
    """The box lies completely outside its frame."""
    UNKNOWN_CLASS = "unknown_class"
    """The class number is not among the declared classes."""
    UNKNOWN_IMAGE = "unknown_image"
    """The image number is not among the declared images."""
    DUPLICATE_ID = "duplicate_id"
    """An image or annotation whose id or name occurred before; the first one counts."""
    NO_IMAGE = "no_image"
    """Annotations of a missing image. Counts images."""
    NO_ANNOTATION = "no_annotation"
    """An image without annotations, in a format where every image has some. Counts images."""
    FAILED_IMAGE = "failed_image"
    """The predictions table has a failure for the image. Counts images."""
    CROWD = "crowd"
    """A crowd, in a conversion to a format that can't mark crowds."""
    LOW_SCORE = "low_score"
    """The predictions table has detections, none of them with the minimum score. Counts images."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object: its class and its box in absolute pixels, continuous coordinates (see `locray.boxes`).

    `box_xyxy_px` is None if only the class is known. `is_crowd` marks a box around many objects that were not annotated
    one by one: training ignores it, and evaluation counts no detection inside it as a false positive.
    """

    label: str
    box_xyxy_px: Box | None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class ImageAnnotations:
    """What an annotation file says about one image, unchecked.

    `filename` is as written in the file; None in formats that need none. `where` (the image's entry) and
    `object_numbers` (lines or ids of the objects; empty: they are counted from 1) are for messages only.
    """

    filename: str | None
    objects: tuple[Annotation, ...]
    width_px: int | None = None
    height_px: int | None = None
    where: str = field(default="", compare=False)
    object_numbers: Sequence[int] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The images of an annotation file, and the entries that belong to none: reason and place of each."""

    images: list[ImageAnnotations]
    skipped: list[tuple[SkipReason, str]]


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its objects; no objects means that the image shows none.

    `width_px` and `height_px` are the frame that the boxes are given in: the image's own size, that of a scaled copy,
    that of the stored image before its EXIF orientation is applied, or 1 x 1 for boxes relative to the sides. They are
    None where the annotations don't say; then a box may exceed the image until the image is opened.
    `locray.images.exif.boxes_in_upright_frame` converts boxes from this frame to the pixels of the upright image.
    `where` names the image's entry in messages.
    """

    image_uri: str
    objects: tuple[Annotation, ...]
    width_px: int | None
    height_px: int | None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in the order of the annotations.

    `classes` are the labels that occur, sorted. `skipped` counts what was skipped by `SkipReason`; `skip_examples` has
    the places of the first few of each reason. `num_clipped_boxes` boxes exceeded their frame and were clipped to it.
    """

    name: str
    split: str
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    skipped: Mapping[str, int]
    num_clipped_boxes: int = 0
    skip_examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class DatasetBuilder:
    """Collects the records of one split and counts what is skipped.

    `object_noun` names an object of an image in messages, before its number (`ImageAnnotations.object_numbers`).
    """

    data_uri: str
    split: str
    object_noun: str = "object"
    _records: list[Record] = field(default_factory=list)
    _uris: set[str] = field(default_factory=set)
    _skipped: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, list[str]] = field(default_factory=dict)
    _num_clipped_boxes: int = 0

    def add(self, image_uri: str | None, image: ImageAnnotations) -> None:
        """Adds an image once, with the objects whose box has an area inside the frame. None: the image is missing."""
        if image_uri is None:
            name = f"image {image.filename!r}" if image.filename else "such image"
            self.skip(SkipReason.NO_IMAGE, f"{image.where}: there is no {name}")
            return
        if image_uri in self._uris:
            self.skip(SkipReason.DUPLICATE_ID, f"{image.where or self.data_uri}: {image_uri} again")
            return
        self._uris.add(image_uri)
        width_px, height_px = image.width_px, image.height_px
        objects = []
        for index, annotation in enumerate(image.objects):
            if annotation.box_xyxy_px is None:
                objects.append(annotation)
                continue
            reason, box = clip_to_frame(annotation.box_xyxy_px, width_px, height_px)
            if reason is not None:
                self._skip_box(reason, image_uri, image, index)
            elif box == annotation.box_xyxy_px:
                objects.append(annotation)
            else:
                self._num_clipped_boxes += _is_more_than_rounding(annotation.box_xyxy_px, box, width_px, height_px)
                objects.append(replace(annotation, box_xyxy_px=box))
        self._records.append(Record(image_uri, tuple(objects), width_px, height_px, image.where))

    def skip(self, reason: SkipReason, place: str) -> None:
        """Counts a skipped entry; `place` names its file and entry."""
        self._skipped[reason] += 1
        examples = self._examples.setdefault(str(reason), [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(place)

    def skip_all(self, skipped: Iterable[tuple[SkipReason, str]]) -> None:
        """Counts the entries that a parser skipped."""
        for reason, place in skipped:
            self.skip(reason, place)

    def _skip_box(self, reason: SkipReason, image_uri: str, image: ImageAnnotations, index: int) -> None:
        number = image.object_numbers[index] if image.object_numbers else index + 1
        annotation = image.objects[index]
        corners = " ".join(f"{value:g}" for value in annotation.box_xyxy_px or ())
        frame = f" in a frame of {image.width_px} x {image.height_px}" if image.width_px and image.height_px else ""
        place = f"{image.where or image_uri}, {self.object_noun} {number}"
        self.skip(reason, f"{place}, box of {annotation.label!r}: {corners}{frame}")

    def build(self) -> Dataset:
        """The data set, named after the last part of its URI.

        Raises:
            UsageError: no image is left.
        """
        if not self._records:
            found = ", ".join(f"{count} x {reason}" for reason, count in self._skipped.items()) or "no annotations"
            first = next((f" The first: {places[0]}." for places in self._examples.values()), "")
            raise UsageError(
                f"Split {self.split!r} of {self.data_uri} has no usable image. Found: {found}.{first} "
                "Expected annotations and their images: check that both were copied."
            )
        return Dataset(
            name=self.data_uri.rstrip("/!").rpartition("/")[2],
            split=self.split,
            records=tuple(self._records),
            classes=tuple(sorted({annotation.label for record in self._records for annotation in record.objects})),
            skipped={str(reason): count for reason, count in sorted(self._skipped.items())},
            num_clipped_boxes=self._num_clipped_boxes,
            skip_examples={reason: tuple(places) for reason, places in self._examples.items()},
        )


def _is_more_than_rounding(before: Box, after: Box, width_px: int | None, height_px: int | None) -> bool:
    slack = (_ROUNDING * (width_px or 0), _ROUNDING * (height_px or 0)) * 2
    return any(abs(one - other) > most for one, other, most in zip(before, after, slack, strict=True))


def clip_to_frame(box_xyxy_px: Box, width_px: int | None, height_px: int | None) -> tuple[SkipReason | None, Box]:
    """The part of a finite box inside its frame, or the reason why there is none.

    A frame of unknown size still begins at 0, 0. (Plain numbers: one array per box would cost ten times as much.)

    Returns:
        (None, the clipped box), or (the reason, the box as it was).
    """
    xmin, ymin, xmax, ymax = box_xyxy_px
    if xmin > xmax or ymin > ymax:
        return SkipReason.INVERTED_BOX, box_xyxy_px
    if xmin == xmax or ymin == ymax:
        return SkipReason.EMPTY_BOX, box_xyxy_px
    width, height = width_px or math.inf, height_px or math.inf
    inside = (max(xmin, 0.0), max(ymin, 0.0), min(xmax, width), min(ymax, height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return SkipReason.OUTSIDE_BOX, box_xyxy_px
    return None, inside
