"""Records of an annotated data set.

A format's pure parser yields `ImageAnnotations`: unchecked content of a file. `locray.datasets.builder` checks them,
counts what has to be skipped, and makes a `Dataset`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Box = tuple[float, float, float, float]


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
    """An object with the class and box of another one of its image, or an image entry with the id of an earlier one."""
    RELATIVE_BOX = "relative_box"
    """A box of less than the first pixel, in a format of pixels: its corners are shares of the sides."""
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
    `locray.images.exif.boxes_in_upright_frame` converts boxes from this frame to the pixels of the upright image;
    `is_stored` says that they are those of the stored image where the size of the frame does not tell.
    `where` names the image's entry in messages.
    """

    image_uri: str
    objects: tuple[Annotation, ...]
    width_px: int | None
    height_px: int | None
    where: str = field(default="", compare=False)
    is_stored: bool = False


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
